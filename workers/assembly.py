"""The parts of one worker, put together.

Owns the wiring and nothing else.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import redis

from workers.admission import Admission, CrashPoint, no_crash
from workers.board import JobBoard
from workers.ceilings import Ceilings
from workers.connection import DOORBELL_BLOCK_S, connect
from workers.heartbeat import Heartbeat
from workers.io_pool import IOPool, ReadAhead
from workers.lease import Leases
from workers.protocols import Engine, Shelf
from workers.recovery import Recovery
from workers.repertoire import Repertoire
from workers.reporting import Reporting
from workers.rq_side import RqSide
from workers.settings import WorkerSettings
from workers.snapshots import Snapshots
from workers.store import open_store


@dataclass(frozen=True)
class WorkerParts:
    """Everything a loop works with."""

    settings: WorkerSettings
    engine: Engine
    shelf: Shelf
    client: redis.Redis
    doorbell_client: redis.Redis
    board: JobBoard
    leases: Leases
    rq: RqSide
    heartbeat: Heartbeat
    io_pool: IOPool
    admission: Admission
    reporting: Reporting
    repertoire: Repertoire
    snapshots: Snapshots
    recovery: Recovery
    ceilings: Ceilings
    wake: threading.Event
    """Set when an work has ended, or a signal came."""


def assemble(
    settings: WorkerSettings,
    engine: Engine,
    shelf: Shelf,
    read_ahead: ReadAhead,
    crash_point: CrashPoint = no_crash,
) -> WorkerParts:
    """Connects to Redis and the store. `crash_point` is told each place between two commands; tests end the process.

    Raises redis.RedisError while Redis is away.
    """
    client, doorbell_client = connect(settings.redis_url), connect(settings.redis_url, blocks_s=DOORBELL_BLOCK_S)
    wake = threading.Event()
    leases = Leases(client, settings.lease_s, settings.retention_s)
    rq = RqSide(client, leases.execution_ttl)
    board = JobBoard(client, retention_s=settings.retention_s)
    store = open_store(settings.store)
    io_pool = IOPool(store, settings.save_threads, read_ahead, wake)
    return WorkerParts(
        settings=settings,
        engine=engine,
        shelf=shelf,
        client=client,
        doorbell_client=doorbell_client,
        board=board,
        leases=leases,
        rq=rq,
        heartbeat=Heartbeat(client, leases, rq, settings.beat_s, settings.stall_s),
        io_pool=io_pool,
        admission=Admission(rq, leases, board, settings, crash_point),
        reporting=Reporting(client, leases, io_pool, rq.name),
        repertoire=Repertoire(client, board, settings, engine, shelf),
        snapshots=Snapshots(engine, store, settings.snapshot_interval_s),
        recovery=Recovery(client, board, settings, shelf.names, rq.tell),
        ceilings=Ceilings(client),
        wake=wake,
    )
