"""The application: everything put together, nothing done at import.

Owns the order of the layers and the lifespan. `create_app` is the factory that servers call.

    Gate (id, host, origin, body limits, log) -> CORS -> routes -> Services -> board and store
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

import anyio
import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from app.dialect import Dialect, HungUp, installed_dialects
from app.errors import FieldError, Problem, ProblemDocument
from app.events import EventHub
from app.gate import Gate, problem_answer
from app.metrics import HttpMetrics
from app.replay_schemas import ReplayBody
from app.room import Room
from app.routes import admin, generate, health, jobs, models, reference, replay, studio, webhooks
from app.schemas import GENERATE_BODY, PreviewEvent, ProgressEvent
from app.security import KeyRing, load_keys
from app.services import Services
from app.settings import ApiSettings
from app.webhooks.address import Resolver
from app.webhooks.body import Render, bodies_of
from app.webhooks.post import Courier
from app.webhooks.sender import LEASE_S, SHARES, Sender
from app.webhooks.sign import Secrets
from workers.board import JobBoard
from workers.choices import Choices
from workers.connection import LONGEST_BLOCK_S, connect, connect_async
from workers.overview import Overview
from workers.repeats import Repeats
from workers.reservations import Reservations
from workers.store import open_store
from workers.webhooks import Webhooks

HUNG_UP_STATUS = 499
"""For the log and the figures alone, as other servers count it: the answer reaches nobody."""
_EXPOSED = ("Location", "Preference-Applied", "Idempotency-Replayed", "Retry-After", "X-Request-ID", "ETag")
_ROUTERS = (
    *(generate.router, replay.router, jobs.router, models.router, admin.router, health.router),
    *(webhooks.router, reference.router, studio.router),
)


def create_app(settings: ApiSettings | None = None) -> FastAPI:
    """The application for these settings, or for those of the environment. Raises KeysInvalid."""
    settings = settings or ApiSettings()
    keys, http_metrics, log = load_keys(settings), HttpMetrics(), make_log(settings.log_format)
    dialects = installed_dialects()
    bodies = bodies_of({dialect.name: dialect.webhook_body for dialect in dialects})

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _services(settings, keys, http_metrics, log, bodies) as services:
            app.state.services = services
            yield

    app = FastAPI(
        title="denoised",
        description="An image server for latent diffusion models. Errors are described in docs/errors.md.",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in _ROUTERS:
        app.include_router(router)
    for dialect in dialects:
        app.include_router(dialect.router, include_in_schema=False)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allowed_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=list(_EXPOSED),
        )
    app.add_middleware(Gate, settings=settings, keys=keys, metrics=http_metrics, log=log, dialects=dialects)
    _map_faults(app, log, dialects)
    _describe(app, keys)
    return app


def make_log(log_format: Literal["json", "console"]) -> Any:
    """A logger of one line an event on stderr; owned by whoever calls, nothing global is configured."""
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *_renderers(log_format),
        ],
    )


def _renderers(log_format: Literal["json", "console"]) -> list[Any]:
    if log_format == "console":
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


@contextlib.asynccontextmanager
async def _services(
    settings: ApiSettings, keys: KeyRing, http_metrics: HttpMetrics, log: Any, bodies: Mapping[str, Render]
) -> AsyncIterator[Services]:
    client = connect(settings.redis_url)
    store = await anyio.to_thread.run_sync(open_store, settings.store)
    room = Room(settings, store, Reservations(client))
    events = connect_async(settings.redis_url, blocks_s=LONGEST_BLOCK_S)
    hub = EventHub(events, log)
    board, turns = JobBoard(client, retention_s=settings.retention_s), Webhooks(client, LEASE_S)
    secrets = Secrets(settings.webhook_secrets, turns.secret)
    courier = Courier(settings.webhook_allowed, Resolver(SHARES.in_all))
    sender = Sender(board, turns, secrets, courier, http_metrics, log, bodies)
    tasks = [asyncio.create_task(work) for work in (hub.run(), room.keep_up(log), sender.run(hub))]
    try:
        yield Services(
            settings=settings,
            keys=keys,
            board=board,
            overview=Overview(client),
            choices=Choices(client),
            repeats=Repeats(client),
            store=store,
            room=room,
            hub=hub,
            webhooks=turns,
            secrets=secrets,
            metrics=http_metrics,
            log=log,
            decoders=anyio.CapacityLimiter(settings.decode_threads),
        )
    finally:
        for task in tasks:
            await _end(task)
        await courier.aclose()
        await events.aclose()
        client.close()


async def _end(task: asyncio.Task[None]) -> None:
    """Cancels until it is over: the Redis client can lose one cancellation that meets it while it connects."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)


def _map_faults(app: FastAPI, log: Any, dialects: tuple[Dialect, ...]) -> None:
    """Every exception that can reach the top has its row in the error table."""
    routers = [*_ROUTERS, *(dialect.router for dialect in dialects)]

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HungUp):
            return Response(status_code=HUNG_UP_STATUS)
        problem = _problem_of(error, request, routers)
        request_id = request.scope["state"]["request_id"]
        if isinstance(error, RedisError):
            log.error("redis", error=f"{type(error).__name__}: {error}", request_id=request_id)
        elif problem.code == "internal":
            log.error("internal", request_id=request_id, exc_info=error)
        return problem_answer(problem, request.scope, dialects)

    for kind in (Problem, RequestValidationError, HTTPException, RedisError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, refuse)


def _problem_of(error: Exception, request: Request, routers: list[APIRouter]) -> Problem:
    match error:
        case Problem():
            return error
        case RequestValidationError():
            errors = tuple(
                FieldError(pointer=f"?{item['loc'][-1]}", detail=str(item["msg"])) for item in error.errors()
            )
            return Problem("field_invalid", errors=errors)
        case HTTPException(status_code=405):
            return Problem("method_not_allowed", headers={"Allow": ", ".join(_methods(request, routers))})
        case HTTPException():
            return Problem("route_unknown")
        case RedisError():
            return Problem("redis_unavailable")
        case ClientDisconnect():
            return Problem("body_incomplete")
    return Problem("internal")


def _methods(request: Request, routers: list[APIRouter]) -> list[str]:
    """All that the path takes: one path can be several routes."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in route.methods or ()} or {"GET", "HEAD"})  # /openapi.json


def _describe(app: FastAPI, keys: KeyRing) -> None:
    """OpenAPI with the schemas that no route parameter names, for a server with these keys."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(_extra_schemas())
            _drop_foreign_errors(document)
            if keys.is_empty:
                _drop_keys(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_foreign_errors(document: dict[str, Any]) -> None:
    """FastAPI announces its own shape of validation errors, which no route of ours sends."""
    for path in document["paths"].values():
        for operation in path.values():
            content = operation["responses"].get("422", {}).get("content", {})
            if "application/json" in content:
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _drop_keys(document: dict[str, Any]) -> None:
    """A server without keys asks for none."""
    for path in document["paths"].values():
        for operation in path.values():
            operation.pop("security", None)
    del document["components"]["securitySchemes"]


def _extra_schemas() -> dict[str, Any]:
    template = "#/components/schemas/{model}"
    body = GENERATE_BODY.json_schema(ref_template=template)
    definitions: dict[str, Any] = body.pop("$defs")
    _, others = models_json_schema(
        [(model, "serialization") for model in (ProblemDocument, ProgressEvent, PreviewEvent)], ref_template=template
    )
    replay = ReplayBody.model_json_schema(ref_template=template)
    return {**definitions, **others["$defs"], "GenerateBody": body, "ReplayBody": replay}
