"""Child processes that are kept alive, and ended in order.

Owns starting, restarting with back-off, and the two ways to end: the first SIGTERM or SIGINT asks the children stage
by stage, so that each puts away what it has begun; a second one ends them at once. On Linux the kernel ends the
children when this process is killed. Knows nothing of what the children do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from app.cli.exit_status import EXIT_SETTINGS

_FUTILE = frozenset({EXIT_SETTINGS, os.EX_USAGE})
"""Statuses of a child that cannot work with these settings: starting it again would not help."""
_PR_SET_PDEATHSIG = 1
_TICK_S = 0.5


@dataclass(frozen=True)
class Program:
    """How to start a child, and when to end it: stage 0 is asked first, and a stage only when those before are gone."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    pass_fds: tuple[int, ...] = ()
    stop_stage: int = 0
    stop_timeout_s: float | None = None
    """Seconds from being asked to being killed; None gives it all the time it needs."""


@dataclass(frozen=True)
class Backoff:
    """Seconds before a dead child is started again: doubled each time, forgotten after a healthy while."""

    first_s: float = 1.0
    longest_s: float = 30.0
    healthy_s: float = 60.0

    def delay_s(self, previous_s: float | None, lived_s: float) -> float:
        """The wait for a child that lived for `lived_s`, after one of `previous_s` (None: it never died before)."""
        if previous_s is None or lived_s >= self.healthy_s:
            return self.first_s
        return min(2 * previous_s, self.longest_s)


class _Child:
    """One program and its process, if it runs."""

    def __init__(self, program: Program, backoff: Backoff) -> None:
        self.program = program
        self.backoff = backoff
        self.process: subprocess.Popen[bytes] | None = None
        self.start_at = 0.0
        self._started_at = 0.0
        self._delay_s: float | None = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, now: float) -> int:
        """Process id of the new child."""
        self._started_at = now
        self.process = subprocess.Popen(
            self.program.argv,
            env=dict(self.program.environment),
            stdin=subprocess.DEVNULL,
            pass_fds=self.program.pass_fds,
            start_new_session=True,  # Ctrl-C in the terminal is for the supervisor, who ends the children in order
            # What an orphan had begun is in Redis and is done again; finishing it would only keep the next start out.
            preexec_fn=end_with_parent(signal.SIGKILL),
        )
        return self.process.pid

    def plan_restart(self, now: float) -> float:
        """Seconds until it is started again."""
        self._delay_s = self.backoff.delay_s(self._delay_s, now - self._started_at)
        self.process = None
        self.start_at = now + self._delay_s
        return self._delay_s

    def send(self, signum: int) -> None:
        if self.process is not None:
            self.process.send_signal(signum)  # does nothing once the process has been reaped


class Supervisor:
    """Runs programs until told to stop. `say` gets one readable line per thing that happens."""

    def __init__(self, programs: Sequence[Program], say: Callable[[str], None], backoff: Backoff | None = None) -> None:
        self._children = [_Child(program, backoff or Backoff()) for program in programs]
        self._say = say
        self._signals: list[int] = []
        self._is_stopping = False

    def run(self, on_tick: Callable[[], None] = lambda: None) -> int:
        """Returns the exit status: 0 after an orderly stop, 128 + signal when it was cut short, EXIT_SETTINGS.

        `on_tick` is called at least twice a second, in this thread, also while the children end: what they need for
        that has to be kept up. Call from the main thread: signals arrive there, and children live as long as the
        thread that started them.
        """
        with self._listen() as wait:
            try:
                while not self._signals:
                    if self._start_due():
                        self._stop_all(wait, on_tick)
                        return EXIT_SETTINGS
                    on_tick()
                    wait(_TICK_S)
                self._say(
                    "stopping: what has begun is kept for the next start; a second Ctrl-C or SIGTERM ends at once"
                )
                return self._stop_all(wait, on_tick)
            finally:
                self._kill_all()

    @property
    def is_stopping(self) -> bool:
        """The children are being ended, because a stop was asked for or because one cannot work."""
        return self._is_stopping

    def replace(self, programs: Sequence[Program]) -> None:
        """Ends the children at once and goes on with other programs, one for each, in the same order.

        While the children end anyway, nothing is started in their place.
        """
        self._kill_all()
        for child, program in zip(self._children, programs, strict=True):
            child.program, child.process, child.start_at = program, None, 0.0

    def _start_due(self) -> bool:
        """Starts what is due; True when a child says that these settings cannot work."""
        now = time.monotonic()
        for child in self._children:
            if child.process is not None and not child.is_running:
                status = child.process.returncode
                if status in _FUTILE:
                    self._say(f"{child.program.name} cannot work with these settings; its words are above")
                    return True
                delay_s = child.plan_restart(now)
                self._say(f"{child.program.name} ended ({describe(status)}); starting it again in {delay_s:g} s")
            if child.process is None and now >= child.start_at:
                self._say(f"{child.program.name} started (pid {child.start(now)})")
        return False

    def _stop_all(self, wait: Callable[[float], None], on_tick: Callable[[], None]) -> int:
        self._is_stopping = True
        asked = min(len(self._signals), 1)
        for stage in sorted({child.program.stop_stage for child in self._children}):
            children = [c for c in self._children if c.program.stop_stage == stage and c.is_running]
            for child in children:
                child.send(signal.SIGTERM)
            started = time.monotonic()
            while any(child.is_running for child in children):
                if len(self._signals) > asked:
                    self._say("ending at once")
                    return 128 + self._signals[-1]
                waited_s = time.monotonic() - started
                for child in children:
                    limit_s = child.program.stop_timeout_s
                    if limit_s is not None and waited_s > limit_s:
                        child.send(signal.SIGKILL)
                on_tick()
                wait(0.1)
        return 0

    def _kill_all(self) -> None:
        for child in self._children:
            child.send(signal.SIGKILL)
        for child in self._children:
            if child.process is not None:
                child.process.wait()

    @contextlib.contextmanager
    def _listen(self) -> Iterator[Callable[[float], None]]:
        """Collects stop signals; the function given back sleeps until one comes, a child ends, or time is up."""
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
        handlers = {
            signal.SIGTERM: lambda signum, _frame: self._signals.append(signum),
            signal.SIGINT: lambda signum, _frame: self._signals.append(signum),
            signal.SIGCHLD: lambda _signum, _frame: None,  # only to end the sleep
        }
        before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

        def wait(seconds: float) -> None:
            if select.select([reader], [], [], seconds)[0]:
                reader.recv(4096)

        try:
            yield wait
        finally:
            signal.set_wakeup_fd(wakeup)
            for signum, previous in before.items():
                signal.signal(signum, previous)
            reader.close()
            writer.close()


def describe(status: int) -> str:
    """An exit status in words: "exit status 1", "killed by SIGKILL"."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def end_with_parent(signum: int) -> Callable[[], None] | None:
    """For Popen's preexec_fn: asks the kernel (Linux only) to send `signum` to the child when this process dies.

    The kernel watches the thread that starts the child, so start children from the main thread.
    """
    if sys.platform != "linux":
        return None
    owner = os.getpid()
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: the child must not load anything

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, signum)
        if os.getppid() != owner:  # the owner ended between the fork and the call
            os._exit(1)

    return ask_kernel
