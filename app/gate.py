"""What every request passes before a route sees it, and every answer after.

Owns the request id, the checks of Host, Origin and body size, the time a body may take, the headers all answers carry,
the access log and the HTTP counters. Knows nothing of routes but their templates.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.dialect import Dialect, dialect_of
from app.errors import PROBLEM_TYPE, Problem
from app.metrics import HttpMetrics
from app.payload import content_length
from app.security import KeyRing, check_host, check_origin
from app.settings import ApiSettings

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROBES = frozenset({"/healthz", "/readyz"})
"""Asked by machines that call us by address; they tell nothing a foreign page could use."""


@dataclass(frozen=True)
class Gate:
    """ASGI middleware around the whole application."""

    app: ASGIApp
    settings: ApiSettings
    keys: KeyRing
    metrics: HttpMetrics
    log: Any
    dialects: tuple[Dialect, ...]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id)
        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):  # in every line that the request causes
            try:
                await self._pass(scope, headers, receive, answer)
            finally:
                self._record(scope, answer, time.perf_counter() - started)

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, answer: _Answer) -> None:
        try:
            if scope["path"] not in _PROBES:
                check_host(headers, self.settings.allowed_hosts, not self.keys.is_empty)
                check_origin(headers, self.settings.allowed_origins)
            if (content_length(headers) or 0) > self.settings.max_body_bytes:
                raise _too_large(self.settings.max_body_bytes)
        except Problem as problem:
            await problem_answer(problem, scope, self.dialects)(scope, receive, answer)
            return
        body = _Body(receive, self.settings.max_body_bytes, self.settings.upload_timeout_s)
        await self.app(scope, body, answer)

    def _record(self, scope: Scope, answer: _Answer, seconds: float) -> None:
        status = answer.status or 503
        route = getattr(scope.get("route"), "path", "unmatched")
        self.metrics.observe(route, scope["method"], status, seconds)
        if scope["path"] in _PROBES:
            return  # asked every second by whoever watches; the metrics count them
        known = {name: scope["state"].get(name) for name in ("tenant", "job", "code")}
        self.log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            seconds=round(seconds, 4),
            **{name: value for name, value in known.items() if value is not None},
        )


def problem_answer(problem: Problem, scope: Scope, dialects: tuple[Dialect, ...]) -> Response:
    """The problem as an answer to this request, in the shape of the dialect that its path belongs to."""
    scope["state"]["code"] = problem.code
    request_id = scope["state"]["request_id"]
    dialect = dialect_of(scope["path"], dialects)
    answer = dialect.refusal(problem, request_id) if dialect else _own_refusal(problem, scope["path"], request_id)
    answer.headers["X-Request-ID"] = request_id
    if problem.status in (408, 413):
        answer.headers["Connection"] = "close"  # the rest of the body is not read
    return answer


def _own_refusal(problem: Problem, path: str, request_id: str) -> Response:
    body = problem.document(path, request_id).model_dump_json(exclude_none=True)
    return Response(body, problem.status, problem.headers, media_type=PROBLEM_TYPE)


class _Answer:
    """`send` of one request: adds the headers of every answer and remembers the status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.request_id
            headers["X-Content-Type-Options"] = "nosniff"
            headers.setdefault("Cache-Control", "no-store")
        await self._send(message)


class _Body:
    """`receive` of one request: counts the bytes that really come and the seconds they take."""

    def __init__(self, receive: Receive, limit: int, timeout_s: float) -> None:
        self._receive = receive
        self._limit = limit
        self._timeout_s = timeout_s
        self._deadline: float | None = None
        self._count = 0
        self._is_whole = False

    async def __call__(self) -> Message:
        if self._is_whole:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._deadline = self._deadline or now + self._timeout_s
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            raise Problem("body_timeout", f"It took more than {self._timeout_s:g} seconds.") from error
        self._count += len(message.get("body", b""))
        self._is_whole = message["type"] != "http.request" or not message.get("more_body", False)
        if self._count > self._limit:
            raise _too_large(self._limit)
        return message


def _too_large(limit: int) -> Problem:
    return Problem("body_too_large", f"At most {limit} bytes are read.")


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
