"""Carrying steps out: one driver that blocks, one that awaits.

Owns the connections, and the translation of every fault of httpx2 into Unreachable. Knows nothing of what a call is
about. The two drivers differ in `await`; whatever is more than that belongs into a call.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import AsyncExitStack, ExitStack, closing
from types import MethodType, TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

import anyio
import anyio.to_thread
import httpx2

from app.client.conversation import PATIENCE_S, Conversation
from app.client.errors import ClientError, Unreachable
from app.client.steps import Answer, Close, Do, Feed, Open, Read, Send, Sleep, Step, Steps

DEFAULT_SERVER = "http://127.0.0.1:8000"
_CONNECT_TIMEOUT_S = 5.0

P = ParamSpec("P")
T = TypeVar("T")
OnRetry = Callable[[ClientError, float], None]


class SyncDriver:
    """Use it in a `with` block, or `close` it."""

    def __init__(
        self,
        server: str | None = None,
        key: str | None = None,
        *,
        patience_s: float = PATIENCE_S,
        on_retry: OnRetry | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.server = _server(server)
        self._conversation = Conversation(self.server, patience_s, on_retry)
        self._http = httpx2.Client(**_options(self.server, key), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections. Jobs go on."""
        self._http.close()

    def _run(self, steps: Steps[T]) -> T:
        with _SyncLine(self._http) as line:
            return line.run(steps)

    def _iterate(self, feed: Feed[T]) -> Generator[T, None, None]:
        with _SyncLine(self._http) as line:
            while (item := line.run(feed.next())) is not None:
                yield item


class AsyncDriver:
    """Use it in an `async with` block, or `close` it."""

    def __init__(
        self,
        server: str | None = None,
        key: str | None = None,
        *,
        patience_s: float = PATIENCE_S,
        on_retry: OnRetry | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.server = _server(server)
        self._conversation = Conversation(self.server, patience_s, on_retry)
        self._http = httpx2.AsyncClient(**_options(self.server, key), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections. Jobs go on."""
        await self._http.aclose()

    async def _run(self, steps: Steps[T]) -> T:
        async with _AsyncLine(self._http) as line:
            return await line.run(steps)

    async def _iterate(self, feed: Feed[T]) -> AsyncGenerator[T, None]:
        async with _AsyncLine(self._http) as line:
            while (item := await line.run(feed.next())) is not None:
                yield item


class _SyncLine(ExitStack):
    """What one call has open."""

    def __init__(self, http: httpx2.Client) -> None:
        super().__init__()
        self._http = http
        self._pieces: Iterator[bytes] = iter(())

    def run(self, steps: Steps[T]) -> T:
        with closing(steps):
            advance = functools.partial(steps.send, None)
            while True:
                try:
                    step = advance()
                except StopIteration as end:
                    return end.value
                try:
                    advance = functools.partial(steps.send, self._do(step))
                except httpx2.HTTPError as error:
                    advance = functools.partial(steps.throw, _unreachable(self._http.base_url, error))

    def _do(self, step: Step) -> object:
        match step:
            case Send():
                return _answer(self._http.send(_request(self._http, step)))
            case Open():
                self.close()
                response = self._http.send(_opening(self._http, step), stream=True)
                self.callback(response.close)
                if response.status_code != 200:
                    response.read()
                    return _answer(response)
                self._pieces = response.iter_bytes()
                return Answer(response.status_code, response.headers, b"")
            case Read():
                return next(self._pieces, b"")
            case Close():
                self.close()
            case Sleep():
                time.sleep(step.seconds)
            case Do():
                return step.work()
        return None


class _AsyncLine(AsyncExitStack):
    """What one call has open."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        super().__init__()
        self._http = http
        self._pieces: AsyncIterator[bytes] | None = None

    async def run(self, steps: Steps[T]) -> T:
        with closing(steps):
            advance = functools.partial(steps.send, None)
            while True:
                try:
                    step = advance()
                except StopIteration as end:
                    return end.value
                try:
                    advance = functools.partial(steps.send, await self._do(step))
                except httpx2.HTTPError as error:
                    advance = functools.partial(steps.throw, _unreachable(self._http.base_url, error))

    async def _do(self, step: Step) -> object:
        match step:
            case Send():
                return _answer(await self._http.send(_request(self._http, step)))
            case Open():
                await self.aclose()
                response = await self._http.send(_opening(self._http, step), stream=True)
                self.push_async_callback(response.aclose)
                if response.status_code != 200:
                    await response.aread()
                    return _answer(response)
                self._pieces = response.aiter_bytes()
                return Answer(response.status_code, response.headers, b"")
            case Read():
                assert self._pieces is not None, "no stream is open. This is a bug."
                return await anext(self._pieces, b"")
            case Close():
                await self.aclose()
            case Sleep():
                await anyio.sleep(step.seconds)
            case Do():
                return await anyio.to_thread.run_sync(step.work)
        return None


# --- calls become methods --------------------------------------------------------------------------------------------


class call(Generic[P, T]):
    """Makes a method of a call: one that blocks in a SyncDriver, a coroutine in an AsyncDriver."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        @functools.wraps(steps)
        def run(client: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
            return client._run(steps(client, *args, **kwargs))

        self._run = run

    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    @overload
    def __get__(self, client: SyncDriver, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncDriver, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: SyncDriver | AsyncDriver | None, owner: type) -> Callable[..., Any]:
        return self._run if client is None else MethodType(self._run, client)


class feed(Generic[P, T]):
    """Makes a method of a feed: an iterator in a SyncDriver, an asynchronous one in an AsyncDriver."""

    def __init__(self, start: Callable[Concatenate[Any, P], Feed[T]]) -> None:
        @functools.wraps(start)
        def iterate(client: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
            return client._iterate(start(client, *args, **kwargs))

        self._iterate = iterate

    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    @overload
    def __get__(self, client: SyncDriver, owner: type) -> Callable[P, Generator[T, None, None]]: ...
    @overload
    def __get__(self, client: AsyncDriver, owner: type) -> Callable[P, AsyncGenerator[T, None]]: ...
    def __get__(self, client: SyncDriver | AsyncDriver | None, owner: type) -> Callable[..., Any]:
        return self._iterate if client is None else MethodType(self._iterate, client)


# --- what both drivers do in the same way ----------------------------------------------------------------------------


def _server(server: str | None) -> str:
    """The address to use. Raises Unreachable for one that nobody can have."""
    server = (server or os.environ.get("DENOISED_SERVER") or DEFAULT_SERVER).rstrip("/")
    try:
        url = httpx2.URL(server)
    except httpx2.InvalidURL as error:
        raise Unreachable(f"{server!r} is no URL: {error}.") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise Unreachable(f"{server!r} is no URL of a server; one looks like {DEFAULT_SERVER}.")
    return server


def _options(server: str, key: str | None) -> dict[str, Any]:
    """Raises Unreachable for a key that nobody can have, without telling it."""
    key = (key or os.environ.get("DENOISED_API_KEY") or "").strip()  # a key out of a file ends with its line
    if not (key.isascii() and key.isprintable()):
        raise Unreachable("The key has characters that no key has. Give one that `denoised keys new` has printed.")
    host = httpx2.URL(server).host
    return {
        "base_url": server,
        # Each job that is followed holds a connection; one more may not have to wait until a job has ended.
        "limits": httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        # No proxy stands between this machine and itself.
        "trust_env": host not in ("localhost", "::1") and not host.startswith("127."),
    }


def _request(http: httpx2.Client | httpx2.AsyncClient, step: Send) -> httpx2.Request:
    timeout = httpx2.Timeout(step.timeout_s, connect=min(step.timeout_s, _CONNECT_TIMEOUT_S))
    return http.build_request(step.method, step.path, headers=step.headers, content=step.content, timeout=timeout)


def _opening(http: httpx2.Client | httpx2.AsyncClient, step: Open) -> httpx2.Request:
    timeout = httpx2.Timeout(step.silence_s, connect=_CONNECT_TIMEOUT_S)
    return http.build_request("GET", step.path, headers={"Accept": "text/event-stream"}, timeout=timeout)


def _answer(response: httpx2.Response) -> Answer:
    return Answer(response.status_code, response.headers, response.content)


def _unreachable(server: httpx2.URL, error: httpx2.HTTPError) -> Unreachable:
    why = str(error).rstrip(".") or type(error).__name__
    lost = Unreachable(f"No answer from {str(server).rstrip('/')}: {why}.")
    lost.__cause__ = error
    return lost
