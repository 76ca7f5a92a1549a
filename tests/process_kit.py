"""What the tests of real processes share: a program, and waiting for what it says and for its end."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from workers.store import LocalStore

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 120.0


class Console:
    """A process and the lines that it says on stderr."""

    def __init__(self, argv: list[str], **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("DENOISED_", "REDIS_"))}
        self.lines: list[str] = []
        self._rest = b""
        self.process = subprocess.Popen(
            argv, cwd=ROOT, env={**clean, **environment}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def wait_for(self, pattern: str, start: int = 0) -> re.Match[str]:
        """The first line from `start` on that has the pattern."""
        end = time.monotonic() + PATIENCE_S
        while True:
            for line in self.lines[start:]:
                if match := re.search(pattern, line):
                    return match
            start = len(self.lines)
            assert self._read(end), f"no line like {pattern!r} came:\n" + "\n".join(self.lines)

    def wait_for_end(self) -> int:
        end = time.monotonic() + PATIENCE_S
        while self._read(end):
            pass
        return self.process.wait(PATIENCE_S)

    def read_to_end(self) -> None:
        """For a process that talks while nobody waits for a line: a full pipe would stop it."""
        while self._read(time.monotonic() + 24 * 3600):
            pass

    def _read(self, end: float) -> bool:
        """False when nothing more comes."""
        assert self.process.stderr is not None
        descriptor = self.process.stderr.fileno()
        if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
            return False
        data = os.read(descriptor, 65536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.lines += [line.decode() for line in lines]
        return bool(data)


class ApiServer:
    """A real API process on a free port of loopback, which keeps its port while it is killed and started again."""

    def __init__(self, redis_url: str, store: LocalStore, **environment: str) -> None:
        self.store = store
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {
            **os.environ,
            "REDIS_URL": redis_url,
            "DENOISED_DATA_DIR": str(store.root.parent),
            "DENOISED_STORE_URL": str(store.root),
            **environment,
        }
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app", "--fd"]
        options = ["--timeout-graceful-shutdown", "1", "--log-level", "error"]
        descriptor = self.socket.fileno()
        self.process = subprocess.Popen(
            [*command, str(descriptor), *options], env=self._environment, pass_fds=[descriptor]
        )

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        self.socket.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_until_gone(*pids: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while any(map(is_alive, pids)):
        assert time.monotonic() < end, f"still there: {[pid for pid in pids if is_alive(pid)]}"
        select.select([], [], [], 0.02)
