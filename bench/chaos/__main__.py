"""Faults under load: what is accepted ends exactly once, whatever is killed, frozen, filled up or set wrong meanwhile.

    python -m bench.chaos [--jobs 500] [--fault-every 4] [--seed 1] [--minutes 30] [--workers 3] [--steps 120]

Real processes on loopback: a Redis, two APIs, workers with tiny networks, a small disk (mounted where that is allowed).
Clients send jobs of every task, for three tenants, a part of them strict, some canceled, some watched by readers that
are slow or vanish. Meanwhile a fault comes every few seconds, of each kind in turn: see `bench.chaos.faults`. Then the
faults cease, everything left is seen to its end, and strict pictures are drawn once more in peace and compared.

Ends with exit status 1 when a job was lost or doubled, failed, or had other bytes than in peace; when a 5xx came that
no outage explains; when jobs of a dead worker waited for more than 15 s (p95), or a hand-over took more than 5 s. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2

from bench.chaos.faults import Faults, describe
from bench.chaos.ledger import Ledger
from bench.chaos.load import EndCounter, Load
from bench.chaos.stage import TENANTS, Stage, is_mount_allowed, key_of

_STRICT_AGAIN = 12
_PATIENCE_S = 300.0
"""For what is left when the faults are over."""


async def chaos(stage: Stage, options: argparse.Namespace) -> tuple[Ledger, int]:
    """Run it; returns what came of it, and how many strict pictures were compared."""
    dice, ledger = random.Random(options.seed), Ledger()
    await _until_ready(stage)
    load = Load(stage, ledger, dice, options.jobs, options.steps, options.at_once)
    faults = Faults(stage, ledger, random.Random(dice.random()))
    ends = time.monotonic() + 60 * options.minutes
    with EndCounter(stage, ledger):
        working = asyncio.create_task(load.run())
        await faults.run(options.fault_every, lambda: working.done() or time.monotonic() > ends)
        await faults.settle()
        stage.restart_ended()
        done, _ = await asyncio.wait([working], timeout=_PATIENCE_S)
        for task in done:
            task.result()
        working.cancel()
        compared = await _compare_strict(load, ledger) if done else 0
        await _count_jobs(stage, ledger, compared)
        await asyncio.sleep(0.5)
    return ledger, compared


async def _until_ready(stage: Stage) -> None:
    async with httpx2.AsyncClient(timeout=5.0, trust_env=False) as http:
        for url in stage.urls:
            while True:
                try:
                    if (await http.get(f"{url}/readyz")).status_code == 200:
                        break
                except httpx2.HTTPError:
                    pass
                await asyncio.sleep(0.3)


async def _compare_strict(load: Load, ledger: Ledger) -> int:
    """Strict jobs once more, in peace; those that were taken up by another worker first. Bytes must agree."""
    moved = sorted(load.strict, key=lambda pair: pair[1]["resumed_from_step"] is None)[:_STRICT_AGAIN]
    async with httpx2.AsyncClient(timeout=20.0, trust_env=False) as http:
        again = [replace(job, key=job.key[::-1], is_canceled=False, reader=None) for job, _ in moved]
        documents = await asyncio.gather(*(load.see_through(http, job) for job in again))
    for (_, before), after in zip(moved, documents, strict=True):
        contracts = {before["reproducibility"], after["reproducibility"]}
        files = [[image["sha256"] for image in document["images"]] for document in (before, after)]
        if contracts == {"strict"} and files[0] != files[1]:
            ledger.wrong.append(f"strict job {before['id']} has other bytes in peace")
    return len(moved)


async def _count_jobs(stage: Stage, ledger: Ledger, compared: int) -> None:
    """Every job that the server lists was asked for: nothing was queued twice."""
    listed: set[str] = set()
    async with httpx2.AsyncClient(timeout=20.0, trust_env=False) as http:
        for tenant in TENANTS:
            cursor: str | None = None
            while True:
                parameters = {"limit": "100", **({"cursor": cursor} if cursor else {})}
                headers = {"Authorization": f"Bearer {key_of(tenant)}"}
                answer = await http.get(f"{stage.urls[0]}/jobs", params=parameters, headers=headers)
                answer.raise_for_status()
                page = answer.json()
                listed |= {job["id"] for job in page["jobs"]}
                cursor = page["next_cursor"]
                if cursor is None:
                    break
    extra = listed - set(ledger.accepted.values())
    ledger.wrong += [f"{job_id} is listed and was never answered" for job_id in extra]


def report(ledger: Ledger, compared: int, seconds: float, seed: int, has_own_disk: bool) -> dict[str, Any]:
    figures = ledger.figures()
    print(f"seed {seed}, {seconds:.0f} s, {'a disk of its own' if has_own_disk else 'no disk of its own: never full'}")
    print(f"faults: {describe(sorted(ledger.faults.items()))}")
    print(f"answers: {describe(sorted(ledger.answers.items()))}")
    print(f"strict pictures drawn once more in peace: {compared}\n")
    print("| figure | |\n| --- | --- |")
    for name, value in figures.items():
        print(f"| {name.replace('_', ' ')} | {value} |")
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--at-once", type=int, default=24, help="jobs in flight")
    parser.add_argument("--fault-every", type=float, default=4.0, metavar="SECONDS")
    parser.add_argument("--minutes", type=float, default=30.0, help="of faults, at most")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patient", action="store_true", help="do not mind how long recovery and hand-over take")
    parser.add_argument("--keep", type=Path, help="folder for the logs of all processes")
    options = parser.parse_args()
    _take_a_mount_space()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    stage = Stage(folder, is_mount_allowed())
    started = time.monotonic()
    try:
        stage.start(options.workers)
        ledger, compared = asyncio.run(chaos(stage, options))
    finally:
        stage.stop()
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            for log in folder.glob("*.log"):
                shutil.copy(log, options.keep)
        shutil.rmtree(folder, ignore_errors=True)
    figures = report(ledger, compared, time.monotonic() - started, options.seed, stage.has_own_disk)
    complaints = ledger.complaints() + ([] if options.patient else ledger.delays())
    for complaint in complaints:
        print(f"BROKEN: {complaint}")
    print(json.dumps({"seed": options.seed, **figures, "strict_compared": compared, "broken": len(complaints)}))
    return 1 if complaints else 0


def _take_a_mount_space() -> None:
    """Start over where mounting a disk is nobody else's business, if that can be had."""
    if "CHAOS_MOUNTS" in os.environ or shutil.which("unshare") is None:
        return
    options = ["-m"] if os.geteuid() == 0 else ["-Urm"]
    if os.system(f"unshare {options[0]} true 2>/dev/null"):  # noqa: S605 (our own words)
        return
    os.environ["CHAOS_MOUNTS"] = "1"
    os.execvp("unshare", ["unshare", *options, sys.executable, "-m", "bench.chaos", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
