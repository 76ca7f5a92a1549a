"""The networks of the x4 upscaler, and the pipeline that diffusers runs them in.

A UNet of seven input channels (noisy latents 4, small picture 3) at the size of the small picture, told the noise level
of that picture as its class, and a KL autoencoder with f = 4: the form of diffusers' StableDiffusionUpscalePipeline.
Neither has attention: any size costs the same a pixel, crops teach what whole pictures need, and text is not read. The
pipeline therefore needs no text encoder; where one is handed in, it is run and ignored.

With the shipped settings (128 to 512 pixels): autoencoder 0.65 M parameters, 12 GFLOP to encode, 32 to decode; UNet
3.33 M parameters, 37 GFLOP a call. A step and a decode take 0.7 seconds of two CPU cores with AVX-512; the weights are
7.99 MB in float16.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from training.autoencoder import new_autoencoder, standardise

SCALING = 0.08333
"""StableDiffusionUpscalePipeline replaces any other scaling factor by this one."""

SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
LOW_RES_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}


@dataclass(frozen=True)
class AutoencoderSettings:
    """Architecture and loss. Three `channels` make f = 4; each is a multiple of 8."""

    channels: tuple[int, ...] = (16, 32, 64)
    kl_weight: float = 3e-4
    edge_weight: float = 0.5


@dataclass(frozen=True)
class DenoiserSettings:
    """Architecture; `max_noise_level` of the small picture (0.34 in -1..1 at 200, 0.05 at 20); how the checkpoint draws
    unless told otherwise, and how reports are drawn, from small pictures of `report_side` / 4 pixels."""

    channels: tuple[int, ...] = (80, 80, 80)
    layers: int = 2
    groups: int = 16
    max_noise_level: int = 200
    default_noise_level: int = 20
    default_steps: int = 10
    report_side: int = 256


def new_upscaler_autoencoder(settings: AutoencoderSettings) -> AutoencoderKL:
    """Random weights. ValueError unless it halves the picture twice."""
    if len(settings.channels) != 3:
        raise ValueError(f"The upscaler's autoencoder has three channels entries (f = 4), not {settings.channels}.")
    return new_autoencoder(settings.channels)


def new_upscaler_unet(settings: DenoiserSettings) -> UNet2DConditionModel:
    """Random weights; neighbouring noise levels start with similar embeddings, so that each learns from all."""
    levels = len(settings.channels)
    unet = UNet2DConditionModel(
        sample_size=128,
        in_channels=7,
        out_channels=4,
        block_out_channels=settings.channels,
        layers_per_block=settings.layers,
        down_block_types=("DownBlock2D",) * levels,
        mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D",) * levels,
        norm_num_groups=settings.groups,
        num_class_embeds=settings.max_noise_level + 1,
    )
    table: Tensor = unet.class_embedding.weight  # [max_noise_level + 1, 4 * channels[0]]
    frequencies = torch.exp(torch.linspace(0, -6, table.shape[1] // 2, device=table.device))
    angles = torch.arange(table.shape[0], device=table.device)[:, None] * frequencies / 8
    with torch.no_grad():
        table.copy_(torch.cat([angles.sin(), angles.cos()], 1))
    return unet


def fit_to_pipeline(autoencoder: AutoencoderKL, pictures: Tensor) -> None:
    """Rescale the latents so that, times SCALING, each channel has mean 0 and deviation 1 over `pictures` [n, 3, h, w].

    What is decoded stays the same.
    """
    standardise(autoencoder, pictures)
    into, out = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = autoencoder.config.latent_channels
    with torch.no_grad():
        into.weight[:channels] /= SCALING
        into.bias[:channels] /= SCALING
        into.bias[channels:] -= 2 * torch.tensor(SCALING).log()
        out.weight *= SCALING
    autoencoder.register_to_config(scaling_factor=SCALING)


def low_res_scheduler() -> DDPMScheduler:
    """Puts noise of a level on the small picture."""
    return DDPMScheduler(**LOW_RES_SCHEDULE)


def upscale_pipeline(unet: UNet2DConditionModel, autoencoder: AutoencoderKL) -> StableDiffusionUpscalePipeline:
    """diffusers' own pipeline around the two networks, DPM-Solver++(2M) as its scheduler, without a text encoder."""
    pipeline = StableDiffusionUpscalePipeline(
        vae=autoencoder,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        low_res_scheduler=low_res_scheduler(),
        scheduler=DPMSolverMultistepScheduler(**SCHEDULE),
        max_noise_level=unet.config.num_class_embeds - 1,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def upscaled(
    pipeline: StableDiffusionUpscalePipeline, low: Tensor, steps: int, noise_level: int, seed: int = 0
) -> Tensor:
    """Small pictures [n, 3, h, w] in -1..1 to [n, 3, 4h, 4w] in -1..1, without guidance."""
    place = pipeline.unet.device
    pictures: Tensor = pipeline(
        image=(low + 1) / 2,
        prompt_embeds=torch.zeros(len(low), 1, 1, device=place),
        guidance_scale=1.0,
        num_inference_steps=steps,
        noise_level=noise_level,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).images
    return pictures * 2 - 1


def save_upscaler(
    unet: UNet2DConditionModel, autoencoder: AutoencoderKL, folder: Path, settings: DenoiserSettings
) -> None:
    """Write diffusers' layout, float16 safetensors. The networks themselves become float16.

    Load it with `StableDiffusionUpscalePipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)` and call it
    with `prompt_embeds=torch.zeros(1, 1, 1)` and `guidance_scale=1`, or hand in any text encoder with its tokenizer.
    """
    upscale_pipeline(unet.half(), autoencoder.half()).save_pretrained(folder)
    defaults = {
        "num_inference_steps": settings.default_steps,
        "guidance_scale": 1.0,
        "sampler": "dpmpp_2m",
        "noise_level": settings.default_noise_level,
    }
    (folder / "denoised.json").write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")
