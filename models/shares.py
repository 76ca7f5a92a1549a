"""Whose turn it is: fair shares of the engine's time between tenants.

Owns who has had how much. Knows nothing of slots, groups or calls.

Each tenant in the batch has a clock of its own that runs while its rows are computed, slower the more its priority
weighs; the tenant whose clock is furthest behind goes next (start-time fair queueing, Goyal et al. 1996). So tenants
share the time, not the number of jobs: a thousand jobs of one cost another's single job no more than one would.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

_WEIGHTS = (2.0, 1.0, 0.5)
"""Of the time of high, normal and low jobs beside those of other tenants."""
_AGE_S = 5.0
"""Seconds without a step after which a picture counts as one priority higher: nothing starves."""


@dataclass(frozen=True)
class Standing:
    """Whose a job is, and how urgent. priority: 0 high, 1 normal, 2 low. deadline: unix seconds."""

    tenant: str = ""
    priority: int = 1
    deadline: float = math.inf

    @property
    def weight(self) -> float:
        return _WEIGHTS[self.priority]

    def urgency(self, waited_s: float) -> tuple[int, float]:
        """Among the jobs of one tenant the smallest comes first."""
        return self.priority - int(waited_s / _AGE_S), self.deadline


NOBODY = Standing()


class Shares:
    """The tenants' clocks, in weighed seconds."""

    def __init__(self) -> None:
        self._clocks: dict[str, float] = {}

    def enter(self, tenant: str, present: Collection[str]) -> None:
        """A tenant comes that is not among those `present`: it has no claim on the time before."""
        if not present:
            self._clocks.clear()  # nobody is owed anything
        now = min((self._clocks[other] for other in present), default=0.0)
        # Who is away keeps only what it is ahead.
        self._clocks = {name: clock for name, clock in self._clocks.items() if name in present or clock > now}
        self._clocks[tenant] = max(now, self._clocks.get(tenant, now))

    def charge(self, standing: Standing, seconds: float) -> None:
        """Time went into a picture of this standing."""
        self._clocks[standing.tenant] += seconds / standing.weight

    def order(self, tenants: Collection[str]) -> list[str]:
        """Whoever has had least comes first."""
        return sorted(tenants, key=lambda tenant: self._clocks[tenant])
