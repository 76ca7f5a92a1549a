"""`denoised serve`: Redis, the API and the workers, as one command on one machine.

Owns which processes there are, what each is told, and the lines on the console. Knows nothing of how children are kept
alive (`app.supervisor`) or of what they do; it starts workers as programs and imports none of their code.
"""

from __future__ import annotations

import http.client
import json
import os
import site
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from app.listener import STOP_TIMEOUT_S, bind, url_of
from app.security import check_bind
from app.settings import ApiSettings
from app.supervisor import Backoff, Program, Supervisor
from workers.embedded import EmbeddedServer, EmbeddedServerError, ensure_server

_ASK_TIMEOUT_S = 1.0
_ASK_EVERY_S = 1.0


@dataclass(frozen=True)
class ServeOptions:
    """What the command line says; None leaves it to the environment."""

    host: str | None = None
    port: int | None = None
    data_dir: Path | None = None
    models: tuple[str, ...] = ()
    workers: int = 1
    listen_fd: int | None = None
    """A listening socket that the caller has bound already."""


def serve(options: ServeOptions) -> int:
    """Runs until told to stop; returns the exit status.

    Raises CannotListen, EmbeddedServerError, BindRefused, KeysInvalid and pydantic's ValidationError.
    """
    environment = child_environment(options, os.environ)
    settings = ApiSettings(**overrides(options))
    check_bind(settings)
    listener = socket.socket(fileno=options.listen_fd) if options.listen_fd is not None else None
    with listener or bind(settings.host, settings.port) as listener:
        backend = _Backend(settings, is_external=bool(os.environ.get("REDIS_URL")))
        try:
            return _supervise(options, environment, listener, backend)
        finally:
            backend.stop()


def overrides(options: ServeOptions) -> dict[str, Any]:
    """The settings that the command line sets over the environment."""
    chosen = {"host": options.host, "port": options.port, "data_dir": options.data_dir}
    return {name: value for name, value in chosen.items() if value is not None}


def child_environment(options: ServeOptions, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of API and workers: ours, with the command line's word over it."""
    result = dict(environment)
    result.update({f"DENOISED_{name.upper()}": str(value) for name, value in overrides(options).items()})
    if options.models:
        result["DENOISED_MODELS"] = ",".join(options.models)
    if sys.stderr.isatty():
        result.setdefault("DENOISED_LOG_FORMAT", "console")
    else:
        result.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars fill a log with copies of themselves
    root = str(Path(__file__).resolve().parent.parent)
    if root not in site.getsitepackages():
        result["PYTHONPATH"] = os.pathsep.join(filter(None, (root, result.get("PYTHONPATH"))))
    return result


def python_module(*words: str) -> tuple[str, ...]:
    """The command that runs a module of ours. -P: never one of the same name in the current directory."""
    return (sys.executable, "-P", "-m", *words)


def make_programs(environment: Mapping[str, str], redis_url: str, listen_fd: int, workers: int) -> tuple[Program, ...]:
    """The API, which ends last, and the workers, which hand over what they have begun."""
    environment = {**environment, "REDIS_URL": redis_url}
    api = Program(
        "api",
        python_module("app.cli", "api", "--listen-fd", str(listen_fd)),
        environment,
        pass_fds=(listen_fd,),
        stop_stage=1,
        stop_timeout_s=2.0 * STOP_TIMEOUT_S,
    )
    names = ["worker"] if workers == 1 else [f"worker {number}" for number in range(1, workers + 1)]
    return (api, *(Program(name, python_module("workers"), environment) for name in names))


def _supervise(
    options: ServeOptions, environment: Mapping[str, str], listener: socket.socket, backend: _Backend
) -> int:
    def programs() -> tuple[Program, ...]:
        return make_programs(environment, backend.url, listener.fileno(), options.workers)

    supervisor = Supervisor(programs(), say)
    announcer = _Announcer(url_of(listener))

    def on_tick() -> None:
        has_moved = backend.restart_if_gone()
        if supervisor.is_stopping:
            if has_moved or not backend.is_up:
                say("the workers cannot hand over without their Redis server: what they have begun is taken up later")
                supervisor.replace(programs())
            return
        if has_moved:
            supervisor.replace(programs())
        announcer.tick()

    status = supervisor.run(on_tick)
    say("stopped")
    return status


def say(line: str) -> None:
    print(f"denoised: {line}", file=sys.stderr, flush=True)


class _Backend:
    """The Redis of this installation: the one that REDIS_URL names, or the embedded server, kept alive."""

    def __init__(self, settings: ApiSettings, is_external: bool) -> None:
        self._data_dir = settings.data_path
        self._durability = settings.durability
        self._server: EmbeddedServer | None = None
        self._delay_s: float | None = None
        self._retry_at = 0.0
        self.url = settings.redis_url
        self.is_up = True
        """False after an attempt to start the embedded server again that failed."""
        if not is_external:
            self._server = self._ensure()
            self.url = self._server.url
            say(f"data in {self._data_dir}" + ("" if self._server.is_owner else ", whose Redis server runs already"))

    def restart_if_gone(self) -> bool:
        """Starts the embedded server again when it ended; True when it has another address now."""
        now = time.monotonic()
        if self._server is None or now < self._retry_at or self._server.is_running:
            return False
        say("the embedded Redis server ended; starting it again")
        try:
            self._server = self._ensure()
        except EmbeddedServerError as error:
            say(str(error))
            self.is_up = False
            self._delay_s = Backoff().delay_s(self._delay_s, lived_s=0.0)
            self._retry_at = now + self._delay_s
            return False
        self.is_up = True
        self._delay_s = None
        has_moved = self._server.url != self.url
        self.url = self._server.url
        return has_moved

    def _ensure(self) -> EmbeddedServer:
        return ensure_server(self._data_dir, appendfsync=self._durability)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()


@dataclass
class _Announcer:
    """Says what the server is waiting for, and its address once it can draw."""

    url: str
    ask: Callable[[str], tuple[bool, str]] = field(default_factory=lambda: ask_ready)
    _said: str = ""
    _is_done: bool = False
    _ask_at: float = 0.0

    def tick(self) -> None:
        now = time.monotonic()
        if self._is_done or now < self._ask_at:
            return
        self._ask_at = now + _ASK_EVERY_S
        self._is_done, reason = self.ask(self.url)
        if self._is_done:
            say(f"ready on {self.url} (open it to draw; the API: {self.url}/docs; to stop it: Ctrl-C)")
        elif reason != self._said:
            self._said = reason
            say(f"starting: {reason}")


def ask_ready(url: str) -> tuple[bool, str]:
    """Whether the server can draw, and if not, what it waits for."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=_ASK_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return False, "the API loads"
    finally:
        connection.close()
    if answer.status == 200:
        return True, ""
    try:
        detail = str(json.loads(body)["detail"])
        return False, detail.partition(". ")[0]  # what is missing; what a client should do about it is for clients
    except (ValueError, KeyError, TypeError):
        return False, f"/readyz answers {answer.status}"
