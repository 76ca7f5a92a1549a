"""How many rows one UNet call may have.

Owns the ceilings: measured at warm-up or configured, halved by out-of-memory, won back one row at a time. Knows
nothing of slots or networks beyond their group key.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from models.checkpoint import Checkpoint
from models.denoiser import Rows
from models.device import is_out_of_memory, release_cached_memory
from models.slot import GroupKey

_WORTH = 0.95
"""A larger call is worth it when it costs at most this share of the best so far, per row."""
_PATIENCE_S = 1.0
"""Seconds after which a size has been timed enough."""


@dataclass
class _Ceiling:
    rows: int
    limit: int
    """What it may grow back to."""
    clean_since: float


class Capacity:
    """Row ceilings per group.

    A memory fault may be a neighbour's spike, so a ceiling it lowered rises by one row after every `probe_after_s`
    clean seconds, up to where it started.
    """

    def __init__(self, max_rows: int, probe_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`max_rows`: ceiling at a model's own size; other sizes get their share of it by pixels, at least 2."""
        self._max_rows = max_rows
        self._probe_after_s = probe_after_s
        self._clock = clock
        self._measured: dict[str, tuple[int, int]] = {}
        self._ceilings: dict[GroupKey, _Ceiling] = {}

    def set_measured(self, network: str, area: int, rows: int) -> None:
        """Take the ceiling measured for `network` at latents of `area` = h * w positions."""
        self._measured[network] = (area, min(rows, self._max_rows))

    def rows(self, key: GroupKey) -> int:
        """Rows that the next call of this group may have."""
        ceiling = self._ceiling(key)
        now = self._clock()
        if ceiling.rows < ceiling.limit and now - ceiling.clean_since >= self._probe_after_s:
            ceiling.rows += 1
            ceiling.clean_since = now
        return ceiling.rows

    def is_lowered(self, key: GroupKey) -> bool:
        """Memory did not suffice for this group, and its ceiling is not back where it was."""
        ceiling = self._ceiling(key)
        return ceiling.rows < ceiling.limit

    def lower(self, key: GroupKey, failed_rows: int) -> int:
        """Remember that `failed_rows` did not fit; returns the new ceiling, half of it and at least 1."""
        ceiling = self._ceiling(key)
        ceiling.rows = max(1, min(ceiling.rows, failed_rows // 2))
        ceiling.clean_since = self._clock()
        return ceiling.rows

    def _ceiling(self, key: GroupKey) -> _Ceiling:
        if key not in self._ceilings:
            area, rows = self._measured.get(key.network, (0, self._max_rows))
            scale = area / (key.shape[1] * key.shape[2]) if area else 1.0
            limit = max(2, min(self._max_rows, int(rows * scale)))
            self._ceilings[key] = _Ceiling(limit, limit, self._clock())
        return self._ceilings[key]


def measure_rows(
    checkpoint: Checkpoint,
    max_rows: int,
    max_step_s: float,
    timer: Callable[[Checkpoint, int], float] | None = None,
) -> int:
    """Rows beyond which a UNet call at the model's own size is not worth growing.

    Tries 2, 4, 8 ... up to `max_rows`, and ends when two sizes in a row make a row no cheaper (by 5 %), when a call
    takes longer than `max_step_s` seconds, or when memory ends. `timer` answers seconds of a call of so many rows.
    """
    measure = timer or time_call
    best_rows, best_cost, rows, failures = 2, float("inf"), 2, 0
    while rows <= max_rows and failures < 2:
        try:
            seconds = measure(checkpoint, rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            release_cached_memory(checkpoint.denoiser.device)
            break
        if rows > 2 and seconds > max_step_s:
            break
        if seconds / rows < _WORTH * best_cost:
            best_rows, best_cost, failures = rows, seconds / rows, 0
        else:
            failures += 1
        rows *= 2
    return best_rows


def trial_rows(checkpoint: Checkpoint, rows: int, side: int) -> Rows:
    """Rows of zeros at latents of `side` x `side`, with the empty prompt, to time a network with."""
    denoiser = checkpoint.denoiser
    text, device = checkpoint.conditioner.encode([""])[0], denoiser.device
    return Rows(
        latents=torch.zeros(rows, denoiser.latent_channels, side, side, device=device),
        timesteps=torch.full((rows,), 500.0, device=device),
        context=text.states.expand(rows, -1, -1),  # (rows, T, D)
        guidance_scales=torch.ones(rows, device=device),
        pooled=None if text.pooled is None else text.pooled.expand(rows, -1),
        time_ids=torch.zeros(rows, 6, device=device) if denoiser.is_sdxl else None,
        noise_levels=None if denoiser.max_noise_level is None else torch.zeros(rows, dtype=torch.long, device=device),
    )


def time_call(checkpoint: Checkpoint, rows: int) -> float:
    """Seconds of one UNet call of `rows` rows: the fastest of up to three, since whatever disturbs only slows, after
    one that is not counted, since the first call of a shape builds its kernels."""
    trial = trial_rows(checkpoint, rows, checkpoint.denoiser.sample_size)
    times: list[float] = []
    while len(times) < 4 and (len(times) < 2 or sum(times) < _PATIENCE_S):
        started = time.perf_counter()
        checkpoint.denoiser.predict(trial).sum().item()
        times.append(time.perf_counter() - started)
    return min(times[1:])
