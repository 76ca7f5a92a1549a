"""What the engine measures about itself: step and decode times, loads, counts.

Owns the running averages behind ETAs and metrics. Decides nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from models.call_cost import CallCost
from models.checkpoint import Checkpoint
from models.counts import STEP_SECONDS, observe, of_model
from models.slot import GroupKey, Slot

_WEIGHT = 0.2
"""Of the newest value in a running average: about the last ten count."""
_SLOW_WEIGHT = 0.03
"""For speeds, which must even out the ticks that prepare or decode: about the last seventy count."""


@dataclass(frozen=True)
class LoadFigures:
    """Speed and load of one model. Costs are in row-steps at the model's own size."""

    cost_per_s: float | None
    cost_in_flight: float
    slots: int
    rows_in_flight: float
    call_base_s: float | None
    call_row_s: float | None
    """A call of x rows takes call_base_s + call_row_s x seconds, with what comes between calls."""
    rows_per_step: float | None
    step_s: float | None


class Meter:
    """Running averages per group and per model; seconds."""

    def __init__(self) -> None:
        self.counters: dict[str, float] = defaultdict(float)
        self._areas: dict[str, int] = {}
        self._calls: dict[str, CallCost] = {}
        self._step_s: dict[GroupKey, float] = {}
        self._decode_s: dict[GroupKey, float] = {}
        self._rows: dict[str, float] = {}
        self._tick_cost: dict[str, float] = {}
        """Row-steps of the tick that is running, per model."""
        self._cost: dict[str, float] = {}
        self._called_s = 0.0
        """Seconds of the call in the tick that is running."""
        self._pace: dict[Literal["tick", "call"], float] = {}
        """Running averages of the ticks that have a call, and of these calls."""
        self._seconds: dict[str, float] = {}
        """Running averages per tick; their ratio is a model's speed beside whatever else the device does."""

    def know(self, checkpoint: Checkpoint) -> None:
        self._areas[checkpoint.name] = checkpoint.denoiser.sample_size**2

    def models(self) -> Collection[str]:
        return self._areas

    def called(self, network: str, rows: float, seconds: float, *, is_lasting: bool = False) -> None:
        """Learn what calls cost. rows: in calls at the model's own size."""
        self._calls.setdefault(network, CallCost()).observe(rows, seconds, is_lasting=is_lasting)

    def spare_rows(self, key: GroupKey) -> int:
        """Rows of this shape that hardly make a call longer."""
        spare = self._calls[key.network].spare if key.network in self._calls else 0.0
        return int(min(spare / self._relative_area(key), 1e6))

    def stepped(self, key: GroupKey, slots: Sequence[Slot], rows_allowed: int, seconds: float) -> None:
        """Count one UNet call. A picture whose rows exceed what is allowed is drawn all the same, row by row."""
        rows = sum(slot.rows for slot in slots)
        self.called(key.network, rows * self._relative_area(key), seconds)
        self._called_s = seconds
        self.counters[of_model("steps", key.network)] += 1
        self.counters[of_model("rows", key.network)] += rows
        self.counters[of_model("rows_allowed", key.network)] += max(rows, rows_allowed)
        self.counters[of_model("slot_steps", key.network)] += len(slots)
        observe(self.counters, "step_seconds", key.network, seconds, STEP_SECONDS)
        _average(self._step_s, key, seconds)
        _average(self._rows, key.network, rows)
        self._tick_cost[key.network] = self._tick_cost.get(key.network, 0.0) + rows * self._relative_area(key)

    def ticked(self, seconds: float) -> None:
        """Count one tick of `seconds`, with preparation, decoding and everything between it and the one before."""
        for network in {*self._cost, *self._tick_cost}:
            _average(self._cost, network, self._tick_cost.get(network, 0.0), _SLOW_WEIGHT)
            _average(self._seconds, network, seconds, _SLOW_WEIGHT)
        self._tick_cost.clear()
        if self._called_s:
            _average(self._pace, "tick", seconds, _SLOW_WEIGHT)
            _average(self._pace, "call", self._called_s, _SLOW_WEIGHT)
            self._called_s = 0.0

    def decoded(self, key: GroupKey, pictures: int, seconds: float) -> None:
        self.counters[of_model("decode_seconds", key.network)] += seconds
        self.counters[of_model("decoded_pictures", key.network)] += pictures
        _average(self._decode_s, key, seconds / pictures)

    def pictures_per_step(self, key: GroupKey) -> int:
        """Pictures of this shape that decode in about the time of one of its steps; at least 1."""
        step_s, decode_s = self._step_s.get(key), self._decode_s.get(key)
        return max(1, int(step_s / decode_s)) if step_s and decode_s else 1

    def decode_s(self, key: GroupKey, pictures: int) -> float | None:
        """Seconds to decode `pictures` of this shape; None before the first one."""
        seconds = self._decode_s.get(key)
        return None if seconds is None else seconds * max(1, pictures)

    def eta_s(self, slot: Slot, turns: int, groups: Sequence[GroupKey]) -> float | None:
        """Seconds until `slot` has taken its last step, if all `groups` go on in turns and its own needs `turns` calls
        a round; None before its group was measured."""
        own = self._step_s.get(slot.key)
        if own is None:
            return None
        others = sum(self._step_s.get(key, own) for key in groups if key != slot.key)
        return slot.steps_left * turns * (own + others) * self._overhead

    def loads(self, live: Mapping[str, Sequence[Slot]]) -> dict[str, LoadFigures]:
        """Per model, with its live slots."""
        return {name: self._load(name, slots) for name, slots in live.items()}

    def _load(self, name: str, slots: Sequence[Slot]) -> LoadFigures:
        line = self._calls[name].line if name in self._calls else None
        base_s, row_s = (self._overhead * part for part in line) if line else (None, None)
        steps = [seconds for key, seconds in self._step_s.items() if key.network == name]
        return LoadFigures(
            cost_per_s=self._speed(name),
            cost_in_flight=sum(slot.rows * slot.steps_left * self._relative_area(slot.key) for slot in slots),
            slots=len(slots),
            rows_in_flight=sum(slot.rows * self._relative_area(slot.key) for slot in slots),
            call_base_s=base_s,
            call_row_s=row_s,
            rows_per_step=self._rows.get(name),
            step_s=sum(steps) / len(steps) if steps else None,
        )

    @property
    def _overhead(self) -> float:
        """Seconds of a tick over those of the call in it; other ticks have no call."""
        return max(1.0, self._pace["tick"] / self._pace["call"]) if self._pace else 1.0

    def _speed(self, name: str) -> float | None:
        seconds = self._seconds.get(name)
        return self._cost[name] / seconds if seconds and self._cost[name] else None

    def _relative_area(self, key: GroupKey) -> float:
        return key.shape[1] * key.shape[2] / self._areas.get(key.network, key.shape[1] * key.shape[2])


def _average(averages: dict[Any, float], key: Any, value: float, weight: float = _WEIGHT) -> None:
    averages[key] = value if key not in averages else (1 - weight) * averages[key] + weight * value
