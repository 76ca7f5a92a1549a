"""The ways in: one request for one picture in each API's words, until the bytes of the picture are here.

Owns the wire of each dialect as its usual client speaks it. Knows nothing of loads and timing.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx2

Draw = Callable[[httpx2.AsyncClient, dict[str, Any]], Awaitable[bytes]]
"""A client and a body of POST /generate -> a picture file. Raises when the job does not succeed."""
_WAIT = {"Prefer": "wait=30"}


async def draw_natively(client: httpx2.AsyncClient, body: dict[str, Any]) -> bytes:
    """POST /generate, waiting; then GET the picture."""
    answer = await client.post("/generate", json=body, headers=_WAIT)
    while True:
        answer.raise_for_status()
        job = answer.json()
        if job["status"] == "succeeded":
            break
        if job["status"] in ("failed", "canceled"):
            raise RuntimeError(f"{job['id']} {job['status']}: {job['error']}")
        await asyncio.sleep(0.02)
        answer = await client.get(f"/jobs/{job['id']}")
    return await _fetch(client, job["images"][0]["url"])


async def draw_as_openai(client: httpx2.AsyncClient, body: dict[str, Any]) -> bytes:
    """POST /v1/images/generations; the picture is in the answer, as base64."""
    answer = await client.post("/v1/images/generations", json={**body, "response_format": "b64_json"})
    answer.raise_for_status()
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


async def draw_as_a1111(client: httpx2.AsyncClient, body: dict[str, Any]) -> bytes:
    """POST /sdapi/v1/txt2img; the picture is in the answer, as base64."""
    names = {"num_inference_steps": "steps", "guidance_scale": "cfg_scale", "sampler": "sampler_name"}
    fields = {names.get(name, name): value for name, value in body.items() if name != "model"}
    if "model" in body:
        fields["override_settings"] = {"sd_model_checkpoint": body["model"]}
    answer = await client.post("/sdapi/v1/txt2img", json=fields)
    answer.raise_for_status()
    return base64.b64decode(answer.json()["images"][0])


async def draw_as_replicate(client: httpx2.AsyncClient, body: dict[str, Any]) -> bytes:
    """POST /v1/predictions, waiting; the picture is in the answer, as a data URL."""
    names = {"num_images": "num_outputs", "sampler": "scheduler"}
    fields = {names.get(name, name): value for name, value in body.items() if name != "model"}
    request = {"version": body.get("model", "pictogram"), "input": fields}
    answer = await client.post("/v1/predictions", json=request, headers=_WAIT)
    while True:
        answer.raise_for_status()
        prediction = answer.json()
        if prediction["status"] == "succeeded":
            break
        if prediction["status"] in ("failed", "canceled"):
            raise RuntimeError(f"{prediction['id']} {prediction['status']}: {prediction['error']}")
        await asyncio.sleep(0.02)
        answer = await client.get(f"/v1/predictions/{prediction['id']}")
    return base64.b64decode(prediction["output"][0].partition(",")[2])


async def draw_as_hugging_face(client: httpx2.AsyncClient, body: dict[str, Any]) -> bytes:
    """POST /hf/text-to-image; the answer is the picture."""
    fields = {name: value for name, value in body.items() if name != "prompt"}
    answer = await client.post("/hf/text-to-image", json={"inputs": body["prompt"], "parameters": fields})
    answer.raise_for_status()
    return answer.content


async def _fetch(client: httpx2.AsyncClient, path: str) -> bytes:
    picture = await client.get(path)
    picture.raise_for_status()
    return picture.content


WAYS: Mapping[str, Draw] = {
    "native": draw_natively,
    "openai": draw_as_openai,
    "a1111": draw_as_a1111,
    "replicate": draw_as_replicate,
    "hugging-face": draw_as_hugging_face,
}
"""By name; the dialects have their own."""
