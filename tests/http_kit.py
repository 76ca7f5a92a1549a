"""What the HTTP tests share: an application over ASGI, pictures good and bad, and a stand-in for the worker.

`FakeWorker` is the far side of Redis: it publishes, claims and commits through the same scripts as the real worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import redis
from fastapi import FastAPI
from PIL import Image
from pydantic import SecretStr
from rq.executions import Execution

from app.main import create_app
from app.settings import ApiSettings
from workers.board import JobBoard
from workers.contract import (
    JobError,
    ModelDefaults,
    ModelEntry,
    ModelLoad,
    Outcome,
    Picture,
    SamplerEntry,
    Timings,
    WorkerBeat,
    key,
)
from workers.held_job import Lease
from workers.jobkeys import job_keys
from workers.lease import Leases
from workers.store import LocalStore

ALL_SCHEDULES = ("default", "karras", "exponential", "trailing")
ENTRY = ModelEntry(
    name="first",
    tasks=("text-to-image", "image-to-image"),
    defaults=ModelDefaults(
        width=128, height=128, num_inference_steps=20, guidance_scale=5.0, sampler="dpmpp_2m", noise_schedule="karras"
    ),
    size_multiple=8,
    min_size=64,
    max_size=256,
    max_pixels=192 * 192,
    max_images=4,
    token_limit=600,
    window_tokens=75,
    max_clip_skip=11,
    loras=("gold", "ink"),
    controlnets=("edges",),
    samplers=(
        SamplerEntry(name="euler", description="Euler", noise_schedules=ALL_SCHEDULES, max_steps=999),
        SamplerEntry(name="dpmpp_2m", description="DPM", noise_schedules=ALL_SCHEDULES, max_steps=999),
        SamplerEntry(name="lcm", description="LCM", noise_schedules=("default",), max_steps=12),
    ),
    sampler_aliases={"dpmpp_2m_karras": ("dpmpp_2m", "karras"), "k_euler": ("euler", "default")},
    prediction_type="epsilon",
    device="cpu",
    dtype="float32",
    digest="d" * 64,
)
KEYS = "alice:alice-key-0123456789,bob:bob-key-0123456789"
ALICE = {"Authorization": "Bearer alice-key-0123456789"}
BOB = {"Authorization": "Bearer bob-key-0123456789"}


def settings_for(redis_url: str, store: LocalStore, **changes: Any) -> ApiSettings:
    """Settings of a server on this Redis and store; `api_keys` may be a plain text."""
    if "api_keys" in changes:
        changes["api_keys"] = SecretStr(changes["api_keys"])
    values: dict[str, Any] = {"data_dir": store.root.parent, "store_url": str(store.root), **changes}
    return ApiSettings(redis_url=redis_url, **values)


@contextlib.asynccontextmanager
async def client_of(app: FastAPI, headers: dict[str, str] | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    """A client in this process; the application's lifespan lasts as long."""
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            yield client


@contextlib.asynccontextmanager
async def serving(redis_url: str, store: LocalStore, **changes: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a fresh application."""
    async with client_of(create_app(settings_for(redis_url, store, **changes))) as client:
        yield client


def is_untouched(client: redis.Redis, store: LocalStore) -> bool:
    """Nothing is queued, recorded or stored."""
    left = [
        name
        for pattern in ("rq:*", key("job", "*"), key("jobs", "*"), key("upload", "*"), key("reserved"))
        for name in client.keys(pattern)
    ]
    files = [path for path in store.root.rglob("*") if path.is_file()]
    return not left and not files


async def is_let_go(size: int) -> bool:
    """Whether the application soon holds nothing of this many bytes in one piece; tracemalloc is on. The rest of a call
    may take its time after its job is queued."""
    frames = [tracemalloc.Filter(True, "*/app/*", all_frames=True)]
    for _ in range(100):
        ours = tracemalloc.take_snapshot().filter_traces(frames)
        if max((trace.size for trace in ours.traces), default=0) < size:
            return True
        await asyncio.sleep(0.1)
    return False


class FakeWorker:
    """Does to Redis and the store what a worker does, one step at a time and on command."""

    def __init__(self, client: redis.Redis, store: LocalStore) -> None:
        self.client = client
        self.store = store
        self.board = JobBoard(client)
        self.leases = Leases(client, lease_s=60.0, retention_s=3600)
        self.holds: dict[str, Lease] = {}

    def publish(self, entry: ModelEntry = ENTRY) -> None:
        self.client.hset(key("catalogue"), entry.name, entry.model_dump_json())

    def beat(
        self, state: str = "running", *, warmed: bool = True, cost_per_s: float | None = None, **changes: Any
    ) -> None:
        """`changes`: other fields of the beat."""
        now = time.time()
        load = ModelLoad(loaded=True, warmed=warmed, cost_per_s=cost_per_s)
        beat = WorkerBeat.model_validate(
            {
                "name": "fake",
                "beat_at": now,
                "started_at": now,
                "pid": 1,
                "host": "here",
                "state": state,
                "models": {"first": load},
                "counters": {"steps:first": 12.0, "oom_splits": 1.0},
                **changes,
            }
        )
        self.client.hset(key("workers"), "fake", beat.model_dump_json())

    def next_job(self) -> str:
        """Id of the first job that anything is told of; waits for it."""
        streams: Any = self.client.xread({key("events"): "0"}, count=1, block=4000)
        return str(streams[0][1][0][1][b"job"], "ascii")

    def claim(self, job_id: str) -> None:
        record = self.leases.read(job_id)
        assert record is not None
        keys = job_keys(record)
        self.client.lrem(keys.queue, 1, job_id)
        self.client.lpush(keys.intermediate, job_id)
        execution = Execution(f"execution-{job_id[-8:]}", job_id, connection=self.client, worker_name="fake")
        self.client.sadd(execution.worker_executions_key, execution.composite_key)
        self.holds[job_id] = Lease(job_id, execution, keys)
        assert self.leases.claim(self.holds[job_id]) == "claimed"

    def progress(self, job_id: str, step: int, steps: int, warnings: tuple[str, ...] = ()) -> None:
        with self.client.pipeline(transaction=False) as pipe:
            self.leases.write_progress(self.holds[job_id], step, steps, 1.5, warnings, pipe)
            assert pipe.execute() == [b"held"]

    def preview(self, job_id: str, webp: bytes) -> None:
        assert self.leases.write_preview(self.holds[job_id], webp) == "held"

    def draw(self, job_id: str, colour: tuple[int, int, int] = (200, 30, 30)) -> list[bytes]:
        """Claims the job if need be and ends it with one-coloured pictures."""
        view = self.board.get(job_id)
        assert view is not None
        if view.status == "queued":
            self.claim(job_id)
        request, files, pictures = view.record.submission.request, [], []
        for index in range(request.num_images):
            data = png(request.width, request.height, colour)
            self.store.put(job_id, f"picture-{index}.png", data)
            files.append(data)
            pictures.append(
                Picture(
                    file=f"picture-{index}.png",
                    seed=request.seed_of(index),
                    width=request.width,
                    height=request.height,
                    sha256=hashlib.sha256(data).hexdigest(),
                    size_bytes=len(data),
                    media_type="image/png",
                )
            )
        timings = Timings(queued_s=0.1, prepare_s=0.2, denoise_s=0.3, decode_s=0.1, save_s=0.1, total_s=0.8)
        self._commit(
            job_id, Outcome(status="succeeded", pictures=tuple(pictures), timings=timings, ended_at=time.time())
        )
        return files

    def fail(self, job_id: str, code: str = "not_finite", detail: str = "The latents turned NaN.") -> None:
        self.claim(job_id)
        error = JobError(code=code, detail=detail)
        self._commit(job_id, Outcome(status="failed", error=error, ended_at=time.time()))

    def _commit(self, job_id: str, outcome: Outcome) -> None:
        assert self.leases.commit(self.holds[job_id], outcome, 20) == "committed"


# --- pictures --------------------------------------------------------------------------------------------------------


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png(width: int = 48, height: int = 32, colour: tuple[int, ...] = (200, 30, 30)) -> bytes:
    return encoded(Image.new("RGB" if len(colour) == 3 else "RGBA", (width, height), colour))


def png_header(width: int, height: int, bit_depth: int = 8, colour_type: int = 2) -> bytes:
    """A PNG that promises this size and holds one compressed row of zeros."""
    ihdr = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", ihdr), (b"IDAT", zlib.compress(bytes(1024))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def sixteen_bit_rgb_png() -> bytes:
    ihdr = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(4 * 6) for _ in range(4))
    chunks = ((b"IHDR", ihdr), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
