"""What was promised and what came of it.

Owns the counting: jobs accepted and ended, ends seen, answers by status, when faults explain a refusal, how long jobs
of a dead worker were in nobody's hands. Judges at the end.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_GRACE_S = 6.0
"""After Redis or the disk is back: clients' back-off, connections that time out, a frozen server's queue."""


@dataclass
class Outage:
    """While this lasted, and a grace behind it, a 503 is the right answer."""

    began: float
    ended: float | None = None

    def covers(self, began: float, ended: float) -> bool:
        return ended >= self.began and (self.ended is None or began <= self.ended + _GRACE_S)


@dataclass
class Ledger:
    """Times are monotonic seconds."""

    accepted: dict[str, str] = field(default_factory=dict)
    """Idempotency key -> job id."""
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Job id -> its last document."""
    canceled: set[str] = field(default_factory=set)
    """Jobs that their client has canceled."""
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    """Job id -> `end` events in the stream."""
    answers: Counter[str] = field(default_factory=Counter)
    outages: list[Outage] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Sentences about anything else that must not be."""
    recoveries: list[tuple[str, str, float]] = field(default_factory=list)
    """What happened to its worker, job id, seconds until somebody went on with it."""
    hand_over_s: list[float] = field(default_factory=list)

    def note_answer(self, what: str, status: int, body: str, began: float) -> None:
        """Count an answer; a 5xx is explained by an outage or by nothing."""
        now = time.monotonic()
        self.answers[str(status)] += 1
        if status >= 500 and not (status == 503 and any(outage.covers(began, now) for outage in self.outages)):
            self.unexplained.append(f"{what}: {status} {body[:300]}")

    def note_accepted(self, key: str, job_id: str) -> None:
        known = self.accepted.setdefault(key, job_id)
        if known != job_id:
            self.wrong.append(f"one key led to two jobs, {known} and {job_id}")

    @property
    def recovery_s(self) -> list[float]:
        return [seconds for _, _, seconds in self.recoveries]

    @property
    def lost(self) -> list[str]:
        return [job_id for job_id in self.accepted.values() if job_id not in self.ended]

    @property
    def doubled(self) -> list[str]:
        return [job_id for job_id, count in self.ends.items() if count > 1]

    def unexpected_ends(self) -> list[str]:
        """Jobs that ended otherwise than they should: all succeed that nobody cancels."""
        return [
            f"{job_id} is {document['status']}: {document['error']}"
            for job_id, document in self.ended.items()
            if document["status"] != "succeeded" and not (document["status"] == "canceled" and job_id in self.canceled)
        ]

    def figures(self) -> dict[str, Any]:
        statuses = Counter(document["status"] for document in self.ended.values())
        return {
            "faults": sum(self.faults.values()),
            "accepted": len(self.accepted),
            "ended": dict(statuses),
            "lost": len(self.lost),
            "doubled": len(self.doubled),
            "resumed": sum(document["resumed_from_step"] is not None for document in self.ended.values()),
            "refused_503": self.answers["503"],
            "unexplained_5xx": len(self.unexplained),
            "recovery_p50_s": _quantile(self.recovery_s, 0.5),
            "recovery_p95_s": _quantile(self.recovery_s, 0.95),
            "recoveries": len(self.recovery_s),
            "hand_over_max_s": round(max(self.hand_over_s), 2) if self.hand_over_s else None,
            "hand_overs": len(self.hand_over_s),
        }

    def complaints(self) -> list[str]:
        """What breaks a promise, other than to be fast; none is good."""
        found = [f"lost: {job_id}" for job_id in self.lost]
        found += [f"doubled: {job_id}" for job_id in self.doubled]
        found += [f"unexplained: {answer}" for answer in self.unexplained]
        return found + self.unexpected_ends() + self.wrong

    def delays(self) -> list[str]:
        """Where it took longer than it should."""
        found: list[str] = []
        figures = self.figures()
        if (figures["recovery_p95_s"] or 0) > 15:
            found.append(f"recovery took {figures['recovery_p95_s']} s (p95), not 15")
            slow = sorted(self.recoveries, key=lambda recovery: -recovery[2])[:5]
            found += [f"its worker was {what}, and {job_id} waited {seconds:.1f} s" for what, job_id, seconds in slow]
        if (figures["hand_over_max_s"] or 0) > 5:
            found.append(f"a hand-over took {figures['hand_over_max_s']} s, not 5")
        return found


def _quantile(values: Sequence[float], share: float) -> float | None:
    if not values:
        return None
    if len(values) == 1:
        return round(values[0], 2)
    return round(statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1], 2)
