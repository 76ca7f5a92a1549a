"""The worker: one loop that lets jobs join, steps the batch, and settles what has ended.

Owns the order of things and what each job's fate is; the parts own the rest: `admission` (from the queue to a claim),
`repertoire` (models), `heartbeat` (leases), `io_pool` (files), `reporting` (progress), `rq_side` (RQ's bookkeeping),
`recovery` (lost jobs).
One thread runs it; commands are only noted, and applied between two steps. Signals are heard by another one
(`farewell`), which waits for no step.

A job's outcome is written in one place, the commit script, after its files are durable. Everything before may be lost
with the process and is done again by somebody else; everything after is repaired by whoever finds it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any

import redis
import structlog

from workers.assembly import WorkerParts
from workers.connection import DOORBELL_BLOCK_S
from workers.contract import key
from workers.farewell import Farewell
from workers.heap import Heap
from workers.held_jobs import HeldJobs
from workers.redis_backoff import RedisBackoff
from workers.reporting import State

log = structlog.get_logger(__name__)

EXIT_USAGE = 64
"""Settings that cannot be used; a fresh process would find the same."""
EXIT_FATAL = 70
"""A fault that only a fresh process heals (a lost device)."""
EXIT_FORCED = 143
"""A second SIGTERM, before the hand-over was done."""
_NAP_S = 0.02
_PUBLISH_S = 1.0
_PUBLISH_NEWS_S = 0.1
"""After a job came or went."""
_SWEEP_S = 600.0


def draw(job: str) -> None:
    """What RQ's own worker would call. It cannot: these jobs are drawn together, by `python -m workers`."""
    raise RuntimeError(f"Job {job} is drawn by `denoised worker`, not by RQ's own worker.")


class _NothingToServe(Exception):
    """No model could be loaded."""


class Worker:
    """One worker process, run by its main thread."""

    def __init__(self, parts: WorkerParts) -> None:
        self._parts = parts
        self._jobs = HeldJobs(parts)
        parts.admission.coming = self._jobs.coming
        self._backoff = RedisBackoff()
        self._lock = threading.Lock()
        """Held by the loop except where it may take long and changes no job: in the engine, and at rest."""
        self._farewell = Farewell(parts, self._jobs, self._lock)
        self._heap = Heap()
        self._signals = 0
        self._is_draining = False
        self._state: State = "loading"
        now = time.monotonic()
        self._publish_at = 0.0
        # Others' leases may only look expired while Redis was away; their owners beat before we look.
        self._recovery_at = now + parts.settings.beat_s
        self._sweep_at = now

    def run(self) -> int:
        """Work until told to end; returns the exit code: 0 when drained, or one of the EXIT_ values. On a signal it
        does not return: the process ends when all is handed over."""
        self._install_signal_handlers()
        code, is_blamed = 0, False
        self._until_redis_answers(lambda: self._parts.rq.bootstrap(None))
        self._until_redis_answers(self._tell_misgivings)
        try:
            self._publish()
            self._parts.heartbeat.start()
            self._load_models()
            self._state = "running"
            self._publish()
            self._parts.heartbeat.hurry()
            while not self._is_over:
                self._tick()
        except _NothingToServe as error:
            log.error("the worker ends", detail=str(error))
            # A directory that cannot be loaded stays so; a hub may answer the next time.
            code = EXIT_USAGE if self._parts.settings.has_only_local_models else EXIT_FATAL
        except Exception:  # noqa: BLE001 (the boundary of the process: jobs are given back before it ends)
            log.exception("the worker ends")
            code, is_blamed = EXIT_FATAL, True
        finally:
            self._leave(is_blamed)
        return code

    # --- start and end ------------------------------------------------------------------------------------------------

    def _load_models(self) -> None:
        """Load, warm up and publish every model."""
        parts = self._parts
        for name in parts.repertoire.open():
            if self._farewell.has_begun:
                return
            parts.repertoire.load(name)
            self._until_redis_answers(parts.repertoire.publish)
            parts.heartbeat.ticked()
            self._publish()
            parts.heartbeat.hurry()
        if not parts.repertoire.serves_any:
            raise _NothingToServe("None of the configured models can be loaded.")

    def _tell_misgivings(self) -> None:
        for sentence in self._parts.board.misgivings():
            log.warning(sentence)

    def _until_redis_answers(self, call: Callable[[], object]) -> None:
        """At the start there is nothing to do beside it: ask until it succeeds, or until told to end."""
        while not self._farewell.has_begun:
            try:
                call()
                self._backoff.found()
                return
            except redis.RedisError as error:
                self._backoff.lost(error)
                self._parts.heartbeat.ticked()
                self._parts.wake.wait(_NAP_S)

    def _leave(self, is_blamed: bool) -> None:
        """Commit what is done, give back what is not, and say good-bye, as far as Redis still answers."""
        parts = self._parts
        if self._farewell.has_begun:
            self._farewell.wait()
        parts.io_pool.close()
        with contextlib.suppress(redis.RedisError):
            self._jobs.take_up()
            self._jobs.settle()
            self._jobs.hand_back(is_blamed=is_blamed)
        with contextlib.suppress(redis.RedisError):
            parts.heartbeat.stop()
        with contextlib.suppress(redis.RedisError):
            parts.rq.teardown()
        parts.doorbell_client.close()
        parts.client.close()

    def _install_signal_handlers(self) -> None:
        signal.signal(signal.SIGTERM, self._note_signal)
        signal.signal(signal.SIGINT, self._note_signal)
        self._farewell.listen()

    def _note_signal(self, signum: int, frame: FrameType | None) -> None:
        """First: everything is handed over, by `farewell`. Second: die at once."""
        self._signals += 1
        if self._signals > 1:
            os._exit(EXIT_FORCED)

    @property
    def _is_over(self) -> bool:
        return self._farewell.has_begun or (self._is_draining and not self._jobs.all)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Admit, step, settle."""
        self._parts.heartbeat.ticked()
        self._parts.wake.clear()
        with self._lock:
            if self._farewell.has_begun:
                return
            self._jobs.advance()
            if self._backoff.is_due:
                try:
                    self._talk()
                except redis.RedisError as error:
                    self._backoff.lost(error)
            self._parts.snapshots.save_due(self._jobs.all)
        if not self._parts.engine.is_idle:
            events = list(self._parts.engine.step())
            with self._lock:
                for event in events:
                    self._jobs.note(event)
            if events:  # forecasts live on what is in the batch
                self._publish_at = min(self._publish_at, time.monotonic() + _PUBLISH_NEWS_S)
        self._rest()

    def _talk(self) -> None:
        """Everything the loop asks of Redis. Raises what Redis raises; all of it may be repeated."""
        self._obey()
        self._jobs.settle()
        self._jobs.clear_the_way(self._parts.admission.blocked(self._parts.settings.patience_s))
        self._admit()
        for held in self._parts.reporting.report(self._jobs.all, self._parts.engine):
            self._jobs.drop(held)
        self._keep_up()
        if self._backoff.found():
            self._parts.heartbeat.hurry()  # which of our leases still stand?
            self._recovery_at = max(self._recovery_at, time.monotonic() + self._parts.settings.beat_s)

    def _obey(self) -> None:
        """Apply what happened meanwhile: leases that are not ours any more, commands of RQ's tools."""
        for lease, _ in self._parts.heartbeat.verdicts():
            held = self._jobs.find(execution_id=lease.execution.id)
            if held and not held.is_committed:
                self._jobs.drop(held)
        for command in self._parts.rq.commands():
            self._obey_command(command)

    def _obey_command(self, command: dict[str, Any]) -> None:
        name = command.get("command")
        if name == "shutdown":
            self._is_draining, self._state = True, "draining"
        elif name == "kill-horse":
            for held in self._jobs.all:
                self._jobs.stop(held)
        elif name in ("stop-job", "stop-execution"):
            # stop-execution names the job too, but means this one execution of it.
            is_execution = name == "stop-execution"
            found = self._jobs.find(
                job_id=None if is_execution else command.get("job_id"),
                execution_id=command.get("execution_id") if is_execution else None,
            )
            if found:
                self._jobs.stop(found)

    def _admit(self) -> None:
        settings, jobs = self._parts.settings, self._jobs
        room = min(settings.admissions_per_tick - jobs.reading, settings.max_jobs - len(jobs.all))
        if self._is_draining or room <= 0 or jobs.is_delicate or jobs.unsaved >= settings.save_backlog:
            return
        if not jobs.can_be_saved:
            return
        parts = self._parts
        parts.admission.pause(parts.repertoire.paused | jobs.crowding)
        sated = jobs.sated(settings.max_jobs)
        for held in parts.admission.take(parts.engine, parts.shelf, self._models_in_use, room, sated):
            jobs.receive(held)
            if self._farewell.has_begun:
                break

    @property
    def _models_in_use(self) -> frozenset[str]:
        return self._jobs.models.union(self._parts.engine.models_in_use())

    def _keep_up(self) -> None:
        """Recovery, the sweep of old files, and our own status, each when it is time to."""
        now, settings = time.monotonic(), self._parts.settings
        self._parts.ceilings.exchange(self._parts.engine)
        if now >= self._publish_at:
            if self._parts.repertoire.keep_up(self._models_in_use):
                self._parts.heartbeat.hurry()
            self._publish()
            self._parts.heartbeat.tell()
        if now >= self._recovery_at:
            self._recovery_at = now + settings.maintenance_interval_s
            self._parts.reporting.counters["jobs_recovered"] += self._parts.recovery.run()
        if now >= self._sweep_at:
            self._sweep_at = now + min(_SWEEP_S, settings.retention_s / 4)
            sweep = self._parts.io_pool.sweep(settings.retention_s, self._parts.board.is_known)
            sweep.add_done_callback(_log_sweep)

    def _publish(self) -> None:
        self._publish_at = time.monotonic() + _PUBLISH_S
        parts = self._parts
        parts.heartbeat.publish(parts.reporting.status(self._state, parts.engine, parts.repertoire))

    def _rest(self) -> None:
        """Wait only when there is nothing to do: for the pool, for Redis, or for the doorbells."""
        if not self._parts.engine.is_idle or self._is_over:
            self._heap.busy()
            return
        if self._jobs.all or not self._backoff.is_up or self._parts.admission.has_more:
            self._parts.wake.wait(_NAP_S)
        elif self._parts.admission.is_suspended or self._is_draining:
            self._parts.wake.wait(DOORBELL_BLOCK_S)
        else:
            self._heap.idle(time.monotonic())
            self._wait_for_doorbell()

    def _wait_for_doorbell(self) -> None:
        timeout_s = min(DOORBELL_BLOCK_S, self._parts.settings.beat_s, max(0.01, self._recovery_at - time.monotonic()))
        try:
            self._parts.doorbell_client.blpop(
                [key("doorbell", name) for name in self._parts.shelf.names()], timeout=timeout_s
            )
        except redis.RedisError as error:
            self._backoff.lost(error)


def _log_sweep(sweep: Future[int]) -> None:
    if sweep.cancelled():
        return
    error = sweep.exception()
    if error is not None:
        log.error("old files could not be erased", error=repr(error))
    elif sweep.result():
        log.info("erased old files", jobs=sweep.result())
