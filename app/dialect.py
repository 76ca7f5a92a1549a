"""What a dialect is: another API's words for the jobs of this server.

Owns the seam: which paths a dialect answers, how its refusals look, and what all dialects do in the same way (queue,
wait, fetch the pictures). A dialect translates a body into fields of `POST /generate` and a job into its own document;
it draws, checks and limits nothing itself.

Each module of `app.dialects` is one dialect and holds it as `DIALECT`; there is nothing else to register. Its routes
are not in the OpenAPI document, since whoever calls them has another description of them; docs/ has a page for each.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from redis.exceptions import RedisError
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive

import app.dialects
from app.errors import FieldError, Problem
from app.services import Services
from app.streams import wait_for_end
from workers.contract import ENDED, JobView

_LOOK_S = 30.0
"""A job that ended or vanished without an event is found out after that."""


class HungUp(ClientDisconnect):
    """The client waits for its pictures no more: nobody reads the answer."""


@dataclass(frozen=True)
class Dialect:
    """One way in. `paths` matches every path that belongs to it, also those that none of its routes answers."""

    name: str
    paths: re.Pattern[str]
    router: APIRouter
    refuse: Callable[[Problem, str], Response]
    """A refusal and the request's id -> the answer in this dialect's shape, with `Problem.headers`."""
    field_names: Mapping[str, str] = field(default_factory=dict)
    """Our fields -> its own, so that refusals name what its client sent."""
    webhook_body: Callable[[str, float, JobView, str], bytes] | None = None
    """Our event, when it happened (Unix seconds), the job and what absolute addresses begin with -> what a webhook of
    one of its jobs says. None: what it says of our own."""

    def refusal(self, problem: Problem, request_id: str) -> Response:
        """The answer to a request of this dialect that is refused."""
        return self.refuse(in_words_of(self.field_names, problem), request_id)


def installed_dialects() -> tuple[Dialect, ...]:
    """Every dialect of `app.dialects`, by name of its module."""
    names = sorted(module.name for module in pkgutil.iter_modules(app.dialects.__path__))
    return tuple(importlib.import_module(f"{app.dialects.__name__}.{name}").DIALECT for name in names)


def dialect_of(path: str, dialects: Sequence[Dialect]) -> Dialect | None:
    """Whose path this is; None for our own."""
    return next((dialect for dialect in dialects if dialect.paths.fullmatch(path)), None)


def in_words_of(names: Mapping[str, str], problem: Problem) -> Problem:
    """The same problem with its fields, in pointers and in backticks, under other names. A field that nobody knows has
    none but its own."""
    if problem.code == "field_unknown":
        return problem
    renamed = copy.copy(problem)
    renamed.detail = _renamed(names, problem.detail)
    renamed.errors = tuple(
        FieldError(pointer=_renamed_pointer(names, error.pointer), detail=_renamed(names, error.detail))
        for error in problem.errors
    )
    return renamed


def _renamed(names: Mapping[str, str], text: str) -> str:
    return re.sub(r"`([a-z_]+)`", lambda match: f"`{names.get(match[1], match[1])}`", text)


def _renamed_pointer(names: Mapping[str, str], pointer: str) -> str:
    first, separator, rest = pointer.removeprefix("/").partition("/")
    return f"/{names.get(first, first)}{separator}{rest}" if pointer.startswith("/") else pointer


# --- what all of them do ---------------------------------------------------------------------------------------------


def refuse_unsupported(named: Mapping[str, str]) -> None:
    """Raises Problem when a request asks for something that this server does not do: field -> what of it."""
    if named:
        errors = tuple(FieldError(pointer=f"/{name}", detail=what) for name, what in named.items())
        raise Problem("field_unsupported", " ".join(error.detail for error in errors), errors=errors)


async def until_ended(request: Request, services: Services, view: JobView) -> JobView:
    """The job as it ended, however long that takes. A client that hangs up before has its job canceled, and
    HungUp is raised. Raises Problem `job_gone` when the job is erased meanwhile."""
    try:
        return await until_ended_or_hung_up(request, services, view)
    except HungUp:
        await services.on_board(services.board.cancel, view.record.id)
        raise


async def until_ended_or_hung_up(request: Request, services: Services, view: JobView) -> JobView:
    """As `until_ended`, but the job of a client that hangs up goes on."""
    gone = asyncio.ensure_future(hung_up(request.receive))
    try:
        while view.status not in ENDED:
            ended = asyncio.ensure_future(_ended(services, view))
            await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                ended.cancel()
                raise HungUp
            view = ended.result()
    finally:
        gone.cancel()
    return view


async def hung_up(receive: Receive) -> None:
    """Returns when the client is no more there, or has its answer."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(services: Services, view: JobView) -> JobView:
    newest = await wait_for_end(services.hub, view, functools.partial(services.view, view.record.id), _LOOK_S)
    if newest.status in ENDED:
        return newest
    try:
        return await services.owned_job(view.record.id, view.record.submission.tenant)
    except RedisError:  # the job goes on without us
        return newest


def require_success(view: JobView) -> None:
    """Raises Problem when an ended job has no pictures."""
    outcome = view.record.outcome
    assert outcome is not None, "the job has not ended. This is a bug."
    if outcome.status == "canceled":
        raise Problem("job_canceled")
    if outcome.error is not None:
        raise Problem("job_failed", f"{outcome.error.code}: {outcome.error.detail}")


async def picture_files(services: Services, view: JobView) -> list[bytes]:
    """The files of a job that succeeded, in order. Raises Problem when it did not, or when they are gone."""
    require_success(view)
    assert view.record.outcome is not None, "a job without an outcome counts as a success. This is a bug."
    try:
        return [
            await services.on_store(services.store.get, view.record.id, picture.file)
            for picture in view.record.outcome.pictures
        ]
    except FileNotFoundError as error:
        raise Problem("image_gone") from error
