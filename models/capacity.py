"""How many rows one UNet call may have.

Owns the limits (measured at warm-up or configured) and the ceilings below them: halved by out-of-memory, won back one
row at a time, taken over from others on devices of the same kind. Knows nothing of slots or networks beyond their group
key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

import torch

from models.ceiling import PROBE_AFTER_S, CallKind, Ceiling, RowLimit, lower_of
from models.checkpoint import Checkpoint
from models.denoiser import Rows
from models.device import is_out_of_memory, kind_of, release_cached_memory
from models.slot import GroupKey

_WORTH = 0.95
"""A larger call is worth it when it costs at most this share of the best so far, per row."""
_PATIENCE_S = 1.0
"""Seconds after which a size has been timed enough."""


class Capacity:
    """Row ceilings per group.

    A memory fault may be a neighbour's spike, so a ceiling it lowered rises by one row after every `probe_after_s`
    clean seconds, up to the limit.
    """

    def __init__(
        self, max_rows: int, probe_after_s: float = PROBE_AFTER_S, clock: Callable[[], float] = time.time
    ) -> None:
        """`max_rows`: limit at a model's own size; other sizes get their share of it by pixels, at least 2."""
        self._max_rows = max_rows
        self._probe_after_s = probe_after_s
        self._clock = clock
        self._measured: dict[str, tuple[int, int]] = {}
        self._networks: dict[str, tuple[str, str, str]] = {}
        """Name -> digest, kind of device and dtype, without the weights, which come and go."""
        self._ceilings: dict[CallKind, Ceiling] = {}
        """By kind of call and not by name: what is learnt of a model outlives its name."""

    def know(self, checkpoint: Checkpoint) -> None:
        """This network has calls: its ceilings are found under its name from now on."""
        self._networks[checkpoint.name] = checkpoint.digest, kind_of(checkpoint.placement.device), checkpoint.dtype

    def set_measured(self, network: str, area: int, rows: int) -> None:
        """Take the limit measured for `network` at latents of `area` = h * w positions."""
        self._measured[network] = (area, min(rows, self._max_rows))

    def full_rows(self, network: str) -> int:
        """The ceiling measured for `network`, at its own size."""
        return self._measured.get(network, (0, self._max_rows))[1]

    def rows(self, key: GroupKey) -> int:
        """Rows that the next call of this group may have."""
        ceiling = self._ceilings.get(self._kind(key))
        limit = self._limit(key)
        return limit if ceiling is None else min(limit, ceiling.rows_at(self._clock(), self._probe_after_s))

    def has_memory_for(self, key: GroupKey, rows: int) -> bool:
        """False while memory is known not to suffice for calls of so many rows."""
        return self.rows(key) >= min(rows, self._limit(key))

    def lower(self, key: GroupKey, failed_rows: int) -> int:
        """Remember that `failed_rows` did not fit; returns the new ceiling, half of it and at least 1."""
        rows = max(1, min(self.rows(key), failed_rows // 2))
        self.learn([Ceiling(self._kind(key), rows, self._clock())])
        return rows

    def learn(self, ceilings: Iterable[Ceiling]) -> None:
        """Take over what was learnt here or elsewhere, where it allows fewer rows than what is known."""
        for ceiling in ceilings:
            known = self._ceilings.get(ceiling.kind, ceiling)
            self._ceilings[ceiling.kind] = lower_of(known, ceiling, self._probe_after_s)

    def learnt(self) -> tuple[Ceiling, ...]:
        """Every ceiling that still lowers something."""
        now = self._clock()
        for kind, ceiling in list(self._ceilings.items()):
            if ceiling.rows_at(now, self._probe_after_s) >= self._max_rows:
                del self._ceilings[kind]
        return tuple(self._ceilings.values())

    def limits(self, keys: Collection[GroupKey]) -> tuple[RowLimit, ...]:
        """Those of these groups, and of all whose ceiling is lowered."""
        known = [key for ceiling in self.learnt() for key in self._keys_of(ceiling.kind)]
        lowered = [key for key in known if self.rows(key) < self._limit(key)]
        return tuple(
            RowLimit(key.network, key.shape, key.context_length, key.is_strict, self.rows(key), self._limit(key))
            for key in dict.fromkeys((*keys, *lowered))
        )

    def _limit(self, key: GroupKey) -> int:
        area, rows = self._measured.get(key.network, (0, self._max_rows))
        scale = area / (key.shape[1] * key.shape[2]) if area else 1.0
        return max(2, min(self._max_rows, int(rows * scale)))

    def _kind(self, key: GroupKey) -> CallKind:
        model, device, dtype = self._networks.get(key.network, ("", "", ""))
        return CallKind(model, key.shape, key.context_length, key.is_strict, device, dtype)

    def _keys_of(self, kind: CallKind) -> list[GroupKey]:
        """Of each network that has calls of this kind."""
        return [
            GroupKey(name, kind.shape, kind.context_length, kind.is_strict)
            for name, identity in self._networks.items()
            if identity == (kind.model, kind.device, kind.dtype)
        ]


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
