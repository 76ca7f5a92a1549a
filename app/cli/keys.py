"""`denoised keys`: making, listing and revoking keys.

Owns writing the keys file: `tenant sha256` lines, readable by its owner alone, replaced as a whole so that a server
that starts meanwhile reads the old file or the new one. `app.security` reads it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from app.cli.exit_status import EXIT_FAILED, EXIT_SETTINGS
from app.security import TENANT, KeysInvalid, hash_key, load_keys
from app.settings import ApiSettings

ID_LENGTH = 12
"""Hex digits of the hash that name a key in `keys list`."""


def run(options: argparse.Namespace) -> int:
    """One of `new`, `list`, `revoke`; returns the exit status."""
    settings = ApiSettings() if options.data_dir is None else ApiSettings(data_dir=options.data_dir)
    path = settings.keys_path.expanduser()
    try:
        if path.exists():
            load_keys(settings)  # refuses a file that the server would refuse, before anything is written
        if options.action == "new":
            return _new(path, options.tenant)
        return _list(path) if options.action == "list" else _revoke(path, options.which)
    except (KeysInvalid, OSError) as error:
        print(f"denoised: {error}", file=sys.stderr)
        return EXIT_SETTINGS


def _new(path: Path, tenant: str) -> int:
    if not TENANT.fullmatch(tenant):
        print(f"denoised: {tenant!r} is no tenant; use 1 to 64 letters, digits, - and _.", file=sys.stderr)
        return EXIT_SETTINGS
    key = f"dn_{secrets.token_urlsafe(32)}"
    with _locked(path):
        _write(path, [*_lines(path), f"{tenant} {hash_key(key)}  # {datetime.now(UTC):%Y-%m-%d}"])
    print(key)
    print(f"The key of {tenant!r}, shown this once; {path} has only its hash.", file=sys.stderr)
    print("Send it as `Authorization: Bearer KEY`. Restart the server so that it knows the key.", file=sys.stderr)
    return 0


def _list(path: Path) -> int:
    for line in _lines(path):
        entry, _, note = line.partition("#")
        if entry.strip():
            tenant, digest = entry.split()
            print(f"{digest[:ID_LENGTH].lower()}  {tenant}  {note.strip()}".rstrip())
    return 0


def _revoke(path: Path, which: str) -> int:
    with _locked(path):
        lines = _lines(path)
        kept = [line for line in lines if not _is_meant(line, which)]
        if len(kept) == len(lines):
            print(f"denoised: {path} has no tenant and no key id {which!r}; see `denoised keys list`.", file=sys.stderr)
            return EXIT_FAILED
        _write(path, kept)
    print(f"Revoked {len(lines) - len(kept)} of {which!r}. Restart the server so that it knows.", file=sys.stderr)
    return 0


def _is_meant(line: str, which: str) -> bool:
    words = line.partition("#")[0].split()
    if not words:
        return False
    is_id = len(which) >= ID_LENGTH and words[1].lower().startswith(which.lower())
    return is_id or words[0] == which


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two commands at once both leave their line."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, lines: list[str]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
