"""Our worker as RQ sees it.

Owns everything that touches RQ's worker class: birth and death, its sign of life, the commands of its tools, and the
bookkeeping when an execution begins and ends. Overrides what is made for one job per process. Decides nothing: the loop
calls it. `tests/test_rq_contract.py` pins every internal used here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any
from uuid import uuid4

import redis
import structlog
from redis.client import Pipeline, PubSub, PubSubWorkerThread
from rq import Queue, worker_registration
from rq.command import parse_payload
from rq.exceptions import NoSuchJobError
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job
from rq.utils import now
from rq.worker import BaseWorker, WorkerStatus

from models.errors import GenerationError
from workers import scripts
from workers.contract import RETENTION_S, JobRecord, key
from workers.held_job import HeldJob, open_held_job
from workers.jobkeys import SERIALIZER, text
from workers.redis_backoff import while_there_is_memory
from workers.tidying import REGISTRIES

log = structlog.get_logger(__name__)

_WORKER_TTL_S = 60
_STOPPED = "Stopped by an operator between two denoising steps."
_RECONNECT_S = 1.0

ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]


class RqSide(BaseWorker):
    """An RQ worker with many executions at once, which the loop drives. `lease_ttl`: whole seconds of a lease."""

    log_result_lifespan = False

    def __init__(self, client: redis.Redis, lease_ttl: int) -> None:
        # The name is never reused: RQ refuses a name whose key is still alive.
        name = f"{socket.gethostname()}.{os.getpid()}.{uuid4().hex[:8]}"
        super().__init__(
            [], name=name, connection=client, serializer=SERIALIZER, worker_ttl=_WORKER_TTL_S, log_job_description=False
        )
        self._lease_ttl = lease_ttl
        self._pop = client.register_script(scripts.POP)
        self._commands: SimpleQueue[dict[str, Any]] = SimpleQueue()

    # --- what RQ's own code would do otherwise ------------------------------------------------------------------------

    @property
    def connection_timeout(self) -> int:
        """RQ raises the client's socket timeout to this; ours is chosen in `workers.connection`."""
        return 0

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return self._lease_ttl

    def procline(self, message: str) -> None:
        """The process's title stays what it is: many jobs, one process."""

    def handle_payload(self, message: dict[Any, Any]) -> None:
        """A command arrived (in the subscriber's thread): the loop takes it up between two steps."""
        self._commands.put(parse_payload(message))

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """The loop has logged the fault under the job's id already."""

    def _pubsub_exception_handler(self, exc: Exception, pubsub: PubSub, pubsub_thread: PubSubWorkerThread) -> None:
        """The subscriber outlives Redis: the client subscribes again when it is back."""
        if not isinstance(exc, redis.RedisError):
            raise exc
        log.warning("commands are not heard: Redis does not answer", error=str(exc))
        time.sleep(_RECONNECT_S)

    # --- what the loop asks for ---------------------------------------------------------------------------------------

    def commands(self) -> list[dict[str, Any]]:
        """Commands of RQ's tools since the last call."""
        found: list[dict[str, Any]] = []
        while True:
            try:
                found.append(self._commands.get_nowait())
            except Empty:
                return found

    def beat(self, pipe: Pipeline) -> None:
        """Our sign of life, whole, so that a key that expired (a frozen machine, an emptied server) comes back."""
        self.last_heartbeat = now()
        pipe.hset(self.key, mapping={**self.serialize(), "state": self.get_state()})
        pipe.expire(self.key, _WORKER_TTL_S + 60)
        pipe.expire(self.executions_key, _WORKER_TTL_S + 60)
        worker_registration.register(self, pipe)

    def pop(self, queue: str) -> tuple[Job, Queue] | None:
        """The job of a queue with the nearest deadline, or else the first, which moves to RQ's intermediate list. Never
        blocks.

        As RQ's dequeue_any, but also when the server's memory is full: jobs that end are what gives memory back.
        """
        source = Queue(queue, connection=self.connection, serializer=SERIALIZER)
        while True:
            popped = self._pop(keys=[source.key, source.intermediate_queue_key, key("urgent", queue)])
            if popped is None:
                return None
            with contextlib.suppress(NoSuchJobError):  # deleted with RQ's tools; the recovery drops the entry
                return Job.fetch(text(popped), connection=self.connection, serializer=SERIALIZER), source

    def new_execution(self, job: Job) -> Execution:
        """An execution that exists nowhere yet: the claim writes its lease."""
        return Execution(id=uuid4().hex, job_id=job.id, connection=self.connection, worker_name=self.name)

    def begin(self, held: HeldJob) -> None:
        """The rest of the bookkeeping after a claim, as RQ's prepare_execution and prepare_job_execution do it."""
        execution = held.execution
        self.executions[execution.id] = execution
        with while_there_is_memory("RQ's record of an execution"), self.connection.pipeline() as pipe:
            execution.save(ttl=self._lease_ttl, pipeline=pipe)
            ExecutionRegistry(held.id, self.connection).add(execution, ttl=self._lease_ttl, pipeline=pipe)
            pipe.sadd(execution.worker_executions_key, execution.composite_key)
            pipe.expire(execution.worker_executions_key, _WORKER_TTL_S + 60)
            self.set_state(WorkerStatus.BUSY, pipeline=pipe)
            pipe.execute()
            self.prepare_job_execution(held.job)

    def finish(self, held: HeldJob) -> None:
        """Tell RQ how a job ended whose outcome is written."""
        outcome, job = held.outcome, held.job
        assert outcome is not None, "A job without outcome is finished. This is a bug."
        job.started_at = job.started_at or now()
        if outcome.status == "succeeded":
            result = {"images": [picture.file for picture in outcome.pictures]}
            self._finalize_success(job, held.queue, held.execution, result)
        elif outcome.status == "failed":
            job.retries_left = 0
            error = held.error or GenerationError(outcome.error.detail if outcome.error else "unknown")
            self._finalize_failure(job, held.queue, held.execution, _exc_info(error))
        else:
            job.ended_at = now()
            self._stopped_job_id = job.id  # RQ's way to say: not failed, and not to be retried
            self.handle_job_failure(job, held.queue, exc_string=_STOPPED, execution=held.execution)
        self._let_registries_expire(held)
        self._rest_if_idle()

    def _let_registries_expire(self, held: HeldJob) -> None:
        """RQ gives them no end; the next job of the queue puts it off, and until then the recovery trims them."""
        with self.connection.pipeline(transaction=False) as pipe:
            for registry in REGISTRIES:
                pipe.expire(registry.key_template.format(held.queue.name), 2 * (held.job.result_ttl or RETENTION_S))
            pipe.execute()

    def release(self, held: HeldJob) -> None:
        """Forget an execution that RQ is not told about: it was lost, handed back, or ended from outside."""
        with self.connection.pipeline() as pipe:
            self.cleanup_execution(held.job, pipeline=pipe, execution=held.execution)
            pipe.execute()
        self._rest_if_idle()

    def tell(self, record: JobRecord) -> None:
        """Finish in RQ a job that has an outcome and whose worker died before it could."""
        try:
            job = Job.fetch(record.id, connection=self.connection, serializer=SERIALIZER)
        except NoSuchJobError:
            return
        if job.get_status(refresh=False) not in ("queued", "started"):
            return
        execution = Execution(
            id=record.execution or uuid4().hex, job_id=job.id, connection=self.connection, worker_name=self.name
        )
        queue = Queue(record.queue, connection=self.connection, serializer=SERIALIZER)
        held = open_held_job(job, queue, record, execution)
        held.outcome = record.outcome
        self.finish(held)

    def _rest_if_idle(self) -> None:
        if not self.executions:
            with while_there_is_memory("RQ's state of this worker"):
                self.set_state(WorkerStatus.IDLE)


def _exc_info(error: BaseException) -> ExcInfo:
    return type(error), error, error.__traceback__
