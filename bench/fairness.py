"""Fair shares and promises, against a real server: a lone job beside a flood, and what was said against what came.

    python -m bench.fairness [--flood 1000] [--probes 7] [--watch-s 90] [--seed 1]

Starts `denoised serve` with keys of two tenants. One floods the queue; the other sends one job at a time, alone before
and beside the flood: the ratio of the medians is what the flood costs it. Then the flood is watched: the ETA told when
a job was queued, and one told while it ran, against the moment it ended. At last a second server with a short queue is
filled up, and Retry-After is compared with the seconds until a job is let in. Errors are relative to the truth. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx2

from bench.serve import make_body, serving
from bench.ways import draw_natively

FLOOD, LONE = "flood", "lone"
KEYS = {tenant: f"{tenant}-key-of-the-bench" for tenant in (FLOOD, LONE)}
SHORT_QUEUE = 4
_LONG_STEPS = 90
"""So long that the whole seconds of the header do not matter."""
ENVIRONMENT = {"DENOISED_API_KEYS": ",".join(f"{tenant}:{key}" for tenant, key in KEYS.items())}


def client_of(tenant: str, url: str) -> httpx2.AsyncClient:
    headers = {"Authorization": f"Bearer {KEYS[tenant]}"}
    return httpx2.AsyncClient(base_url=url, timeout=120, headers=headers, trust_env=False)


async def probe(client: httpx2.AsyncClient, chance: random.Random, count: int) -> list[float]:
    """Seconds of lone jobs, one after the other: all alike but for prompt and seed."""
    seconds = []
    for _ in range(count):
        alike = {"num_inference_steps": 20, "guidance_scale": 5.0, "sampler": "dpmpp_2m"}
        body = make_body(chance, 20) | alike
        started = time.perf_counter()
        await draw_natively(client, body)
        seconds.append(time.perf_counter() - started)
    return seconds


async def send_flood(client: httpx2.AsyncClient, chance: random.Random, count: int) -> dict[str, float]:
    """Job id -> the moment (unix seconds) at which it was said to end, of those that were told one."""
    said: dict[str, float] = {}
    for _ in range(count):
        answer = await client.post("/generate", json=make_body(chance, 20))
        answer.raise_for_status()
        job = answer.json()
        if job["eta_s"] is not None and job["status"] == "queued":
            said[job["id"]] = time.time() + job["eta_s"]
    return said


async def watch(client: httpx2.AsyncClient, seconds: float) -> dict[str, tuple[float, float]]:
    """Job id -> (when it was asked, what it was said to take), of one moment of each job that was seen running."""
    said: dict[str, tuple[float, float]] = {}
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        running = (await client.get("/jobs", params={"status": "running", "limit": "100"})).json()["jobs"]
        for job in running:
            if job["eta_s"] is not None and job["id"] not in said:
                said[job["id"]] = time.time(), job["eta_s"]
        await asyncio.sleep(1.0)
    return said


async def ends_of(client: httpx2.AsyncClient, ids: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Job id -> (created, ended), unix seconds, of those that have."""
    found: dict[str, tuple[float, float]] = {}
    for job_id in ids:
        job = (await client.get(f"/jobs/{job_id}")).json()
        if job["status"] == "succeeded":
            found[job_id] = _unix(job["created_at"]), _unix(job["ended_at"])
    return found


async def measure_retries(client: httpx2.AsyncClient, chance: random.Random, rounds: int) -> list[float]:
    """Relative errors of Retry-After while the queue is full of long jobs."""
    errors: list[float] = []
    while len(errors) < rounds:
        body = make_body(chance, _LONG_STEPS) | {"num_images": 4}
        await asyncio.sleep(chance.uniform(0.5, 8.0))  # clients come when they come, not when room was just taken
        answer = await client.post("/generate", json=body)
        if answer.status_code == 202:
            continue
        said, started = float(answer.headers["Retry-After"]), time.perf_counter()
        await _let_in(client, body)
        waited = time.perf_counter() - started
        errors.append(_error(said, max(1.0, waited)))  # less than a second cannot be said
    return errors


async def beside_a_flood(url: str, options: argparse.Namespace) -> dict[str, Any]:
    chance = random.Random(options.seed)
    async with client_of(FLOOD, url) as flood, client_of(LONE, url) as lone:
        await probe(lone, chance, 2)
        idle = await probe(lone, chance, options.probes)
        said_queued = await send_flood(flood, chance, options.flood)
        beside = await probe(lone, chance, options.probes)
        said_running = await watch(flood, options.watch_s)
        ended = await ends_of(flood, list(dict.fromkeys([*said_queued, *said_running]))[: options.flood])
    queued = [
        _error(said_queued[job_id] - created, end - created)
        for job_id, (created, end) in ended.items()
        if job_id in said_queued
    ]
    running = [
        _error(said_running[job_id][1], end - said_running[job_id][0])
        for job_id, (_, end) in ended.items()
        if job_id in said_running and end > said_running[job_id][0]
    ]
    return {
        "idle_s": round(statistics.median(idle), 3),
        "beside_s": round(statistics.median(beside), 3),
        "beside_over_idle": round(statistics.median(beside) / statistics.median(idle), 2),
        "worst_over_idle": round(max(beside) / statistics.median(idle), 2),
        "flood_ended": len(ended),
        "eta_queued_error": round(statistics.median(queued), 3),
        "eta_running_error": round(statistics.median(running), 3),
    }


async def _let_in(client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    for _ in range(6000):
        if (await client.post("/generate", json=body)).status_code == 202:
            return
        await asyncio.sleep(0.1)
    raise TimeoutError("ten minutes, and no room")


def _unix(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _error(said: float, truth: float) -> float:
    return abs(said - truth) / max(truth, 0.1)


async def with_short_queue(url: str, options: argparse.Namespace) -> float:
    async with client_of(FLOOD, url) as client:
        await probe(client, random.Random(options.seed), 3)
        errors = await measure_retries(client, random.Random(options.seed), options.probes + 3)
    return statistics.median(errors[3:])  # the first ones fill it up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flood", type=int, default=1000, help="jobs of the tenant that floods")
    parser.add_argument("--probes", type=int, default=7, help="lone jobs, and rounds of Retry-After")
    parser.add_argument("--watch-s", type=float, default=90.0, help="how long the flood is watched")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with serving(None, ENVIRONMENT | {"DENOISED_MAX_QUEUED": str(options.flood + 10)}) as url:
        result = asyncio.run(beside_a_flood(url, options))
    with serving(None, ENVIRONMENT | {"DENOISED_MAX_QUEUED": str(SHORT_QUEUE)}) as url:
        result["retry_after_error"] = round(asyncio.run(with_short_queue(url, options)), 3)
    print("| figure | |\n| --- | --- |")
    for name, value in result.items():
        print(f"| {name.replace('_', ' ')} | {value} |")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
