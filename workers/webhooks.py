"""Webhooks in Redis: whose turn it is to be told, who is telling it, and how it went.

Owns the `webhooks` zset and the `webhook:<id>` hashes. A webhook comes into being in the transaction that queues its
job, and is looked at until it has told everything: what there is to tell follows from the job's record, so nothing that
may be lost waits in a list of its own. The scripts that change a job (`workers.scripts`, `announce`) only make it due
sooner. Knows no HTTP and no words.

Several API processes take turns. One that takes a webhook has it for a lease; when the process dies, another one takes
it again, and what the first may have sent is sent again. A token tells the two apart. The clock is the server's.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis
import structlog

from workers import webhook_scripts
from workers.contract import Webhook, WebhookEnd, WebhookEvent, WebhookState, key
from workers.jobkeys import text

log = structlog.get_logger(__name__)

LOOK_S = 30.0
"""Seconds between looks at a job of which nothing was announced: so is found what a worker of an older version does."""
_NEVER = ""


@dataclass(frozen=True)
class Turn:
    """A webhook that is ours to tell, until its lease is over."""

    job_id: str
    token: str
    host: str
    """Of its receiver."""
    tenant: str
    state: WebhookState


@dataclass(frozen=True)
class Shares:
    """How many a process tells at a time: a slow receiver, or all those of a tenant, must not hold up the others."""

    in_all: int = 64
    to_host: int = 4
    of_tenant: int = 16


Settled = Literal["kept", "over", "lost", "erased"]
"""kept: it is looked at again; over: it is not; lost: another process has it; erased: its job is no more."""


class Webhooks:
    """The webhooks of one Redis. Thread-safe. `lease_s`: longer than an attempt can take."""

    def __init__(self, client: redis.Redis, lease_s: float) -> None:
        self._redis = client
        self._lease_s = lease_s
        self._take = client.register_script(webhook_scripts.TAKE)
        self._settle = client.register_script(webhook_scripts.SETTLE)

    def take(self, shares: Shares, under_way: Collection[Turn]) -> tuple[list[Turn], float | None]:
        """Webhooks that are due, and the seconds until another one is (None: none is waiting).

        `under_way`: those that this process is telling already; they count in the shares.
        """
        token = secrets.token_hex(8)
        prefixes = (key("webhook", ""), key("job", ""))
        limits = (self._lease_s, shares.in_all - len(under_way), shares.to_host, shares.of_tenant)
        busy = [Counter(turn.host for turn in under_way), Counter(turn.tenant for turn in under_way)]
        answer = self._take(keys=[key("webhooks")], args=[*prefixes, token, *limits, *map(json.dumps, busy)])
        turns = []
        for raw_id, tenant, flat in answer[1:]:
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            turns.append(Turn(text(raw_id), token, text(fields[b"host"]), text(tenant), _read_state(fields)))
        next_in_s = text(answer[0])
        return turns, float(next_in_s) if next_in_s else None

    def put_off(self, turn: Turn, delay_s: float = LOOK_S) -> Settled:
        """There is nothing to tell yet, or nothing that this process could."""
        return self._give_back(turn, delay_s, 0.0, {})

    def note_told(self, turn: Turn, event: WebhookEvent, mark: str, status: int, rest_s: float) -> Settled:
        """The receiver has taken it. It is left alone for `rest_s`, but for the end, which is the last."""
        changes = {**_attempt(status, ""), "trying": "", "failures": "0"}
        changes |= {"mark": mark} if event == "progress" else {"told": " ".join((*turn.state.told, event))}
        if event == "ended":
            return self._give_back(turn, None, 0.0, {**changes, "end": "told"})
        return self._give_back(turn, rest_s, rest_s, changes)

    def note_failure(
        self, turn: Turn, event: WebhookEvent, status: int | None, error: str, delay_s: float | None
    ) -> Settled:
        """It has not. `delay_s`: until the next attempt; None: this event is given up."""
        failures = turn.state.failures + 1 if turn.state.trying == event else 1
        changes = {**_attempt(status, error), "trying": event, "failures": str(failures)}
        if delay_s is not None:
            return self._give_back(turn, delay_s, delay_s, changes)
        if event == "ended":
            return self._give_back(turn, None, 0.0, {**changes, "end": "given_up"})
        return self._give_back(turn, 0.0, 0.0, {**changes, "told": " ".join((*turn.state.told, event))})

    def end(self, turn: Turn, how: WebhookEnd, status: int | None = None) -> Settled:
        """Nothing more is told of this job."""
        return self._give_back(turn, None, 0.0, {"end": how, **(_attempt(status, "") if status is not None else {})})

    def _give_back(self, turn: Turn, delay_s: float | None, rest_s: float, changes: Mapping[str, str]) -> Settled:
        keys = [key("webhooks"), key("webhook", turn.job_id), key("job", turn.job_id)]
        delay = _NEVER if delay_s is None else f"{delay_s:.3f}"
        flat = [part for pair in changes.items() for part in pair]
        return text(self._settle(keys=keys, args=[turn.job_id, turn.token, delay, f"{rest_s:.3f}", *flat]))  # type: ignore[return-value]

    def pending(self) -> int:
        """Jobs whose webhook has, or may get, something to tell."""
        return int(self._redis.zcard(key("webhooks")))

    def secret(self) -> str:
        """What signatures are derived from: made once for all processes of this Redis."""
        name = key("webhook-secret")
        while not (found := self._redis.get(name)):
            self._redis.set(name, secrets.token_hex(32), nx=True)
        return text(found)


def new_webhook(webhook: Webhook) -> dict[Any, Any]:
    """The hash of a webhook of which nothing is told yet. `events` and `host` are for the scripts."""
    return {"events": " ".join(webhook.events), "host": webhook.host}


def read_states(client: redis.Redis, job_ids: Sequence[str]) -> list[WebhookState]:
    """How far the webhooks of these jobs are, in one round trip."""
    if not job_ids:
        return []
    with client.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hgetall(key("webhook", job_id))
        return [_read_state(fields) for fields in pipe.execute()]


def _attempt(status: int | None, error: str) -> dict[str, str]:
    return {
        "last_at": f"{time.time():.3f}",
        "last_status": "" if status is None else str(status),
        "last_error": error,
    }


def _read_state(fields: Mapping[bytes, bytes]) -> WebhookState:
    """What cannot be read is as good as new: then something may be told twice."""
    given: dict[str, Any] = {text(name): text(value) for name, value in fields.items() if value}
    given["told"] = given.get("told", "").split()
    try:
        return WebhookState.model_validate(given, extra="ignore")
    except ValueError as error:
        log.error("the state of a webhook cannot be read", error=str(error))
        return WebhookState()
