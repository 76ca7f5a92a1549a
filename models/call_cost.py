"""What a call of a network costs: seconds as a line over its rows.

Owns the line. Knows nothing of who the rows belong to.
"""

from __future__ import annotations

_FORGETTING = 0.98
"""Of all calls before, at each new one: about the last fifty count."""


class CallCost:
    """Least squares of seconds = a + b x over the calls of one network; x: rows, in calls at its own size."""

    def __init__(self) -> None:
        self._lasting = self._recent = _NOTHING

    def observe(self, x: float, seconds: float, *, is_lasting: bool = False) -> None:
        """A call of `x` rows took so long. is_lasting: it is remembered for ever, as those of a warm-up are, which
        were of many sizes; what comes afterwards may all be alike."""
        sums = (1.0, x, seconds, x * x, x * seconds)
        if is_lasting:
            self._lasting = _sum(self._lasting, sums)
        else:
            self._recent = _sum(tuple(_FORGETTING * value for value in self._recent), sums)

    @property
    def line(self) -> tuple[float, float] | None:
        """a and b, neither below zero; None while unknown."""
        count, sum_x, sum_s, sum_xx, sum_xs = _sum(self._lasting, self._recent)
        if not count:
            return None
        spread = sum_xx - sum_x * sum_x / count
        if spread <= 1e-9 * sum_xx:  # all calls were alike: as if each row cost the same
            return 0.0, sum_s / sum_x
        slope = (sum_xs - sum_x * sum_s / count) / spread
        base = (sum_s - slope * sum_x) / count
        if slope <= 0:
            return sum_s / count, 0.0
        return (base, slope) if base >= 0 else (0.0, sum_s / sum_x)

    @property
    def spare(self) -> float:
        """Rows that cost as much as the call itself, a / b: so many more hardly make it longer. 0 while unknown, and on
        a device that computes row after row."""
        if self.line is None:
            return 0.0
        base, slope = self.line
        return base / slope if slope else float("inf")


_Sums = tuple[float, ...]
_NOTHING: _Sums = (0.0,) * 5
"""Of 1, x, s, x x, x s."""


def _sum(one: _Sums, other: _Sums) -> _Sums:
    return tuple(a + b for a, b in zip(one, other, strict=True))
