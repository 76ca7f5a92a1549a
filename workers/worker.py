"""The worker: one loop that lets jobs join, steps the batch, and settles what has ended.

Owns the order of things and what each job's fate is; the parts own the rest: `intake` (from the queue to a claim),
`heart` (leases), `errands` (files), `reporting` (progress), `rq_side` (RQ's bookkeeping), `upkeep` (lost jobs). One
thread runs it; signals and commands are only noted, and applied between two steps.

A job's outcome is written in one place, the commit script, after its files are durable. Everything before may be lost
with the process and is done again by somebody else; everything after is repaired by whoever finds it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from concurrent.futures import Future
from types import FrameType
from typing import Any

import redis
import structlog

from models.errors import CheckpointError
from workers.catalogue import describe_model
from workers.contract import key
from workers.hands import Hands
from workers.link import AWAY, Link
from workers.parts import Parts
from workers.reporting import State

log = structlog.get_logger(__name__)

EXIT_FATAL = 70
"""A fault that only a fresh process heals (a lost device)."""
EXIT_FORCED = 143
"""A second SIGTERM."""
_IDLE_BLOCK_S = 1.0
"""Longest wait at the doorbells: signals and commands are noticed after it."""
_NAP_S = 0.02
_WORD_S = 1.0
_SWEEP_S = 600.0


def draw(job: str) -> None:
    """What RQ's own worker would call. It cannot: these jobs are drawn together, by `python -m workers`."""
    raise RuntimeError(f"Job {job} is drawn by `denoised worker`, not by RQ's own worker.")


class Worker:
    """One worker process, run by its main thread."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._hands = Hands(parts)
        self._link = Link()
        self._signals = 0
        self._is_draining = False
        self._state: State = "loading"
        now = time.monotonic()
        self._word_at = 0.0
        # Others' leases may only look expired while Redis was away; their owners beat before we look.
        self._upkeep_at = now + parts.settings.beat_s
        self._sweep_at = now

    def run(self) -> int:
        """Work until told to end; returns the exit code: 0 when drained, EXIT_FORCED, or EXIT_FATAL."""
        self._install_signal_handlers()
        code, is_blamed = 0, False
        self._parts.rq.bootstrap(None)
        try:
            self._say()
            self._parts.heart.start()
            self._load_models()
            self._state = "running"
            self._say()
            self._parts.heart.hurry()
            while not self._is_over:
                self._tick()
            code = EXIT_FORCED if self._signals > 1 else 0
        except Exception:  # noqa: BLE001 (the boundary of the process: jobs are given back before it ends)
            log.exception("the worker ends")
            code, is_blamed = EXIT_FATAL, True
        finally:
            self._leave(is_blamed)
        return code

    # --- start and end ------------------------------------------------------------------------------------------------

    def _load_models(self) -> None:
        """Load, warm up and publish every model; the first-named last, so that it is the one that stays loaded."""
        parts = self._parts
        for name in reversed(parts.shelf.names()):
            if self._signals:
                return
            try:
                checkpoint = parts.shelf.get(name)
            except CheckpointError as error:
                log.error("a model is not served", model=name, code=error.code, detail=error.detail)
                continue
            parts.engine.warm_up(checkpoint)
            parts.reporting.warmed.add(name)
            parts.client.hset(key("catalogue"), name, describe_model(checkpoint).model_dump_json())
            parts.heart.ticked()
            log.info("serving", model=name, device=checkpoint.device, dtype=checkpoint.dtype)
            self._say()
            parts.heart.hurry()
        if not parts.reporting.warmed:
            raise CheckpointError("None of the configured models can be loaded.")

    def _leave(self, is_blamed: bool) -> None:
        """Commit what is done, give back what is not, and say good-bye, as far as Redis still answers."""
        parts = self._parts
        parts.errands.close()
        with contextlib.suppress(redis.RedisError):
            self._hands.take_up()
            self._hands.settle()
            self._hands.hand_back(is_blamed=is_blamed)
        with contextlib.suppress(redis.RedisError):
            parts.heart.stop()
        with contextlib.suppress(redis.RedisError):
            parts.rq.teardown()
        parts.doorbell_client.close()
        parts.client.close()

    def _install_signal_handlers(self) -> None:
        signal.signal(signal.SIGTERM, self._note_signal)
        signal.signal(signal.SIGINT, self._note_signal)

    def _note_signal(self, signum: int, frame: FrameType | None) -> None:
        """First: take no more jobs, finish these. Second: give them back now. Third: die at once."""
        self._signals += 1
        self._parts.wake.set()
        if self._signals > 2:
            os._exit(EXIT_FORCED)

    @property
    def _is_over(self) -> bool:
        return self._signals > 1 or (self._is_draining and not self._hands.flights)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Admit, step, settle."""
        self._parts.heart.ticked()
        self._parts.wake.clear()
        if self._signals or self._is_draining:
            self._is_draining, self._state = True, "draining"
        self._hands.advance()
        if self._link.is_due:
            try:
                self._talk()
            except AWAY as error:
                self._link.lost(error)
        if not self._parts.engine.is_idle:
            for event in self._parts.engine.step():
                self._hands.note(event)
        self._rest()

    def _talk(self) -> None:
        """Everything the loop asks of Redis. Raises what Redis raises; all of it may be repeated."""
        self._obey()
        self._hands.settle()
        self._admit()
        for flight in self._parts.reporting.report(self._hands.flights, self._parts.engine):
            self._hands.drop(flight)
        self._keep_up()
        if self._link.found():
            self._parts.heart.hurry()  # which of our leases still stand?
            self._upkeep_at = max(self._upkeep_at, time.monotonic() + self._parts.settings.beat_s)

    def _obey(self) -> None:
        """Apply what happened meanwhile: leases that are not ours any more, commands of RQ's tools."""
        for hold, _ in self._parts.heart.verdicts():
            flight = self._hands.find(execution_id=hold.execution.id)
            if flight and not flight.is_committed:
                self._hands.drop(flight)
        for command in self._parts.rq.commands():
            self._obey_command(command)

    def _obey_command(self, command: dict[str, Any]) -> None:
        name = command.get("command")
        if name == "shutdown":
            self._is_draining = True
        elif name == "kill-horse":
            for flight in self._hands.flights:
                self._hands.stop(flight)
        elif name in ("stop-job", "stop-execution"):
            # stop-execution names the job too, but means this one execution of it.
            is_execution = name == "stop-execution"
            found = self._hands.find(
                job_id=None if is_execution else command.get("job_id"),
                execution_id=command.get("execution_id") if is_execution else None,
            )
            if found:
                self._hands.stop(found)

    def _admit(self) -> None:
        settings, hands = self._parts.settings, self._hands
        room = min(settings.admissions_per_tick, settings.max_jobs - len(hands.flights))
        if self._is_draining or room <= 0 or hands.is_delicate or hands.unsaved >= settings.save_backlog:
            return
        in_use = hands.models.union(self._parts.engine.models_in_use())
        for flight in self._parts.intake.take(self._parts.engine, self._parts.shelf, in_use, room):
            hands.receive(flight)

    def _keep_up(self) -> None:
        """Upkeep, the sweep of old files, and our own word, each when it is time to."""
        now, settings = time.monotonic(), self._parts.settings
        if now >= self._word_at:
            self._say()
        if now >= self._upkeep_at:
            self._upkeep_at = now + settings.maintenance_interval_s
            self._parts.upkeep.run()
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_S
            sweep = self._parts.errands.sweep(settings.retention_s, self._parts.board.is_known)
            sweep.add_done_callback(_log_sweep)

    def _say(self) -> None:
        self._word_at = time.monotonic() + _WORD_S
        self._parts.heart.say(self._parts.reporting.word(self._state, self._parts.engine, self._parts.shelf))

    def _rest(self) -> None:
        """Wait only when there is nothing to do: for the pool, for Redis, or for the doorbells."""
        if not self._parts.engine.is_idle or self._is_over:
            return
        if self._hands.flights or not self._link.is_up or self._parts.intake.has_more:
            self._parts.wake.wait(_NAP_S)
        elif self._parts.intake.is_suspended or self._is_draining:
            self._parts.wake.wait(_IDLE_BLOCK_S)
        else:
            self._wait_for_doorbell()

    def _wait_for_doorbell(self) -> None:
        timeout_s = min(_IDLE_BLOCK_S, self._parts.settings.beat_s, max(0.01, self._upkeep_at - time.monotonic()))
        try:
            self._parts.doorbell_client.blpop(
                [key("doorbell", name) for name in self._parts.shelf.names()], timeout=timeout_s
            )
        except AWAY as error:
            self._link.lost(error)


def _log_sweep(sweep: Future[int]) -> None:
    if sweep.cancelled():
        return
    error = sweep.exception()
    if error is not None:
        log.error("old files could not be erased", error=repr(error))
    elif sweep.result():
        log.info("erased old files", jobs=sweep.result())
