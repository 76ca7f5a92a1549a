"""Every route does what the OpenAPI document says, whatever is sent: schemathesis over the whole of it.

`python -m tests.test_http_schemathesis 2000` tries so many cases of each route; the tests try a few.

Two of its checks are not asked. `use_after_free`: DELETE on a job that has not ended cancels it; its document stays.
`positive_data_acceptance` of POST /generate and /replay: what a model can draw stands in GET /models, and what a recipe
has to say in docs/replay.md, not in the document.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio.to_thread
import redis
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ERRORS, ProblemDocument
from app.main import create_app
from models.request import TASKS
from tests.http_kit import ALICE, ENTRY, KEYS, FakeWorker, settings_for
from workers.connection import connect
from workers.contract import key
from workers.embedded import ensure_server
from workers.jobkeys import queue_key, text
from workers.store import LocalStore

PHASES = ("examples", "coverage", "fuzzing", "stateful")
IDEMPOTENCY = b"idempotency-key"
HOST = "testserver"
"""How schemathesis calls an application in its own process."""


ACCEPTANCE = {"enabled": True, "expected-statuses": ["2xx", "304", "401", "404", "410"]}


@schemathesis.check
def refusals_have_one_shape(_ctx: Any, response: Any, _case: Any) -> None:
    """What is no success is a problem of the table, and every answer has the headers that all have."""
    assert response.headers["x-request-id"]
    assert response.headers["x-content-type-options"] == ["nosniff"]
    if response.status_code < 400:
        return
    assert response.headers["content-type"] == ["application/problem+json"]
    problem = ProblemDocument.model_validate_json(response.content)
    assert (problem.status, problem.title) == (ERRORS[problem.code].status, ERRORS[problem.code].title)
    assert problem.status == response.status_code
    assert response.status_code != 503, f"nothing is away here: {problem.detail}"


ITS_OWN_FAULT = "ValueError: Unsupported type: 'Binary'"
"""Its validator now and then meets the wrapper that its generator puts around the files of a form."""


@dataclass
class Workshop:
    """The application before a worker that takes each job at the very moment at which it is accepted: one is drawn, the
    next one fails, the third one waits. Each Idempotency-Key that could be used is made another one: schemathesis sends
    one and the same with bodies that differ."""

    app: ASGIApp
    worker: FakeWorker
    taken: set[str] = field(default_factory=set)
    posts: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_later(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 202:
                await anyio.to_thread.run_sync(self._work)
            await send(message)

        if scope.get("path") not in ("/generate", "/replay"):
            await self.app(scope, receive, send)
            return
        self.posts += 1
        headers = [(name, self._renewed(value) if name == IDEMPOTENCY else value) for name, value in scope["headers"]]
        await self.app({**scope, "headers": headers}, receive, send_later)

    def _renewed(self, value: bytes) -> bytes:
        return b"%s %d" % (value, self.posts) if value.strip() and len(value) < 240 else value

    def _work(self) -> None:
        client = self.worker.client
        queues = sorted(text(name) for name in client.smembers(key("queues", "first")))  # type: ignore[union-attr]
        waiting = [text(job) for name in queues for job in client.lrange(queue_key(name), 0, -1)]  # type: ignore[union-attr]
        for job_id in waiting:
            if job_id not in self.taken:
                self.taken.add(job_id)
                (self.worker.draw, self.worker.fail, lambda _: None)[len(self.taken) % 3](job_id)


@dataclass
class Examination:
    """What was found, how many cases of each route were tried, and what answered them."""

    faults: list[str] = field(default_factory=list)
    cases: Counter[str] = field(default_factory=Counter)
    answers: Counter[tuple[str, int | None]] = field(default_factory=Counter)

    def note(self, event: events.EngineEvent) -> None:
        if isinstance(event, events.NonFatalError | events.FatalError):
            fault = str(getattr(event, "info", event))
            if fault != ITS_OWN_FAULT:
                self.faults.append(fault)
        if not isinstance(event, events.ScenarioFinished):
            return
        for name, case in event.recorder.cases.items():
            answer = event.recorder.interactions[name].response if name in event.recorder.interactions else None
            self.cases[case.value.operation.label] += 1
            self.answers[case.value.operation.label, answer.status_code if answer else None] += 1
        for checks in event.recorder.checks.values():
            for check in checks:
                if check.failure_info is not None:
                    what = check.failure_info
                    self.faults.append(f"{event.label}: {check.name}: {what.failure}\n{what.code_sample}")


def examine(
    redis_url: str, store: LocalStore, examples: int, phases: tuple[str, ...] = PHASES, **settings: Any
) -> Examination:
    """Everything that schemathesis tries on a fresh application, always the same; `settings`: of the application."""
    client = connect(redis_url)
    client.flushall()
    worker = FakeWorker(client, store)
    worker.publish(ENTRY.model_copy(update={"tasks": TASKS, "upscale_factor": 4, "max_noise_level": 50}))
    worker.beat(beat_at=time.time() + 24 * 3600)  # nobody beats again, and a large run takes minutes
    limits = {"max_queued": 10**6, "max_wait_s": 0.01, "log_format": "json", "allowed_hosts": (HOST,)}
    app = create_app(settings_for(redis_url, store, **limits, **settings))
    has_keys = "api_keys" in settings
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", Workshop(app, worker), config=config_of(examples, phases, ALICE if has_keys else {})
    )
    examination = Examination()
    for event in from_schema(schema).execute():
        examination.note(event)
    client.close()
    return examination


def config_of(examples: int, phases: tuple[str, ...], headers: dict[str, str]) -> SchemathesisConfig:
    return SchemathesisConfig.from_dict(
        {
            "seed": 1,
            "continue-on-failure": True,
            "headers": headers,
            "request-timeout": 10,
            "max-stream-events": 2,
            "generation": {"max-examples": examples, "deterministic": True, "database": "none"},
            "phases": {phase: {"enabled": phase in phases} for phase in PHASES},
            "checks": {"use_after_free": {"enabled": False}, "positive_data_acceptance": {"enabled": False}},
            "operations": [
                {"exclude-path": ["/generate", "/replay"], "checks": {"positive_data_acceptance": ACCEPTANCE}}
            ],
        }
    )


def documented() -> set[str]:
    paths = create_app(settings_for("redis://127.0.0.1:1/0", LocalStore(Path("/nonexistent")))).openapi()["paths"]
    return {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}


def test_every_route_does_what_the_document_says(redis_url: str, redis_client: redis.Redis, store: LocalStore) -> None:
    examination = examine(redis_url, store, 10, api_keys=KEYS, operators=("alice",))
    assert examination.faults == []
    assert set(examination.cases) == documented()


def test_so_it_does_without_keys(redis_url: str, redis_client: redis.Redis, store: LocalStore) -> None:
    examination = examine(redis_url, store, 10, ("examples", "fuzzing", "stateful"))
    assert examination.faults == []
    assert set(examination.cases) == documented()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        server = ensure_server(Path(folder) / "server")
        try:
            found = examine(
                server.url,
                LocalStore(Path(folder) / "store"),
                int(sys.argv[1]) if len(sys.argv) > 1 else 2000,
                api_keys=KEYS,
                operators=("alice",),
            )
        finally:
            server.stop()
    print(*found.faults, sep="\n\n")
    print(f"{found.cases.total()} cases, {len(found.faults)} faults", dict(sorted(found.answers.items(), key=str)))
    sys.exit(bool(found.faults))
