"""The second half of a request that is drawn and then enlarged: the request to the upscaler.

Owns what it asks for. Knows nothing of queues or files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from models.request import PictureRequest, UpscaleRequest
from workers.protocols import Checkpoint


def enlarging(request: PictureRequest, pictures: Sequence[np.ndarray], upscaler: Checkpoint) -> UpscaleRequest:
    """What enlarges the drawn `pictures` (H, W, 3) of `request`, with the upscaler's defaults and the same seeds."""
    factor, defaults = upscaler.upscale_factor, upscaler.defaults
    assert factor is not None, "A model that cannot enlarge was asked to. This is a bug."
    height, width = pictures[0].shape[:2]
    reads_prompts, highest = upscaler.window_tokens > 0, upscaler.max_noise_level
    return UpscaleRequest(
        model=upscaler.name,
        prompt=request.prompt if reads_prompts else "",
        negative_prompt=request.negative_prompt if reads_prompts else None,
        prompt_syntax=request.prompt_syntax,
        width=factor * width,
        height=factor * height,
        num_inference_steps=defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        guidance_rescale=defaults.guidance_rescale,
        sampler=defaults.sampler,
        noise_schedule=defaults.noise_schedule,
        reproducibility=request.reproducibility,
        seed=request.seed,
        num_images=len(pictures),
        image=f"sha256:{hashlib.sha256(pictures[0].tobytes()).hexdigest()}",
        noise_level=None if highest is None else min(defaults.noise_level, highest),
    )
