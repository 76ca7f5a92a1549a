"""What is asked for: the fields of POST /generate and POST /replay, as types and as the bytes that are sent.

Owns field names and types, and how pictures go along. What a field means, and what is left out means, is told by the
server (docs/api.md); nothing is checked here that it checks.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

Picture = str | bytes | Path
"""A file, its bytes, or a text as the server takes it: base64, a data URL, `sha256:<digest>` of an earlier upload."""


class Lora(TypedDict, total=False):
    """A LoRA file of the server."""

    name: Required[str]
    weight: float


class Control(TypedDict, total=False):
    """A ControlNet of the server, and the picture that it follows."""

    name: Required[str]
    image: Required[Picture]
    weight: float
    start: float
    end: float


class Webhook(TypedDict, total=False):
    """Whom the server tells of the job."""

    url: Required[str]
    events: list[Literal["started", "progress", "ended"]]


class Request(TypedDict, total=False):
    """The body of POST /generate, where a picture may also be bytes or a path."""

    task: Literal["text-to-image", "image-to-image", "inpainting", "upscale"]
    prompt: str
    prompt_syntax: Literal["a1111", "plain"]
    reproducibility: Literal["standard", "strict"]
    clip_skip: int | None
    negative_prompt: str | None
    width: int | None
    height: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_rescale: float | None
    sampler: str | None
    noise_schedule: str | None
    loras: list[Lora]
    controls: list[Control]
    seed: int | None
    num_images: int
    image: Picture
    strength: float | None
    mask_image: Picture | None
    mask_convention: Literal["auto", "white", "black", "transparent"]
    mask_blur: int
    padding_mask_crop: int | None
    outpaint_left: int
    outpaint_top: int
    outpaint_right: int
    outpaint_bottom: int
    noise_level: int | None
    upscale: bool
    upscaler: str | None
    output_format: Literal["png", "jpeg", "webp"]
    previews: bool
    model: str | None
    priority: Literal["high", "normal", "low"]
    deadline_s: float | None
    webhook: Webhook | None


class Replay(TypedDict, total=False):
    """The body of POST /replay, where a picture may also be bytes or a path."""

    image: Picture
    recipe: Mapping[str, Any] | str
    init_image: Picture
    mask_image: Picture
    control_images: list[Picture]
    output_format: Literal["png", "jpeg", "webp"]
    previews: bool
    priority: Literal["high", "normal", "low"]
    deadline_s: float | None
    webhook: Webhook | None


def body_of(request: Request | str) -> bytes:
    """The request as JSON; a text alone is a prompt. Reads files: raises OSError."""
    return _json({"prompt": request} if isinstance(request, str) else request)


def replay_body_of(replay: Replay | Picture) -> bytes:
    """The replay as JSON; a picture alone is the one to draw again. Reads files: raises OSError."""
    return _json(replay if isinstance(replay, Mapping) else {"image": replay})


def _json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(fields), default=_base64).encode()


def _base64(picture: object) -> str:
    """A picture as text. JSON has everything else that the server takes."""
    if isinstance(picture, os.PathLike):
        picture = Path(picture).read_bytes()
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return base64.b64encode(picture).decode()
    raise TypeError(f"A request cannot hold a {type(picture).__name__}.")
