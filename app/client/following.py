"""Following a job to its end: by its event stream, and by asking where there is none.

Owns reading server-sent events, and when the stream is opened again. A stream that is cut loses nothing: the document
tells how the job stands, and the next stream begins with that.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pydantic import TypeAdapter

from app.client.conversation import REPEATED, Conversation
from app.client.errors import Refused, Unreachable
from app.client.steps import SEND_TIMEOUT_S, Answer, Close, Open, Read, Send, Sleep, Steps
from app.client.values import Job, Preview

JOB = TypeAdapter(Job)
SILENCE_S = 20.0
"""Longer than the server keeps a stream silent."""
_POLL_S = 0.5
_REFUSED_S = 5.0
"""Seconds until a stream is asked for again that the server refused without saying when."""


class Follower:
    """One job, as it changes; a Feed. Ends when the job has ended, or at `until` (of time.monotonic)."""

    def __init__(self, conversation: Conversation, job: Job | str, until: float = math.inf) -> None:
        self.job = job if isinstance(job, Job) else None
        self._conversation = conversation
        self._path = job_path(job)
        self._until = until
        self._news: deque[Job | Preview] = deque((self.job,) if self.job else ())
        self._events = EventReader()
        self._is_open = False
        self._has_tried = False
        self._open_at = 0.0

    def next(self) -> Steps[Job | Preview | None]:
        """The job after its next change, the state it is in now first of all; or a preview."""
        while not self._news:
            if self.job and (self.job.is_ended or time.monotonic() >= self._until):
                return None
            if self.job is None:
                yield from self._ask()
            elif self._is_open:
                yield from self._listen()
            elif self._may_open():
                yield from self._open()
            else:
                yield from self._pause()
                yield from self._ask()
        return self._news.popleft()

    def _may_open(self) -> bool:
        """Not so near the end of the time that a silent stream would outlast it."""
        now = time.monotonic()
        return now >= self._open_at and now + SILENCE_S < self._until

    def _open(self) -> Steps[None]:
        if self._has_tried:
            yield from self._pause()
        self._has_tried = True
        try:
            answer: Answer = yield Open(f"{self._path}/events", SILENCE_S)
        except Unreachable:
            yield from self._ask()
            return
        self._events = EventReader()
        self._is_open = answer.status == 200
        if not self._is_open:
            told = getattr(self._conversation.refusal(answer), "retry_after_s", None)
            self._open_at = time.monotonic() + (told or _REFUSED_S)

    def _listen(self) -> Steps[None]:
        if time.monotonic() + SILENCE_S >= self._until:
            yield Close()
            self._is_open = False
            return
        try:
            piece: bytes = yield Read()
            for name, data in self._events.feed(piece):
                self._take(name, data)
        except (Unreachable, ValueError):  # cut, or garbled
            piece = b""
        if not piece:
            self._is_open = False
            yield from self._ask()

    def _take(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "preview":
            self._news.append(preview(data))
        elif name == "progress" and self.job:
            self._note(merged(self.job.document, data))
        elif "status" in data:
            self._note(data)

    def _note(self, document: Mapping[str, Any]) -> None:
        job = self._conversation.read(JOB, document)
        if job != self.job:
            self._news.append(job)
        self.job = job

    def _ask(self) -> Steps[None]:
        """How the job stands. What may pass is not raised when it is `until` that forbids to wait for it."""
        left_s = max(0.0, self._until - time.monotonic())
        asking = self._conversation.with_patience(min(self._conversation.patience_s, left_s))
        timeout_s = min(SEND_TIMEOUT_S, max(1.0, left_s))
        try:
            self._note((yield from asking.document(Send("GET", self._path, timeout_s=timeout_s))))
        except (Unreachable, Refused) as error:
            may_pass = isinstance(error, Unreachable) or error.status in REPEATED
            if not may_pass or self.job is None or left_s > self._conversation.patience_s:
                raise

    def _pause(self) -> Steps[None]:
        yield Sleep(max(0.0, min(_POLL_S, self._until - time.monotonic())))


def job_path(job: Job | str) -> str:
    return f"/jobs/{quote(job.id if isinstance(job, Job) else job, safe='')}"


class EventReader:
    """Bytes of a stream of server-sent events -> events."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, JSON object) of each event that is complete now; others are left out. Raises ValueError for data that
        is no JSON in UTF-8."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            field, _, text = line.decode().removesuffix("\r").partition(":")
            if field == "event":
                self._name = text.removeprefix(" ")
            elif field == "data":
                self._data.append(text.removeprefix(" "))
            elif not field and not text:
                yield from self._end()

    def _end(self) -> Iterator[tuple[str, dict[str, Any]]]:
        name, data = self._name, "\n".join(self._data)
        self._name, self._data = "", []
        value = json.loads(data) if data else None
        if isinstance(value, dict):
            yield name or "message", value


def merged(document: Mapping[str, Any], news: Mapping[str, Any]) -> dict[str, Any]:
    """The job's document with the data of a `progress` event in it."""
    changed: dict[str, Any] = {name: news[name] for name in ("eta_s", "queue_position") if name in news}
    if news.get("steps"):
        changed["progress"] = {"step": news["step"], "steps": news["steps"]}
    return {**document, **changed}


def preview(data: Mapping[str, Any]) -> Preview:
    """The picture of a `preview` event. Raises ValueError where there is none."""
    head, comma, text = str(data.get("image", "")).partition(",")
    if not comma:
        raise ValueError("no data URL")
    return Preview(base64.b64decode(text, validate=True), head.removeprefix("data:").partition(";")[0])
