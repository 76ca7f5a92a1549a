"""A loaded model as the API sees it.

Owns the translation from a checkpoint and the sampler catalogue to a ModelEntry. Reads no Redis.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import structlog

from models.errors import SamplerRefused
from models.request import SIZE_MULTIPLE
from models.samplers import ALIASES, SAMPLERS, check_scheduler_config, max_steps_of
from workers import contract
from workers.contract import ModelDefaults, ModelEntry, SamplerEntry
from workers.protocols import Checkpoint

log = structlog.get_logger(__name__)


def lora_names(folder: Path) -> tuple[str, ...]:
    """Names under which requests may ask for the LoRA files of a directory, which need not exist."""
    return _names(folder, lambda: (file.stem for file in folder.glob("*.safetensors")))


def controlnet_names(folder: Path) -> tuple[str, ...]:
    """Names under which requests may ask for the ControlNets of a directory, which need not exist."""
    return _names(folder, lambda: (file.parent.name for file in folder.glob("*/config.json")))


def _names(folder: Path, look: Callable[[], Iterable[str]]) -> tuple[str, ...]:
    """Sorted. A name that no request could spell is left out, and so is a directory that cannot be read now."""
    try:
        return tuple(sorted(name for name in look() if len(name) <= 200 and name.isprintable()))
    except OSError as error:
        log.warning("a directory cannot be read", folder=str(folder), error=str(error))
        return ()


def describe_model(checkpoint: Checkpoint) -> ModelEntry:
    """The catalogue entry of a checkpoint, with the samplers that its scheduler's configuration allows."""
    samplers = tuple(entry for name in SAMPLERS if (entry := _describe_sampler(checkpoint, name)))
    offered = {entry.name for entry in samplers}
    defaults, highest = checkpoint.defaults, checkpoint.max_noise_level
    return ModelEntry(
        name=checkpoint.name,
        tasks=checkpoint.tasks,
        defaults=ModelDefaults(
            width=defaults.width,
            height=defaults.height,
            num_inference_steps=defaults.num_inference_steps,
            guidance_scale=defaults.guidance_scale,
            sampler=defaults.sampler,
            noise_schedule=defaults.noise_schedule,
            strength=defaults.strength,
            clip_skip=defaults.clip_skip,
            guidance_rescale=defaults.guidance_rescale,
            noise_level=None if highest is None else min(defaults.noise_level, highest),
        ),
        size_multiple=SIZE_MULTIPLE,
        min_size=checkpoint.min_size,
        max_size=checkpoint.max_size,
        max_pixels=checkpoint.max_pixels,
        max_images=checkpoint.max_images,
        token_limit=checkpoint.token_limit,
        window_tokens=checkpoint.window_tokens,
        max_clip_skip=checkpoint.max_clip_skip,
        upscale_factor=checkpoint.upscale_factor,
        max_noise_level=highest,
        samplers=samplers,
        sampler_aliases={alias: pair for alias, pair in ALIASES.items() if pair[0] in offered},
        prediction_type=checkpoint.prediction_type,
        device=checkpoint.device,
        dtype=checkpoint.dtype,
        digest=checkpoint.digest,
        contract_version=contract.CONTRACT_VERSION,
    )


def entry_version(raw: Any) -> int:
    """The contract version of an entry's worker, as Redis returns the entry, which need not be readable otherwise."""
    try:
        return int(json.loads(raw)["contract_version"])
    except (ValueError, TypeError, KeyError):
        return contract.FIRST_VERSION


def _describe_sampler(checkpoint: Checkpoint, name: str) -> SamplerEntry | None:
    """None when this checkpoint's scheduler cannot be stepped by this sampler."""
    sampler = SAMPLERS[name]
    try:
        check_scheduler_config(checkpoint.scheduler_config, name)
    except SamplerRefused:
        return None
    return SamplerEntry(
        name=name,
        description=sampler.description,
        noise_schedules=sampler.noise_schedules,
        min_steps=sampler.min_steps,
        max_steps=max_steps_of(checkpoint.scheduler_config, name),
        order=sampler.order,
    )
