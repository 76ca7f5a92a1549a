"""The command line: `denoised serve | api | worker | generate | replay | models | status | keys`.

Owns which fault ends with which exit status, and which command is done where. Each command's work is imported when it
is asked for, so that `--help` is instant; nothing here needs torch.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.cli.exit_status import EXIT_CANNOT_LISTEN, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_SETTINGS
from app.cli.options import parser


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    options = parser().parse_args(words)
    try:
        return _COMMANDS[options.command](options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `denoised models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def complain(sentence: str, status: int) -> int:
    """Says what went wrong on stderr; gives the exit status back."""
    print(f"denoised: {sentence}", file=sys.stderr, flush=True)
    return status


def _serve(options: argparse.Namespace) -> int:
    from app.serve import ServeOptions, serve

    chosen = ServeOptions(
        host=options.host,
        port=options.port,
        data_dir=options.data_dir,
        models=tuple(options.model),
        workers=options.workers,
        listen_fd=options.listen_fd,
    )
    return _with_settings(lambda: serve(chosen))


def _api(options: argparse.Namespace) -> int:
    return _with_settings(lambda: _run_api(options))


def _run_api(options: argparse.Namespace) -> int:
    from app.listener import bind, run_api
    from app.security import check_bind
    from app.settings import ApiSettings
    from workers.store import StoreUrlError, open_store

    given = {"host": options.host, "port": options.port}
    settings = ApiSettings(**{name: value for name, value in given.items() if value is not None})
    check_bind(settings)
    try:
        open_store(settings.store)  # told here, in a sentence; the application opens its own
    except OSError as error:
        raise StoreUrlError(f"The store {settings.store} cannot be used: {error}.") from error
    if options.listen_fd is not None:
        return run_api(settings, socket.socket(fileno=options.listen_fd))
    return run_api(settings, bind(settings.host, settings.port))


def _with_settings(run: Callable[[], int]) -> int:
    """What `run` returns; every way in which settings can be wrong becomes a sentence and a status."""
    from pydantic import ValidationError

    from app.listener import CannotListen
    from app.security import BindRefused, KeysInvalid
    from workers.embedded import EmbeddedServerError
    from workers.store import StoreUrlError

    try:
        return run()
    except CannotListen as error:
        return complain(str(error), EXIT_CANNOT_LISTEN)
    except ValidationError as error:
        return complain(_settings_fault(error.errors(include_url=False, include_input=False)), EXIT_SETTINGS)
    except (BindRefused, KeysInvalid, EmbeddedServerError, StoreUrlError) as error:
        return complain(str(error), EXIT_SETTINGS)


def _settings_fault(faults: Sequence[Mapping[str, Any]]) -> str:
    said = []
    for fault in faults:
        name = ".".join(map(str, fault["loc"])).upper()
        what = fault["msg"].removeprefix("Value error, ")
        said.append(f"{name if name == 'REDIS_URL' else f'DENOISED_{name}'}: {what.rstrip('.')}")
    return "; ".join(said) + ". docs/settings.md tells how to choose each."


def _worker(_options: argparse.Namespace) -> int:
    from app.serve import ServeOptions, child_environment, python_module

    command = python_module("workers")
    os.execve(command[0], command, child_environment(ServeOptions(), os.environ))


def _generate(options: argparse.Namespace) -> int:
    from app.cli.generate import generate

    return generate(options)


def _replay(options: argparse.Namespace) -> int:
    from app.cli.replay import replay

    return replay(options)


def _models(options: argparse.Namespace) -> int:
    from app.cli.generate import models

    return models(options)


def _status(options: argparse.Namespace) -> int:
    from app.cli.status import status

    return status(options)


def _keys(options: argparse.Namespace) -> int:
    from app.cli.keys import run

    return _with_settings(lambda: run(options))


_COMMANDS = {
    "serve": _serve,
    "api": _api,
    "worker": _worker,
    "generate": _generate,
    "replay": _replay,
    "models": _models,
    "status": _status,
    "keys": _keys,
}
