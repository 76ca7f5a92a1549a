"""One attempt to deliver a webhook: connect to an address that was checked, post, look at the status.

Owns timeouts and redirects. What is connected to is the address, not the name, so nothing is resolved twice; the name
goes into the Host header and is what the certificate must be for. Proxies of the environment are not used, cookies are
not kept, connections are not shared between receivers, and of an answer nothing is kept but its status.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from app.webhooks.address import Address, Allowed, Refused, Resolve, Target, checked_addresses, read_target

TIMEOUT_S = 10.0
"""For everything: the name, the connection, all redirects and the answer."""
CONNECT_S = 3.0
"""For one of several addresses."""
MAX_HOPS = 3
MAX_ADDRESSES = 4
MAX_ANSWER_BYTES = 16 * 1024
"""Of an answer with all that comes before it: a receiver may send `100 Continue` without end, and each costs."""
_READ_BYTES = 4096
_READ_S = 1.0
_REDIRECTS = frozenset({307, 308})
"""The others would turn the POST into a GET."""


class Undelivered(Exception):
    """No answer came. `reason` is for the webhook's owner, `detail` for the log."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail or reason


@dataclass(frozen=True)
class Answer:
    """What the receiver said."""

    status: int
    retry_after_s: float | None = None

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class Courier:
    """Posts to receivers that `allowed` lets in. `tls`: whose certificates are believed; None: the system's."""

    def __init__(
        self, allowed: Allowed, resolve: Resolve, *, tls: ssl.SSLContext | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._timeout_s = timeout_s
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._transport = httpx2.AsyncHTTPTransport(verify=tls or True, limits=limits)

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Raises Undelivered."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(url, headers, body)
        except TimeoutError as error:
            raise Undelivered(f"There was no answer within {self._timeout_s:g} seconds.") from error
        except Refused as error:
            raise Undelivered(str(error), f"{error} ({error.__cause__})" if error.__cause__ else "") from error

    async def _follow(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        target = read_target(url, self._allowed)
        for _ in range(1 + MAX_HOPS):
            addresses = await checked_addresses(target, self._allowed, self._resolve)
            response = await self._send(target, addresses[:MAX_ADDRESSES], headers, body)
            location = response.headers.get("location", "")
            if response.status_code not in _REDIRECTS or not location:
                return Answer(response.status_code, _retry_after_s(response.headers.get("retry-after", "")))
            target = self._redirected(target, location)
        raise Undelivered(f"It was redirected more than {MAX_HOPS} times.")

    def _redirected(self, target: Target, location: str) -> Target:
        try:
            following = read_target(str(target.url.join(location)), self._allowed)
        except (Refused, httpx2.InvalidURL, ValueError) as error:
            raise Undelivered("It was redirected to an address that is not called.", f"redirected: {error}") from error
        if target.url.scheme == "https" and following.url.scheme == "http":
            raise Undelivered("It was redirected from https to http.")
        return following

    async def _send(
        self, target: Target, addresses: list[Address], headers: Mapping[str, str], body: bytes
    ) -> httpx2.Response:
        secure = " securely" if target.url.scheme == "https" else ""
        failure = Undelivered("It could not be connected to.")
        for address in addresses:
            try:
                return await self._send_to(address, target, headers, body)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = Undelivered(f"It could not be connected to{secure}.", f"{address}: {error!r}")
            except httpx2.HTTPError as error:
                raise Undelivered("The connection ended without an answer.", f"{address}: {error!r}") from error
        raise failure

    async def _send_to(
        self, address: Address, target: Target, headers: Mapping[str, str], body: bytes
    ) -> httpx2.Response:
        timeouts = {"connect": CONNECT_S, "read": None, "write": None, "pool": None}  # all within TIMEOUT_S
        request = httpx2.Request(
            "POST",
            target.url.copy_with(host=str(address)),
            headers={**headers, "Host": target.url.netloc.decode(), "Connection": "close"},
            content=body,
            extensions={"sni_hostname": target.host, "timeout": timeouts, "trace": _bound_what_is_read},
        )
        response = await self._transport.handle_async_request(request)
        try:
            await _read_a_little(response)
        finally:
            await response.aclose()
        return response


async def _bound_what_is_read(event: str, told: dict[str, Any]) -> None:
    """Called by the transport for all that it does. A connection that is made ends after MAX_ANSWER_BYTES."""
    if event not in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
        return
    stream, left = told["return_value"], MAX_ANSWER_BYTES
    read = stream.read

    async def read_within_bounds(max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 (not ours)
        nonlocal left
        if left <= 0:
            return b""
        data: bytes = await read(min(max_bytes, left), timeout)
        left -= len(data)
        return data

    stream.read = read_within_bounds


async def _read_a_little(response: httpx2.Response) -> None:
    """Out of courtesy: simple receivers complain when nobody takes what they answer. The status is known by now."""
    size = 0
    with contextlib.suppress(httpx2.HTTPError, TimeoutError):
        async with asyncio.timeout(_READ_S):
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size >= _READ_BYTES:
                    break


def _retry_after_s(header: str) -> float | None:
    """Seconds, or a date; None for anything else."""
    if header.isascii() and header.isdigit():
        return float(header[:9])
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    return None
