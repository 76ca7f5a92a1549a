"""What the server's documents are read as.

Owns the values that a user of the client holds. Lenient on purpose: fields that this version does not know are passed
over, so that a newer server breaks no older client; `document` has the whole of what came, as it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from typing import Any, cast

from pydantic.dataclasses import dataclass

from app.client.request import Request

ENDED = frozenset({"succeeded", "failed", "canceled"})


@dataclass(frozen=True)
class Progress:
    """Evaluations of the network done and to do."""

    step: int
    steps: int


@dataclass(frozen=True)
class Image:
    """One finished picture. `seed` alone, with `num_images` 1, draws it again."""

    url: str
    seed: int
    width: int
    height: int
    sha256: str


@dataclass(frozen=True)
class Fault:
    """Why a job failed, or why a model cannot be loaded."""

    code: str
    detail: str


@dataclass(frozen=True)
class Timings:
    """Seconds per phase, as far as the job has come."""

    queued_s: float | None = None
    prepare_s: float | None = None
    denoise_s: float | None = None
    decode_s: float | None = None
    save_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True)
class Reason:
    """Why pixels do not agree, or why that was not promised; docs/replay.md has all codes."""

    code: str
    detail: str


@dataclass(frozen=True)
class Verdict:
    """Whether the pixels of a picture that was drawn again are those of the first one."""

    agrees: bool | None
    """None where what was sent does not tell."""
    contract: str | None
    """Within which they were to agree: `strict` or `standard`; None where nothing was promised."""
    exact: bool
    """To the last bit."""
    max_difference: int | None = None
    """Of 255."""
    differing_pixels: int | None = None
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Job:
    """A job as it stood when the server was asked; it does not change by itself."""

    id: str
    task: str
    status: str
    """`queued`, `running`, then one of `succeeded`, `failed`, `canceled`."""
    created_at: datetime
    queue_position: int | None = None
    """Jobs that start before this one; None once it started."""
    progress: Progress | None = None
    eta_s: float | None = None
    warnings: tuple[str, ...] = ()
    images: tuple[Image, ...] = ()
    error: Fault | None = None
    replay: Verdict | None = None
    """Of a picture that was drawn again, once it is there."""
    timings: Timings = Timings()
    started_at: datetime | None = None
    ended_at: datetime | None = None
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    """The whole document, with what has no field here."""

    @property
    def is_ended(self) -> bool:
        return self.status in ENDED

    @property
    def request(self) -> Request:
        """The request as it was understood: sent again, it draws the same pictures."""
        return cast(Request, self.document["request"])


@dataclass(frozen=True)
class Preview:
    """The picture as the network predicts it now, as a file."""

    data: bytes
    media_type: str


@dataclass(frozen=True)
class Sampler:
    """A sampler of a model."""

    name: str
    description: str = ""
    noise_schedules: tuple[str, ...] = ()
    min_steps: int = 1
    max_steps: int | None = None


@dataclass(frozen=True)
class Model:
    """What a model can draw. `defaults` and `limits` are named as in GET /models."""

    name: str
    tasks: tuple[str, ...]
    loaded: bool
    """A living worker holds it in memory; others load at their first job."""
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    limits: Mapping[str, Any] = field(default_factory=dict, hash=False)
    samplers: tuple[Sampler, ...] = ()
    device: str = ""
    dtype: str = ""
    digest: str = ""
    """SHA-256 over the weights: the same digest draws the same pictures."""
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    """The whole document, with what has no field here."""


@dataclass(frozen=True)
class ModelFault:
    """A model that a worker could not load."""

    model: str
    worker: str
    error: Fault


@dataclass(frozen=True)
class FieldError:
    """One field at fault: a JSON pointer into the request, or `?name` of a query parameter."""

    pointer: str
    detail: str


@dataclass(frozen=True)
class Problem:
    """Why the server refused (RFC 9457)."""

    status: int
    code: str
    detail: str
    errors: tuple[FieldError, ...] = ()
    request_id: str | None = None
    """Under it the server's log tells more."""
    retry_after_s: float | None = None
