"""Counts that travel in one flat dictionary of name -> number, each only ever growing.

Owns how a name says which model a count is of, and which bucket of a histogram it is. Knows nothing of what is counted;
imports nothing, so that the API process can read what an engine has counted.

    oom_splits                    a count
    rows:pictogram                a count of one model
    step_seconds<=0.1:pictogram   how many values were at most 0.1, for a histogram of one model
    step_seconds_sum:pictogram    their sum
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

Counts = Mapping[str, float]
STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Buckets of the seconds of one call: a small model on a GPU to a large picture on a CPU."""


def of_model(name: str, model: str) -> str:
    """Name of a count of one model, whatever characters the model's name has."""
    return f"{name}:{model}"


def observe(counts: MutableMapping[str, float], name: str, model: str, value: float, bounds: Sequence[float]) -> None:
    """Count a value in the buckets of a histogram; all of them are there from its first value on."""
    for bound in (*bounds, math.inf):
        bucket = of_model(f"{name}<={bound}", model)
        counts[bucket] = counts.get(bucket, 0) + (value <= bound)
    total = of_model(f"{name}_sum", model)
    counts[total] = counts.get(total, 0.0) + value


def by_model(counts: Counts, name: str) -> dict[str, float]:
    """Model -> its count of this name."""
    return {key[len(name) + 1 :]: value for key, value in counts.items() if key.startswith(f"{name}:")}


@dataclass(frozen=True)
class Distribution:
    """A histogram that was counted: (upper bound, how many values were at most that), and the sum of all values."""

    buckets: tuple[tuple[float, float], ...]
    total: float


def distributions(counts: Counts, name: str) -> dict[str, Distribution]:
    """Model -> its histogram of this name."""
    buckets: dict[str, list[tuple[float, float]]] = {}
    for key, value in counts.items():
        if key.startswith(f"{name}<="):
            bound, _, model = key.removeprefix(f"{name}<=").partition(":")
            buckets.setdefault(model, []).append((float(bound), value))
    sums = by_model(counts, f"{name}_sum")
    return {model: Distribution(tuple(sorted(found)), sums.get(model, 0.0)) for model, found in buckets.items()}
