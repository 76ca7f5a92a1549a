"""What accepted jobs may still write into the store, and what was last counted there.

Owns both figures in Redis. A job's bytes are reserved before anything of it is stored, and stay reserved until it has
ended and its files have been seen by a count, so that no process ever takes the room of another one's job. Knows no
files: whoever counts them tells.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import redis

from workers import scripts
from workers.contract import created_at_of, key
from workers.jobkeys import text

ABANDONED_S = 600.0
"""Age at which a reservation without a job is rubbish: its process died between reserving and queueing."""
COUNTED_TTL_S = 3600
"""A count that is older says nothing."""
LONGEST_COUNT_S = 600.0
"""Whoever counts for longer may be joined by another one."""


@dataclass(frozen=True)
class StoreUse:
    """Bytes of the store as all processes know them."""

    reserved: int
    """For jobs that may still write, and for those that ended since the last count."""
    counted: int | None
    """In the files that were there at the last count; None before the first."""


class Reservations:
    """The figures of one Redis. Thread-safe."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._reserve = client.register_script(scripts.RESERVE)

    def reserve(self, job_id: str, size_bytes: int) -> StoreUse:
        """Reserves, then tells how much all have reserved: of two that want the last room both may be refused, and
        never both let in."""
        with self._redis.pipeline(transaction=False) as pipe:
            self._reserve(keys=[key("reserved")], args=[job_id, size_bytes], client=pipe)
            pipe.get(key("stored"))
            reserved, counted = pipe.execute()
        return StoreUse(int(reserved), None if counted is None else int(counted))

    def release(self, job_id: str) -> None:
        self._redis.hdel(key("reserved"), job_id)

    def is_our_turn(self) -> bool:
        """True for one process at a time, until `finish` or LONGEST_COUNT_S."""
        return bool(self._redis.set(key("counting"), 1, nx=True, px=int(LONGEST_COUNT_S * 1000)))

    def settled(self) -> list[str]:
        """Jobs that write nothing more: a count that begins now sees all of their files."""
        ids = [text(raw) for raw in self._redis.hkeys(key("reserved"))]
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.exists(key("job", job_id))
                pipe.exists(key("gone", job_id))  # from the outcome on, and longer than the record
            answers = pipe.execute()
        old = time.time() - ABANDONED_S
        return [
            job_id
            for job_id, is_known, has_ended in zip(ids, answers[::2], answers[1::2], strict=True)
            if has_ended or (not is_known and (created_at_of(job_id) or 0.0) < old)
        ]

    def finish(self, settled: list[str], counted: int | None, next_in_s: float) -> None:
        """Ends a turn: these jobs need no reservation any more, because `counted` has their files (None: nothing was
        counted, since nobody asks for it)."""
        with self._redis.pipeline() as pipe:
            if settled:
                pipe.hdel(key("reserved"), *settled)
            if counted is not None:
                pipe.set(key("stored"), counted, ex=COUNTED_TTL_S)
            pipe.pexpire(key("counting"), max(1, int(next_in_s * 1000)))
            pipe.execute()
