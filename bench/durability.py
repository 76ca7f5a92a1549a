"""The price of a durable 202: submissions a second and their latency, with and without `DENOISED_DURABILITY=always`.

    python -m bench.durability [--seconds 8] [--clients 1 16] [--folder DIR]

Each mode has a `denoised serve` of its own on a Redis-compatible server of its own in --folder (put it on the disk in
question). Workers are suspended, so that nothing is drawn beside it. Each client sends its next POST when the answer
to the last one is there. `fsync` is the server's appendfsync: with `always` it syncs before every answer, as the
embedded server does then; with `everysec` the answer waits for the next sync, as with a Redis of your own. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import httpx2
from rq.suspension import suspend

from bench.serve import make_body, percentile, serving
from workers.connection import connect
from workers.embedded import ensure_server

Fsync = Literal["everysec", "always"]
MODES: tuple[tuple[Fsync, str], ...] = (("everysec", "everysec"), ("always", "always"), ("everysec", "always"))
"""(the server's appendfsync, DENOISED_DURABILITY)"""


async def measure(url: str, clients: int, seconds: float) -> dict[str, float]:
    """Rate and latency of POSTs by so many clients, each with one request at a time."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def submit(chance: random.Random) -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            while (started := time.perf_counter()) < end:
                answer = await client.post("/generate", json=make_body(chance, steps=20))
                answer.raise_for_status()
                latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(submit(random.Random(number)) for number in range(clients)))
    return {
        "per_s": len(latencies) / seconds,
        "p50_ms": 1000 * statistics.median(latencies),
        "p99_ms": 1000 * percentile(latencies, 0.99),
    }


def measure_mode(fsync: Fsync, durability: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="durability-", dir=options.folder) as folder:
        server = ensure_server(Path(folder), appendfsync=fsync)
        environment = {
            "REDIS_URL": server.url,
            "DENOISED_DURABILITY": durability,
            "DENOISED_MAX_QUEUED": "1000000",
            "DENOISED_STORE_RESERVE": "0",
        }
        try:
            with serving(None, environment) as url:
                suspend(connect(server.url))
                asyncio.run(measure(url, 4, 1.0))
                return [
                    {"fsync": fsync, "durability": durability, "clients": clients}
                    | asyncio.run(measure(url, clients, options.seconds))
                    for clients in options.clients
                ]
        finally:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16], help="at once")
    parser.add_argument("--folder", help="where the server's log lies; default: the system's temporary folder")
    options = parser.parse_args()
    print("| fsync | DENOISED_DURABILITY | clients | POST/s | p50 ms | p99 ms |\n| --- | --- | --- | --- | --- | --- |")
    rows = []
    for fsync, durability in MODES:
        for row in measure_mode(fsync, durability, options):
            rows.append(row)
            figures = f"{row['per_s']:.0f} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f}"
            print(f"| {fsync} | {durability} | {row['clients']} | {figures} |", flush=True)
    print(json.dumps({"modes": rows}))


if __name__ == "__main__":
    main()
