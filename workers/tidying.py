"""What is dropped once its time has come, and has no time to live of its own.

Owns the entries of things that expired: ids in tenants' lists, names in RQ's sets of queues and workers. Looks at a few
of them at a time, so that a round costs the loop a millisecond however many tenants there are; deletes nothing that a
record, a job or a living worker still stands behind.
"""

from __future__ import annotations

import redis
from rq import Queue
from rq.registry import CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry
from rq.worker_registration import REDIS_WORKER_KEYS

from workers import scripts
from workers.contract import PRIORITIES, key
from workers.jobkeys import intermediate_key, lease_key, queue_key, text

REGISTRIES = (FinishedJobRegistry, FailedJobRegistry, CanceledJobRegistry)
_KEYS_A_ROUND = 1000
_IDS_A_ROUND = 200
"""Oldest ids of an index that one round looks at."""


class Tidying:
    """The rounds of one worker. Several workers may make them at once."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._forget = client.register_script(scripts.FORGET_QUEUE)
        self._index_cursor = 0
        self._queue_cursor = 0

    def run(self) -> None:
        """A few more of everything. Raises what Redis raises."""
        self._trim_indexes()
        self._forget_queues()
        self._forget_workers()

    def _trim_indexes(self) -> None:
        """Take ids whose records have expired out of the tenants' lists; an empty list is gone."""
        self._index_cursor, indexes = self._redis.scan(
            self._index_cursor, match=key("jobs", "*"), count=_KEYS_A_ROUND, _type="zset"
        )
        for index in indexes:
            ids = [text(raw) for raw in self._redis.zrange(index, 0, _IDS_A_ROUND - 1)]
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.exists(key("job", job_id))
                expired = [job_id for job_id, is_known in zip(ids, pipe.execute(), strict=True) if not is_known]
            if expired:
                self._redis.zrem(index, *expired)

    def _forget_queues(self) -> None:
        """Take names of ours out of RQ's set when neither a job nor a registry is left of the queue."""
        self._queue_cursor, found = self._redis.sscan(Queue.redis_queues_keys, self._queue_cursor, count=_IDS_A_ROUND)
        for full_name in map(text, found):
            name = full_name.removeprefix(Queue.redis_queue_namespace_prefix)
            parts = name.split(".")
            if len(parts) != 3 or parts[1] not in PRIORITIES:
                continue  # somebody else's
            registries = [registry.key_template.format(name) for registry in REGISTRIES]
            left = [queue_key(name), intermediate_key(name), lease_key(name), *registries]
            self._forget(keys=[Queue.redis_queues_keys, *left], args=[full_name])

    def _forget_workers(self) -> None:
        """Take workers that died without a word out of RQ's set: their own keys have expired."""
        names = list(self._redis.smembers(REDIS_WORKER_KEYS))
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.exists(name)
            dead = [name for name, is_there in zip(names, pipe.execute(), strict=True) if not is_there]
        if dead:
            self._redis.srem(REDIS_WORKER_KEYS, *dead)
