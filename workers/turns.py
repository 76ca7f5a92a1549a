"""Whose job is next.

Owns the fairness between models, priorities and tenants on one worker. Asks Redis one question (which queues have
jobs?) and never blocks there.

Models that are loaded and have room come first; a model that is not loaded gets its turn when those have no work or
when its oldest job has waited longer than `patience_s`. Among the models in question models take turns, then tenants:
whoever was served longest ago, and a new one before those that were served. Of a tenant's jobs those with the highest
priority come first, and one that has waited for `patience_s` counts as of the next higher one; none gets anybody ahead
of other tenants.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import redis
from rq import Queue
from rq.suspension import WORKERS_SUSPENDED

from workers import scripts
from workers.contract import PRIORITIES, created_at_of, key
from workers.jobkeys import text

_REMEMBERED = 10_000
"""Tenants whose last turn is known. One that is forgotten comes first once, so there is no use in forgetting soon: who
sends one job at a time would always come first."""


@dataclass(frozen=True)
class Waiting:
    """A queue that has jobs. `tenant` is the slug in the queue's name; `first` the id of its first job."""

    queue: str
    model: str
    length: int
    first: str

    @property
    def priority(self) -> int:
        """Index in PRIORITIES: 0 is the highest."""
        return PRIORITIES.index(self.queue.split(".")[1])

    @property
    def tenant(self) -> str:
        return self.queue.split(".")[2]

    @property
    def created_at(self) -> float:
        return created_at_of(self.first) or 0.0


@dataclass
class Turns:
    """Remembers who was served when. One loop owns it."""

    patience_s: float
    clock: Callable[[], float] = time.time
    _served: dict[tuple[str, ...], int] = field(default_factory=dict)
    _count: int = 0

    def choose(self, waiting: Sequence[Waiting], loaded: Collection[str]) -> Waiting | None:
        """The queue whose first job should start next, or None."""
        ready = [queue for queue in waiting if queue.model in loaded]
        absent = [queue for queue in waiting if queue.model not in loaded]
        too_long = [queue for queue in absent if self._waited_s(queue) > self.patience_s]
        heads: dict[tuple[str, str], Waiting] = {}
        for queue in sorted(too_long or ready or absent, key=self._urgency):
            heads.setdefault((queue.model, queue.tenant), queue)
        return min(heads.values(), key=self._rank, default=None)

    def took(self, queue: Waiting) -> None:
        """Count a turn of the queue's model and tenant."""
        self._count += 1
        for who in ((queue.model,), (queue.model, queue.tenant)):
            self._served.pop(who, None)
            self._served[who] = self._count
        if len(self._served) > _REMEMBERED:  # in order of their last turn: the first ones are the oldest
            self._served = dict(list(self._served.items())[_REMEMBERED // 2 :])

    def _waited_s(self, queue: Waiting) -> float:
        return self.clock() - queue.created_at

    def _urgency(self, queue: Waiting) -> tuple[int, float]:
        grown = int(self._waited_s(queue) / self.patience_s) if self.patience_s else 0
        return queue.priority - grown, queue.created_at

    def _rank(self, queue: Waiting) -> tuple[int, int, str]:
        model_turn = self._served.get((queue.model,), 0)
        tenant_turn = self._served.get((queue.model, queue.tenant), 0)
        return model_turn, tenant_turn, queue.first


class Lookout:
    """Looks at the queues of models."""

    def __init__(self, client: redis.Redis) -> None:
        self._look = client.register_script(scripts.LOOK)

    def look(self, models: Sequence[str]) -> tuple[bool, list[Waiting]]:
        """Whether RQ is suspended (`rq suspend`), and every queue of these models that has jobs. One round trip."""
        keys = [WORKERS_SUSPENDED, *(key("queues", model) for model in models)]
        suspended, *found = self._look(keys=keys, args=[Queue.redis_queue_namespace_prefix])
        waiting = [Waiting(text(name), models[number], length, text(first)) for number, name, length, first in found]
        return bool(suspended), waiting
