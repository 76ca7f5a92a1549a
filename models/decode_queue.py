"""Finished latents on their way to pixels, in pieces that do not hold up the steps of others.

Owns the order of decoding and what happens when a decode fails. Knows nothing of jobs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch

from models.autoencoder import Autoencoder
from models.device import is_out_of_memory, is_sticky, release_cached_memory
from models.meter import Meter
from models.slot import Slot

Decoded = tuple[Slot, np.ndarray | Exception | None]
"""A slot with its picture, uint8 (H, W, 3); None where it is not finite; what was raised where it failed alone."""


class DecodeQueue:
    """Slots that have taken their last step, oldest first."""

    def __init__(self, at_once: int, meter: Meter) -> None:
        """`at_once`: pictures decoded together when nothing waits for the UNet."""
        self._at_once = at_once
        self._meter = meter
        self._waiting: deque[tuple[Slot, Autoencoder]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, slot: Slot, autoencoder: Autoencoder) -> None:
        self._waiting.append((slot, autoencoder))

    def drop(self, job_id: str) -> None:
        self._waiting = deque(entry for entry in self._waiting if entry[0].job_id != job_id)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(slot for slot, _ in self._waiting)

    def decode_some(self, is_step_waiting: bool, turn: Callable[[Slot], int]) -> list[Decoded]:
        """Decode slots of one kind, those whose `turn` is lowest and then the oldest: what takes about as long as a
        step when one is waiting (at least one picture), else a full batch. Raises only what ends the process."""
        if not self._waiting:
            return []
        self._waiting = deque(sorted(self._waiting, key=lambda entry: turn(entry[0])))
        key, autoencoder = self._waiting[0][0].key, self._waiting[0][1]
        limit = min(self._at_once, self._meter.pictures_per_step(key)) if is_step_waiting else self._at_once
        if key.is_strict:
            limit = 1
        slots = [slot for slot, _ in self._waiting if slot.key == key][:limit]
        taken = set(slots)
        self._waiting = deque(entry for entry in self._waiting if entry[0] not in taken)
        started = time.monotonic()
        pictures, error = _tried(autoencoder, torch.stack([slot.latents for slot in slots]))
        if error is not None:
            # Not inside an except clause: there the failed call's own memory would still be held.
            return self._one_by_one(slots, autoencoder, error)
        self._meter.decoded(key, len(slots), time.monotonic() - started)
        return list(zip(slots, pictures, strict=True))

    def _one_by_one(self, slots: Sequence[Slot], autoencoder: Autoencoder, error: Exception) -> list[Decoded]:
        if is_out_of_memory(error):
            self._meter.counters["oom_splits"] += 1
            release_cached_memory(slots[0].latents.device)
        return [(slot, self._alone(slot, autoencoder)) for slot in slots]

    def _alone(self, slot: Slot, autoencoder: Autoencoder) -> np.ndarray | Exception | None:
        """One picture; where memory does not suffice, in smaller and smaller tiles."""
        limit: int | None = None
        while True:
            pictures, error = _tried(autoencoder, slot.latents[None], limit)
            if error is None:
                return pictures[0]
            limit = autoencoder.smaller_tiles(slot.latents.shape, limit)
            slot.lose_exactness()
            if not is_out_of_memory(error) or limit is None:
                return error
            release_cached_memory(slot.latents.device)


def _tried(
    autoencoder: Autoencoder, latents: torch.Tensor, whole_up_to: int | None = None
) -> tuple[list[np.ndarray | None], Exception | None]:
    """Pictures, or what went wrong; raises only what ends the process (the boundary of a call)."""
    try:
        return autoencoder.decode(latents, whole_up_to), None
    except Exception as error:  # noqa: BLE001 (what fails alone fails, the rest goes on)
        if is_sticky(error):
            raise
        return [], error.with_traceback(None)
