"""A stand-in for the drawing side, for tests of the queue's mechanics: no torch, and steps that only sleep.

`FakeEngine` obeys words in the prompt: `poison` kills its own process at step 2, `fault` breaks its job, `fatal` is a
lost device, `refused` raises where the engine should not, `unseen` and `empty` have no preview that could be shown,
`hang` takes a minute for step 31 unless it is spared the steps before by a snapshot.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.ceiling import Ceiling, RowLimit
from models.errors import CheckpointMissing, GenerationError, NotFinite
from models.materials import Materials
from models.request import PictureRequest
from models.shares import NOBODY, Standing
from workers.contract import ModelDefaults


@dataclass(frozen=True)
class FakeCheckpoint:
    name: str
    tasks: tuple[str, ...] = ("text-to-image", "image-to-image")
    defaults: ModelDefaults = ModelDefaults(
        width=64, height=64, num_inference_steps=10, guidance_scale=1.0, sampler="ddim", noise_schedule="default"
    )
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    prediction_type: str = "epsilon"
    token_limit: int = 600
    window_tokens: int = 75
    max_clip_skip: int = 11
    upscale_factor: int | None = None
    max_noise_level: int | None = None
    min_size: int = 8
    max_size: int = 512
    max_pixels: int = 512 * 512
    max_images: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    hardware: str = "cpu of a fake"
    digest: str = "0" * 64


@dataclass(frozen=True)
class Prepared:
    job_id: str
    steps: int
    warnings: tuple[str, ...]
    step: int = 0


@dataclass(frozen=True)
class FakeSnapshot:
    step: int

    def to_bytes(self) -> bytes:
        return str(self.step).encode()


@dataclass(frozen=True)
class Drawn:
    job_id: str
    pictures: tuple[np.ndarray, ...]
    seeds: tuple[int, ...]
    prepare_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    is_exact: bool = False


@dataclass(frozen=True)
class Broken:
    job_id: str
    error: GenerationError


@dataclass(frozen=True)
class Load:
    cost_per_s: float | None
    cost_in_flight: float
    slots: int
    rows_in_flight: float
    call_base_s: float | None
    call_row_s: float | None
    rows_per_step: float | None
    step_s: float | None


@dataclass
class _Job:
    request: PictureRequest
    tenant: str
    step: int = 0
    is_prepared: bool = False

    def __post_init__(self) -> None:
        self.began_at = self.step


class FakeEngine:
    """One step of all jobs takes `step_s`; `room` jobs fit."""

    def __init__(self, step_s: float = 0.005, room: int = 8) -> None:
        self._step_s = step_s
        self._room = room
        self._jobs: dict[str, _Job] = {}
        self.counters: Counter[str] = Counter()

    @property
    def is_idle(self) -> bool:
        return not self._jobs

    def models_in_use(self) -> frozenset[str]:
        return frozenset(job.request.model for job in self._jobs.values())

    def has_room(
        self,
        request: PictureRequest,
        checkpoint: FakeCheckpoint,
        tenant: str = "",
        before: Sequence[PictureRequest] = (),
    ) -> bool:
        tenants = [job.tenant for job in self._jobs.values()] + [tenant for _ in before]
        return tenant not in tenants or tenants.count(tenant) < self._room // len({*tenants, tenant})

    def admit(
        self,
        job_id: str,
        request: PictureRequest,
        checkpoint: FakeCheckpoint,
        inputs: Any = None,
        snapshot: bytes | None = None,
        standing: Standing = NOBODY,
    ) -> None:
        if "refused" in request.prompt:
            raise RuntimeError("a fault where none should be")
        self._jobs[job_id] = _Job(request, standing.tenant, int(snapshot or 0))

    def snapshot(self, job_id: str) -> FakeSnapshot | None:
        job = self._jobs.get(job_id)
        return FakeSnapshot(job.step) if job and job.is_prepared else None

    def cancel(self, job_id: str) -> bool:
        return self._jobs.pop(job_id, None) is not None

    def progress(self) -> dict[str, tuple[int, int, float | None]]:
        return {
            job_id: (job.step, job.request.num_inference_steps, 1.0)
            for job_id, job in self._jobs.items()
            if job.is_prepared
        }

    def preview(self, job_id: str) -> np.ndarray | None:
        request = self._jobs[job_id].request
        if "unseen" in request.prompt:
            raise RuntimeError("the preview cannot be decoded")
        return np.zeros((0, 0, 3), np.uint8) if "empty" in request.prompt else draw_fake(request, 0)

    def loads(self) -> dict[str, Load]:
        left = sum(job.request.num_inference_steps - job.step for job in self._jobs.values())
        return {
            "fake": Load(
                1 / self._step_s, float(left), len(self._jobs), len(self._jobs), self._step_s, 0.0, 1.0, self._step_s
            )
        }

    def full_rows(self, model: str) -> int:
        return self._room

    def next_room_s(self, model: str) -> float | None:
        left = [job.request.num_inference_steps - job.step for job in self._jobs.values()]
        return self._step_s * min(left) if left else None

    def learnt(self) -> tuple[Ceiling, ...]:
        return ()

    def learn(self, ceilings: Iterable[Ceiling]) -> None:
        """Its memory is never short."""

    def row_limits(self) -> tuple[RowLimit, ...]:
        return ()

    def warm_up(self, checkpoint: FakeCheckpoint) -> int:
        if checkpoint.name == "huge":
            raise MemoryError("it does not fit")
        return self._room

    def step(self) -> list[Prepared | Drawn | Broken]:
        time.sleep(self._step_s)
        events: list[Prepared | Drawn | Broken] = []
        for job_id, job in list(self._jobs.items()):
            if not job.is_prepared:
                job.is_prepared = True
                warnings = ("the prompt was cut",) if "long" in job.request.prompt else ()
                events.append(Prepared(job_id, job.request.num_inference_steps, warnings, job.step))
                continue
            self._obey(job)
            job.step += 1
            self.counters["slot_steps:fake"] += 1
            if "fault" in job.request.prompt and not ("late" in job.request.prompt and job.step < 30):
                del self._jobs[job_id]
                events.append(Broken(job_id, NotFinite("not finite")))
            elif job.step >= job.request.num_inference_steps:
                del self._jobs[job_id]
                count = range(job.request.num_images)
                pictures = tuple(draw_fake(job.request, index) for index in count)
                seeds = tuple(job.request.seed_of(index) for index in count)
                events.append(Drawn(job_id, pictures, seeds, is_exact=job.request.is_strict))
        return events

    def _obey(self, job: _Job) -> None:
        if "hang" in job.request.prompt and job.step == 30 and job.began_at == 0:
            time.sleep(60)
        if "poison" in job.request.prompt and job.step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if "fatal" in job.request.prompt:
            raise RuntimeError("the device is lost")


class FakeShelf:
    """Models that load at once; at most `places` fit. `missing` is not there, nor is what is put into `broken`; `odd`
    breaks; for `huge` the engine has no memory."""

    def __init__(self, names: tuple[str, ...] = ("fake",), places: int = 8) -> None:
        self._names = list(names)
        self._places = places
        self._loaded: dict[str, FakeCheckpoint] = {}
        self.broken = {"missing"}
        self.offered: dict[str, str] = {}
        self.tries: Counter[str] = Counter()

    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def offer(self, name: str, source: str) -> None:
        assert name not in self._loaded
        self.offered[name] = source
        if name not in self._names:
            self._names.append(name)

    def withdraw(self, name: str) -> None:
        assert name not in self._loaded
        self._names.remove(name)

    def is_loaded(self, name: str) -> bool:
        return name in self._loaded

    def evict(self, name: str) -> None:
        del self._loaded[name]

    def get(self, name: str, in_use: Collection[str] = ()) -> FakeCheckpoint | None:
        self.tries[name] += 1
        if name in self.broken:
            raise CheckpointMissing("There is no model of this name.")
        if name == "odd":
            raise KeyError("what no loader foresaw")
        if name not in self._loaded and len(self._loaded) >= self._places:
            idle = [loaded for loaded in self._loaded if loaded not in in_use]
            if not idle:
                return None
            del self._loaded[idle[0]]
        return self._loaded.setdefault(name, fake_upscaler(name) if name.startswith("x4") else FakeCheckpoint(name))


def fake_upscaler(name: str) -> FakeCheckpoint:
    return FakeCheckpoint(name, tasks=("upscale",), upscale_factor=4, max_noise_level=50)


def draw_fake(request: PictureRequest, index: int) -> np.ndarray:
    """Noise from the seed: (H, W, 3) uint8."""
    generator = np.random.default_rng(request.seed_of(index))
    return generator.integers(0, 256, (request.height, request.width, 3), dtype=np.uint8)


def nothing_ahead(request: PictureRequest, checkpoint: Any, uploads: Any) -> tuple[None, Materials]:
    """In place of step tables, LoRAs and ControlNets."""
    return None, Materials()
