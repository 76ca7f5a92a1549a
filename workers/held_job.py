"""One job in a worker's hands.

Owns everything the worker keeps about a job between claiming it and letting go of it. The loop's thread alone changes
it; the heartbeat reads `lease`, which is frozen.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from rq import Queue
from rq.executions import Execution
from rq.job import Job

from models.canvas import Canvas
from models.errors import GenerationError
from models.materials import Materials
from models.request import PictureRequest, Reproducibility, UpscaleRequest
from models.shares import Standing
from workers.contract import PRIORITIES, JobRecord, Making, Outcome, Provenance, Timings
from workers.io_pool import Brought, Finished
from workers.jobkeys import JobKeys, job_keys
from workers.protocols import Drawn
from workers.software import software_versions

MOST_DEATHS = 3
"""Deaths without progress after which a job is not tried again."""

Phase = Literal["reading", "ready", "drawing", "saving", "settling"]
"""reading: upload and step table; ready: waits for room; settling: has an outcome."""


@dataclass(frozen=True)
class Lease:
    """A lease: which execution of which job, and where."""

    job_id: str
    execution: Execution
    keys: JobKeys


@dataclass(frozen=True)
class Promise:
    """What the owner of a job was told: at which Unix second, that it would take how many more."""

    told_at: float
    eta_s: float


@dataclass(eq=False)
class HeldJob:
    """A claimed job on its way to an outcome."""

    job: Job
    queue: Queue
    lease: Lease
    record: JobRecord
    checkpoint: Any = None
    deadline: float = float("inf")
    """Monotonic; the job's own time limit."""
    phase: Phase = "reading"
    brought: Brought | None = None
    """What it brings along; once it is in the batch, only what inpainting needs to the end."""
    work: Future[Any] | None = None
    """What the pool does for this job at the moment."""
    patience_until: float | None = None
    """Monotonic; while the store refuses, until when we ask again."""
    ask_again_at: float = 0.0
    refusals: int = 0
    is_refused: bool = False
    """The store refused it for too long: it goes back to its queue."""
    steps: int = 0
    steps_before: int = 0
    """Of the first half, while what it drew is enlarged."""
    snapshot: bytes | None = None
    """To go on from, when it joins the batch."""
    parking: Future[None] | None = None
    """It goes back to its queue when this is saved."""
    resumed_from_step: int | None = None
    shown_step: int = -1
    promise: Promise | None = None
    """The first ETA that was told while it was drawn."""
    warnings: tuple[str, ...] = ()
    preview_at: float = 0.0
    first: Drawn | None = None
    """What was drawn, while it is being enlarged."""
    enlarging: UpscaleRequest | None = None
    digest: str = ""
    """Of the model that the request names."""
    materials: Materials = Materials()
    """Of what the request names beside it."""
    drawn: Drawn | None = None
    saving_since: float = 0.0
    outcome: Outcome | None = None
    error: GenerationError | None = None
    is_committed: bool = False
    is_lost: bool = False
    """Not ours any more; nothing is committed."""
    claimed_at: float = field(default_factory=time.time)

    @property
    def is_delicate(self) -> bool:
        """It must have no neighbours."""
        return self.record.runs_alone

    @property
    def waits_for_upscaler(self) -> bool:
        """It is drawn, and its upscaler finds no room in memory."""
        return self.phase == "reading" and self.first is not None and self.checkpoint is None

    @property
    def model(self) -> str:
        """The one that it needs now."""
        request = self.record.submission.request
        return request.upscaler if self.first and request.upscaler else request.model

    @property
    def request(self) -> PictureRequest:
        """What the engine is asked for now."""
        return self.enlarging or self.record.submission.request

    @property
    def standing(self) -> Standing:
        """Whose it is, and how urgent."""
        submission = self.record.submission
        return Standing(submission.tenant, PRIORITIES.index(submission.priority), self.record.deadline)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def names(self) -> dict[str, str | None]:
        """What each line of the log about this job carries."""
        return {"job": self.id, "execution": self.execution.id, "request_id": self.record.submission.request_id}

    @property
    def execution(self) -> Execution:
        return self.lease.execution

    @property
    def canvas(self) -> Canvas | None:
        return self.brought.canvas if self.brought else None

    def timings(self) -> Timings:
        """What is known so far. The total counts from the POST."""
        now = time.time()
        halves = [half for half in (self.first, self.drawn) if half]
        return Timings(
            queued_s=max(0.0, self.claimed_at - self.record.created_at),
            prepare_s=sum(half.prepare_s for half in halves) if halves else None,
            denoise_s=sum(half.denoise_s for half in halves) if halves else None,
            decode_s=sum(half.decode_s for half in halves) if halves else None,
            save_s=now - self.saving_since if self.saving_since else None,
            total_s=max(0.0, now - self.record.created_at),
        )

    @property
    def contract(self) -> Reproducibility:
        """The one that what was drawn holds."""
        is_exact = all(half.is_exact for half in (self.first, self.drawn) if half)
        return "strict" if is_exact else "standard"

    @property
    def provenance(self) -> Provenance:
        """Of what was drawn, whose last checkpoint is still here."""
        making = Making(
            contract=self.contract,
            hardware=self.checkpoint.hardware,
            dtype=self.checkpoint.dtype,
            software=dict(software_versions()),
            loras=dict(self.materials.loras),
            controls=dict(self.materials.controls),
            upscaler=self.checkpoint.digest if self.first else None,
        )
        return Provenance(model_digest=self.digest, made_with=making)

    def succeed(self, finished: Finished) -> None:
        """All files are durable; what is left is to say so."""
        self.settle(
            Outcome(
                status="succeeded",
                pictures=finished.pictures,
                reproducibility=self.contract,
                replay=finished.verdict,
                timings=self.timings(),
                ended_at=time.time(),
                execution=self.execution.id,
                resumed_from_step=self.resumed_from_step,
            )
        )

    def settle(self, outcome: Outcome, error: GenerationError | None = None) -> None:
        """Take an outcome, unless there is one: the first one stands."""
        if self.outcome is None:
            self.outcome, self.error, self.phase, self.work = outcome, error, "settling", None


def open_held_job(job: Job, queue: Queue, record: JobRecord, execution: Execution) -> HeldJob:
    return HeldJob(job, queue, Lease(record.id, execution, job_keys(record)), record)
