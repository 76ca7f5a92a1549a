"""One reader of the events stream in Redis, fanned out to everybody who waits for a job.

Owns the reader's place in the stream and the mailboxes. An event only says that a document changed: whoever listens
reads the document itself, so a mailbox needs no more room than the kinds of change there are, and a slow listener
misses intermediate states but never the end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, get_args

import redis.asyncio
from redis.exceptions import RedisError

from workers.contract import EventKind, key

BLOCK_MS = 10_000
READ_COUNT = 500
RECONNECT_S = 0.5
KINDS: frozenset[str] = frozenset(get_args(EventKind))


class Mailbox:
    """Kinds of change that its listener has not looked at yet."""

    def __init__(self) -> None:
        self._kinds: set[str] = set()
        self._has_news = asyncio.Event()

    def post(self, kind: str) -> None:
        self._kinds.add(kind)
        self._has_news.set()

    async def take(self, timeout_s: float) -> frozenset[str]:
        """All kinds since the last call, as soon as there are some; none when the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._has_news.wait()
        self._has_news.clear()
        taken, self._kinds = frozenset(self._kinds), set()
        return taken


class EventHub:
    """Reads the stream once for all listeners of this process; survives Redis going away and coming back."""

    def __init__(self, client: redis.asyncio.Redis, log: Any) -> None:
        self._client = client
        self._log = log
        self._listeners: dict[str, set[Mailbox]] = {}
        self._place: bytes | None = None
        self.is_reading = asyncio.Event()
        """Set once the reader knows its place: no event after that is missed."""

    @contextlib.contextmanager
    def listen(self, job_id: str) -> Iterator[Mailbox]:
        """A mailbox for the changes of one job while the context lasts. Read the document after opening it."""
        mailbox = Mailbox()
        self._listeners.setdefault(job_id, set()).add(mailbox)
        try:
            yield mailbox
        finally:
            self._listeners[job_id].discard(mailbox)
            if not self._listeners[job_id]:
                del self._listeners[job_id]

    async def run(self) -> None:
        """Reads until cancelled."""
        while True:
            try:
                await self._find_place()
                self._post_to_all()  # whatever was missed, the documents know
                while True:
                    await self._read_once()
            except (RedisError, OSError) as error:
                self._log.warning("events", error=str(error), place=str(self._place))
                await asyncio.sleep(RECONNECT_S)

    async def _find_place(self) -> None:
        await self._client.ping()
        if self._place is None:
            newest: Any = await self._client.xrevrange(key("events"), count=1)
            self._place = newest[0][0] if newest else b"0-0"
        self.is_reading.set()

    async def _read_once(self) -> None:
        assert self._place is not None, "the reader has no place yet. This is a bug."
        streams: Any = await self._client.xread({key("events"): self._place}, count=READ_COUNT, block=BLOCK_MS)
        for _, entries in streams or ():
            for entry_id, fields in entries:
                self._place = entry_id
                self._post(fields)

    def _post(self, fields: dict[bytes, bytes]) -> None:
        job_id, kind = fields.get(b"job", b"").decode(), fields.get(b"kind", b"").decode()
        for mailbox in self._listeners.get(job_id, ()):
            mailbox.post(kind if kind in KINDS else "status")

    def _post_to_all(self) -> None:
        for mailboxes in self._listeners.values():
            for mailbox in mailboxes:
                mailbox.post("status")
