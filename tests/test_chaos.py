"""A short form of `python -m bench.chaos`: a minute of faults, real processes, a tiny network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.chaos.ledger import Ledger, Outage

ROOT = Path(__file__).resolve().parent.parent


def test_what_is_accepted_ends_once_and_as_it_should_whatever_happens_meanwhile(tmp_path: Path) -> None:
    words = ["--jobs", "24", "--steps", "60", "--at-once", "8", "--fault-every", "1.5", "--minutes", "1"]
    words += ["--workers", "2", "--seed", "3", "--patient", "--keep", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-m", "bench.chaos", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr[-5000:]
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["accepted"] >= 24
    assert figures["faults"] >= 5
    assert (figures["lost"], figures["doubled"], figures["unexplained_5xx"], figures["broken"]) == (0, 0, 0, 0)


SUCCEEDED = {"status": "succeeded", "error": None, "resumed_from_step": None}


@pytest.mark.parametrize("fault", ["lost", "doubled", "two", "failed", "canceled", "unexplained"])
def test_the_ledger_complains_of_every_broken_promise(fault: str) -> None:
    ledger = Ledger()
    ledger.note_accepted("key", "job")
    ledger.ends["job"] = 1
    if fault != "lost":
        ledger.ended["job"] = SUCCEEDED
    assert bool(ledger.complaints()) == (fault == "lost")
    if fault == "doubled":
        ledger.ends["job"] = 2
    elif fault == "two":
        ledger.note_accepted("key", "other")
    elif fault in ("failed", "canceled"):
        ledger.ended["job"] = SUCCEEDED | {"status": fault}
    elif fault == "unexplained":
        ledger.note_answer("GET /jobs", 503, "", began=0.0)
    assert len(ledger.complaints()) == 1


def test_a_503_is_explained_while_redis_is_away_and_nothing_else_is() -> None:
    ledger = Ledger()
    ledger.outages.append(Outage(0.0))
    ledger.note_answer("GET /jobs", 503, "", began=1.0)
    assert ledger.unexplained == []
    ledger.note_answer("GET /jobs", 500, "", began=1.0)
    assert len(ledger.unexplained) == 1


def test_what_takes_too_long_is_told() -> None:
    ledger = Ledger(hand_over_s=[1.0, 5.5], recoveries=[("killed", "job", 16.0)])
    assert len(ledger.delays()) == 3
