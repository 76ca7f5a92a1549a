"""Open-loop load over HTTP against a real server: latency as users see it.

    python -m bench.serve [--url URL] [--way native] [--requests 60] [--loads 0.3 0.6 0.9] [--steps 20] [--seed 1]
    python -m bench.serve --compare [--requests 200]

Without --url it starts `denoised serve` on a free loopback port with a data directory of its own, and stops it at the
end. First a burst measures the capacity (images/s with the batch full). Then, for each load, requests arrive as a
Poisson process at that share of the capacity, whether or not earlier ones are done (open loop: a slow server does not
slow its users down). Latency runs from the scheduled arrival to the last byte of the picture, so a late start of the
load generator counts against the server and not for it. Requests differ in prompt, seed, sampler, steps (12 to 28
around --steps 20) and guidance; a fifth have no guidance.

Shown per load: p50, p95, p99 of the latency and of its ratio to a lone request's, images/s, UNet rows per step.
--way sends the load in the words of a dialect (`bench.ways`).

--compare measures what a dialect costs: the same picture of one step, asked for in every way in turn, in a new order
each round, one request at a time; shown is the median of each way and of its difference to the native call of the
same round, from the first byte sent to the last byte of the picture.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from bench.ways import WAYS, Draw

SAMPLERS = ("dpmpp_2m", "euler", "ddim", "euler_ancestral", "unipc", "deis", "dpmpp_2m_sde")
SUBJECTS = ("red heart", "smiling face", "green apple", "blue car", "yellow star", "brown dog", "orange fish", "house")
START_PATIENCE_S = 180.0


def make_body(chance: random.Random, steps: int) -> dict[str, Any]:
    """A random request of about `steps` steps."""
    return {
        "prompt": f"a {chance.choice(SUBJECTS)} {chance.randrange(10**6)}",
        "seed": chance.randrange(2**31),
        "sampler": chance.choice(SAMPLERS),
        "num_inference_steps": max(1, round(steps * chance.uniform(0.6, 1.4))),
        "guidance_scale": 1.0 if chance.random() < 0.2 else chance.uniform(2.0, 8.0),
    }


@dataclass(frozen=True)
class Load:
    """Random requests of about `steps` steps to one server, in the words of one API."""

    client: httpx2.AsyncClient
    chance: random.Random
    steps: int
    way: Draw

    async def draw(self, body: dict[str, Any]) -> float:
        """Seconds of one request until its picture is here. Raises when the job does not succeed."""
        started = time.perf_counter()
        picture = await self.way(self.client, body)
        assert len(picture) > 100
        return time.perf_counter() - started

    async def measure_lone(self, count: int = 5) -> float:
        """Median seconds of a request that has the server to itself."""
        fixed = {"num_inference_steps": self.steps, "guidance_scale": 5.0}
        return statistics.median([await self.draw(make_body(self.chance, self.steps) | fixed) for _ in range(count)])

    async def measure_burst(self, count: int) -> float:
        """Images a second when `count` requests come at once."""
        started = time.perf_counter()
        await asyncio.gather(*(self.draw(make_body(self.chance, self.steps)) for _ in range(count)))
        return count / (time.perf_counter() - started)

    async def measure(self, rate: float, count: int) -> tuple[list[float], float]:
        """(latencies in seconds, images a second) of `count` Poisson arrivals at `rate` a second."""
        at, arrivals = 0.0, []
        for _ in range(count):
            at += self.chance.expovariate(rate)
            arrivals.append((at, make_body(self.chance, self.steps)))
        started = time.perf_counter()

        async def arrive(due: float, body: dict[str, Any]) -> float:
            await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
            await self.draw(body)
            return time.perf_counter() - started - due

        latencies = await asyncio.gather(*(arrive(due, body) for due, body in arrivals))
        return list(latencies), count / (time.perf_counter() - started)


async def compare_ways(client: httpx2.AsyncClient, chance: random.Random, rounds: int) -> dict[str, Any]:
    """Way -> median milliseconds of a picture of one step, and what the way costs beyond the native call."""
    body = {"model": "pictogram", "prompt": "a red heart", "seed": 3, "num_inference_steps": 1, "guidance_scale": 1.0}
    body |= {"sampler": "euler", "width": 64, "height": 64}
    loads = {name: Load(client, chance, 1, way) for name, way in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(-3, rounds):  # the first rounds warm up
        for name in chance.sample(list(loads), len(loads)):
            took = await loads[name].draw(body)
            if number >= 0:
                seconds[name].append(took)
    result = {}
    print(f"{'way':>12} {'median ms':>10} {'over native ms':>15}")
    for name, taken in seconds.items():
        over = statistics.median(one - native for one, native in zip(taken, seconds["native"], strict=True))
        result[name] = {"median_ms": 1000 * statistics.median(taken), "over_native_ms": 1000 * over}
        print(f"{name:>12} {result[name]['median_ms']:10.2f} {result[name]['over_native_ms']:15.2f}")
    return {"rounds": rounds, "ways": result}


async def read_counters(client: httpx2.AsyncClient) -> dict[str, float]:
    """Sums of `steps` and `rows` over workers and models."""
    text = (await client.get("/metrics")).text
    totals: dict[str, float] = {}
    for name, value in re.findall(r"^denoised_(steps|rows)_total\{[^}]*\} (\S+)$", text, re.M):
        totals[name] = totals.get(name, 0.0) + float(value)
    return totals


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


async def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of the way and loads that the options name, printed as they come."""
    chance = random.Random(options.seed)
    limits = httpx2.Limits(max_connections=512, max_keepalive_connections=64)
    key = os.environ.get("DENOISED_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits, headers=headers, trust_env=False) as client:
        if options.compare:
            return await compare_ways(client, chance, options.requests)
        stream = Load(client, chance, options.steps, WAYS[options.way])
        await stream.measure_lone(count=1)
        lone_s = await stream.measure_lone()
        capacity = await stream.measure_burst(min(48, max(16, options.requests)))
        print(f"a lone request {lone_s:.2f} s; capacity {capacity:.2f} images/s = {capacity * lone_s:.2f} x one by one")
        result: dict[str, Any] = {"way": options.way, "lone_s": lone_s, "capacity_images_per_s": capacity, "loads": []}
        print(f"{'load':>5} {'p50 s':>7} {'p95 s':>7} {'p99 s':>7} {'p95/lone':>9} {'images/s':>9} {'rows/step':>10}")
        for load in options.loads:
            before = await read_counters(client)
            latencies, speed = await stream.measure(load * capacity, options.requests)
            await asyncio.sleep(options.settle_s)
            after = await read_counters(client)
            steps = after.get("steps", 0) - before.get("steps", 0)
            rows = (after.get("rows", 0) - before.get("rows", 0)) / steps if steps else float("nan")
            p50, p95, p99 = (percentile(latencies, share) for share in (0.5, 0.95, 0.99))
            print(f"{load:5.2f} {p50:7.2f} {p95:7.2f} {p99:7.2f} {p95 / lone_s:9.2f} {speed:9.2f} {rows:10.2f}")
            result["loads"].append(
                {"load": load, "p50_s": p50, "p95_s": p95, "p99_s": p99, "images_per_s": speed, "rows_per_step": rows}
            )
        return result


@contextmanager
def serving(url: str | None, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """The URL of a server that is ready; one of our own, with `environment` besides ours, unless `url` is given."""
    if url:
        yield url
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="denoised-bench-") as folder:
        log = Path(folder) / "serve.log"
        command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--data-dir", f"{folder}/data"]
        with log.open("wb") as output:
            server = subprocess.Popen(
                command, env={**os.environ, **(environment or {})}, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            own = f"http://127.0.0.1:{port}"
            wait_until_ready(own, server, log)
            yield own
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_PATIENCE_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(f"the server ended:\n{log.read_text(errors='replace')[-3000:]}")
        try:
            if httpx2.get(f"{url}/readyz", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"the server was not ready in {START_PATIENCE_S:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; default: one of its own, on loopback")
    parser.add_argument("--way", choices=WAYS, default="native", help="the API in whose words the load is sent")
    parser.add_argument("--compare", action="store_true", help="measure what each way costs beyond the native call")
    parser.add_argument("--requests", type=int, default=60, help="arrivals per load, or rounds of --compare")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.6, 0.9], help="shares of the capacity")
    parser.add_argument("--steps", type=int, default=20, help="steps around which requests lie")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and requests")
    parser.add_argument("--settle-s", type=float, default=6.0, help="wait for the worker's next beat with its counters")
    options = parser.parse_args()
    with serving(options.url) as url:
        result = asyncio.run(measure(url, options))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
