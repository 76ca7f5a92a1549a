"""Who starts when: places in the queue, ETAs and Retry-After, from measured speeds.

Owns the order in which queued jobs are expected to start and the arithmetic of waiting. Reads queues, costs and
heartbeats; changes nothing. The same order is what `workers.turns` works towards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from workers.contract import BEAT_TTL_S, PRIORITIES, ModelLoad, Priority, WorkerBeat, created_at_of, key
from workers.jobkeys import queue_key, text

UNKNOWN_RETRY_S = 10
"""Retry-After while no worker has measured its speed yet."""
LONGEST_RETRY_S = 3600
_UNKNOWN_COST = 1.0


@dataclass(frozen=True)
class QueuedJob:
    """A waiting job. `turn`: how many of its own tenant's jobs are before it."""

    id: str
    queue: str
    priority: int
    turn: int
    cost: float

    @property
    def order(self) -> tuple[int, int, str]:
        """Higher priority first; then tenants in turns; within one round of turns the oldest first."""
        return self.priority, self.turn, self.id


@dataclass(frozen=True)
class Speed:
    """What the live workers of one model do together. Costs in row-steps at the model's own size."""

    cost_per_s: float = 0.0
    cost_in_flight: float = 0.0
    slots: int = 0


@dataclass(frozen=True)
class Line:
    """All queued jobs of one model, in the order in which they are expected to start."""

    jobs: tuple[QueuedJob, ...]
    speed: Speed

    def place_of(self, job_id: str) -> int | None:
        """Jobs before this one; None when it is not queued."""
        return next((place for place, job in enumerate(self.jobs) if job.id == job_id), None)

    def eta_s(self, place: int) -> float | None:
        """Seconds until the job at `place` has ended; None while no speed was measured."""
        if self.speed.cost_per_s <= 0:
            return None
        ahead = self.speed.cost_in_flight + sum(job.cost for job in self.jobs[: place + 1])
        return ahead / self.speed.cost_per_s

    def start_s(self, place: int) -> float | None:
        """Seconds until the job at `place` starts, which frees its place in the queue; None while unknown."""
        if self.speed.cost_per_s <= 0:
            return None
        in_flight = self.speed.cost_in_flight
        if self.speed.slots > 2:
            # Slots are at all stages of their work: the first of n ends after about 2/n of the mean.
            in_flight *= 2 / self.speed.slots
        return (in_flight + sum(job.cost for job in self.jobs[:place])) / self.speed.cost_per_s


def order_jobs(queues: Mapping[str, Iterable[str]], costs: Mapping[str, float]) -> tuple[QueuedJob, ...]:
    """Jobs of all queues of one model (queue name -> ids, first one first) in the order in which they should start."""
    jobs = [
        QueuedJob(job_id, name, _rank_of(name), turn, costs.get(job_id, _UNKNOWN_COST))
        for name, ids in queues.items()
        for turn, job_id in enumerate(ids)
    ]
    return tuple(sorted(jobs, key=lambda job: job.order))


def add_speeds(beats: Iterable[WorkerBeat], model: str) -> Speed:
    """The speeds of all live workers that have the model, together."""
    loads: list[ModelLoad] = [beat.models[model] for beat in beats if model in beat.models]
    return Speed(
        cost_per_s=sum(load.cost_per_s or 0.0 for load in loads),
        cost_in_flight=sum(load.cost_in_flight for load in loads),
        slots=sum(load.slots for load in loads),
    )


def read_line(client: redis.Redis, model: str) -> Line:
    """The line of one model as it is now: two round trips, as long as the queues are."""
    names = sorted(text(raw) for raw in client.smembers(key("queues", model)))
    with client.pipeline() as pipe:
        for name in names:
            pipe.lrange(queue_key(name), 0, -1)
        pipe.hgetall(key("costs", model))
        pipe.hgetall(key("workers"))
        *lists, costs, workers = pipe.execute()
    queues = {name: [text(raw) for raw in ids] for name, ids in zip(names, lists, strict=True)}
    known = {text(job_id): float(cost) for job_id, cost in costs.items()}
    return Line(order_jobs(queues, known), add_speeds(live_beats(workers), model))


def live_beats(workers: Mapping[Any, Any]) -> list[WorkerBeat]:
    """Beats of the `workers` hash that are not too old, by name."""
    beats = [WorkerBeat.model_validate_json(raw) for raw in workers.values()]
    oldest = time.time() - BEAT_TTL_S
    return sorted((beat for beat in beats if beat.beat_at >= oldest), key=lambda beat: beat.name)


def retry_after_s(lines: Iterable[Line], queue_names: Iterable[str]) -> int:
    """Whole seconds until one of the jobs in `queue_names` starts and so makes room for another one."""
    wanted = set(queue_names)
    waits = []
    for line in lines:
        place = next((place for place, job in enumerate(line.jobs) if job.queue in wanted), None)
        wait = None if place is None else line.start_s(place)
        if wait is not None:
            waits.append(wait)
    if not waits:
        return UNKNOWN_RETRY_S
    return min(LONGEST_RETRY_S, max(1, math.ceil(min(waits))))


def oldest_wait_s(job_ids: Iterable[str]) -> float:
    """Seconds since the oldest of these ids was made; 0 for none."""
    made = [created for created in map(created_at_of, job_ids) if created is not None]
    return max(0.0, time.time() - min(made)) if made else 0.0


def _rank_of(queue: str) -> int:
    priority: Priority = queue.split(".")[1]  # type: ignore[assignment]
    return PRIORITIES.index(priority)
