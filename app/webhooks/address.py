"""Where a webhook may lead: only to public addresses, unless whoever runs the server says otherwise.

Owns the rules, and that a name becomes addresses once, here: what is connected to is an address that was checked.
Opens no connection.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Self

import anyio
import anyio.to_thread
import httpx2

MAX_URL_CHARACTERS = 2048
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")
_LOOKS_NUMERIC = re.compile(r"([0-9]+|0x[0-9a-f]*)")
"""A last label like this makes resolvers read an address in one of its old spellings: 127.1, 0x7f000001, 2130706433."""
_WEB_PORTS = frozenset({80, 443})
_UNPRIVILEGED = 1024
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_TUNNELS = tuple(map(ipaddress.IPv6Network, ("2002::/16", "2001::/32")))
"""6to4 and Teredo: inside such an address is another one, and whoever forwards it decides where it leads."""
_NOT_INTERNET = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")))
"""Protocols' own addresses, with Oracle's metadata service; 6to4 relays; what Azure's hosts offer to their guests."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str], Awaitable[list[str]]]
"""The addresses of a name; OSError when it has none."""


class Refused(ValueError):
    """The webhook must not be called; the message is for its owner."""


@dataclass(frozen=True)
class Allowed:
    """Receivers that may be private: names as they are written in URLs, and networks."""

    names: frozenset[str] = frozenset()
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Self:
        """Raises ValueError for an entry that is neither a name nor a network."""
        names, networks = set(), []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                if not _NAME.fullmatch(entry) or _ends_in_a_number(entry):
                    raise ValueError(f"{entry!r} is neither a host name nor an address nor a network") from None
                names.add(entry)
        return cls(frozenset(names), tuple(networks))

    def permits(self, address: Address) -> bool:
        """It is public, or in one of the networks."""
        plain = _unwrapped(address)
        return is_public(plain) or any(plain in network for network in self.networks)


@dataclass(frozen=True)
class Target:
    """A URL that may be called, as far as can be told without resolving its name."""

    url: httpx2.URL
    host: str
    """A name, or an address without brackets."""
    literal: Address | None
    """The host, when it is an address."""

    @property
    def port(self) -> int:
        usual = 443 if self.url.scheme == "https" else 80
        return usual if self.url.port is None else self.url.port


def read_target(text: str, allowed: Allowed) -> Target:
    """The URL, read as it will be called. Raises Refused."""
    if len(text) > MAX_URL_CHARACTERS:
        raise Refused(f"The URL has more than {MAX_URL_CHARACTERS} characters.")
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError) as error:
        raise Refused("It cannot be read as a URL.") from error
    if url.scheme not in ("http", "https"):
        raise Refused("Only http and https are called.")
    if url.userinfo or url.fragment:
        raise Refused("A user, a password or a fragment in it would not be sent.")
    host = url.raw_host.decode().lower().rstrip(".")
    target = Target(url, host, _literal(host))
    if target.port not in _WEB_PORTS and not _UNPRIVILEGED <= target.port < 65536:
        raise Refused("Only the ports 80, 443 and those from 1024 on are called.")
    if target.literal is not None:
        _check_addresses([target.literal], host, allowed)
    elif (host == "localhost" or host.endswith(".localhost")) and host not in allowed.names:
        raise Refused("That name leads into the server itself.")
    return target


def _literal(host: str) -> Address | None:
    try:
        if "%" in host:
            raise ValueError("a zone is the server's own business")
        return ipaddress.ip_address(host)
    except ValueError:
        if not _NAME.fullmatch(host) or _ends_in_a_number(host):
            raise Refused("Its host is neither a name nor an address in the usual spelling.") from None
        return None


def _ends_in_a_number(host: str) -> bool:
    return _LOOKS_NUMERIC.fullmatch(host.rpartition(".")[2]) is not None


async def checked_addresses(target: Target, allowed: Allowed, resolve: Resolve) -> list[Address]:
    """What the host is now; each of them may be connected to. Raises Refused.

    That a name is unknown and that it leads to a private address is told in the same words: a tenant must not find out
    which names there are in the server's network.
    """
    if target.literal is not None:
        _check_addresses([target.literal], target.host, allowed)
        return [target.literal]
    try:
        addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in await resolve(target.host)]
    except (OSError, UnicodeError) as error:
        raise Refused(NOT_PUBLIC) from error
    _check_addresses(addresses, target.host, allowed)
    return addresses


NOT_PUBLIC = "Its host has no address, or one that is not public."


def _check_addresses(addresses: list[Address], host: str, allowed: Allowed) -> None:
    """All of them: which one would be connected to must not depend on chance."""
    if not addresses or (host not in allowed.names and not all(map(allowed.permits, addresses))):
        raise Refused(NOT_PUBLIC)


def is_public(address: Address) -> bool:
    """Anybody on the internet may reach it, and no gateway of ours would turn it into another one.

    An IPv4 address inside an IPv6 one counts as itself. 6to4 and Teredo are refused whatever is inside.
    """
    address = _unwrapped(address)
    if isinstance(address, ipaddress.IPv4Address):
        is_special = address.is_multicast or address.is_reserved or any(address in network for network in _NOT_INTERNET)
        return address.is_global and not is_special
    return address in _UNICAST and address.is_global and not any(address in network for network in _TUNNELS)


def _unwrapped(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


class Resolver:
    """The system's resolver, in threads of its own: names that take for ever must not hold up other work."""

    def __init__(self, at_once: int) -> None:
        self._limiter = anyio.CapacityLimiter(at_once)

    async def __call__(self, name: str) -> list[str]:
        found = await anyio.to_thread.run_sync(_look_up, name, limiter=self._limiter, abandon_on_cancel=True)
        return list(dict.fromkeys(found))


def _look_up(name: str) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
