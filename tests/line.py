"""A TCP line that a test can cut, as a network is cut: nothing comes through, and nobody is told.

Owns the sockets and threads of one line. While it is cut, connections stay open and silent, and new ones are taken and
as silent. Knows nothing of what is said on it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

_CHUNK_BYTES = 65536


class Line:
    """Listens on a free port of loopback and forwards to `target`: (host, port), or the path of a unix socket."""

    def __init__(self, target: tuple[str, int] | str) -> None:
        self._target = target
        self._gate = threading.Event()
        self._gate.set()
        self._gates = [self._gate]
        self._sockets: list[socket.socket] = []
        self._is_closed = False
        self.connections = 0
        """That were taken so far."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name=f"line {self.port}", daemon=True).start()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def cut(self) -> None:
        """From now on nothing comes through, in either direction."""
        self._gate.clear()

    def mend(self) -> None:
        """What was held up arrives, late; then everything as before."""
        self._gate.set()

    def replace(self) -> None:
        """New connections come through; what was cut stays silent for ever, as when a router has forgotten it."""
        self._gate = threading.Event()
        self._gate.set()
        self._gates.append(self._gate)

    def close(self) -> None:
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for gate in self._gates:
            gate.set()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(near)
            threading.Thread(target=self._join, args=(near, self._gate), daemon=True).start()

    def _join(self, near: socket.socket, gate: threading.Event) -> None:
        """Connect the far end, as soon as the line is there, and forward both ways."""
        gate.wait()
        if self._is_closed:
            return
        family = socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET
        far = socket.socket(family, socket.SOCK_STREAM)
        self._sockets.append(far)
        try:
            far.connect(self._target)
        except OSError:
            near.close()
            return
        threading.Thread(target=self._forward, args=(far, near, gate), daemon=True).start()
        self._forward(near, far, gate)

    def _forward(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):  # the other end has gone
            while data := source.recv(_CHUNK_BYTES):
                gate.wait()
                if self._is_closed:
                    return
                sink.sendall(data)
            gate.wait()
            sink.shutdown(socket.SHUT_WR)
