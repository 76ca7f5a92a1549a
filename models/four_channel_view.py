"""The text-to-image face of an inpainting UNet, for diffusers.

Owns the claim that a network which draws from text alone with zeros in its extra input channels *is* a 4-channel
network: a convolution of zeros adds nothing, so those columns of `conv_in` can be cut off. The engine does not need
this: it feeds the zeros (`models.denoiser`).
"""

from __future__ import annotations

from typing import Any

import torch


def four_channel_view(unet: Any) -> Any:
    """The UNet2DConditionModel with `in_channels` = 4 that computes what `unet` computes with zeros behind the latents.

    unet: a UNet2DConditionModel with more input than output channels, as diffusers' inpainting networks have (9 and
    4). Only for checkpoints that declare `"text_to_image": "zero-channels"` in `denoised.json`; other inpainting
    networks were never trained on zeros. Everything but `conv_in` is shared, not copied, so place, cast and train
    `unet` first and take the view last; `conv_in` is a copy of its first columns (4 x 3 x 3 numbers a filter, so that
    it can be saved) and its bias. Raises ValueError when there is nothing to cut off.

    The same picture as the server's, from a checkpoint in `folder`:

        from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
        from models.four_channel_view import four_channel_view

        inpainting = StableDiffusionInpaintPipeline.from_pretrained(folder)
        parts = inpainting.components | {"unet": four_channel_view(inpainting.unet)}
        pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        picture = pipeline("a red apple", num_inference_steps=25, guidance_scale=4.0).images[0]
    """
    latent_channels = unet.config.out_channels
    if unet.config.in_channels <= latent_channels:
        raise ValueError(
            f"This UNet has {unet.config.in_channels} input channels; a view is for networks with more than"
            f" {latent_channels}. Use it as it is."
        )
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced below
        view = type(unet).from_config({**unet.config, "in_channels": latent_channels})
    for name, module in unet.named_children():
        if name != "conv_in":
            setattr(view, name, module)
    with torch.no_grad():
        view.conv_in.weight = torch.nn.Parameter(unet.conv_in.weight[:, :latent_channels].clone(), requires_grad=False)
    view.conv_in.bias = unet.conv_in.bias
    view.training = unet.training
    return view
