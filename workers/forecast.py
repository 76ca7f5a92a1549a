"""Who starts when: places in the queue, ETAs and Retry-After, from measured speeds.

Owns the arithmetic of waiting. The order it foresees (the script PLACE) is the one that `workers.turns` works towards.
Reads queues, costs and heartbeats; changes nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from pydantic import ValidationError
from rq import Queue

from workers import scripts
from workers.contract import BEAT_TTL_S, JobRecord, JobView, WorkerBeat, created_at_of, key
from workers.jobkeys import queue_key, text

UNKNOWN_RETRY_S = 10
"""Retry-After while no worker has measured its speed yet."""
LONGEST_RETRY_S = 3600


@dataclass(frozen=True)
class Place:
    """What should start before a queued job: how many jobs, and their cost."""

    jobs: int
    cost: float


@dataclass(frozen=True)
class Speed:
    """What the live workers of one model do together. Costs in row-steps, rows in calls, at the model's own size.

    max_rows: of a full call of each. call_base_s, call_row_s: a call of x rows takes call_base_s + call_row_s x, with
    what comes between calls; None while unknown. next_room_s: until the first job in a batch makes room.
    """

    cost_per_s: float = 0.0
    cost_in_flight: float = 0.0
    slots: int = 0
    workers: int = 1
    rows_in_flight: float = 0.0
    max_rows: float = 0.0
    call_base_s: float | None = None
    call_row_s: float | None = None
    next_room_s: float | None = None

    def end_s(self, place: Place, cost: float, rows: float = 1.0) -> float | None:
        """Seconds until a job at this place, of this cost and so many rows a call, has ended; None while no speed was
        measured."""
        call_s = self._call_s(self.max_rows)
        if call_s is None:
            return (self.cost_in_flight + place.cost + cost) / self.cost_per_s if self.cost_per_s > 0 else None
        calls = cost / rows
        if not place.jobs and self.rows_in_flight / self.workers + rows <= self.max_rows:  # it joins at once
            own_s = self._call_s(self.rows_in_flight / self.workers + rows)
            return None if own_s is None else calls * own_s
        speed = self.workers * self.max_rows / call_s
        calls *= max(1.0, rows / self.max_rows)  # one that is larger than a call takes several
        # It starts when there is room in a full batch, whose pictures are half done by then.
        before = self.cost_in_flight + place.cost - self.workers * self.max_rows * calls / 2
        return max(0.0, before) / speed + calls * call_s

    def start_s(self, place: Place) -> float | None:
        """Seconds until the job at this place starts, which frees its place; None while no speed was measured."""
        call_s = self._call_s(self.max_rows)
        if self.next_room_s is not None and call_s is not None:
            return self.next_room_s + place.cost * call_s / (self.workers * self.max_rows)
        if self.cost_per_s <= 0:
            return None
        # Slots are at all stages of their work: the first of n ends after about 2/n of the mean.
        share = 2 / self.slots if self.slots > 2 else 1.0
        return (self.cost_in_flight * share + place.cost) / self.cost_per_s

    def _call_s(self, rows: float) -> float | None:
        """Seconds of a call; None while unknown."""
        if self.call_base_s is None or self.call_row_s is None or self.max_rows <= 0:
            return None
        return (self.call_base_s + self.call_row_s * rows) or None


class Forecast:
    """The expected future of one Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._place = client.register_script(scripts.PLACE)

    def add_places(self, views: Sequence[JobView]) -> list[JobView]:
        """The same views, the queued ones with their place and ETA. Two round trips, whatever their number."""
        queued = [view.record for view in views if view.status == "queued"]
        if not queued:
            return list(views)
        places = dict(zip((record.id for record in queued), self._places(queued), strict=True))
        beats = self.beats()
        return [_placed(view, places.get(view.record.id), beats) for view in views]

    def retry_after_s(self, queues: Mapping[str, str]) -> int:
        """Whole seconds until the first job in one of these queues (name -> model) starts and so makes room."""
        names = list(queues)
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.lindex(queue_key(name), 0)
            heads = pipe.execute()
        waiting = [(text(head), queues[name], name) for name, head in zip(names, heads, strict=True) if head]
        beats = self.beats()
        waits = [
            wait
            for (_, model, _), place in zip(waiting, self._look_up(waiting), strict=True)
            if place and (wait := add_speeds(beats, model).start_s(place)) is not None
        ]
        if not waits:
            return UNKNOWN_RETRY_S
        return min(LONGEST_RETRY_S, max(1, math.ceil(min(waits))))

    def ends_s(self, queues: Mapping[str, str]) -> dict[str, float]:
        """Queue -> seconds until the last job in it is drawn, of these queues (name -> model); none without a speed."""
        names = list(queues)
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.lindex(queue_key(name), -1)
            lasts = pipe.execute()
        waiting = [(text(last), queues[name], name) for name, last in zip(names, lasts, strict=True) if last]
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id, model, _ in waiting:
                pipe.hget(key("costs", model), job_id)
            costs = pipe.execute()
        beats = self.beats()
        return {
            name: end_s
            for (_, model, name), place, cost in zip(waiting, self._look_up(waiting), costs, strict=True)
            if place and (end_s := add_speeds(beats, model).end_s(place, float(cost or 0))) is not None
        }

    def beats(self) -> list[WorkerBeat]:
        """The newest beat of each live worker, by name."""
        oldest = time.time() - BEAT_TTL_S
        return [beat for beat in self.known_beats() if beat.beat_at >= oldest]

    def known_beats(self) -> list[WorkerBeat]:
        """The newest beat of each worker that is not forgotten yet, by name: of silent ones too."""
        beats = map(read_beat, self._redis.hgetall(key("workers")).values())
        return sorted((beat for beat in beats if beat), key=lambda beat: beat.name)

    def _places(self, records: Iterable[JobRecord]) -> list[Place | None]:
        return self._look_up([(record.id, record.submission.request.model, record.queue) for record in records])

    def _look_up(self, jobs: Sequence[tuple[str, str, str]]) -> list[Place | None]:
        """Places of (job id, model, queue name); None for a job that is on its way to a worker."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id, model, queue in jobs:
                keys = [key("queues", model), key("costs", model)]
                self._place(keys=keys, args=[Queue.redis_queue_namespace_prefix, job_id, queue], client=pipe)
            answers = pipe.execute()
        return [Place(answer[0], float(answer[1])) if answer else None for answer in answers]


def add_speeds(beats: Iterable[WorkerBeat], model: str) -> Speed:
    """The speeds of all live workers that have the model and take jobs, together."""
    able = [beat for beat in beats if model in beat.models and beat.state != "draining"]
    loads = [beat.models[model] for beat in able]
    lines = [(load.call_base_s, load.call_row_s) for load in loads]
    known = [(base, row) for base, row in lines if base is not None and row is not None]
    now = time.time()
    ends = [
        max(0.0, load.next_room_s - max(0.0, now - beat.beat_at))
        for beat, load in zip(able, loads, strict=True)
        if load.next_room_s is not None
    ]
    return Speed(
        cost_per_s=sum(load.cost_per_s or 0.0 for load in loads),
        cost_in_flight=sum(load.cost_in_flight for load in loads),
        slots=sum(load.slots for load in loads),
        workers=max(1, len(loads)),
        rows_in_flight=sum(load.rows_in_flight for load in loads),
        max_rows=sum(load.max_rows for load in loads) / max(1, len(loads)),
        call_base_s=sum(base for base, _ in known) / len(known) if known else None,
        call_row_s=sum(row for _, row in known) / len(known) if known else None,
        next_room_s=min(ends, default=None),
    )


def read_beat(raw: Any) -> WorkerBeat | None:
    """A beat as Redis returns it; None when this version cannot read it."""
    try:
        return WorkerBeat.read(raw)
    except ValidationError:
        return None


def beat_time(raw: Any) -> float | None:
    """When a beat was written, one that only a newer version can read too; None for what is no beat."""
    try:
        return float(json.loads(raw)["beat_at"])
    except (ValueError, TypeError, KeyError):
        return None


def oldest_wait_s(job_ids: Iterable[str]) -> float:
    """Seconds since the oldest of these ids was made; 0 for none."""
    made = [created for created in map(created_at_of, job_ids) if created is not None]
    return max(0.0, time.time() - min(made)) if made else 0.0


def _placed(view: JobView, place: Place | None, beats: Sequence[WorkerBeat]) -> JobView:
    model, needed = view.record.submission.request.model, view.record.contract_version
    able = [beat for beat in beats if beat.contract_version >= needed]
    if not any(model in beat.models for beat in able) and any(model in beat.models for beat in beats):
        return view.model_copy(update={"queue_position": place.jobs if place else None, "needs_newer_worker": True})
    if place is None:
        return view
    speed = add_speeds(able, model)
    request = view.record.submission.request
    rows = request.num_images * (2 if request.has_guidance else 1)
    eta_s = speed.end_s(place, view.record.cost, rows)
    return view.model_copy(update={"queue_position": place.jobs, "eta_s": eta_s})
