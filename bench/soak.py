"""Many mixed jobs through a real server: does memory stay flat, and is anything left when their time is over?

    python -m bench.soak [--jobs 2000] [--warm-up 300] [--clients 12] [--seed 1] [--limit-mb 50]

Starts `denoised serve` with the bundled models on a Redis-compatible server of its own, with a retention time of
seconds. Jobs differ in task, size, sampler, steps, guidance, format, number of pictures and priority; some have
previews, some are followed by events, some are canceled while they wait or run, some erased when they have ended, some
sent twice. A sample is taken at rest after the warm-up and at the end, when nothing of any job is left; more on the
way. RSS is the resident memory of a process (Linux); `redis` is what the server says it uses. Exit status 1: API and
worker together grew by more than --limit-mb, a job failed, or something was left over (`bench.leftovers`). The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import redis
from PIL import Image, ImageDraw

from bench.leftovers import find_leftovers
from bench.serve import SUBJECTS, serving
from workers.board import JobBoard
from workers.connection import connect
from workers.embedded import ensure_server
from workers.store import LocalStore

RETENTION_S = 20
SIZES = (64, 96, 128, 128, 128, 192, 256)
_MB = 1e6


@dataclass(frozen=True)
class Sample:
    """Megabytes, and numbers of things, at one moment."""

    jobs: int
    api_mb: float
    worker_mb: float
    redis_mb: float
    store_mb: float
    keys: int


@dataclass(frozen=True)
class Stand:
    """The server under test, seen from outside."""

    client: redis.Redis
    store: LocalStore

    def sample(self, jobs: int) -> Sample:
        worker = JobBoard(self.client).beats()[0].pid
        return Sample(
            jobs=jobs,
            api_mb=_rss_mb(_api_beside(worker)),
            worker_mb=_rss_mb(worker),
            redis_mb=self.client.info("memory")["used_memory"] / _MB,
            store_mb=self.store.used_bytes() / _MB,
            keys=self.client.dbsize(),
        )

    def rest(self, patience_s: float) -> list[str]:
        """Waits until nothing of any job is left; what is left when patience ends."""
        end = time.monotonic() + patience_s
        while (left := find_leftovers(self.client, self.store.root)) and time.monotonic() < end:
            time.sleep(1)
        return left


@dataclass
class Jobs:
    """Random jobs, sent by as many clients as call `send`."""

    models: dict[str, Any]
    chance: random.Random
    fates: Counter[str] = field(default_factory=Counter)

    def body(self) -> dict[str, Any]:
        """A request of any task."""
        chance = self.chance
        task = chance.choices(("text-to-image", "image-to-image", "inpainting", "upscale"), (55, 20, 20, 5))[0]
        body: dict[str, Any] = {
            "task": task,
            "prompt": f"a {chance.choice(SUBJECTS)} {chance.randrange(10**6)}"
            + " and more" * chance.choice((0, 0, 40)),
            "seed": chance.randrange(2**31),
            "priority": chance.choice(("high", "normal", "low")),
            "output_format": chance.choice(("png", "jpeg", "webp")),
            "previews": chance.random() < 0.2,
        }
        if task != "text-to-image":
            body["image"] = self._picture(chance.choice((64, 128)))
        if task == "upscale":
            return body
        sampler = chance.choice(self.models["pictogram"]["samplers"])
        body |= {
            "width": chance.choice(SIZES),
            "height": chance.choice(SIZES),
            "sampler": sampler["name"],
            "num_inference_steps": max(sampler["min_steps"], chance.randint(1, 6)),
            "guidance_scale": chance.choice((1.0, 4.0, 7.5)),
            "negative_prompt": chance.choice((None, "grey")),
            "num_images": chance.choice((1, 1, 1, 2)),
            "reproducibility": chance.choice(("standard",) * 9 + ("strict",)),
        }
        if task == "inpainting":
            body["mask_image"] = self._mask(body["image"])
        if task != "text-to-image":
            body["strength"] = 1.0
        if chance.random() < 0.03:
            body |= {"width": 64, "height": 64, "num_images": 1, "upscale": True}
        return body

    async def send(self, client: httpx2.AsyncClient) -> None:
        """One job to its fate."""
        chance = self.chance
        body, key = self.body(), f"{chance.random()}"
        plan = chance.choices(("wait", "cancel", "erase", "events", "twice"), (60, 8, 12, 10, 10))[0]
        headers = {"Idempotency-Key": key} if plan == "twice" else {}
        answer = await client.post("/generate", json=body, headers=headers)
        if answer.status_code != 202:
            raise RuntimeError(f"{answer.text} to { ({**body, 'image': '', 'mask_image': ''}) }")
        path = f"/jobs/{answer.json()['id']}"
        if plan == "twice":
            await client.post("/generate", json=body, headers=headers)
        elif plan == "cancel":
            await asyncio.sleep(chance.random())
            await client.post(f"{path}/cancel")
        elif plan == "events":
            await client.get(f"{path}/events")
        job = (await client.post("/generate", json=body, headers=headers)).json() if plan == "twice" else {}
        while job.get("status") not in ("succeeded", "failed", "canceled"):
            job = (await client.get(path)).json()
            await asyncio.sleep(0.05)
        self.fates[job["status"]] += 1
        if job["status"] == "failed":
            print(job["error"], job["request"], flush=True)
        for image in job["images"]:
            (await client.get(image["url"])).raise_for_status()
        if plan == "erase":
            (await client.delete(path)).raise_for_status()

    def _picture(self, side: int) -> str:
        picture = Image.new("RGB", (side, side), tuple(self.chance.randrange(256) for _ in range(3)))
        ImageDraw.Draw(picture).ellipse((8, 8, side - 8, side - 8), fill="white")
        return _base64(picture)

    def _mask(self, image: str) -> str:
        with Image.open(io.BytesIO(base64.b64decode(image))) as picture:
            mask = Image.new("L", picture.size)
        edge = self.chance.randrange(4, 24)
        ImageDraw.Draw(mask).rectangle((edge, edge, mask.width - 5, mask.height - 5), fill=255)
        return _base64(mask)


def _base64(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / _MB


def _api_beside(worker: int) -> int:
    """The process of the API that the same `denoised serve` started as this worker."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if _parent(entry.name) == _parent(str(worker)) and b"--listen-fd" in (entry / "cmdline").read_bytes():
                return int(entry.name)
        except OSError:  # it ended meanwhile
            continue
    raise SystemExit("the API's process is not found")


def _parent(pid: str) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def draw(url: str, jobs: Jobs, count: int, clients: int) -> None:
    """So many jobs, by clients that each send the next one when the last has met its fate."""
    todo = iter(range(count))

    async def work() -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
            for _ in todo:
                await jobs.send(client)

    await asyncio.gather(*(work() for _ in range(clients)))


def show(sample: Sample, note: str) -> None:
    figures = " | ".join(
        f"{value:.1f}" if isinstance(value, float) else str(value) for value in asdict(sample).values()
    )
    print(f"| {figures} | {note} |", flush=True)


def soak(url: str, stand: Stand, options: argparse.Namespace) -> dict[str, Any]:
    found = httpx2.get(f"{url}/models", trust_env=False).json()["models"]
    jobs = Jobs({model["name"]: model for model in found}, random.Random(options.seed))
    print("| jobs | API MB | worker MB | redis MB | store MB | keys | |\n| --- | --- | --- | --- | --- | --- | --- |")
    show(stand.sample(0), "started")
    asyncio.run(draw(url, jobs, options.warm_up, options.clients))
    stand.rest(6 * RETENTION_S)
    before = stand.sample(options.warm_up)
    show(before, "warm, at rest")
    started = time.monotonic()
    for done in range(0, options.jobs, options.every):
        asyncio.run(draw(url, jobs, min(options.every, options.jobs - done), options.clients))
        show(stand.sample(options.warm_up + min(done + options.every, options.jobs)), "")
    seconds = time.monotonic() - started
    left = stand.rest(6 * RETENTION_S)
    after = stand.sample(options.warm_up + options.jobs)
    show(after, "at rest")
    grown = {"api_mb": after.api_mb - before.api_mb, "worker_mb": after.worker_mb - before.worker_mb}
    return {
        "grown": grown,
        "grown_mb": sum(grown.values()),
        "before": asdict(before),
        "after": asdict(after),
        "fates": dict(jobs.fates),
        "seconds": seconds,
        "left": left,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000, help="after the warm-up")
    parser.add_argument("--warm-up", type=int, default=300, help="jobs before the first sample")
    parser.add_argument("--clients", type=int, default=12, help="at once")
    parser.add_argument("--every", type=int, default=250, help="jobs between samples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit-mb", type=float, default=50.0, help="growth of API and worker together")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="denoised-soak-") as folder:
        server = ensure_server(Path(folder))
        store = LocalStore(Path(folder) / "store")
        environment = {
            "REDIS_URL": server.url,
            "DENOISED_STORE_URL": str(store.root),
            "DENOISED_RETENTION_S": str(RETENTION_S),
            "DENOISED_MAX_QUEUED": "100000",
        }
        try:
            with serving(None, environment) as url:
                result = soak(url, Stand(connect(server.url), store), options)
        finally:
            server.stop()
    for sentence in result["left"][:20]:
        print(sentence)
    print(f"grew by {result['grown_mb']:.1f} MB; {len(result['left'])} left over; {result['fates']}")
    print(json.dumps(result))
    is_fine = result["grown_mb"] <= options.limit_mb and not result["left"] and not result["fates"].get("failed")
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
