"""What a call does, step by step, without doing it.

A call is a generator: it yields steps, is sent the result of each, and returns its own. So every call is written once,
for the client that blocks and for the one that awaits, and a test can play the server by hand. `app.client.drivers`
carries the steps out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

SEND_TIMEOUT_S = 60.0
"""Seconds without a byte after which an answer counts as lost."""


@dataclass(frozen=True)
class Send:
    """A request. Its result is an Answer; when there is none, Unreachable is raised where the step was yielded."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    timeout_s: float = SEND_TIMEOUT_S


@dataclass(frozen=True)
class Open:
    """A request whose answer is read in pieces; a stream that is open already is closed. Its result is an Answer."""

    path: str
    silence_s: float
    """Seconds without a byte after which the stream counts as cut."""


@dataclass(frozen=True)
class Read:
    """The next piece of the open stream: bytes, none at its end; Unreachable when it is cut."""


@dataclass(frozen=True)
class Close:
    """The open stream is not read any further."""


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Do:
    """Work that takes a while, such as with files; what it raises ends the call. Its result is the work's."""

    work: Callable[[], object]


@dataclass(frozen=True)
class Answer:
    """What the server said. `body` is empty where it is read in pieces."""

    status: int
    headers: Mapping[str, str]
    body: bytes


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Step = Send | Open | Read | Close | Sleep | Do
Steps = Generator[Step, Any, T]


class Feed(Protocol[T_co]):
    """A call with many results: each `next` is a call for one, None after the last."""

    def next(self) -> Steps[T_co | None]: ...
