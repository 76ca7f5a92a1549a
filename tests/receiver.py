"""The far side of a webhook: a real HTTP server on loopback that notes what comes and answers as it is told."""

from __future__ import annotations

import contextlib
import json
import queue
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any, Self

PATIENCE_S = 20.0


@dataclass(frozen=True)
class Received:
    """One POST."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def type(self) -> str:
        return str(self.json["type"])


@dataclass(frozen=True)
class Reply:
    """What is answered. `after`: set by a test when it may be."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    after: threading.Event | None = None


class FakeReceiver:
    """Answers with `answer(received)`; 204 unless told otherwise."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.answer: Callable[[Received], Reply] = lambda _: Reply()
        self.received: list[Received] = []
        self._news: queue.Queue[Received] = queue.Queue()
        server = type("Server", (ThreadingHTTPServer,), {"address_family": AF_INET6 if ":" in host else AF_INET})
        self._server: ThreadingHTTPServer = server((host, port), self._handler())
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def next(self) -> Received:
        """The next POST that no call has returned yet; waits for it."""
        return self._news.get(timeout=PATIENCE_S)

    @property
    def has_news(self) -> bool:
        return not self._news.empty()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                received = Received(self.path, {name.lower(): text for name, text in self.headers.items()}, body)
                receiver.received.append(received)
                receiver._news.put(received)
                reply = receiver.answer(received)
                if reply.after is not None:
                    reply.after.wait(PATIENCE_S)
                with contextlib.suppress(OSError):  # the sender has gone
                    self.send_response(reply.status)
                    for name, text in reply.headers.items():
                        self.send_header(name, text)
                    if reply.status != 204:
                        self.send_header("Content-Length", str(len(reply.body)))
                    self.end_headers()
                    self.wfile.write(reply.body)

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # a handshake that was broken off
                    super().handle()

            def log_message(self, *_: object) -> None:
                pass

        return Handler
