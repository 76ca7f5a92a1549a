"""What operators see: the queues that have jobs, and the workers with the jobs in their hands.

Owns these two reads. Each takes a few round trips, however many jobs there are, and changes nothing. Which jobs a
worker has is told by RQ's index of its executions and by the record of each job, which names the execution that claimed
it last: a worker that has lost a job does not show it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import redis
from rq.executions import Execution
from rq.utils import parse_composite_key

from workers.contract import BEAT_TTL_S, PRIORITIES, JobView, Priority, WorkerBeat, key
from workers.forecast import Forecast
from workers.jobkeys import text
from workers.turns import Lookout, Waiting
from workers.views import read_views


@dataclass(frozen=True)
class QueueState:
    """Waiting jobs of one model, priority and tenant."""

    model: str
    priority: Priority
    tenant: str
    queued: int
    oldest_job: str
    """The first to start."""
    oldest_wait_s: float
    predicted_s: float | None
    """Seconds until all of them are drawn; None while no worker has measured its speed."""


@dataclass(frozen=True)
class WorkerState:
    """A worker that beats, or did lately, and the running jobs that it holds."""

    beat: WorkerBeat
    beat_age_s: float
    jobs: tuple[JobView, ...]

    @property
    def is_silent(self) -> bool:
        """Its jobs go to others."""
        return self.beat_age_s > BEAT_TTL_S


class Overview:
    """The operator's look at one Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._lookout = Lookout(client)
        self._forecast = Forecast(client)

    def queues(self) -> tuple[bool, list[QueueState]]:
        """Whether RQ is suspended (then nothing starts), and every queue that has jobs, the longest wait first."""
        models = sorted(text(raw) for raw in self._redis.hkeys(key("catalogue")))
        is_suspended, waiting = self._lookout.look(models)
        waiting.sort(key=lambda queue: queue.created_at)
        ends = self._forecast.ends_s({queue.queue: queue.model for queue in waiting})
        return is_suspended, [_queue_state(queue, ends.get(queue.queue)) for queue in waiting]

    def workers(self) -> list[WorkerState]:
        """Every worker that has beaten within the last minutes, by name."""
        beats = self._forecast.known_beats()
        now = time.time()
        return [
            WorkerState(beat, max(0.0, now - beat.beat_at), jobs)
            for beat, jobs in zip(beats, self._jobs_of([beat.name for beat in beats]), strict=True)
        ]

    def _jobs_of(self, workers: Sequence[str]) -> list[tuple[JobView, ...]]:
        with self._redis.pipeline(transaction=False) as pipe:
            for name in workers:
                pipe.smembers(Execution("", "", self._redis, worker_name=name).worker_executions_key)
            answers = pipe.execute()
        held = [sorted(parse_composite_key(text(raw)) for raw in members) for members in answers]
        ids = [job_id for pairs in held for job_id, _ in pairs]
        views = dict(zip(ids, read_views(self._redis, ids), strict=True))
        return [
            tuple(
                view
                for job_id, execution in pairs
                if (view := views[job_id]) and view.status == "running" and view.record.execution == execution
            )
            for pairs in held
        ]


def _queue_state(queue: Waiting, predicted_s: float | None) -> QueueState:
    return QueueState(
        model=queue.model,
        priority=PRIORITIES[queue.priority],
        tenant=queue.tenant,
        queued=queue.length,
        oldest_job=queue.first,
        oldest_wait_s=max(0.0, time.time() - queue.created_at),
        predicted_s=predicted_s,
    )
