"""When what a job has come to is saved, so that another worker goes on with it.

Owns the moments: every few seconds while a job is drawn, when its first half is done, when this worker is told to end;
and the erasing, once the job has ended. Never lets a job fail: a store that refuses is asked again later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import structlog

from workers.held_job import HeldJob
from workers.protocols import Engine
from workers.saved import erase_saved, write_first, write_steps
from workers.store import Store

log = structlog.get_logger(__name__)

_LOOK_S = 0.2
"""Between two looks at who is due."""
_FAREWELL_THREADS = 8


@dataclass
class _Kept:
    """What is saved of one job."""

    due_at: float
    step: int = 0
    writing: list[Future[None]] = field(default_factory=list)
    has_files: bool = False

    @property
    def is_writing(self) -> bool:
        self.writing = [work for work in self.writing if not work.done()]
        return bool(self.writing)


class Snapshots:
    """Those of one worker's jobs. interval_s: seconds between two of a job; 0 saves none while it is drawn."""

    def __init__(self, engine: Engine, store: Store, interval_s: float) -> None:
        self._engine = engine
        self._store = store
        # One thread of its own: a slow store must not keep reads and finished pictures waiting for snapshots.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="snapshots")
        self._interval_s = interval_s
        self._by_job: dict[str, _Kept] = {}
        self._look_at = 0.0

    def save_due(self, jobs: Collection[HeldJob]) -> None:
        """Begin to save what has got further since it was saved last, each job after an interval of its own."""
        now = time.monotonic()
        if now < self._look_at or not self._interval_s:
            return
        self._look_at = now + _LOOK_S
        for held in jobs:
            if held.phase != "drawing":
                continue
            kept = self._of(held)
            if now < kept.due_at or kept.is_writing:
                continue
            kept.due_at = now + self._interval_s
            snapshot = self._engine.snapshot(held.id)
            if snapshot is not None and held.steps_before + snapshot.step > kept.step:
                kept.step = held.steps_before + snapshot.step
                self._write(held, self._pool.submit, write_steps, self._store, held.id, snapshot)

    def save(self, held: HeldJob) -> Future[None]:
        """Begin to save what a job has come to by now, whatever was saved before."""
        snapshot = self._engine.snapshot(held.id) if held.phase == "drawing" else None
        if snapshot is None:
            nothing: Future[None] = Future()
            nothing.set_result(None)
            return nothing
        return self._write(held, self._pool.submit, write_steps, self._store, held.id, snapshot)

    def save_first(self, held: HeldJob) -> None:
        """Begin to save what was drawn, which is to be enlarged."""
        if held.first is not None and self._interval_s:
            args = self._store, held.first, held.steps_before, held.digest, held.materials
            self._write(held, self._pool.submit, write_first, *args)

    def take_up(self, held: HeldJob, step: int) -> None:
        """A job goes on from what an earlier worker saved at `step`."""
        kept = self._of(held)
        kept.step, kept.has_files = max(kept.step, step), True

    def save_now(self, jobs: Collection[HeldJob], until: float) -> None:
        """Save the last committed step of every job; returns at `until` (monotonic) at the latest.

        For any thread, whatever the engine is busy with; with more threads than otherwise.
        """
        pool = ThreadPoolExecutor(_FAREWELL_THREADS, thread_name_prefix="farewell")
        for held in jobs:
            snapshot = self._engine.snapshot(held.id) if held.phase == "drawing" else None
            if snapshot is not None:
                self._write(held, pool.submit, write_steps, self._store, held.id, snapshot)
        writing = [work for held in jobs for work in self._of(held).writing]
        _, late = wait(writing, max(0.0, until - time.monotonic()))
        if late:
            log.warning("the store was too slow for the last snapshots", snapshots=len(late))
        pool.shutdown(wait=False, cancel_futures=True)

    def release(self, held: HeldJob) -> None:
        """The job goes on elsewhere; its files stay."""
        self._by_job.pop(held.id, None)

    def erase(self, held: HeldJob) -> None:
        """The job has ended."""
        kept = self._by_job.pop(held.id, None)
        writing = kept.writing if kept else []
        if (kept is not None and kept.has_files) or held.record.claims > 1:  # another worker may have left some
            erasing = self._pool.submit(_erase_after, writing, self._store, held.id)
            erasing.add_done_callback(lambda work: _log_failure(work, held, "erased"))

    def _of(self, held: HeldJob) -> _Kept:
        return self._by_job.setdefault(held.id, _Kept(time.monotonic() + self._interval_s))

    def _write(
        self, held: HeldJob, start: Callable[..., Future[None]], work: Callable[..., None], *args: Any
    ) -> Future[None]:
        kept = self._of(held)
        kept.has_files = True
        future = start(work, *args)
        future.add_done_callback(lambda done: _log_failure(done, held, "saved"))
        kept.writing.append(future)
        return future


def _erase_after(writing: Collection[Future[None]], store: Store, job_id: str) -> None:
    wait(writing)  # they began before this
    erase_saved(store, job_id)


def _log_failure(work: Future[None], held: HeldJob, what: str) -> None:
    if not work.cancelled() and (error := work.exception()) is not None:
        log.warning(f"a snapshot could not be {what}", **held.names, error=repr(error))
