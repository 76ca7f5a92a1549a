"""The jobs in a worker's hands, from the claim until it lets go of them.

Owns what happens to each job and the per-job boundary: whatever goes wrong with one of them ends that one. Knows
neither queues nor turns.

    reading ─> ready ─> drawing ─> saving ─> settling ─> committed, told to RQ, let go
                                                        └> not ours any more: let go

From any phase a job can be settled early (a fault, its time limit, an operator's stop), dropped (canceled or lost: the
record says so already) or handed back (this worker ends).
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

import structlog

from models.errors import Abandoned, GenerationError, InternalError, StoreUnavailable, TimedOut
from workers.contract import JobError, Outcome
from workers.flight import MOST_DEATHS, Flight
from workers.link import AWAY
from workers.parts import Parts
from workers.protocols import Broken, Drawn, Prepared

log = structlog.get_logger(__name__)

_LONGEST_WAIT_S = 10.0
"""Between two tries of a store that refuses."""


class Hands:
    """Jobs by id, in the order in which they came. The loop's thread owns it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._flights: dict[str, Flight] = {}

    @property
    def flights(self) -> tuple[Flight, ...]:
        return tuple(self._flights.values())

    @property
    def models(self) -> frozenset[str]:
        return frozenset(flight.model for flight in self.flights)

    @property
    def unsaved(self) -> int:
        """Drawn jobs that are not written yet."""
        return sum(flight.phase == "saving" for flight in self.flights)

    @property
    def is_delicate(self) -> bool:
        """True while a job is here that must have no neighbours."""
        return any(flight.is_delicate for flight in self.flights)

    def find(self, *, job_id: str | None = None, execution_id: str | None = None) -> Flight | None:
        return next((f for f in self.flights if job_id == f.id or execution_id == f.execution.id), None)

    # --- forward ------------------------------------------------------------------------------------------------------

    def receive(self, flight: Flight) -> None:
        """A job was claimed."""
        self._flights[flight.id] = flight
        self._parts.heart.hold(flight.hold)
        log.info(
            "claimed",
            job=flight.id,
            execution=flight.execution.id,
            deaths=flight.record.deaths,
            traceparent=flight.record.submission.traceparent,
        )
        if flight.job.timeout and flight.job.timeout > 0:
            flight.deadline = time.monotonic() + flight.job.timeout
        if flight.record.deaths >= MOST_DEATHS:
            self.fail(flight, Abandoned(f"{MOST_DEATHS} workers died on this job without getting any further."))
        elif flight.error is not None:
            self.fail(flight, flight.error)
        else:
            flight.errand = self._parts.errands.read(flight.record, flight.checkpoint)

    def advance(self) -> None:
        """Enforce time limits, take up what the pool has finished, ask a store again that refused, fill the batch."""
        now = time.monotonic()
        for flight in self.flights:
            if now > flight.deadline and flight.phase in ("reading", "ready", "drawing"):
                self.fail(flight, TimedOut(f"The job ran longer than its limit of {flight.job.timeout:.0f} s."))
        self.take_up()
        for flight in self.flights:
            if flight.errand is None and flight.phase in ("reading", "saving") and now >= flight.ask_again_at:
                self._ask_store(flight)
            elif flight.phase == "ready":
                self._embark(flight)

    def take_up(self) -> None:
        """Take up what the pool has finished."""
        for flight in self.flights:
            if flight.errand is not None and flight.errand.done() and not flight.errand.cancelled():
                self._take_up(flight, flight.errand)

    def _ask_store(self, flight: Flight) -> None:
        errands = self._parts.errands
        if flight.drawn is not None:
            digest = flight.checkpoint.digest
            flight.errand = errands.save(flight.record, flight.execution.id, flight.drawn, digest)
        else:
            flight.errand = errands.read(flight.record, flight.checkpoint)

    def _take_up(self, flight: Flight, errand: Future[Any]) -> None:
        flight.errand = None
        try:
            result = errand.result()
        except OSError as error:
            self._be_patient(flight, error)
        except Exception as error:  # noqa: BLE001 (the per-job boundary)
            self._fail_for(flight, error)
        else:
            flight.patience_until, flight.refusals = None, 0
            if flight.drawn is not None:
                flight.succeed(result)
            else:
                flight.image, flight.phase = result, "ready"

    def _be_patient(self, flight: Flight, error: OSError) -> None:
        """The store refused. The job is kept, with its lease, and asked for again: at first soon, then less often."""
        now = time.monotonic()
        if flight.patience_until is None:
            flight.patience_until = now + self._parts.settings.save_patience_s
            log.error("the store refuses; asking again", job=flight.id, error=str(error))
        if now >= flight.patience_until:
            self.fail(flight, StoreUnavailable(f"The store of pictures refused: {error.strerror or error}."))
            return
        flight.refusals += 1
        flight.ask_again_at = now + min(_LONGEST_WAIT_S, 0.1 * 2**flight.refusals)

    def _embark(self, flight: Flight) -> None:
        """Let a job join the batch: when there is room, and a delicate one when nobody else is here."""
        engine, request = self._parts.engine, flight.record.submission.request
        if (flight.is_delicate and len(self._flights) > 1) or not engine.has_room(request, flight.checkpoint):
            return
        try:
            engine.admit(flight.id, request, flight.checkpoint, flight.image)
        except Exception as error:  # noqa: BLE001 (the per-job boundary)
            self._fail_for(flight, error)
            return
        flight.image, flight.phase = None, "drawing"

    def note(self, event: Prepared | Drawn | Broken) -> None:
        """Something happened to a job in the batch."""
        flight = self._flights.get(event.job_id)
        assert flight is not None, f"The engine draws {event.job_id}, which is not here. This is a bug."
        if isinstance(event, Drawn):
            flight.drawn, flight.phase, flight.saving_since = event, "saving", time.time()
            self._parts.intake.reopen()
            self._ask_store(flight)
        elif isinstance(event, Prepared):
            flight.steps, flight.warnings = event.steps, event.warnings
        else:
            self._fail_for(flight, event.error)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def fail(self, flight: Flight, error: GenerationError) -> None:
        """This job ends as failed."""
        self._leave_engine(flight)
        outcome = Outcome(
            status="failed",
            error=JobError(code=error.code, detail=error.detail),
            timings=flight.timings(),
            ended_at=time.time(),
            execution=flight.execution.id,
        )
        flight.settle(outcome, error)

    def _fail_for(self, flight: Flight, error: Exception) -> None:
        if isinstance(error, GenerationError):
            log.info("failed", job=flight.id, execution=flight.execution.id, code=error.code, detail=error.detail)
            self.fail(flight, error)
            return
        log.error("a job met a fault of ours", job=flight.id, execution=flight.execution.id, exc_info=error)
        fault = InternalError("The worker failed on this job; its log has the reason under the job's id.")
        fault.__cause__ = error
        self.fail(flight, fault)

    def stop(self, flight: Flight) -> None:
        """An operator, or the API, wants this job to end."""
        self._leave_engine(flight)
        flight.settle(Outcome(status="canceled", ended_at=time.time(), execution=flight.execution.id))

    def drop(self, flight: Flight) -> None:
        """This job is not ours any more: canceled, taken over, or ended with RQ's tools."""
        self._leave_engine(flight)
        flight.is_lost = True
        flight.phase, flight.errand = "settling", None

    def settle(self) -> None:
        """Commit every job that has an outcome, tell RQ, and let go of it; let go of what is lost."""
        for flight in self.flights:
            if flight.is_lost:
                self._let_go(flight)
            elif flight.outcome is not None:
                self._settle(flight, flight.outcome)

    def _let_go(self, flight: Flight) -> None:
        """Let go of a lost job, and see why it is: what was ended with RQ's tools gets its outcome here."""
        self._parts.board.reconcile(flight.id)
        record = self._parts.leases.read(flight.id)
        if record and record.outcome and record.execution == flight.execution.id:
            self._parts.rq.tell(record)  # ended from outside while RQ was being told that it starts
        self._parts.rq.release(flight)
        self._forget(flight)
        log.info("dropped", job=flight.id, execution=flight.execution.id)

    def _settle(self, flight: Flight, outcome: Outcome) -> None:
        if not flight.is_committed:
            answer = self._parts.leases.commit(flight.hold, outcome, flight.steps)
            if answer != "committed":
                self.drop(flight)
                self._let_go(flight)
                return
            flight.is_committed = True
            self._parts.reporting.counters[f"jobs_{outcome.status}"] += 1
            log.info(outcome.status, job=flight.id, execution=flight.execution.id)
        self._parts.intake.fault("committed")
        try:
            self._parts.rq.finish(flight)
        except AWAY:
            # The outcome stands; when the lease has run out the upkeep tells RQ.
            log.warning("RQ was not told of an end", job=flight.id)
            self._parts.rq.executions.pop(flight.execution.id, None)
        self._forget(flight)

    def hand_back(self, *, is_blamed: bool) -> None:
        """Give every job back to the front of its queue. Blamed: the worker died of one of them."""
        for flight in reversed(self.flights):  # the oldest comes first again
            self._leave_engine(flight)
            answer = self._parts.leases.hand_back(flight.hold, flight.record.queue, is_blamed=is_blamed)
            self._parts.rq.release(flight)
            self._forget(flight)
            log.info("handed back", job=flight.id, execution=flight.execution.id, answer=answer)

    def _leave_engine(self, flight: Flight) -> None:
        if flight.phase == "drawing":
            self._parts.engine.cancel(flight.id)
            flight.phase = "settling"

    def _forget(self, flight: Flight) -> None:
        self._parts.heart.drop(flight.hold)
        self._parts.intake.reopen()
        del self._flights[flight.id]
