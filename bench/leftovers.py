"""What is still there of jobs whose time is over: nothing, or a bug.

Owns the list of what may stay: what is bounded by the number of models and workers, or by its own length. Everything
else belongs to jobs, and goes within twice the retention time (an erased job's id is remembered so long) and the time
that workers need to look round. `tests/test_leftovers.py` and `bench.soak` ask it.
"""

from __future__ import annotations

import re
from pathlib import Path

import redis

from workers.contract import EVENT_STREAM_LENGTH, key
from workers.jobkeys import text

_STAYS = (
    key("catalogue"),  # an entry for each model that was ever served
    key("workers"),  # an entry for each worker of the last minutes
    key("events"),  # a stream of bounded length
    key("webhook-secret"),  # one string
    "rq:workers",  # an entry for each living worker
)
_COUNTS = re.compile(re.escape(key("ended")) + ":.+")
"""An entry for each model that was ever served."""
_EXPIRES = (
    re.compile(re.escape(key("")) + r"((recovery|doorbell|choices|repeats):.+|counting|stored|wishes)"),
    re.compile(r"rq:worker:.+|rq:clean_registries:.+"),
    re.compile(r"rq:executions?:.+"),  # a minute after the last heartbeat
)
"""May be there at any time, with a time to live."""
_LONGEST_STREAM = EVENT_STREAM_LENGTH + 1000
"""Redis trims whole nodes."""


def find_leftovers(client: redis.Redis, folder: Path | None = None) -> list[str]:
    """Every key and file that should be gone once all jobs are past their time, a sentence each.

    `folder`: of a local store.
    """
    keys = sorted(text(raw) for raw in client.scan_iter(count=1000))
    found = [sentence for name in keys if (sentence := _fault(client, name))]
    if client.xlen(key("events")) > _LONGEST_STREAM:
        found.append(f"{key('events')} has {client.xlen(key('events'))} entries")
    for path in sorted(folder.rglob("*")) if folder else ():
        if path.name != ".tmp":
            found.append(f"{'folder' if path.is_dir() else 'file'} {path.relative_to(folder or path)}")
    return found


def _fault(client: redis.Redis, name: str) -> str | None:
    if name in _STAYS or _COUNTS.fullmatch(name):
        return None
    ttl_s = client.ttl(name)
    if ttl_s == -2:  # it went meanwhile
        return None
    if any(pattern.fullmatch(name) for pattern in _EXPIRES):
        return None if ttl_s >= 0 else f"{name} has no time to live"
    return f"{name} is still there" + (f", for {ttl_s} s" if ttl_s >= 0 else ", for ever")
