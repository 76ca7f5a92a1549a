"""Every internal of RQ that our worker stands on, by name, signature, key format and behaviour.

RQ is pinned to one version. When this file fails after a change of that pin, read the named file of RQ again and adapt
`workers/rq_side.py`, `workers/jobkeys.py` and `workers/scripts.py` before anything else.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import rq
from rq import Queue, command, defaults, intermediate_queue, registry, suspension, worker_registration
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE, Execution, ExecutionRegistry
from rq.job import Job, JobStatus, Retry
from rq.results import Result
from rq.worker import BaseWorker, WorkerStatus

from tests.board_values import make_entry, make_submission
from workers.board import JobBoard
from workers.rq_side import RqSide


def test_rq_is_the_version_that_was_read() -> None:
    assert rq.__version__ == "3.0.0"


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (BaseWorker.bootstrap, ["logging_level", "date_format", "log_format"]),
        (BaseWorker.teardown, []),
        (BaseWorker.register_birth, []),
        (BaseWorker.register_death, []),
        (BaseWorker.serialize, []),
        (BaseWorker.set_state, ["state", "pipeline"]),
        (BaseWorker.get_state, []),
        (BaseWorker.prepare_job_execution, ["job", "remove_from_intermediate_queue"]),
        (BaseWorker.cleanup_execution, ["job", "pipeline", "execution"]),
        (BaseWorker.handle_job_failure, ["job", "queue", "started_job_registry", "exc_string", "execution"]),
        (BaseWorker.handle_exception, ["job", "exc_info"]),
        (BaseWorker.handle_payload, ["message"]),
        (BaseWorker.get_heartbeat_ttl, ["job", "working_time"]),
        (BaseWorker.procline, ["message"]),
        (BaseWorker._finalize_success, ["job", "queue", "execution", "return_value"]),
        (BaseWorker._finalize_failure, ["job", "queue", "execution", "exc_info"]),
        (BaseWorker._pubsub_exception_handler, ["exc", "pubsub", "pubsub_thread"]),
        (Execution.__init__, ["id", "job_id", "connection", "worker_name"]),
        (Execution.save, ["ttl", "pipeline"]),
        (ExecutionRegistry.__init__, ["job_id", "connection"]),
        (ExecutionRegistry.add, ["execution", "ttl", "pipeline", "xx"]),
        (Queue.enqueue_job, ["job", "pipeline", "at_front", "unique"]),
        (Retry.__init__, ["max", "interval", "enqueue_at_front"]),
        (command.send_command, ["connection", "worker_name", "command", "kwargs"]),
        (command.parse_payload, ["payload"]),
        (worker_registration.register, ["worker", "pipeline"]),
        (suspension.suspend, ["connection", "ttl"]),
    ],
)
def test_a_function_has_the_parameters_we_pass(function: Callable[..., Any], parameters: list[str]) -> None:
    found = [name for name in inspect.signature(function).parameters if name != "self"]
    assert found == parameters


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (
            Queue.create_job,
            {"func", "kwargs", "job_id", "timeout", "result_ttl", "failure_ttl", "retry", "description"},
        ),
        (Queue.dequeue_any, {"queues", "timeout", "connection", "serializer"}),
        (
            BaseWorker.__init__,
            {"queues", "name", "connection", "serializer", "worker_ttl", "log_job_description"},
        ),
    ],
)
def test_a_long_signature_has_the_parameters_we_pass(function: Callable[..., Any], parameters: set[str]) -> None:
    assert parameters <= set(inspect.signature(function).parameters)


def test_keys_are_where_our_scripts_look_for_them(redis_client: redis.Redis) -> None:
    queue = Queue("q", connection=redis_client)
    execution = Execution(id="e", job_id="j", connection=redis_client, worker_name="w")
    assert defaults.RQ_KEY_PREFIX == "rq"
    assert Job.key_for("j") == "rq:job:j"
    assert queue.key == "rq:queue:q"
    assert Queue.redis_queue_namespace_prefix == "rq:queue:"
    assert Queue.redis_queues_keys == "rq:queues"
    assert intermediate_queue.IntermediateQueue.get_intermediate_queue_key("rq:queue:q") == "rq:queue:q:intermediate"
    assert registry.StartedJobRegistry.key_template.format("q") == "rq:wip:q"
    assert registry.FinishedJobRegistry.key_template.format("q") == "rq:finished:q"
    assert registry.FailedJobRegistry.key_template.format("q") == "rq:failed:q"
    assert registry.CanceledJobRegistry.key_template.format("q") == "rq:canceled:q"
    assert ExecutionRegistry("j", redis_client).key == "rq:executions:j"
    assert execution.key == "rq:execution:j:e"
    assert execution.composite_key == "j:e"
    assert execution.worker_executions_key == WORKER_EXECUTIONS_KEY_TEMPLATE.format("w")
    assert Result.get_key("j") == "rq:results:j"
    assert command.PUBSUB_CHANNEL_TEMPLATE % "w" == "rq:pubsub:w"
    assert suspension.WORKERS_SUSPENDED == "rq:suspended"
    assert BaseWorker.redis_workers_keys == "rq:workers"


def test_statuses_have_the_names_that_our_scripts_compare() -> None:
    assert {status.name: status.value for status in JobStatus} == {
        "CREATED": "created",
        "QUEUED": "queued",
        "FINISHED": "finished",
        "FAILED": "failed",
        "STARTED": "started",
        "DEFERRED": "deferred",
        "SCHEDULED": "scheduled",
        "STOPPED": "stopped",
        "CANCELED": "canceled",
        "RATE_LIMITED": "rate_limited",
        "READY_TO_ENQUEUE": "ready_to_enqueue",
    }
    assert {WorkerStatus.IDLE.value, WorkerStatus.BUSY.value} == {"idle", "busy"}


def test_a_queued_job_has_the_fields_that_our_scripts_change(redis_client: redis.Redis) -> None:
    view, _ = JobBoard(redis_client, retention_s=1000, job_timeout_s=60).submit(make_submission(), make_entry())
    fields = redis_client.hgetall(f"rq:job:{view.record.id}")
    assert fields[b"status"] == b"queued"
    assert fields[b"origin"] == b"fake.normal.ann"
    assert fields[b"timeout"] == b"60"
    assert fields[b"result_ttl"] == fields[b"failure_ttl"] == b"1000"
    assert fields[b"retries_left"] == b"1000"
    assert fields[b"enqueue_at_front_on_retry"] == b"1"
    job = Job.fetch(view.record.id, connection=redis_client, serializer="json")
    assert json.loads(job.data) == ["workers.worker.draw", None, [], {"job": view.record.id}]
    assert b"a red apple" not in b"".join(fields.values())  # dashboards show it to others


def test_enqueueing_waits_for_the_callers_transaction(redis_client: redis.Redis) -> None:
    queue = Queue("q", connection=redis_client, serializer="json")
    job = queue.create_job("nobody.knows", job_id="j1")
    with redis_client.pipeline() as pipe:
        pipe.watch("something")
        pipe.multi()
        queue.enqueue_job(job, pipeline=pipe)
        assert redis_client.exists("rq:queue:q", "rq:job:j1") == 0
        pipe.execute()
    assert redis_client.lrange("rq:queue:q", 0, -1) == [b"j1"]


def test_popping_one_queue_keeps_the_id_in_the_intermediate_list(redis_client: redis.Redis) -> None:
    queue = Queue("q", connection=redis_client, serializer="json")
    queue.enqueue_job(queue.create_job("nobody.knows", job_id="j1"))
    popped = Queue.dequeue_any([queue], None, connection=redis_client, serializer="json")
    assert popped is not None
    assert redis_client.lrange("rq:queue:q:intermediate", 0, -1) == [b"j1"]
    assert Queue.dequeue_any([queue], None, connection=redis_client, serializer="json") is None


def test_our_worker_leaves_the_clients_timeouts_alone(redis_client: redis.Redis) -> None:
    before = redis_client.connection_pool.connection_kwargs["socket_timeout"]
    RqSide(redis_client, 15)
    assert redis_client.connection_pool.connection_kwargs["socket_timeout"] == before


def test_nothing_of_rq_is_overridden_that_is_not_there() -> None:
    ours = {name for name, value in vars(RqSide).items() if callable(value) or isinstance(value, property)}
    overridden = {name for name in ours if hasattr(BaseWorker, name)} - {"__init__", "__doc__"}
    assert overridden == {
        "connection_timeout",
        "get_heartbeat_ttl",
        "procline",
        "handle_payload",
        "handle_exception",
        "_pubsub_exception_handler",
    }


def test_counts_are_never_taken_with_rqs_clean_up() -> None:
    """`registry.count`, `len(registry)` and `get_job_ids()` clean up without a lock and queue jobs twice."""
    rooms = Path(__file__).resolve().parent.parent
    for file in [*(rooms / "workers").glob("*.py"), *(rooms / "app").rglob("*.py")]:
        source = file.read_text(encoding="utf-8")
        assert ".get_job_ids(" not in source, file
        assert "registry.count" not in source, file
        assert "get_job_count()" not in source, file
