"""A tiny random checkpoint in diffusers layout: real classes, milliseconds a step.

Random weights give outputs near zero, which would make every comparison of pictures pass; so the last convolutions are
scaled until the networks' outputs have unit size and the pictures use the whole range.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

CONTEXT = 24
SIDE = 64
"""Pixels of the tiny model's own size."""

SD1_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def save_tiny_inpainting_checkpoint(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny checkpoint with a 9-channel UNet that draws from text alone with zeros in the last five."""
    save_tiny_checkpoint(folder, seed=seed, channels=9)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionInpaintPipeline"}))
    (folder / "denoised.json").write_text('{"text_to_image": "zero-channels"}')
    return folder


def save_tiny_guided_checkpoint(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny checkpoint whose UNet is told the guidance scale, as latent consistency models are."""
    return save_tiny_checkpoint(folder, seed=seed, time_cond_proj_dim=32)


def save_tiny_sdxl_checkpoint(folder: Path, *, seed: int = 0, channels: int = 4) -> Path:
    """Write a tiny SDXL checkpoint of SIDE x SIDE pixels: two text encoders, sizes and pooled prompt told."""
    save_tiny_checkpoint(folder, seed=seed, channels=channels, is_sdxl=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        second = CLIPTextModelWithProjection(_text_config(512, CONTEXT, 3)).eval()
        with torch.no_grad():
            second.get_input_embeddings().weight.mul_(50)
    second.save_pretrained(folder / "text_encoder_2", safe_serialization=True)
    tokenizer = _make_tokenizer()
    tokenizer.pad_token = "!"  # as in SDXL, where the second one pads with token 0
    tokenizer.save_pretrained(folder / "tokenizer_2")
    index = json.loads((folder / "model_index.json").read_text())
    own = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
    }
    left_out = ("safety_checker", "requires_safety_checker")
    rest = {name: value for name, value in index.items() if name not in left_out}
    (folder / "model_index.json").write_text(json.dumps(rest | own))
    return folder


def save_tiny_sd2_checkpoint(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny SD 2.x checkpoint that predicts velocity: linear projections, 23 layers of text, attention in the
    VAE, as the real one has."""
    save_tiny_checkpoint(folder, prediction_type="v_prediction", seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        unet = UNet2DConditionModel(
            sample_size=SIDE // 8,
            block_out_channels=(16, 32, 32),
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=(2, 4, 4),
            use_linear_projection=True,
            norm_num_groups=8,
        ).eval()
        with torch.no_grad():
            out = unet(torch.randn(4, 4, 8, 8), torch.tensor([10, 300, 600, 900]), torch.randn(4, CONTEXT, 32)).sample
            unet.conv_out.weight.mul_(1.0 / out.std())
        vae, text_encoder = _make_vae(has_attention=True), _make_text_encoder(512, CONTEXT, 23)
    for network, name in ((unet, "unet"), (vae, "vae"), (text_encoder, "text_encoder")):
        network.save_pretrained(folder / name, safe_serialization=True)
    return folder


def save_tiny_upscaler(folder: Path, *, reads_prompts: bool = True, seed: int = 0) -> Path:
    """Write a tiny x4 upscaler of 32 x 32 pixels a tile, 51 noise levels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D")
        crossed = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
        down, up = crossed if reads_prompts else plain
        unet = UNet2DConditionModel(
            sample_size=32,
            in_channels=7,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=down,
            up_block_types=up,
            mid_block_type="UNetMidBlock2DCrossAttn" if reads_prompts else "UNetMidBlock2D",
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
            num_class_embeds=51,
        ).eval()
        with torch.no_grad():
            timesteps, levels = torch.tensor([10.0, 300.0, 600.0, 900.0]), torch.tensor([0, 10, 20, 50])
            out = unet(torch.randn(4, 7, 32, 32), timesteps, torch.randn(4, CONTEXT, 32), class_labels=levels).sample
            unet.conv_out.weight.mul_(1.0 / out.std())
        vae, text_encoder = _make_vae(3, 0.08333), _make_text_encoder(512, CONTEXT)
    pipeline = diffusers.StableDiffusionUpscalePipeline(
        vae=vae,
        text_encoder=text_encoder if reads_prompts else None,
        tokenizer=_make_tokenizer() if reads_prompts else None,
        unet=unet,
        low_res_scheduler=diffusers.DDPMScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
        scheduler=diffusers.DDIMScheduler.from_config(SD1_SCHEDULER | {"prediction_type": "v_prediction"}),
        max_noise_level=50,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_tiny_super_resolution(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny x4 LDM super-resolution checkpoint of 32 x 32 pixels a tile, 64 codes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=32,
            in_channels=6,
            out_channels=3,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
        ).eval()
        vqvae = VQModel(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
            num_vq_embeddings=64,
            mid_block_add_attention=False,
        ).eval()
        with torch.no_grad():
            out = unet(torch.randn(4, 6, 32, 32), torch.tensor([10.0, 300.0, 600.0, 900.0])).sample
            unet.conv_out.weight.mul_(1.0 / out.std())
            vqvae.quantize.embedding.weight.normal_()
            picture = vqvae.decode(torch.randn(4, 3, 16, 16)).sample
            vqvae.decoder.conv_out.weight.mul_(0.6 / picture.std())
            vqvae.decoder.conv_out.bias.sub_(picture.mean() * 0.6 / picture.std())
    schedule = SD1_SCHEDULER | {"beta_start": 0.0015, "beta_end": 0.0155}
    scheduler = diffusers.DDIMScheduler.from_config(schedule)
    diffusers.LDMSuperResolutionPipeline(vqvae, unet, scheduler).save_pretrained(folder)
    return folder


def save_tiny_controlnet(checkpoint: Path, folder: Path, *, seed: int = 0) -> Path:
    """Write a ControlNet for the UNet of a tiny checkpoint into `folder`; it steers hard."""
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", low_cpu_mem_usage=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        controlnet = diffusers.ControlNetModel.from_unet(unet, conditioning_channels=3)
        with torch.no_grad():  # from_unet starts with zeros, which steer nowhere
            for layer in [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]:
                layer.weight.normal_(0, 0.2)
            controlnet.controlnet_cond_embedding.conv_out.weight.normal_(0, 0.5)
    controlnet.save_pretrained(folder, safe_serialization=True)
    return folder


def save_trained_tokenizer(folder: Path, texts: Sequence[str], *, pieces: int, context: int) -> None:
    """Replace the tokenizer of the checkpoint in `folder` by a byte-level BPE trained on `texts`, of `pieces` pieces
    and start and end token, which also pads; and the text encoder by one for it, of `context` positions."""
    tokenizer = Tokenizer(models.BPE())  # without an unknown token: bytes leave nothing unknown
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=pieces, initial_alphabet=alphabet, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    start, end = (tokenizer.token_to_id(token) for token in ("<|startoftext|>", "<|endoftext|>"))
    assert start == pieces, f"the texts make only {start} pieces"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=context,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    ).save_pretrained(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _make_text_encoder(start, context).save_pretrained(folder / "text_encoder", safe_serialization=True)


def save_tiny_checkpoint(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    seed: int = 0,
    width: int = 32,
    channels: int = 4,
    time_cond_proj_dim: int | None = None,
    is_sdxl: bool = False,
) -> Path:
    """Write a tiny SD 1.x class checkpoint of SIDE x SIDE pixels into `folder` and return it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = _make_unet(width, channels, time_cond_proj_dim, is_sdxl)
        vae, text_encoder = _make_vae(), _make_text_encoder(512, CONTEXT, 3 if is_sdxl else 2)
    for network, name in ((unet, "unet"), (vae, "vae"), (text_encoder, "text_encoder")):
        network.save_pretrained(folder / name, safe_serialization=True)
    _make_tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    config = SD1_SCHEDULER | {"prediction_type": prediction_type}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _make_unet(width: int, channels: int, time_cond_proj_dim: int | None, is_sdxl: bool) -> UNet2DConditionModel:
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8} if is_sdxl else {}
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=channels,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64 if is_sdxl else 32,
        attention_head_dim=8,
        norm_num_groups=8,
        time_cond_proj_dim=time_cond_proj_dim,
        projection_class_embeddings_input_dim=32 + 6 * 8 if is_sdxl else None,
        **added,
    ).eval()
    latents = torch.randn(4, channels, SIDE // 8, SIDE // 8)
    context = torch.randn(4, CONTEXT, unet.config.cross_attention_dim)
    told = {"text_embeds": torch.randn(4, 32), "time_ids": torch.full((4, 6), 64.0)}
    guidance = torch.randn(4, time_cond_proj_dim) if time_cond_proj_dim else None
    with torch.no_grad():
        timesteps = torch.tensor([10.0, 300.0, 600.0, 900.0])
        out = unet(latents, timesteps, context, timestep_cond=guidance, added_cond_kwargs=told).sample
        unet.conv_out.weight.mul_(1.0 / out.std())
    return unet


def _make_vae(levels: int = 4, scaling_factor: float = 0.18215, has_attention: bool = False) -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16)[:levels],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=SIDE,
        mid_block_add_attention=has_attention,
        scaling_factor=scaling_factor,
    ).eval()
    with torch.no_grad():
        picture = vae.decode(torch.randn(4, 4, SIDE // 8, SIDE // 8) / scaling_factor).sample
        vae.decoder.conv_out.weight.mul_(0.6 / picture.std())
        vae.decoder.conv_out.bias.sub_(picture.mean() * 0.6 / picture.std())
    return vae


def _make_text_encoder(pieces: int, context: int, layers: int = 2) -> CLIPTextModel:
    """For a tokenizer of `pieces` pieces, with the start and the end token behind them."""
    text_encoder = CLIPTextModel(_text_config(pieces, context, layers)).eval()
    with torch.no_grad():
        # CLIP's initial embeddings are tiny; louder ones make prompts matter.
        text_encoder.get_input_embeddings().weight.mul_(50)
    return text_encoder


def _text_config(pieces: int, context: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=pieces + 2,
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=context,
        bos_token_id=pieces,
        eos_token_id=pieces + 1,
        pad_token_id=pieces + 1,
    )


def _make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: a token a byte, so every Unicode prompt encodes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    vocabulary |= {f"{symbol}</w>": 256 + index for index, symbol in enumerate(alphabet)}
    vocabulary |= {"<|startoftext|>": 512, "<|endoftext|>": 513}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 512), ("<|endoftext|>", 513)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CONTEXT,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
