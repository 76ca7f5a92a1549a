"""The API process: one listening socket, and uvicorn on it.

Owns binding, uvicorn's options, and that libraries log as we do. Knows nothing of routes. `denoised serve` binds the
socket itself and hands it to the API as an open descriptor: a port that is taken is found out before anything starts,
and while a dead API is started again new connections wait in the socket's backlog instead of being refused.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import signal
import socket

import uvicorn

from app.settings import ApiSettings
from workers.logs import configure_logs

STOP_TIMEOUT_S = 5
"""Seconds that open answers and event streams get after SIGTERM before their connections are closed."""


class CannotListen(Exception):
    """The address cannot be bound; the message says what to do."""


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Port 0 takes any free one. Raises CannotListen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise CannotListen(
            f"{host!r} is no address of this machine ({error.strerror}). Try --host 127.0.0.1."
        ) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise CannotListen(_why_not(host, port, error)) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL that a client on this machine uses."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_api(settings: ApiSettings, listener: socket.socket) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status. The socket is this function's to close."""
    from app.main import create_app

    configure_logs(settings.log_format)
    # The application has told of the same exception, with the request's id.
    logging.getLogger("uvicorn.error").addFilter(lambda line: "Exception in ASGI application" not in line.getMessage())
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            http="httptools",
            loop="uvloop",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
    )
    # After an orderly stop uvicorn raises the signal once more, for whoever listened before: that shall be nobody.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda _signum, _frame: None)
    with listener:
        server.run(sockets=[listener])
    return 0 if server.started else 1


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is in use, perhaps by a denoised that runs already. Stop that program, or choose"
            f" another port: --port {port + 1 if port < 65535 else 8000}, or --port 0 for any free one."
        )
    if error.errno == errno.EACCES:
        return f"Port {port} needs privileges that this user does not have. Choose one above 1023, such as --port 8000."
    return f"Cannot listen on {host} port {port}: {error.strerror}. Try --host 127.0.0.1."
