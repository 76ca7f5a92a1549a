"""The sender of webhooks: one task of each API process.

Owns what there is to tell of a job, in which order, and when a failed attempt is repeated. `workers.webhooks` says
whose turn it is; `app.webhooks.post` delivers; `app.webhooks.body` finds the words.

    started ─> progress, at most every half second ─> ended

`ended` comes last and is repeated until the receiver takes it, or the job's time is over. `started` is repeated until
the job has ended; after that only a receiver that does not want `ended` still gets it. `progress` is what is known at
the moment it is sent, so a failed one is not repeated, but followed by the next.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import anyio.to_thread
from redis.exceptions import RedisError

from app.events import EventHub, Mailbox
from app.metrics import HttpMetrics
from app.webhooks.body import Render
from app.webhooks.post import TIMEOUT_S, Answer, Courier, Undelivered
from app.webhooks.sign import Secrets
from workers.board import JobBoard
from workers.contract import WEBHOOK_NEWS, JobView, Webhook, WebhookEvent, WebhookState
from workers.webhooks import Shares, Turn, Webhooks

DELAYS_S = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0)
"""Before the second attempt, the third one, ... The last one comes after some 16 hours."""
JITTER = 0.2
"""Share of a delay by which it is made longer at random, so that a receiver that comes back is not stormed."""
MAX_RETRY_AFTER_S = 3600.0
PROGRESS_REST_S = 0.5
LEASE_S = TIMEOUT_S + 10.0
"""An attempt, with time to begin it and to note how it went."""
BEGIN_S = 5.0
"""Of the lease: an attempt that begins later might reach the receiver after what another process tells it."""
ROUND_S = 1.0
"""Seconds between looks at what is due when no event tells to."""
PAUSE_S = 0.02
"""Least seconds between two."""
SHARES = Shares()
_GONE = 410
_BUSY = frozenset({429, 503})

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Message:
    """One thing to tell of a job."""

    event: WebhookEvent
    at: float
    """When it happened."""
    view: JobView
    """The job as it was then."""
    mark: str = ""
    """Tells one progress from another."""

    @property
    def id(self) -> str:
        """The same at every attempt."""
        return "_".join(part for part in (self.view.record.id, self.event, self.mark) if part)


def next_message(view: JobView, webhook: Webhook, state: WebhookState) -> Message | None:
    """What the receiver has not been told; None when there is nothing, yet or any more."""
    record, outcome = view.record, view.record.outcome
    wanted = [event for event in webhook.events if event not in state.told]
    is_hopeless = state.trying == "started" and state.failures > 0 and "ended" in wanted and outcome is not None
    if "started" in wanted and record.started_at is not None and not is_hopeless:
        running = record.model_copy(update={"outcome": None, "warnings": ()})
        as_it_began = JobView(record=running, status="running")
        return Message("started", record.started_at, as_it_began)
    if outcome is not None:
        return Message("ended", outcome.ended_at, view) if "ended" in wanted else None
    if "progress" in wanted and view.status == "running" and view.progress is not None:
        mark = f"{record.claims}_{view.progress.step}"
        if mark != state.mark:
            return Message("progress", time.time(), view, mark)
    return None


@dataclass(frozen=True)
class Sender:
    """Tells receivers of jobs until it is cancelled. What it is telling then is told again by another process, once the
    lease is over."""

    board: JobBoard
    webhooks: Webhooks
    secrets: Secrets
    courier: Courier
    metrics: HttpMetrics
    log: Any
    bodies: Mapping[str, Render]
    """By dialect."""
    _under_way: set[Turn] = field(default_factory=set)

    async def run(self, hub: EventHub) -> None:
        """Rounds until cancelled; `hub` tells when one of them may find something."""
        async with asyncio.TaskGroup() as tasks:
            with hub.listen(WEBHOOK_NEWS) as mailbox:
                while True:
                    next_in_s = await self._round(tasks, mailbox)
                    await asyncio.sleep(PAUSE_S)
                    await mailbox.take(min(ROUND_S, next_in_s))

    async def _round(self, tasks: asyncio.TaskGroup, mailbox: Mailbox) -> float:
        """Begins with everything that is due; returns seconds until the next is."""
        if len(self._under_way) >= SHARES.in_all:
            return ROUND_S
        begin_by = time.monotonic() + BEGIN_S
        try:
            turns, next_in_s = await _in_thread(self.webhooks.take, SHARES, frozenset(self._under_way))
        except (RedisError, OSError) as error:
            self.log.warning("webhooks cannot be looked at", error=f"{type(error).__name__}: {error}")
            return ROUND_S
        for turn in turns:
            self._under_way.add(turn)
            tasks.create_task(self._take_turn(turn, begin_by, mailbox))
        return ROUND_S if next_in_s is None else next_in_s

    async def _take_turn(self, turn: Turn, begin_by: float, mailbox: Mailbox) -> None:
        try:
            await self._tell(turn, begin_by)
        except (RedisError, OSError) as error:
            # The lease ends, and it is told again.
            self.log.warning("webhook not noted", job=turn.job_id, error=f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 (the per-job boundary: the others must be told)
            self.log.error("webhook", job=turn.job_id, exc_info=error)
        finally:
            self._under_way.discard(turn)
            mailbox.post("status")

    async def _tell(self, turn: Turn, begin_by: float) -> None:
        view = await _in_thread(self.board.get, turn.job_id)
        webhook = view.record.submission.webhook if view else None
        if view is None or webhook is None or webhook.dialect not in self.bodies:
            await _in_thread(self.webhooks.put_off, turn)  # erased, or from a newer version
            return
        message = next_message(view, webhook, turn.state)
        if message is not None and time.monotonic() > begin_by:
            self.log.warning("webhook left to the next", job=turn.job_id)
        elif message is not None:
            await self._deliver(turn, webhook, message)
        elif view.record.outcome is not None:
            await _in_thread(self.webhooks.end, turn, "told")
        else:
            await _in_thread(self.webhooks.put_off, turn)

    async def _deliver(self, turn: Turn, webhook: Webhook, message: Message) -> None:
        started = time.monotonic()
        names = {
            "job": turn.job_id,
            "tenant": turn.tenant,
            "request_id": message.view.record.submission.request_id,
            "kind": message.event,
            "host": webhook.host,  # the rest of the address may be a secret
        }
        told: dict[str, Any]
        try:
            answer = await self._attempt(turn.tenant, webhook, message)
        except Undelivered as error:
            outcome, told = await self._note(turn, message, None, error.reason), {"error": error.detail}
        else:
            reason = "" if answer.is_success else f"The receiver answered {answer.status}."
            outcome, told = await self._note(turn, message, answer, reason), {"status": answer.status}
        self.metrics.count_webhook(outcome)
        if outcome == "delivered" and message.event == "progress":
            return  # twice a second; the metrics count them
        write = self.log.info if outcome == "delivered" else self.log.warning
        write(f"webhook {outcome.replace('_', ' ')}", **names, **told, seconds=round(time.monotonic() - started, 3))

    async def _attempt(self, tenant: str, webhook: Webhook, message: Message) -> Answer:
        try:
            body = self.bodies[webhook.dialect](message.event, message.at, message.view, webhook.base_url)
            signed = await _in_thread(self.secrets.headers, tenant, message.id, int(time.time()), body)
            headers = {"Content-Type": "application/json", "User-Agent": "denoised-webhooks", **signed}
            return await self.courier.post(webhook.url, headers, body)
        except (Undelivered, RedisError):
            raise
        except Exception as error:  # noqa: BLE001 (the per-job boundary: a fault of ours is an attempt that failed)
            self.log.error("webhook", job=message.view.record.id, exc_info=error)
            raise Undelivered("A fault of this server.") from error

    async def _note(self, turn: Turn, message: Message, answer: Answer | None, reason: str) -> str:
        """Tells Redis how it went; returns the same in a word."""
        if answer and answer.is_success:
            rest_s = PROGRESS_REST_S if message.event == "progress" else 0.0
            await _in_thread(self.webhooks.note_told, turn, message.event, message.mark, answer.status, rest_s)
            return "delivered"
        status = answer.status if answer else None
        if status == _GONE:
            await _in_thread(self.webhooks.end, turn, "gone", _GONE)
            return "gone"
        delay_s = self._delay_s(turn.state, message.event, answer)
        settled = await _in_thread(self.webhooks.note_failure, turn, message.event, status, reason, delay_s)
        return "given_up" if delay_s is None or settled == "over" else "failed"

    def _delay_s(self, state: WebhookState, event: WebhookEvent, answer: Answer | None) -> float | None:
        """Seconds until the next attempt; None when there is none."""
        before = state.failures if state.trying == event else 0
        if before >= len(DELAYS_S) and event != "progress":
            return None
        delay_s = DELAYS_S[min(before, len(DELAYS_S) - 1)] * (1 + JITTER * random.random())
        if answer and answer.status in _BUSY and answer.retry_after_s is not None:
            return max(delay_s, min(answer.retry_after_s, MAX_RETRY_AFTER_S))
        return delay_s


async def _in_thread(call: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    return await anyio.to_thread.run_sync(lambda: call(*args, **kwargs))
