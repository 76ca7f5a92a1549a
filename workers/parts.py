"""The parts of one worker, put together.

Owns the wiring and nothing else.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import redis

from workers.board import JobBoard
from workers.connection import connect
from workers.errands import Errands, Rehearsal
from workers.heart import Heart
from workers.intake import Fault, Intake, no_fault
from workers.lease import Leases
from workers.protocols import Engine, Shelf
from workers.reporting import Reporting
from workers.rq_side import RqSide
from workers.settings import WorkerSettings
from workers.store import open_store
from workers.upkeep import Upkeep


@dataclass(frozen=True)
class Parts:
    """Everything a loop works with."""

    settings: WorkerSettings
    engine: Engine
    shelf: Shelf
    client: redis.Redis
    doorbell_client: redis.Redis
    board: JobBoard
    leases: Leases
    rq: RqSide
    heart: Heart
    errands: Errands
    intake: Intake
    reporting: Reporting
    upkeep: Upkeep
    wake: threading.Event
    """Set when an errand has ended, or a signal came."""


def assemble(
    settings: WorkerSettings,
    engine: Engine,
    shelf: Shelf,
    rehearse: Rehearsal,
    fault: Fault = no_fault,
) -> Parts:
    """Connects to Redis and the store; `fault` is told each place between two commands (tests end the process there).

    Raises redis.RedisError while Redis is away.
    """
    client, doorbell_client = connect(settings.redis_url), connect(settings.redis_url, blocking=True)
    wake = threading.Event()
    leases = Leases(client, settings.lease_s, settings.retention_s)
    rq = RqSide(client, leases.execution_ttl)
    board = JobBoard(client, retention_s=settings.retention_s)
    errands = Errands(open_store(settings.store), settings.save_threads, rehearse, wake)
    return Parts(
        settings=settings,
        engine=engine,
        shelf=shelf,
        client=client,
        doorbell_client=doorbell_client,
        board=board,
        leases=leases,
        rq=rq,
        heart=Heart(client, leases, rq, settings.beat_s, settings.stall_s),
        errands=errands,
        intake=Intake(rq, leases, board, settings, fault),
        reporting=Reporting(client, leases, errands, rq.name),
        upkeep=Upkeep(client, board, settings, rq.tell),
        wake=wake,
    )
