"""The clients: they send jobs, watch some of them in bad manners, and hold the server to its word.

Owns what a client does and what it checks of each answer. Knows nothing of faults.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import random
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx2
import redis
from PIL import Image

from bench.chaos.ledger import Ledger
from bench.chaos.stage import MODEL, TENANTS, UPSCALER, Stage, key_of
from workers.contract import key

_ENDED = ("succeeded", "failed", "canceled")
_STRICT_SHARE = 0.4
_CANCEL_SHARE = 0.05
_READER_SHARE = 0.3


@dataclass(frozen=True)
class Job:
    """What one client wants."""

    tenant: str
    body: dict[str, Any]
    is_canceled: bool
    reader: str | None
    """How its events are read: not at all, slowly, or until the reader vanishes."""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


def make_job(dice: random.Random, steps: int) -> Job:
    """Any task, sampler, size, priority; about `steps` steps."""
    body: dict[str, Any] = {
        "prompt": f"{dice.choice(('a cat', 'a dog', 'a red (apple:1.2)'))} {dice.randrange(10**6)}",
        "model": MODEL,
        "seed": dice.randrange(2**31),
        "width": dice.choice((64, 64, 96)),
        "height": 64,
        "sampler": dice.choice(("euler", "euler_ancestral", "dpmpp_2m", "ddim", "heun")),
        "num_inference_steps": max(4, round(steps * dice.uniform(0.3, 1.7))),
        "guidance_scale": dice.choice((1.0, 5.0)),
        "num_images": dice.choice((1, 1, 1, 2)),
        "reproducibility": "strict" if dice.random() < _STRICT_SHARE else "standard",
        "previews": dice.random() < _READER_SHARE,
        "priority": dice.choice(("normal", "normal", "low")),
    }
    task = dice.choice(("text", "text", "image", "hole", "chain"))
    if task in ("image", "hole"):
        body |= {"image": _picture(dice, body["width"]), "strength": 0.8}
        body["task"] = "image-to-image" if task == "image" else "inpainting"
    if task == "hole":
        body |= {"mask_image": _mask(body["width"])}
    if task == "chain":
        body |= {"upscaler": UPSCALER, "num_images": 1}
    reader = dice.choice(("slow", "vanishing")) if dice.random() < _READER_SHARE else None
    return Job(dice.choice(TENANTS), body, dice.random() < _CANCEL_SHARE, reader)


class Load:
    """All clients of one run."""

    def __init__(self, stage: Stage, ledger: Ledger, dice: random.Random, jobs: int, steps: int, at_once: int) -> None:
        self._stage = stage
        self._ledger = ledger
        self._jobs = iter([make_job(dice, steps) for _ in range(jobs)])
        self._at_once = at_once
        self._dice = random.Random(dice.random())
        self.strict: list[tuple[Job, dict[str, Any]]] = []
        """Strict jobs with their documents."""

    async def run(self) -> None:
        """Send all jobs, so many at once, and see each to its end."""
        async with httpx2.AsyncClient(timeout=20.0, trust_env=False) as http:
            await asyncio.gather(*(self._client(http) for _ in range(self._at_once)))

    async def _client(self, http: httpx2.AsyncClient) -> None:
        for job in self._jobs:
            await self.see_through(http, job)

    async def see_through(self, http: httpx2.AsyncClient, job: Job) -> dict[str, Any]:
        """From the POST to the pictures; returns the last document."""
        document = await self._ask(http, "POST", "/generate", job, json=job.body, headers={"Idempotency-Key": job.key})
        self._ledger.note_accepted(job.key, document["id"])
        path = f"/jobs/{document['id']}"
        reader = asyncio.create_task(self._read_events(http, job, path)) if job.reader else None
        if job.is_canceled:
            await asyncio.sleep(self._dice.uniform(0, 3))
            self._ledger.canceled.add(document["id"])
            document = await self._ask(http, "POST", f"{path}/cancel", job)
        while document["status"] not in _ENDED:
            await asyncio.sleep(self._dice.uniform(0.2, 0.8))
            document = await self._ask(http, "GET", path, job)
        self._ledger.ended[document["id"]] = document
        for image in document["images"]:
            await self._check_image(http, job, image)
        if reader:
            reader.cancel()
        if job.body["reproducibility"] == "strict" and document["status"] == "succeeded":
            self.strict.append((job, document))
        return document

    async def _check_image(self, http: httpx2.AsyncClient, job: Job, image: dict[str, Any]) -> None:
        data = (await self._request(http, "GET", image["url"], job)).content
        if hashlib.sha256(data).hexdigest() != image["sha256"]:
            self._ledger.wrong.append(f"{image['url']} has other bytes than its document says")

    async def _ask(self, http: httpx2.AsyncClient, method: str, path: str, job: Job, **request: Any) -> dict[str, Any]:
        document: dict[str, Any] = (await self._request(http, method, path, job, **request)).json()
        return document

    async def _request(
        self, http: httpx2.AsyncClient, method: str, path: str, job: Job, **request: Any
    ) -> httpx2.Response:
        """Ask until there is an answer other than "later", now this API, now that one."""
        headers = {"Authorization": f"Bearer {key_of(job.tenant)}", **request.pop("headers", {})}
        while True:
            url, began = self._dice.choice(self._stage.urls), time.monotonic()
            try:
                answer = await http.request(method, url + path, headers=headers, **request)
            except httpx2.HTTPError:
                self._ledger.answers["no answer"] += 1
                await asyncio.sleep(0.3)
                continue
            self._ledger.note_answer(f"{method} {path}", answer.status_code, answer.text[:300], began)
            if answer.status_code < 300:
                return answer
            if answer.status_code not in (429, 500, 502, 503, 504):
                raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
            await asyncio.sleep(min(2.0, float(answer.headers.get("Retry-After", 1))))

    async def _read_events(self, http: httpx2.AsyncClient, job: Job, path: str) -> None:
        """Slow readers take a bite a second; vanishing ones go without a word."""
        headers = {"Authorization": f"Bearer {key_of(job.tenant)}"}
        url = self._dice.choice(self._stage.urls)
        with contextlib.suppress(httpx2.HTTPError):
            async with http.stream("GET", f"{url}{path}/events", headers=headers) as answer:
                async for _ in answer.aiter_bytes(256):
                    if job.reader == "vanishing":
                        return
                    await asyncio.sleep(1.0)


class EndCounter:
    """Counts every `end` in the stream of events while it lives, across the server's deaths."""

    def __init__(self, stage: Stage, ledger: Ledger) -> None:
        self._stage = stage
        self._ledger = ledger
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> EndCounter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(10)

    def _run(self) -> None:
        last, client = "0", self._stage.client()
        while not self._is_over.wait(0.1):
            try:
                answer: Any = client.xread({key("events"): last}, count=5000)
            except redis.RedisError:
                client.close()
                client = self._stage.client()
                continue
            for place, fields in answer[0][1] if answer else ():
                last = place
                if fields[b"kind"] == b"end":
                    self._ledger.ends[fields[b"job"].decode()] += 1
        client.close()


def _picture(dice: random.Random, width: int) -> str:
    pixels = bytes(dice.randrange(256) for _ in range(6 * 4 * 3))
    return _encoded(Image.frombytes("RGB", (6, 4), pixels).resize((width, 64), Image.Resampling.BICUBIC))


def _mask(width: int) -> str:
    mask = Image.new("L", (width, 64))
    mask.paste(255, (8, 8, 40, 40))
    return _encoded(mask)


def _encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
