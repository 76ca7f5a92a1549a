"""How jobs come into a worker's hands.

Owns the way from a queue to a claimed job: whose turn it is, popping, claiming, and which models take nothing at the
moment. Draws nothing; the loop decides when to look and what happens to a job afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog
from rq import Queue

from models.errors import GenerationError, InternalError, RequestError
from models.request import PictureRequest
from workers.board import JobBoard
from workers.contract import JobRecord, is_newer
from workers.held_job import HeldJob, open_held_job
from workers.lease import Leases
from workers.protocols import Engine, Shelf
from workers.rq_side import RqSide
from workers.settings import WorkerSettings
from workers.turns import Lookout, Turns, Waiting

log = structlog.get_logger(__name__)


NEWER_PAUSE_S = 2.0
"""Between two looks at a queue whose first job needs a newer worker: it may have been taken or canceled meanwhile."""

CrashPoint = Callable[[str], None]


def no_crash(place: str) -> None:
    """Nothing goes wrong at `place`."""


class Admission:
    """Takes jobs for one loop. `crash_point` is called with the name of each place between two commands."""

    def __init__(
        self, rq: RqSide, leases: Leases, board: JobBoard, settings: WorkerSettings, crash_point: CrashPoint = no_crash
    ) -> None:
        self._rq = rq
        self._board = board
        self._leases = leases
        self._lookout = Lookout(rq.connection)
        self._turns = Turns(settings.patience_s)
        self.crash_point = crash_point
        self.coming: Callable[[str, str], Sequence[PictureRequest]] = lambda tenant, model: ()
        """Requests of a tenant to a model that were claimed and are not in the batch yet."""
        self._halfway: HeldJob | None = None
        """Popped, and the answer to its claim is not known yet."""
        self._closed: set[tuple[str, str]] = set()
        """Models and tenants (as in queues' names) for whose next job the engine had no room."""
        self._blocked: tuple[str, float] | None = None
        """The model that finds no room in memory while others are in use, and since when."""
        self._paused: frozenset[str] = frozenset()
        self._for_newer: dict[str, float] = {}
        """Queues whose first job needs a newer version, until when (monotonic) they are left alone."""
        self.is_suspended = False
        self.has_more = False
        """Jobs were left behind at the last look, for want of room."""

    def reopen(self) -> None:
        """Something has left the engine: there may be room again."""
        self._closed.clear()

    def pause(self, models: frozenset[str]) -> None:
        """These models take no job, until it is called again with others."""
        self._paused = models

    def blocked(self, longer_than_s: float) -> str | None:
        """The model that has found no room in memory for so long, because the jobs in hand are of others."""
        if self._blocked is None or time.monotonic() - self._blocked[1] <= longer_than_s:
            return None
        return self._blocked[0]

    def take(
        self, engine: Engine, shelf: Shelf, in_use: Collection[str], count: int, sated: Collection[str] = ()
    ) -> Iterator[HeldJob]:
        """Up to `count` jobs, each as soon as it is ours, with its checkpoint or an `error` when there is none. `sated`
        tenants, as in queues' names, get none.

        Raises what Redis raises; a job that was halfway then is taken up at the next call.
        """
        taken = 0
        if self._halfway:
            for held in self._claim(self._halfway):
                taken = count if held.is_delicate else taken + 1
                yield held
        self.is_suspended, waiting = self._lookout.look(shelf.names())
        if self._blocked is not None and all(queue.model != self._blocked[0] for queue in waiting):
            self._blocked = None  # its jobs were canceled, or others have taken them
        self._for_newer = {
            queue.queue: self._for_newer[queue.queue] for queue in waiting if queue.queue in self._for_newer
        }
        now = time.monotonic()
        queues = {queue.queue: queue for queue in waiting if self._for_newer.get(queue.queue, now) <= now}
        while queues and not self.is_suspended and taken < count:
            candidates = [
                queue
                for queue in queues.values()
                if queue.tenant not in sated
                and queue.model not in self._paused
                and (queue.model, queue.tenant) not in self._closed
            ]
            queue = self._turns.choose(candidates, _loaded(shelf, queues))
            if queue is None:
                break
            for held in self._take_from(queue, engine, shelf, in_use, queues):
                taken = count if held.is_delicate else taken + 1
                yield held
        self.has_more = bool(queues)

    def _take_from(
        self, queue: Waiting, engine: Engine, shelf: Shelf, in_use: Collection[str], queues: dict[str, Waiting]
    ) -> list[HeldJob]:
        """One job of this queue, or none: then the queue has left `queues`, got shorter, or is closed."""
        checkpoint, error = _fetch(shelf, queue.model, in_use)
        if checkpoint is None and error is None:
            # It fits when the models in use have left, so nothing may join those meanwhile.
            if self._blocked is None or self._blocked[0] != queue.model:
                self._blocked = queue.model, time.monotonic()
            queues.clear()
            return []
        if self._blocked is not None and self._blocked[0] == queue.model:
            self._blocked = None
        popped = self._rq.pop(queue.queue)
        if popped is None:
            del queues[queue.queue]
            return []
        _shorten(queues, queue)
        self.crash_point("popped")
        job, source = popped
        record = self._read(job.id, source, queue, queues)
        if record is None:
            return []
        task = record.submission.request.task
        if error is None and task not in checkpoint.tasks:
            # Another checkpoint has this name now, or has it on another worker.
            error = RequestError(f"The model {queue.model} does not serve {task} any more; see GET /models.")
        submission = record.submission
        before = self.coming(submission.tenant, queue.model)
        if error is None and not engine.has_room(submission.request, checkpoint, submission.tenant, before):
            self._leases.put_back(job.id, queue.model, queue.queue)
            self._closed.add((queue.model, queue.tenant))
            return []
        held = open_held_job(job, source, record, self._rq.new_execution(job))
        held.checkpoint, held.error = checkpoint, error
        self._turns.took(queue)
        return self._claim(held)

    def _read(self, job_id: str, source: Queue, queue: Waiting, queues: dict[str, Waiting]) -> JobRecord | None:
        """The record of a popped job; None when it is not for us, or broken: then it has gone where it belongs."""
        record = self._leases.read(job_id)
        if is_newer(record.contract_version) if record else self._leases.needs_newer(job_id):
            self._leave_to_newer(job_id, queue, queues)
            return None
        if record is None:
            self._board.fail_unreadable(job_id, queue.model, queue.queue)
            source.intermediate_queue.remove(job_id)
        return record

    def _leave_to_newer(self, job_id: str, queue: Waiting, queues: dict[str, Waiting]) -> None:
        """Put back a job that workers of a newer version draw. What waits behind it keeps its turn, and waits, too."""
        self._leases.put_back(job_id, queue.model, queue.queue)
        if queue.queue not in self._for_newer:
            log.warning("a job needs a newer worker; its queue is left alone for a while", job=job_id)
        self._for_newer[queue.queue] = time.monotonic() + NEWER_PAUSE_S
        queues.pop(queue.queue, None)

    def _claim(self, held: HeldJob) -> list[HeldJob]:
        """The held when it is ours now. Every part of this may be repeated, and is after a lost connection."""
        self._halfway = held
        answer = self._leases.claim(held.lease)
        self.crash_point("claimed")
        if answer == "claimed":
            record = self._leases.read(held.id)
            if record is not None:
                held.record = record
            self._rq.begin(held)
        elif answer == "untold":
            record = self._leases.read(held.id)
            if record is not None:
                self._rq.tell(record)
        self._halfway = None
        if answer != "claimed":
            log.info("a queue entry was dropped", **held.names, reason=answer)
            return []
        return [held]


def _fetch(shelf: Shelf, model: str, in_use: Collection[str]) -> tuple[Any, GenerationError | None]:
    """The checkpoint, or None when others must leave first; or why it cannot be had."""
    try:
        return shelf.get(model, in_use), None
    except GenerationError as error:
        return None, error
    except Exception as error:  # noqa: BLE001 (the boundary: a model that cannot be loaded fails its jobs, not ours)
        log.exception("a model cannot be loaded", model=model)
        fault = InternalError("The model could not be loaded; the worker's log has the reason.")
        fault.__cause__ = error
        return None, fault


def _loaded(shelf: Shelf, queues: Mapping[str, Waiting]) -> set[str]:
    return {queue.model for queue in queues.values() if shelf.is_loaded(queue.model)}


def _shorten(queues: dict[str, Waiting], queue: Waiting) -> None:
    if queue.length > 1:
        queues[queue.queue] = replace(queue, length=queue.length - 1)
    else:
        del queues[queue.queue]
