"""Pictures of a checkpoint, drawn the way the server draws them: one engine, one running batch.

Knows nothing of judging. Drawn pictures are kept in a folder under a hash of everything that shapes them, so that an
evaluation that was stopped goes on, and new judges look at old pictures without drawing them again.
"""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.engine import Broken, Drawn, Engine, EngineSettings, Event
from models.request import TextToImageRequest
from training.pictures import Pixels

log = logging.getLogger(__name__)

_ROWS, _ROWS_OF_A_GPU = 16, 128
"""UNet rows a call; on two CPU cores more than 16 are no cheaper (docs/performance.md)."""
_EVERY = 20


@dataclass(frozen=True)
class DrawingSettings:
    """How prompts are drawn. Picture n of a prompt has seed + n; None is the checkpoint's own default."""

    seed: int = 3
    steps: int = 25
    guidance: float | None = None
    guidance_rescale: float | None = None
    pictures_per_caption: int = 1


@dataclass(frozen=True)
class Gallery:
    """Drawn pictures uint8 [prompts, pictures a prompt, h, w, 3] and the seconds they took (0 when they were kept)."""

    pictures: NDArray[np.uint8]
    seconds: float

    @property
    def firsts(self) -> Pixels:
        """The first picture of each prompt: uint8 [prompts, h, w, 3]."""
        return self.pictures[:, 0]

    @property
    def flat(self) -> Pixels:
        """All pictures, those of one prompt side by side: uint8 [prompts * pictures, h, w, 3]."""
        return self.pictures.reshape(-1, *self.pictures.shape[2:])


class DrawingFailed(RuntimeError):
    """A prompt could not be drawn; the message names it."""


def draw(checkpoint: Checkpoint, prompts: Sequence[str], settings: DrawingSettings, folder: Path) -> Gallery:
    """Pictures of `prompts` in their order, from `folder` when they were drawn before. Raises DrawingFailed."""
    kept = folder / f"{_fingerprint(checkpoint, prompts, settings)}.npz"
    if kept.is_file():
        with np.load(kept) as archive:
            return Gallery(archive["pictures"], 0.0)
    started = time.monotonic()
    pictures = _draw(checkpoint, [_request(checkpoint, prompt, settings) for prompt in prompts])
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_suffix(".part.npz")
    np.savez_compressed(unfinished, pictures=pictures)
    unfinished.replace(kept)
    return Gallery(pictures, time.monotonic() - started)


def _request(checkpoint: Checkpoint, prompt: str, settings: DrawingSettings) -> TextToImageRequest:
    defaults = checkpoint.defaults
    return TextToImageRequest(
        model=checkpoint.name,
        prompt=prompt,
        width=defaults.width,
        height=defaults.height,
        num_inference_steps=settings.steps,
        guidance_scale=defaults.guidance_scale if settings.guidance is None else settings.guidance,
        guidance_rescale=defaults.guidance_rescale if settings.guidance_rescale is None else settings.guidance_rescale,
        prompt_syntax="plain",  # captions are text: their brackets are no weights
        sampler=defaults.sampler,
        noise_schedule=defaults.noise_schedule,
        seed=settings.seed,
        num_images=settings.pictures_per_caption,
    )


def _draw(checkpoint: Checkpoint, requests: Sequence[TextToImageRequest]) -> NDArray[np.uint8]:
    is_cpu = checkpoint.placement.device.type == "cpu"
    engine = Engine(EngineSettings(max_rows=_ROWS if is_cpu else _ROWS_OF_A_GPU))
    waiting = list(enumerate(requests))
    done: dict[int, NDArray[np.uint8]] = {}
    while waiting or not engine.is_idle:
        while waiting and engine.has_room(waiting[0][1], checkpoint):
            number, request = waiting.pop(0)
            engine.admit(str(number), request, checkpoint)
        for event in engine.step():
            _take(event, requests, done)
    return np.stack([done[number] for number in range(len(requests))])


def _take(event: Event, requests: Sequence[TextToImageRequest], done: dict[int, NDArray[np.uint8]]) -> None:
    if isinstance(event, Broken):
        prompt = requests[int(event.job_id)].prompt
        raise DrawingFailed(f"{prompt!r} could not be drawn: {event.error}") from event.error
    if isinstance(event, Drawn):
        done[int(event.job_id)] = np.stack(event.pictures)
        if len(done) % _EVERY == 0 or len(done) == len(requests):
            log.info("%d of %d prompts drawn", len(done), len(requests))


def _fingerprint(checkpoint: Checkpoint, prompts: Sequence[str], settings: DrawingSettings) -> str:
    what = {
        "weights": checkpoint.digest,
        "scheduler": dict(checkpoint.scheduler_config),
        "defaults": checkpoint.defaults.model_dump(),
        "prompts": list(prompts),
        "settings": asdict(settings),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
