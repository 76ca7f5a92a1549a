"""What was learnt about memory, as a value that can be told: so many rows fit into a call of this kind.

Owns how a ceiling rises again with time and which of two counts. Knows neither torch nor who is told, so that workers
can share ceilings.
"""

from __future__ import annotations

from dataclasses import dataclass

PROBE_AFTER_S = 120.0
"""Clean seconds after which a ceiling is one row higher. All who share ceilings need the same."""


@dataclass(frozen=True)
class CallKind:
    """Whatever, beside its rows, says how much memory a call of a network takes, and how much there is.

    model: digest of the weights. shape: (C, h, w) of the latents. device: its kind (`models.device.kind_of`), so that a
    large device teaches a small one nothing.
    """

    model: str
    shape: tuple[int, ...]
    context_length: int
    is_strict: bool
    device: str
    dtype: str


@dataclass(frozen=True)
class Ceiling:
    """Memory did not suffice at `since` (unix seconds): `rows` then, and one more after every clean period from there.

    Since time alone raises it, whoever knows of it allows the same rows at the same moment, after a restart too.
    """

    kind: CallKind
    rows: int
    since: float

    def rows_at(self, now: float, probe_after_s: float = PROBE_AFTER_S) -> int:
        """Rows that are allowed at that moment; a clock that runs behind allows none more."""
        return self.rows + int(max(0.0, now - self.since) / probe_after_s)


def lower_of(one: Ceiling, other: Ceiling, probe_after_s: float = PROBE_AFTER_S) -> Ceiling:
    """Of two of one kind the one that counts: it allows fewer rows, now and at any later time.

    Both rise equally fast, so this orders them, and whoever hears of the same ceilings, in whatever order and however
    often, comes to the same one. A fault beneath a ceiling is lower than it; one that was above it, because its worker
    had not heard of it yet, teaches nothing new.
    """
    return min(one, other, key=lambda ceiling: (ceiling.rows - ceiling.since / probe_after_s, ceiling.rows))


@dataclass(frozen=True)
class RowLimit:
    """How many rows a call may have at the moment, and what that may grow back to; for those who watch.

    shape: (C, h, w) of the latents; context_length: tokens of a prompt.
    """

    model: str
    shape: tuple[int, ...]
    context_length: int
    is_strict: bool
    rows: int
    limit: int
