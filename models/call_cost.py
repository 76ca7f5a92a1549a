"""What a call of a network costs: seconds as a line over its rows.

Owns the line. Knows nothing of who the rows belong to.
"""

from __future__ import annotations

_FORGETTING = 0.98
"""Of all calls before, at each new one: about the last fifty count."""


class CallCost:
    """Least squares of seconds = a + b x over the last calls of one network; x: rows, in calls at its own size."""

    def __init__(self) -> None:
        self._count = self._x = self._s = self._xx = self._xs = 0.0

    def observe(self, x: float, seconds: float) -> None:
        """A call of `x` rows took so long."""
        sums = self._count, self._x, self._s, self._xx, self._xs
        count, sum_x, sum_s, sum_xx, sum_xs = (_FORGETTING * value for value in sums)
        self._count, self._x, self._s = count + 1, sum_x + x, sum_s + seconds
        self._xx, self._xs = sum_xx + x * x, sum_xs + x * seconds

    @property
    def spare(self) -> float:
        """Rows that cost as much as the call itself, a / b: so many more hardly make it longer. 0 while unknown, and on
        a device that computes row after row."""
        if not self._count:
            return 0.0
        spread = self._xx - self._x * self._x / self._count
        if spread <= 1e-9 * self._xx:  # all calls were alike
            return 0.0
        slope = (self._xs - self._x * self._s / self._count) / spread
        base = (self._s - slope * self._x) / self._count
        if slope <= 0:
            return float("inf")
        return max(0.0, base / slope)
