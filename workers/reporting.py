"""What a worker tells while it works: progress and previews of its jobs, and its own status for the `workers` hash.

Owns how often that is worth a write, and what the worker counts beside the engine. Reads the engine, writes through the
leases, so that nothing is told of a job that is not ours any more.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import asdict
from typing import Literal

import redis
import structlog

from models.counts import observe
from workers.contract import Outcome, RowCeiling, WorkerBeat, key
from workers.held_job import HeldJob, Promise
from workers.io_pool import IOPool
from workers.jobkeys import text
from workers.lease import Leases
from workers.protocols import Engine
from workers.redis_backoff import while_there_is_memory
from workers.repertoire import Repertoire

log = structlog.get_logger(__name__)

PROGRESS_S = 0.2
"""Seconds between two reports of a job: smooth for the eye."""
PREVIEW_S = 0.5
"""Least seconds between two previews of a job."""
PREVIEW_SHARE = 0.1
"""Most of the time that may go into decoding previews: the batch waits for it."""
ETA_RATIOS = (0.25, 0.5, 0.67, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0)
"""Buckets of the seconds that a job took over those it was said to take: even on both sides of 1."""

State = Literal["loading", "running", "draining"]


class Reporting:
    """Reports of one loop."""

    def __init__(self, client: redis.Redis, leases: Leases, io_pool: IOPool, name: str) -> None:
        self._redis = client
        self._leases = leases
        self._io_pool = io_pool
        self._name = name
        self._started_at = time.time()
        self._next_at = 0.0
        self._previews: list[tuple[HeldJob, Future[bytes]]] = []
        self._next_preview_at = 0.0
        self.counters: defaultdict[str, float] = defaultdict(float)

    def report(self, jobs: Collection[HeldJob], engine: Engine) -> list[HeldJob]:
        """Write what has changed, when it is time to; returns the jobs that are not ours any more."""
        if time.monotonic() < self._next_at:
            return []
        self._next_at = time.monotonic() + PROGRESS_S
        not_ours = self._show_previews()
        drawing = {held.id: held for held in jobs if held.phase == "drawing"}
        if not drawing:
            return not_ours
        progress = engine.progress()
        self._start_preview([held for held in drawing.values() if progress.get(held.id, (0,))[0] > 0], engine)
        changed: list[HeldJob] = []
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id, (own_step, own_steps, eta_s) in progress.items():
                held = drawing.get(job_id)
                if held is None:
                    continue
                if held.promise is None and eta_s is not None:
                    held.promise = Promise(time.time(), eta_s)
                step, steps = held.steps_before + own_step, held.steps_before + own_steps
                if step != held.shown_step:
                    self._leases.write_progress(held.lease, step, steps, eta_s, held.warnings, pipe)
                    held.shown_step = step
                    changed.append(held)
            verdicts = [text(raw) for raw in pipe.execute()] if changed else []
        return not_ours + [held for held, verdict in zip(changed, verdicts, strict=True) if verdict != "held"]

    def _start_preview(self, drawing: Collection[HeldJob], engine: Engine) -> None:
        """Decode one preview, of the job that has waited longest for one; its file is made in the pool."""
        now = time.monotonic()
        in_work = [held for held, _ in self._previews]  # one at a time, or a busy pool would fall ever further behind
        due = [
            held
            for held in drawing
            if held.record.submission.delivery.previews and now >= held.preview_at and held not in in_work
        ]
        if not due or now < self._next_preview_at:
            return
        held = min(due, key=lambda held: held.preview_at)
        held.preview_at = now + PREVIEW_S
        try:
            pixels = engine.preview(held.id)
        except Exception as error:  # noqa: BLE001 (the per-job boundary: a job outlives its preview)
            _give_up(held, error)
            return
        took_s = time.monotonic() - now
        self._next_preview_at = now + took_s / PREVIEW_SHARE
        if pixels is not None:
            self._previews.append((held, self._io_pool.preview(pixels, held.canvas)))

    def _show_previews(self) -> list[HeldJob]:
        """Write the files that the pool has made; returns the jobs that are not ours any more."""
        done = [(held, future) for held, future in self._previews if future.done()]
        self._previews = [pair for pair in self._previews if not pair[1].done()]
        not_ours: list[HeldJob] = []
        for held, future in done:
            error = future.exception()
            if error is not None:
                _give_up(held, error)
            elif held.phase == "drawing":
                with while_there_is_memory("a preview"):
                    if self._leases.write_preview(held.lease, future.result()) == "held":
                        self.counters["previews"] += 1
                    else:
                        not_ours.append(held)
        return not_ours

    def count_end(self, held: HeldJob, outcome: Outcome) -> None:
        """Count a job that was committed and, when it succeeded, how true it was what its owner had been told."""
        self.counters[f"jobs_{outcome.status}"] += 1
        if outcome.status != "succeeded":
            return
        told = self._redis.getdel(key("promise", held.id))
        promises = {
            "queued": Promise(held.record.created_at, float(text(told))) if told else None,
            "running": held.promise,
        }
        for when, promise in promises.items():
            if promise and promise.eta_s > 0:
                ratio = max(0.0, outcome.ended_at - promise.told_at) / promise.eta_s
                observe(self.counters, f"eta_ratio_{when}", held.record.submission.request.model, ratio, ETA_RATIOS)

    def status(self, state: State, engine: Engine, repertoire: Repertoire) -> WorkerBeat:
        """This worker's status."""
        return WorkerBeat(
            name=self._name,
            beat_at=time.time(),
            started_at=self._started_at,
            pid=os.getpid(),
            host=socket.gethostname(),
            state=state,
            models=repertoire.loads(),
            faults=repertoire.faults,
            wishes=repertoire.wishes,
            ceilings=tuple(RowCeiling(**asdict(limit)) for limit in engine.row_limits()),
            counters={**engine.counters, **self.counters},
        )


def _give_up(held: HeldJob, error: BaseException) -> None:
    """No more previews of this job."""
    log.error("no preview", **held.names, exc_info=error)
    held.preview_at = math.inf
