"""The processes and the disk that faults are inflicted on: a Redis, two APIs, several workers, one small disk.

Owns starting them, their addresses, and their end. Inflicts nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import redis

from app.serve import python_module
from tests.tiny import save_tiny_checkpoint, save_tiny_upscaler
from workers.connection import connect
from workers.embedded import EmbeddedServer, ensure_server

TENANTS = ("ann", "bob", "eve")
MODEL, UPSCALER = "tiny", "tiny-x4"
DISK_BYTES = 512 * 2**20
_ROOT = Path(__file__).resolve().parent.parent.parent
_RESERVE_BYTES = 2**20


def key_of(tenant: str) -> str:
    """The API key of a tenant."""
    return f"{tenant}-key-of-the-chaos-bench"


@dataclass
class Part:
    """One process that is started again whenever it has ended, as a supervisor would. clock: file with the seconds by
    which its clock is off."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    log: Path
    clock: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**self.environment, "CHAOS_CLOCK": str(self.clock)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: int) -> None:
        if self.is_running:
            os.kill(self.pid, number)

    def set_clock(self, seconds: float) -> None:
        with self.clock.open("r+b") as file:
            file.write(struct.pack("d", seconds))


@dataclass
class Stage:
    """Everything, under one folder. `disk`: where the store lies; of its own size when it is mounted."""

    folder: Path
    has_own_disk: bool
    parts: list[Part] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    server: EmbeddedServer | None = None

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @property
    def workers(self) -> list[Part]:
        return [part for part in self.parts if part.name.startswith("worker")]

    @property
    def apis(self) -> list[Part]:
        return [part for part in self.parts if part.name.startswith("api")]

    def client(self) -> redis.Redis:
        assert self.server is not None
        return connect(self.server.url)

    def start_server(self) -> None:
        """Starts Redis, or starts it again. From the main thread: the kernel ends it with that."""
        self.server = ensure_server(self.folder)

    def start(self, workers: int) -> None:
        self.disk.mkdir(parents=True)
        if self.has_own_disk:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.disk)], check=True)
        self.start_server()
        environment = self._environment()
        for number in range(2):
            port = _free_port()
            self.urls.append(f"http://127.0.0.1:{port}")
            self._add(f"api-{number}", python_module("app.cli", "api", "--port", str(port)), environment)
        for number in range(workers):
            self._add(f"worker-{number}", python_module("workers"), environment)

    def _environment(self) -> dict[str, str]:
        assert self.server is not None
        model = save_tiny_checkpoint(self.folder / MODEL)
        upscaler = save_tiny_upscaler(self.folder / UPSCALER, reads_prompts=False)
        clock = str(Path(__file__).resolve().parent / "clock")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DENOISED_")}
        return inherited | {
            "PYTHONPATH": os.pathsep.join((clock, str(_ROOT))),
            "REDIS_URL": self.server.url,
            "DENOISED_DATA_DIR": str(self.folder),
            "DENOISED_STORE_URL": str(self.disk / "store"),
            "DENOISED_STORE_RESERVE": str(_RESERVE_BYTES),
            "DENOISED_MODELS": f"{UPSCALER}={upscaler},{MODEL}={model}",
            "DENOISED_DEVICE": "cpu",
            "DENOISED_DTYPE": "float32",
            "DENOISED_API_KEYS": ",".join(f"{tenant}:{key_of(tenant)}" for tenant in TENANTS),
            "DENOISED_HIGH_PRIORITY": TENANTS[0],
            "DENOISED_SNAPSHOT_INTERVAL_S": "1",
            "OMP_NUM_THREADS": "1",
        }

    def _add(self, name: str, command: tuple[str, ...], environment: dict[str, str]) -> None:
        clock = self.folder / f"{name}.clock"
        clock.write_bytes(struct.pack("d", 0.0))
        part = Part(name, command, environment, self.folder / f"{name}.log", clock)
        part.start()
        self.parts.append(part)

    def restart_ended(self) -> None:
        """What has ended is started again."""
        for part in self.parts:
            if not part.is_running:
                part.start()

    def stop(self) -> None:
        """Ends everything, frozen or not."""
        for part in self.parts:
            part.send(signal.SIGKILL)
        for part in self.parts:
            if part.process is not None:
                part.process.wait()
        if self.server is not None:
            if self.server.process is not None:
                self.server.process.send_signal(signal.SIGCONT)
            self.server.stop()
        if self.has_own_disk:
            subprocess.run(["umount", "-l", str(self.disk)], check=False)


def is_mount_allowed() -> bool:
    """Whether this process may give the store a small disk of its own."""
    return sys.platform == "linux" and os.geteuid() == 0 and "CHAOS_MOUNTS" in os.environ


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
