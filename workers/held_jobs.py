"""The jobs in a worker's hands, from the claim until it lets go of them.

Owns what happens to each job and the per-job boundary: whatever goes wrong with one of them ends that one. Knows
neither queues nor turns.

    reading ─> ready ─> drawing ─> saving ─> settling ─> committed, told to RQ, let go
       ^                   │                            └> not ours any more: let go
       └── to be enlarged ─┘

From any phase a job can be settled early (a fault, its time limit, an operator's stop), dropped (canceled or lost: the
record says so already) or handed back (this worker ends, or its store refuses for too long).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from concurrent.futures import Future, wait
from typing import Any

import redis
import structlog

from models.errors import Abandoned, DeadlineExceeded, GenerationError, InternalError, RequestError, TimedOut
from models.request import PictureRequest
from workers.assembly import WorkerParts
from workers.contract import JobError, Outcome, slug
from workers.held_job import MOST_DEATHS, HeldJob
from workers.io_pool import Brought
from workers.protocols import Broken, Drawn, Prepared
from workers.redis_backoff import is_away
from workers.store_gate import StoreGate

log = structlog.get_logger(__name__)

_LONGEST_WAIT_S = 10.0
"""Between two tries of a store that refuses."""


class HeldJobs:
    """Jobs by id, in the order in which they came. The loop's thread owns it."""

    def __init__(self, parts: WorkerParts) -> None:
        self._parts = parts
        self._by_id: dict[str, HeldJob] = {}
        self._store_gate = StoreGate(parts.io_pool.try_store)

    @property
    def all(self) -> tuple[HeldJob, ...]:
        return tuple(self._by_id.values())

    @property
    def models(self) -> frozenset[str]:
        return frozenset(held.model for held in self.all)

    @property
    def unsaved(self) -> int:
        """Drawn jobs that are not written yet."""
        return sum(held.phase == "saving" for held in self.all)

    @property
    def can_be_saved(self) -> bool:
        """The store takes files, or has not refused them for long."""
        return self._store_gate.is_open

    @property
    def reading(self) -> int:
        """Jobs whose files are being read."""
        return sum(held.phase == "reading" for held in self.all)

    def coming(self, tenant: str, model: str) -> list[PictureRequest]:
        """What of a tenant's is on its way into the batch, for this model."""
        waiting = [held for held in self.all if held.phase in ("reading", "ready") and held.model == model]
        return [held.request for held in waiting if held.standing.tenant == tenant]

    def sated(self, most: int) -> frozenset[str]:
        """Tenants, as in queues' names, that have half of `most` jobs here: the other half is for others."""
        counts = Counter(slug(held.record.submission.tenant) for held in self.all)
        return frozenset(tenant for tenant, count in counts.items() if count >= max(1, most // 2))

    @property
    def crowding(self) -> frozenset[str]:
        """Models that shall take no job now: in their place in memory a job needs its upscaler."""
        wanted = {held.model for held in self.all if held.waits_for_upscaler}
        names = self._parts.shelf.names()
        return (
            frozenset(name for name in names if self._parts.shelf.is_loaded(name)) - wanted if wanted else frozenset()
        )

    @property
    def is_delicate(self) -> bool:
        """True while a job is here that must have no neighbours."""
        return any(held.is_delicate for held in self.all)

    def find(self, *, job_id: str | None = None, execution_id: str | None = None) -> HeldJob | None:
        return next((f for f in self.all if job_id == f.id or execution_id == f.execution.id), None)

    # --- forward ------------------------------------------------------------------------------------------------------

    def receive(self, held: HeldJob) -> None:
        """A job was claimed."""
        self._by_id[held.id] = held
        self._parts.heartbeat.keep(held.lease)
        log.info(
            "claimed",
            **held.names,
            deaths=held.record.deaths,
            traceparent=held.record.submission.traceparent,
        )
        if held.job.timeout and held.job.timeout > 0:
            held.deadline = time.monotonic() + held.job.timeout
        if held.record.deaths >= MOST_DEATHS:
            self.fail(held, Abandoned(f"{MOST_DEATHS} workers died on this job without getting any further."))
        elif held.error is not None:
            self.fail(held, held.error)
        else:
            held.digest = held.checkpoint.digest
            held.work = self._parts.io_pool.read(held.record, held.checkpoint)

    def advance(self) -> None:
        """Enforce time limits, take up what the pool has finished, ask a store again that refused, fill the batch."""
        now = time.monotonic()
        for held in self.all:
            if held.phase not in ("reading", "ready", "drawing"):
                continue
            if time.time() > held.record.deadline:
                self.fail(held, DeadlineExceeded("Its deadline passed before it was drawn."))
            elif now > held.deadline:
                self.fail(held, TimedOut(f"The job ran longer than its limit of {held.job.timeout:.0f} s."))
        self.take_up()
        self._store_gate.keep_up()
        for held in self.all:
            if held.work is None and held.phase in ("reading", "saving") and now >= held.ask_again_at:
                self._ask_store(held)
            elif held.phase == "ready":
                self._embark(held)

    def take_up(self) -> None:
        """Take up what the pool has finished."""
        for held in self.all:
            if held.work is not None and held.work.done() and not held.work.cancelled():
                self._take_up(held, held.work)

    def _ask_store(self, held: HeldJob) -> None:
        io_pool = self._parts.io_pool
        if held.drawn is not None:
            held.work = io_pool.save(held.record, held.execution.id, held.drawn, held.provenance, held.canvas)
        elif held.first is not None:
            self._begin_enlarging(held, held.first)
        else:
            held.work = io_pool.read(held.record, held.checkpoint)

    def _begin_enlarging(self, held: HeldJob, first: Drawn) -> None:
        """Hand what was drawn to the upscaler, once it is in memory; until then this is tried again."""
        others = frozenset(other.model for other in self.all if other is not held)
        try:
            held.checkpoint = upscaler = self._parts.shelf.get(
                held.model, others.union(self._parts.engine.models_in_use())
            )
        except Exception as error:  # noqa: BLE001 (the per-job boundary)
            self._fail_for(held, error)
            return
        if upscaler is None:
            return
        if "upscale" not in upscaler.tasks:
            self._fail_for(held, RequestError(f"The model {held.model} enlarges nothing any more; see GET /models."))
            return
        held.work = self._parts.io_pool.enlarge(held.record, first, held.canvas, upscaler)

    def _take_up(self, held: HeldJob, work: Future[Any]) -> None:
        held.work = None
        try:
            result = work.result()
        except OSError as error:
            self._be_patient(held, error)
        except Exception as error:  # noqa: BLE001 (the per-job boundary)
            self._fail_for(held, error)
        else:
            held.patience_until, held.refusals = None, 0
            if held.drawn is not None:
                held.succeed(result)
            else:
                self._take_brought(held, result)

    def _take_brought(self, held: HeldJob, brought: Brought) -> None:
        held.brought = brought
        held.snapshot = brought.saved.steps or held.snapshot
        if held.first is None:
            held.materials = brought.materials
        if brought.saved.first is None:
            held.enlarging, held.phase = brought.enlarging, "ready"
            return
        held.steps = brought.saved.first.steps
        self._note_resumed(held, held.steps)
        self._turn_to_upscaler(held, brought.saved.first)

    def _turn_to_upscaler(self, held: HeldJob, first: Drawn) -> None:
        """The second half of the job begins."""
        held.first, held.phase, held.steps_before = first, "reading", held.steps
        held.checkpoint = None  # it may have to make room for the upscaler
        self._parts.admission.reopen()
        self._ask_store(held)

    def _note_resumed(self, held: HeldJob, step: int) -> None:
        if held.resumed_from_step is None:
            self._parts.reporting.counters["jobs_resumed"] += 1
        held.resumed_from_step = step
        self._parts.snapshots.take_up(held, step)
        log.info("resumed", **held.names, step=step)

    def _be_patient(self, held: HeldJob, error: OSError) -> None:
        """The store refused. The job is kept, with its lease, and asked for again: at first soon, then less often."""
        now = time.monotonic()
        self._parts.reporting.counters["store_refusals"] += 1
        if held.patience_until is None:
            held.patience_until = now + self._parts.settings.save_patience_s
            log.error("the store refuses; asking again", **held.names, error=str(error))
        if now >= held.patience_until:
            log.error("the store refuses for too long; the job goes back", **held.names, error=str(error))
            held.is_refused, held.ask_again_at = True, math.inf
            self._store_gate.shut()
            return
        held.refusals += 1
        held.ask_again_at = now + min(_LONGEST_WAIT_S, 0.1 * 2**held.refusals)

    def _embark(self, held: HeldJob) -> None:
        """Let a job join the batch: when there is room, and a delicate one when nobody else is here."""
        engine, request = self._parts.engine, held.request
        if (held.is_delicate and len(self._by_id) > 1) or not engine.has_room(
            request, held.checkpoint, held.standing.tenant
        ):
            return
        assert held.brought is not None, "a job is ready that brought nothing. This is a bug."
        try:
            engine.admit(held.id, request, held.checkpoint, held.brought.inputs, held.snapshot, held.standing)
        except Exception as error:  # noqa: BLE001 (the per-job boundary)
            self._fail_for(held, error)
            return
        held.brought, held.snapshot, held.phase = Brought(None, held.canvas), None, "drawing"

    def note(self, event: Prepared | Drawn | Broken) -> None:
        """Something happened to a job in the batch."""
        held = self._by_id.get(event.job_id)
        assert held is not None, f"The engine draws {event.job_id}, which is not here. This is a bug."
        if isinstance(event, Drawn) and held.record.submission.request.upscaler and held.first is None:
            self._turn_to_upscaler(held, event)
            self._parts.snapshots.save_first(held)
        elif isinstance(event, Drawn):
            held.drawn, held.phase, held.saving_since = event, "saving", time.time()
            self._parts.admission.reopen()
            self._ask_store(held)
        elif isinstance(event, Prepared):
            held.steps = held.steps_before + event.steps
            if event.step:
                self._note_resumed(held, held.steps_before + event.step)
            held.warnings += event.warnings + (held.canvas.warnings if held.canvas else ())
        else:
            self._fail_for(held, event.error)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def fail(self, held: HeldJob, error: GenerationError) -> None:
        """This job ends as failed."""
        self._leave_engine(held)
        outcome = Outcome(
            status="failed",
            error=JobError(code=error.code, detail=error.detail),
            timings=held.timings(),
            ended_at=time.time(),
            execution=held.execution.id,
        )
        held.settle(outcome, error)

    def _fail_for(self, held: HeldJob, error: Exception) -> None:
        if isinstance(error, GenerationError) and not isinstance(error, InternalError):
            log.info("failed", **held.names, code=error.code, detail=error.detail)
            self.fail(held, error)
            return
        log.error("a job met a fault of ours", **held.names, exc_info=error.__cause__ or error)
        self.fail(held, error if isinstance(error, InternalError) else InternalError.of(error))

    def stop(self, held: HeldJob) -> None:
        """An operator, or the API, wants this job to end."""
        self._leave_engine(held)
        held.settle(
            Outcome(status="canceled", timings=held.timings(), ended_at=time.time(), execution=held.execution.id)
        )

    def drop(self, held: HeldJob) -> None:
        """This job is not ours any more: canceled, taken over, or ended with RQ's tools."""
        self._leave_engine(held)
        held.is_lost = True
        held.phase, held.work = "settling", None

    def settle(self) -> None:
        """Commit every job that has an outcome, tell RQ, and let go of it; let go of what is lost."""
        for held in self.all:
            if held.is_lost:
                self._let_go(held)
            elif held.outcome is not None:
                self._settle(held, held.outcome)

    def _let_go(self, held: HeldJob) -> None:
        """Let go of a lost job, and see why it is: what was ended with RQ's tools gets its outcome here."""
        self._parts.board.reconcile(held.id)
        record = self._parts.leases.read(held.id)
        if record and record.outcome and record.execution == held.execution.id:
            self._parts.rq.tell(record)  # ended from outside while RQ was being told that it starts
        self._parts.rq.release(held)
        if record is None or record.outcome:
            self._parts.snapshots.erase(held)
        self._forget(held)
        log.info("dropped", **held.names)

    def _settle(self, held: HeldJob, outcome: Outcome) -> None:
        if not held.is_committed:
            answer = self._parts.leases.commit(held.lease, outcome, held.steps)
            if answer != "committed":
                self.drop(held)
                self._let_go(held)
                return
            held.is_committed = True
            log.info(outcome.status, **held.names)
            self._parts.snapshots.erase(held)
            self._parts.reporting.count_end(held, outcome)
        self._parts.admission.crash_point("committed")
        try:
            self._parts.rq.finish(held)
        except redis.RedisError as error:
            if not is_away(error):
                raise
            # The outcome stands; when the lease has run out the recovery tells RQ.
            log.warning("RQ was not told of an end", **held.names)
            self._parts.rq.executions.pop(held.execution.id, None)
        self._forget(held)

    def clear_the_way(self, wanted: str | None) -> None:
        """Give back what the store refused for too long, and what keeps a model in memory in whose place another is
        needed: for an upscaler what has not begun, for one that has waited too long (`wanted`) all, once saved."""
        crowding = self.crowding
        for held in reversed(self.all):
            if held.is_refused or held.model in crowding and held.phase in ("reading", "ready") and held.first is None:
                self._hand_back(held, is_blamed=False)
        for held in reversed(self.all):
            if held.parking is not None and held.parking.done():
                self._park(held)
            elif wanted is not None and held.model != wanted and held.parking is None:
                held.parking = self._parts.snapshots.save(held)

    def _park(self, held: HeldJob) -> None:
        held.parking = None
        if held.phase in ("reading", "ready", "drawing"):
            log.info("parked", **held.names)
            self._hand_back(held, is_blamed=False)  # may raise; then it goes on, and is parked later
            self._leave_engine(held)

    def finish_writing(self, until: float) -> None:
        """Commit what is drawn and will be written by `until` (monotonic), and what has an outcome. Raises what Redis
        raises."""
        writing = [held.work for held in self.all if held.phase == "saving" and held.work is not None]
        wait(writing, max(0.0, until - time.monotonic()))
        self.take_up()
        self.settle()

    def hand_back(self, *, is_blamed: bool) -> None:
        """Give every job back to the front of its queue. Blamed: the worker died of one of them. The engine is not
        told: it draws no more."""
        for held in reversed(self.all):  # the oldest comes first again
            self._hand_back(held, is_blamed=is_blamed)

    def _hand_back(self, held: HeldJob, *, is_blamed: bool) -> None:
        answer = self._parts.leases.hand_back(held.lease, held.record.queue, is_blamed=is_blamed)
        self._parts.rq.release(held)
        self._forget(held)
        log.info("handed back", **held.names, answer=answer)

    def _leave_engine(self, held: HeldJob) -> None:
        if held.phase == "drawing":
            self._parts.engine.cancel(held.id)
            held.phase = "settling"

    def _forget(self, held: HeldJob) -> None:
        self._parts.heartbeat.drop(held.lease)
        self._parts.snapshots.release(held)
        self._parts.admission.reopen()
        self._by_id.pop(held.id, None)  # the farewell may have been faster
