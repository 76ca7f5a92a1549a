"""One request until it is answered: what is repeated, when, and how long.

Owns the patience of a client, and the translation of an answer into a document or an exception. Every request that
goes through here may safely be repeated: it reads, it says what shall be, or it carries an Idempotency-Key.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from app.client.errors import ClientError, Refused, Unreachable
from app.client.steps import Answer, Send, Sleep, Steps
from app.client.values import Problem

PATIENCE_S = 30.0
REPEATED = frozenset({408, 429, 502, 503, 504})
"""Statuses that may pass."""
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0

T = TypeVar("T")


@dataclass(frozen=True)
class Conversation:
    """How this client talks to its server."""

    server: str
    patience_s: float = PATIENCE_S
    """Seconds after its first failure for which a request is repeated."""
    on_retry: Callable[[ClientError, float], None] | None = None
    """Told why a request is about to be repeated, and in how many seconds."""

    def with_patience(self, patience_s: float) -> Self:
        return replace(self, patience_s=patience_s)

    def answer(self, request: Send) -> Steps[Answer]:
        """The answer, as soon as it is a success. Raises Refused or Unreachable: the last of what came instead."""
        pauses = _pauses()
        give_up_at: float | None = None
        while True:
            try:
                answer: Answer = yield request
            except Unreachable as lost:
                error: ClientError = lost
            else:
                if 200 <= answer.status < 300:
                    return answer
                error = self.refusal(answer)
                if answer.status not in REPEATED:
                    raise error
            now, pause_s = time.monotonic(), next(pauses)
            give_up_at = give_up_at or now + self.patience_s
            if isinstance(error, Refused) and error.retry_after_s is not None:
                pause_s += error.retry_after_s
            if now + pause_s > give_up_at:
                raise error
            if self.on_retry:
                self.on_retry(error, pause_s)
            yield Sleep(pause_s)

    def document(self, request: Send) -> Steps[dict[str, Any]]:
        """The JSON object of a successful answer."""
        answer = yield from self.answer(request)
        return self.object_of(answer)

    def object_of(self, answer: Answer) -> dict[str, Any]:
        try:
            value = json.loads(answer.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self.not_ours()
        return value

    def read(self, kind: TypeAdapter[T], document: Any) -> T:
        """A document as a value, which holds it too where it has a field for that."""
        try:
            return kind.validate_python({**document, "document": document})
        except (ValidationError, TypeError) as error:
            raise self.not_ours() from error

    def refusal(self, answer: Answer) -> ClientError:
        """What a failed answer says."""
        wait = answer.headers.get("Retry-After", "")
        told = {"status": answer.status, "retry_after_s": int(wait) if wait.isdecimal() else None}
        try:
            problem = json.loads(answer.body)
            return Refused(_PROBLEM.validate_python({**problem, "errors": problem.get("errors") or (), **told}))
        except (ValueError, TypeError, AttributeError):  # a ValidationError is a ValueError
            return Unreachable(
                f"{self.server} answers {answer.status}, but not as a denoised server. Check the address."
            )

    def not_ours(self) -> Unreachable:
        return Unreachable(f"{self.server} answers, but not as a denoised server. Check the address.")


_PROBLEM = TypeAdapter(Problem)


def _pauses() -> Iterator[float]:
    """Seconds between attempts: twice as long each time up to a bound, less up to half of it, so that many clients of
    one server that was away do not come back together."""
    chance = random.SystemRandom()
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s * chance.uniform(0.5, 1.0)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
