"""What snapshots cost the loop: the same batch with and without them, in one engine each, side by side.

    python -m bench.snapshots [--model DIR] [--jobs 8] [--steps 20] [--repeats 3] [--device auto]

Their price at the default interval is far below what two runs differ by, so they are taken every fifth of a second
here, and what that costs is divided by how much rarer they are. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bench.engine import make_requests, open_model, paired
from models.checkpoint import Checkpoint
from models.engine import Engine
from workers.contract import new_job_id
from workers.settings import BUNDLED_SOURCE, WorkerSettings
from workers.snapshots import Snapshots
from workers.store import LocalStore

OFTEN_S = 0.2


@dataclass(frozen=True)
class Drawing:
    """As much of a held job as snapshots look at."""

    id: str
    phase: str = "drawing"
    steps_before: int = 0


def draw(checkpoint: Checkpoint, store: LocalStore, jobs: int, steps: int, salt: int, interval_s: float) -> None:
    engine = Engine()
    snapshots = Snapshots(engine, store, interval_s)
    held = [Drawing(new_job_id()) for _ in range(jobs)]
    for job, request in zip(held, make_requests(checkpoint, jobs, steps, salt=salt), strict=True):
        engine.admit(job.id, request, checkpoint)
    while not engine.is_idle:
        snapshots.save_due(cast(Any, held))
        engine.step()


def size_of(checkpoint: Checkpoint) -> int:
    """Bytes of the snapshots of one picture in mid-flight."""
    engine, job_id = Engine(), new_job_id()
    engine.admit(job_id, make_requests(checkpoint, 1, 4, salt=0)[0], checkpoint)
    engine.step()
    snapshot = engine.snapshot(job_id)
    assert snapshot is not None
    return len(snapshot.to_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED_SOURCE, help="directory in diffusers layout")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    checkpoint, placement = open_model(arguments.model, arguments.device)
    interval_s = WorkerSettings().snapshot_interval_s
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))

        def run(salt: int, every_s: float) -> None:
            draw(checkpoint, store, arguments.jobs, arguments.steps, 100 * salt, every_s)

        started = time.perf_counter()
        with_s, without_s, ratio = paired(
            lambda repeat: run(repeat, OFTEN_S), lambda repeat: run(repeat, 0), arguments.repeats
        )
        written = sum(1 for _ in store.root.rglob("steps.safetensors"))
    share = max(0.0, 1 / ratio - 1) * OFTEN_S / interval_s
    kilobytes = size_of(checkpoint) / 1000
    print(f"{arguments.jobs} jobs of {arguments.steps} steps; {placement.device}, {placement.dtype_name}")
    print(f"{written} jobs saved; one snapshot is {kilobytes:.0f} kB; {time.perf_counter() - started:.0f} s in all\n")
    print("| snapshots | seconds |\n| --- | --- |")
    print(f"| none | {without_s:.2f} |\n| every {OFTEN_S} s | {with_s:.2f} |")
    print(f"\nEvery {interval_s:g} s they cost {100 * share:.2f} % of the loop.")
    figures = {"often": round(1 / ratio, 4), "share_at_default": round(share, 5), "kilobytes": round(kilobytes, 1)}
    print(json.dumps({"device": str(placement.device), **figures}))


if __name__ == "__main__":
    main()
