"""`denoised status`: queues, workers and running jobs as tables, for operators without a browser.

Owns the tables. What is in them comes from GET /admin/queues and /admin/workers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from app.cli.generate import explain
from app.cli.progress import duration
from app.client import DEFAULT_SERVER, Client, ClientError


def status(options: argparse.Namespace) -> int:
    """Prints what queues and workers do; returns the exit status."""
    try:
        with Client(options.server or DEFAULT_SERVER, options.key, patience_s=0.0) as client:
            queues, workers = client.queues(), client.workers()
    except ClientError as error:
        return explain(error)
    if options.json:
        print(json.dumps(queues | workers, indent=2))
    else:
        print("\n".join(tables(queues, workers["workers"])))
    return 0


def tables(queues: dict[str, Any], workers: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of all tables. An empty one is a sentence."""
    if queues["suspended"]:
        yield "Nothing starts: `rq suspend` was called. `rq resume` lets it go on."
    if queues["queues"]:
        yield from _table(
            ("MODEL", "PRIORITY", "TENANT", "WAITING", "OLDEST", "DRAWN IN"), map(_queue, queues["queues"])
        )
    else:
        yield "No job waits."
    yield ""
    if not workers:
        yield "No worker's heart beats."
        return
    yield from _table(("WORKER", "STATE", "BEAT", "JOBS", "SUCCEEDED", "FAILED"), map(_worker, workers))
    yield ""
    loads = [(worker, name, load) for worker in workers for name, load in sorted(worker["models"].items())]
    header = ("MODEL", "WORKER", "MEMORY", "PICTURES", "ROWS A STEP", "STEP", "LEFT")
    yield from _table(header, [_load(worker, name, load) for worker, name, load in loads])
    for worker in workers:
        for name, fault in sorted(worker["faults"].items()):
            yield f"{worker['name']} cannot load {name}: {fault['detail']} ({fault['code']})"
    held = [(worker, job) for worker in workers for job in worker["jobs"]]
    if held:
        yield ""
        yield from _table(("JOB", "WORKER", "TENANT", "MODEL", "STEP", "LEFT"), [_job(*pair) for pair in held])


def _queue(queue: dict[str, Any]) -> tuple[str, ...]:
    waited, predicted = queue["oldest_wait_s"], queue["predicted_s"]
    return (
        *(queue["model"], queue["priority"], queue["tenant"], str(queue["queued"])),
        *(duration(waited), _or_dash(predicted)),
    )


def _worker(worker: dict[str, Any]) -> tuple[str, ...]:
    counts = worker["counters"]
    return (
        *(worker["name"], worker["state"], f"{duration(worker['beat_age_s'])} ago", str(len(worker["jobs"]))),
        *(f"{counts.get('jobs_succeeded', 0):.0f}", f"{counts.get('jobs_failed', 0):.0f}"),
    )


def _load(worker: dict[str, Any], name: str, load: dict[str, Any]) -> tuple[str, ...]:
    rows, step_s, speed = load["rows_per_step"], load["step_s"], load["cost_per_s"]
    return (
        *(name, worker["name"], "loaded" if load["loaded"] else "not loaded", str(load["slots"])),
        "-" if rows is None else f"{rows:.1f}",
        "-" if step_s is None else f"{1000 * step_s:.0f} ms",
        _or_dash(load["cost_in_flight"] / speed if speed else None),
    )


def _job(worker: dict[str, Any], job: dict[str, Any]) -> tuple[str, ...]:
    progress = job["progress"]
    step = f"{progress['step']} of {progress['steps']}" if progress else "-"
    return (job["id"], worker["name"], job["tenant"], job["model"], step, _or_dash(job["eta_s"]))


def _or_dash(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _table(header: Sequence[str], rows: Any) -> Iterator[str]:
    """Columns as wide as what is in them."""
    lines = [tuple(header), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
