"""Room in the store: for every job that is accepted, reserved before it is.

Owns the decision whether there is room for one more, and the rounds in which the store is counted. Jobs that were
accepted are never refused afterwards: what they may write is reserved until they have written it. Nothing is deleted
to make room, because every picture was promised for its retention time.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from redis.exceptions import RedisError

from app.errors import Problem
from app.resolve import UPSCALE_FACTOR, AnyRequest, Uploads
from app.settings import ApiSettings
from models.request import InpaintingRequest
from workers.reservations import Reservations
from workers.store import Store

BYTES_PER_PIXEL = 4
"""An uncompressed picture has 3; a paused job's state beside it takes less than the fourth."""
BYTES_PER_PICTURE = 64 * 1024
"""For the recipe in its file, which has the prompts."""
ROUND_S = 10.0
"""Seconds between looks for jobs whose reservation is not needed any more."""
COUNT_S = 60.0
"""Seconds between counts of the store, for a quota."""
_REST = 20
"""A count rests this many times as long as it took."""


def needed_bytes(request: AnyRequest, uploads: Uploads) -> int:
    """The most that a job may write: its uploads, and its pictures if they could not be compressed at all."""
    width, height = request.width, request.height
    if isinstance(request, InpaintingRequest) and uploads.image is not None:  # the answer is the whole picture
        width = uploads.image.width + request.outpaint_left + request.outpaint_right
        height = uploads.image.height + request.outpaint_top + request.outpaint_bottom
    factor = UPSCALE_FACTOR if request.upscaler else 1
    pictures = request.num_images * (width * height * factor**2 * BYTES_PER_PIXEL + BYTES_PER_PICTURE)
    return pictures + sum(len(png) for png in {upload.name: upload.png for upload in uploads.all}.values())


@dataclass(frozen=True)
class Room:
    """The room of one store, as one API process sees it. `take` and `give_back` block: call them in a thread."""

    settings: ApiSettings
    store: Store
    reservations: Reservations

    def take(self, job_id: str, size_bytes: int) -> None:
        """Reserves room for a job. Raises Problem `store_full` when there is none, RedisError, or the store's OSError;
        then nothing is reserved."""
        use = self.reservations.reserve(job_id, size_bytes)
        try:
            self._check_disk(use.reserved)
            if self.settings.store_quota is not None:
                counted = self.store.used_bytes() if use.counted is None else use.counted
                self._check_quota(counted + use.reserved, self.settings.store_quota)
        except (Problem, OSError):
            self.give_back(job_id)
            raise

    def give_back(self, job_id: str) -> None:
        """The job was not accepted, or it is erased with its files."""
        self.reservations.release(job_id)

    def _check_disk(self, reserved: int) -> None:
        free = self.store.free_bytes()
        if free is not None and free - reserved < self.settings.store_reserve:
            raise Problem("store_full", f"Its disk has {free} bytes left.")

    def _check_quota(self, used: int, quota: int) -> None:
        if used > quota:
            raise Problem("store_full", f"With this job it would have {used} bytes of {quota}.")

    async def keep_up(self, log: Any) -> None:
        """Rounds until cancelled; a failed one is told and made up for by the next."""
        while True:
            next_in_s = ROUND_S
            try:
                next_in_s = await anyio.to_thread.run_sync(self.count)
            except (RedisError, OSError) as error:
                log.warning("the store was not counted", error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(next_in_s)

    def count(self) -> float:
        """One round, unless another process is at it; returns seconds until the next."""
        if not self.reservations.is_our_turn():
            return ROUND_S
        started = time.monotonic()
        settled: list[str] = []
        counted, next_in_s = None, ROUND_S
        try:
            found = self.reservations.settled()
            if self.settings.store_quota is not None:
                counted = self.store.used_bytes()
                next_in_s = max(COUNT_S, _REST * (time.monotonic() - started))
            settled = found
        finally:
            self.reservations.finish(settled, counted, next_in_s)
        return next_in_s
