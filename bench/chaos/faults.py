"""The faults: each begins, lasts, and is over.

Owns what can go wrong and for how long. Chosen by a seeded generator; knows nothing of jobs but who holds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

import redis
from rq.job import Job

from bench.chaos.ledger import Ledger, Outage
from bench.chaos.stage import Part, Stage
from workers.connection import connect
from workers.contract import key
from workers.jobkeys import text

_LONGEST_RECOVERY_S = 120.0
_JUMP_S = 3600.0


class Faults:
    """Inflicts faults on a stage until told to stop."""

    def __init__(self, stage: Stage, ledger: Ledger, dice: random.Random) -> None:
        self._stage = stage
        self._ledger = ledger
        self._dice = dice
        self._watchers: set[asyncio.Task[None]] = set()
        self._frozen: set[str] = set()
        """Names of the workers that are."""
        self.kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "worker killed": self.kill_worker,
            "worker told to end": self.end_worker,
            "worker frozen": self.freeze_worker,
            "api killed": self.kill_api,
            "api frozen": self.freeze_api,
            "redis killed": self.kill_redis,
            "redis frozen": self.freeze_redis,
            "redis out of memory": self.fill_redis,
            "clock jumps": self.jump_clock,
        }
        if stage.has_own_disk:
            self.kinds["disk full"] = self.fill_disk

    async def run(self, every_s: float, is_over: Callable[[], bool]) -> None:
        """One fault after the other, a random one each `every_s` or so. All kinds come before any comes again."""
        deck: list[str] = []
        while not is_over():
            await asyncio.sleep(every_s * self._dice.uniform(0.5, 1.5))
            if is_over():
                break
            if not deck:
                deck = self._dice.sample(sorted(self.kinds), len(self.kinds))
            kind = deck.pop()
            self._ledger.faults[kind] += 1
            await self.kinds[kind]()
            self._stage.restart_ended()

    async def settle(self) -> None:
        """Wait for what is still being watched."""
        await asyncio.gather(*self._watchers)

    # --- workers and APIs ---------------------------------------------------------------------------------------------

    async def kill_worker(self) -> None:
        worker = self._dice.choice(self._stage.workers)
        await self._watch_recovery(worker, "killed")
        worker.send(signal.SIGKILL)
        await self._ended(worker)
        await asyncio.sleep(self._dice.uniform(0, 2))

    async def end_worker(self) -> None:
        """SIGTERM: it must hand over and be gone within five seconds."""
        worker = self._dice.choice([worker for worker in self._stage.workers if worker.name not in self._frozen])
        has_jobs = bool(await asyncio.to_thread(self._held_by, worker))
        started = time.monotonic()
        worker.send(signal.SIGTERM)
        await self._ended(worker)
        if has_jobs:  # else it may have been at its imports, where nobody listens yet
            self._ledger.hand_over_s.append(time.monotonic() - started)

    async def freeze_worker(self) -> None:
        worker = self._dice.choice(self._stage.workers)
        await self._watch_recovery(worker, "frozen")
        worker.send(signal.SIGSTOP)
        self._frozen.add(worker.name)

        def thaw() -> None:
            worker.send(signal.SIGCONT)
            self._frozen.discard(worker.name)

        self._later(self._dice.uniform(12, 25), thaw)

    async def kill_api(self) -> None:
        api = self._dice.choice(self._stage.apis)
        api.send(signal.SIGKILL)
        await self._ended(api)

    async def freeze_api(self) -> None:
        api = self._dice.choice(self._stage.apis)
        api.send(signal.SIGSTOP)
        await asyncio.sleep(self._dice.uniform(1, 5))
        api.send(signal.SIGCONT)

    async def jump_clock(self) -> None:
        """The wall clock of one process is an hour off for a while."""
        part = self._dice.choice(self._stage.parts)
        part.set_clock(self._dice.choice((-_JUMP_S, _JUMP_S)))
        self._later(self._dice.uniform(5, 20), lambda: part.set_clock(0.0))

    # --- Redis and the disk -------------------------------------------------------------------------------------------

    async def kill_redis(self) -> None:
        server = self._stage.server
        assert server is not None
        assert server.process is not None
        with self._outage():
            server.process.kill()
            server.process.wait()
            await asyncio.sleep(self._dice.uniform(0.3, 3))
            self._stage.start_server()

    async def freeze_redis(self) -> None:
        server = self._stage.server
        assert server is not None
        assert server.process is not None
        with self._outage():
            server.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(self._dice.uniform(1, 7))
            server.process.send_signal(signal.SIGCONT)

    async def fill_redis(self) -> None:
        client = self._stage.client()
        with self._outage():
            used = int((await asyncio.to_thread(client.info, "memory"))["used_memory"])
            client.config_set("maxmemory", used)
            await asyncio.sleep(self._dice.uniform(2, 6))
            client.config_set("maxmemory", 0)
        client.close()

    async def fill_disk(self) -> None:
        junk = self._stage.disk / "junk"
        with self._outage():
            with contextlib.suppress(OSError), junk.open("wb", buffering=0) as file:
                for size in (2**20, 1):
                    await asyncio.to_thread(_fill, file.write, size)
            await asyncio.sleep(self._dice.uniform(2, 6))
            junk.unlink()

    @contextlib.contextmanager
    def _outage(self) -> Iterator[None]:
        outage = Outage(time.monotonic())
        self._ledger.outages.append(outage)
        yield
        outage.ended = time.monotonic()

    # --- recovery -----------------------------------------------------------------------------------------------------

    async def _watch_recovery(self, worker: Part, what: str) -> None:
        """From now on, how long it takes until each job that this worker holds is in other hands, or has ended, or the
        worker itself goes on."""
        held = await asyncio.to_thread(self._held_by, worker)
        began = time.monotonic()
        for job_id, execution in held.items():
            self._keep(asyncio.create_task(self._watch(job_id, execution, began, what, worker)))

    def _held_by(self, worker: Part) -> dict[str, str]:
        """Job id -> execution of the running jobs of a worker."""
        client = self._stage.client()
        unfinished = set(self._ledger.accepted.values()) - self._ledger.ended.keys()
        found: dict[str, str] = {}
        with contextlib.suppress(redis.RedisError):
            for job_id in unfinished:
                name, status = client.hmget(Job.key_for(job_id), ["worker_name", "status"])
                execution = client.hget(key("job", job_id), "execution")
                if execution and name and text(status) == "started" and f".{worker.pid}." in text(name):
                    found[job_id] = text(execution)
        client.close()
        return found

    async def _watch(self, job_id: str, execution: str, began: float, what: str, worker: Part) -> None:
        while time.monotonic() - began < _LONGEST_RECOVERY_S:
            await asyncio.sleep(0.2)
            with contextlib.suppress(redis.RedisError):
                now, outcome = await asyncio.to_thread(self._state_of, job_id)
                if outcome or (now and now != execution):
                    break
                if what == "frozen" and worker.name not in self._frozen and now == execution:
                    break
        self._ledger.recoveries.append((what, job_id, time.monotonic() - began))

    def _state_of(self, job_id: str) -> tuple[str | None, bool]:
        assert self._stage.server is not None
        client = connect(self._stage.server.url)
        execution, outcome = client.hmget(key("job", job_id), ["execution", "outcome"])
        client.close()
        return text(execution) if execution else None, outcome is not None

    async def _ended(self, part: Part) -> None:
        assert part.process is not None
        await asyncio.to_thread(part.process.wait)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        async def wait_and_call() -> None:
            await asyncio.sleep(seconds)
            call()

        self._keep(asyncio.create_task(wait_and_call()))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)


def _fill(write: Callable[[bytes], int], size: int) -> None:
    try:
        while True:
            write(bytes(size))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def describe(faults: Sequence[tuple[str, int]]) -> str:
    """How often each came."""
    return ", ".join(f"{kind} {count}" for kind, count in faults)
