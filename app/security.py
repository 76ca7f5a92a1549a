"""Who may ask, from where.

Owns keys (each names a tenant; only hashes are kept), the Host allow-list against DNS rebinding, the Origin check
against foreign pages, and the refusal to listen openly without keys. Knows nothing of jobs.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers

from app.errors import Problem
from app.settings import ApiSettings
from workers.contract import LOCAL_TENANT

TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Names that a tenant can have."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="denoised"'}


class KeysInvalid(ValueError):
    """The keys cannot be read; the message names the place and says what to write."""


class BindRefused(ValueError):
    """The address is open to others and there are no keys."""


@dataclass(frozen=True)
class KeyRing:
    """SHA-256 of each key (hex) with its tenant. Empty: everybody is the tenant `local`."""

    tenants: tuple[tuple[str, str], ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.tenants

    def tenant_of(self, authorization: str | None) -> str:
        """Tenant of an Authorization header: `Bearer KEY`, `Token KEY`, or Basic with the key as password. Raises
        Problem. Takes the same time whichever key it is."""
        if self.is_empty:
            return LOCAL_TENANT
        key = _key_in(authorization or "")
        if not key:
            raise Problem("key_required", headers=_CHALLENGE)
        digest = hash_key(key)
        found = None
        for known, tenant in self.tenants:
            if hmac.compare_digest(known, digest):
                found = tenant
        if found is None:
            raise Problem("key_unknown", headers=_CHALLENGE)
        return found


def _key_in(authorization: str) -> str:
    """The key of an Authorization header, empty when there is none. Clients of other APIs have schemes of their own."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() in ("bearer", "token"):
        return given.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        pair = base64.b64decode(given.strip(), validate=True).decode("utf-8")
    except ValueError:
        return ""
    user, _, password = pair.partition(":")
    return password or user


def hash_key(key: str) -> str:
    """What the keys file holds of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def load_keys(settings: ApiSettings) -> KeyRing:
    """The keys of the environment and of the keys file. Raises KeysInvalid."""
    pairs = [_from_environment(part) for part in settings.api_keys.get_secret_value().split(",") if part.strip()]
    if settings.keys_file is not None or settings.keys_path.is_file():
        pairs.extend(_from_file(settings.keys_path))
    return KeyRing(tuple(pairs))


def check_bind(settings: ApiSettings) -> None:
    """Raises BindRefused when the server would be open to other machines without keys."""
    if is_loopback(settings.host) or not load_keys(settings).is_empty:
        return
    raise BindRefused(
        f"Listening on {settings.host} would let anybody in: there are no keys. Make one with `denoised keys new NAME`"
        f" (its hash goes into {settings.keys_path}), or set DENOISED_API_KEYS=tenant:key, or listen on 127.0.0.1."
    )


def is_loopback(host: str) -> bool:
    """Whether a host name or address, with or without brackets, means this machine alone."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_host(headers: Headers, allowed_hosts: tuple[str, ...], has_keys: bool) -> None:
    """Raises Problem for a Host that is not ours: a foreign name that resolves to us is DNS rebinding."""
    host = host_name(headers.get("host", ""))
    if host in allowed_hosts or is_loopback(host):
        return
    if has_keys and not allowed_hosts:
        return
    raise Problem("host_refused", f"The Host is {host[:100] or 'missing'}.")


def check_origin(headers: Headers, allowed_origins: tuple[str, ...]) -> None:
    """Raises Problem for a request that a browser makes for a page of another origin."""
    origin = headers.get("origin", "").lower().rstrip("/")
    if origin in allowed_origins and origin:
        return
    if origin:
        if origin.partition("://")[2] == headers.get("host", "").lower() and origin.startswith(("http://", "https://")):
            return
        raise Problem("origin_refused", f"The Origin is {origin[:100]}.")
    if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
        raise Problem("origin_refused", "A page of another site asks for this.")


def host_name(host: str) -> str:
    """The Host header without its port, in lower case."""
    name = host.strip().lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0].rstrip(".")


def _from_environment(part: str) -> tuple[str, str]:
    tenant, separator, key = part.strip().partition(":")
    if not separator or not TENANT.fullmatch(tenant) or not key:
        raise KeysInvalid(
            "DENOISED_API_KEYS is read as tenant:key,tenant:key; tenants have 1 to 64 letters, digits, _ or -."
        )
    return hash_key(key), tenant


def _from_file(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeysInvalid(f"The keys file {path} cannot be read: {error}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not TENANT.fullmatch(words[0]) or not _DIGEST.fullmatch(words[1].lower()):
            raise KeysInvalid(f"{path}, line {number}: write a tenant, a space and 64 hex digits of SHA-256.")
        pairs.append((words[1].lower(), words[0]))
    return pairs
