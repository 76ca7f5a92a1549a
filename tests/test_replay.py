"""Pictures drawn again by real workers, and the verdict on each."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from app.recipes import find_recipe
from tests.board_values import make_submission
from tests.fakes import draw_fake
from tests.fleet import Fleet, provenance_of_fake
from tests.http_kit import png, serving
from tests.test_worker_real import mask, png_of, save_lora, upload
from tests.tiny import save_tiny_checkpoint, save_tiny_controlnet, save_tiny_upscaler
from workers.connection import connect
from workers.contract import Original, Submission, new_job_id
from workers.embedded import ensure_server
from workers.pictures import encode_picture

WAIT = {"Prefer": "wait=60"}
TEXT: dict[str, Any] = {
    "model": "tiny",
    "prompt": "a red apple",
    "seed": 5,
    "num_inference_steps": 6,
    "sampler": "ddim",
}
STRICT = TEXT | {"reproducibility": "strict"}


@dataclass
class Workshop:
    """One real worker, and the folders in which what it draws with lies."""

    fleet: Fleet
    redis_url: str
    folder: Path

    def serving(self) -> Any:
        return serving(self.redis_url, self.fleet.store)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("workshop")
    tiny = save_tiny_checkpoint(folder / "tiny")
    save_tiny_checkpoint(folder / "models" / "shifting", seed=1)
    save_lora(folder / "loras")
    save_tiny_controlnet(tiny, folder / "controlnets" / "edges")
    x4 = save_tiny_upscaler(folder / "x4", reads_prompts=False)
    (x4 / "denoised.json").write_text('{"num_inference_steps": 3}')
    server = ensure_server(folder / "server")
    client = connect(server.url)
    with pytest.MonkeyPatch.context() as patch, Fleet(server.url, client, folder) as fleet:
        patch.setenv("OMP_NUM_THREADS", "1")
        fleet.wait_ready(
            fleet.launch_real(
                DENOISED_MODELS=f"tiny={tiny},x4={x4}",
                DENOISED_DEVICE="cpu",
                DENOISED_DTYPE="float32",
                DENOISED_LORAS=str(folder / "loras"),
                DENOISED_CONTROLNETS=str(folder / "controlnets"),
            )
        )
        yield Workshop(fleet, server.url, folder)
    client.close()
    server.stop()


async def drawn(client: httpx2.AsyncClient, body: dict[str, Any], index: int = 0) -> bytes:
    """The file of a picture of a new job."""
    answer = await client.post("/generate", json=body, headers=WAIT)
    document = answer.json()
    assert document["status"] == "succeeded", document
    return (await client.get(document["images"][index]["url"])).content


async def replayed(client: httpx2.AsyncClient, file: bytes, **files: bytes) -> dict[str, Any]:
    """The document of a picture drawn again."""
    parts = {"image": file, **files}
    answer = await client.post(
        "/replay", files={name: (f"{name}.png", data) for name, data in parts.items()}, headers=WAIT
    )
    document = answer.json()
    assert document["status"] == "succeeded", document
    return document


def assert_exact(verdict: dict[str, Any], contract: str | None) -> None:
    assert verdict == {
        "agrees": True,
        "contract": contract,
        "exact": True,
        "max_difference": 0,
        "differing_pixels": 0,
        "reasons": [],
    }


def codes(verdict: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in verdict["reasons"]]


def text_of(picture: Image.Image) -> str:
    return base64.b64encode(png_of(picture)).decode()


def with_recipe(pixels: np.ndarray, recipe: Any) -> bytes:
    """A file with these pixels and this recipe, as an editor that keeps texts would write it."""
    return encode_picture(pixels, "png", recipe).data


def pixels_of(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image).copy()


@pytest.mark.asyncio
@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
async def test_a_strict_picture_is_drawn_again_to_the_last_bit_beside_others(workshop: Workshop, output_format) -> None:
    async with workshop.serving() as client:
        file = await drawn(client, STRICT | {"output_format": output_format})
        others = [client.post("/generate", json=TEXT | {"seed": seed}, headers=WAIT) for seed in range(4)]
        document, *_ = await asyncio.gather(replayed(client, file), *others)
        assert_exact(document["replay"], "strict")
        again = (await client.get(document["images"][0]["url"])).content
    assert find_recipe(again) == find_recipe(file)


@pytest.mark.asyncio
async def test_a_standard_picture_drawn_again_in_company_agrees_within_one_level(workshop: Workshop) -> None:
    async with workshop.serving() as client:
        file = await drawn(client, TEXT | {"guidance_scale": 9.0, "num_inference_steps": 20})
        busy = [
            client.post("/generate", json=TEXT | {"seed": seed, "num_inference_steps": 25}, headers=WAIT)
            for seed in range(7)
        ]
        document, *_ = await asyncio.gather(replayed(client, file), *busy)
    verdict = document["replay"]
    assert (verdict["agrees"], verdict["contract"]) == (True, "standard")
    assert verdict["max_difference"] <= 1
    assert codes(verdict) == ([] if verdict["exact"] else ["within_standard"])


@pytest.mark.asyncio
async def test_picture_two_of_a_batch_is_drawn_again_alone(workshop: Workshop) -> None:
    async with workshop.serving() as client:
        document = await replayed(client, await drawn(client, STRICT | {"num_images": 3}, index=2))
    assert_exact(document["replay"], "strict")
    assert (document["request"]["seed"], len(document["images"])) == (7, 1)


@pytest.mark.asyncio
async def test_an_enlarged_picture_and_one_with_lora_and_control_are_drawn_again(workshop: Workshop) -> None:
    adapted = {
        "loras": [{"name": "ink", "weight": 0.7}],
        "controls": [{"name": "edges", "image": text_of(upload())}],
        "upscale": True,
    }
    async with workshop.serving() as client:
        file = await drawn(client, STRICT | adapted)
        assert_exact((await replayed(client, file))["replay"], "strict")
    recipe = find_recipe(file)
    assert recipe is not None
    made_with = recipe["made_with"]
    entry = workshop.fleet.board.catalogue()["x4"]
    assert (list(made_with["loras"]), list(made_with["controls"])) == (["ink"], ["edges"])
    assert made_with["upscaler"] == entry.digest


@pytest.mark.asyncio
async def test_an_upload_that_was_enlarged_is_enlarged_again(workshop: Workshop) -> None:
    body = {"task": "upscale", "model": "x4", "image": text_of(upload()), "seed": 2, "reproducibility": "strict"}
    async with workshop.serving() as client:
        assert_exact((await replayed(client, await drawn(client, body)))["replay"], "strict")


@pytest.mark.asyncio
async def test_a_picture_edited_by_one_pixel_does_not_agree_and_that_is_told(workshop: Workshop) -> None:
    async with workshop.serving() as client:
        file = await drawn(client, STRICT)
        pixels = pixels_of(file)
        pixels[7, 9, 1] ^= 1
        verdict = (await replayed(client, with_recipe(pixels, find_recipe(file))))["replay"]
    assert (verdict["agrees"], verdict["max_difference"], verdict["differing_pixels"]) == (False, 1, 1)
    assert codes(verdict) == ["picture_changed"]
    assert "to the last bit" in verdict["reasons"][0]["detail"]


@pytest.mark.asyncio
async def test_an_older_recipe_is_compared_by_its_picture_and_promises_nothing(workshop: Workshop) -> None:
    async with workshop.serving() as client:
        file = await drawn(client, STRICT)
        recipe = {k: v for k, v in (find_recipe(file) or {}).items() if k not in ("made_with", "pixels_sha256")}
        verdict = (await replayed(client, with_recipe(pixels_of(file), recipe | {"contract_version": 2})))["replay"]
        bare = (await client.post("/replay", json={"recipe": recipe}, headers=WAIT)).json()["replay"]
    assert (verdict["agrees"], verdict["exact"], verdict["contract"]) == (True, True, None)
    assert codes(verdict) == ["recipe_older"]
    assert (bare["agrees"], codes(bare)) == (None, ["recipe_older", "picture_missing"])


@pytest.mark.asyncio
async def test_a_changed_lora_is_named(workshop: Workshop) -> None:
    async with workshop.serving() as client:
        file = await drawn(client, STRICT | {"loras": [{"name": "ink"}], "seed": 11})
        lora = workshop.folder / "loras" / "ink.safetensors"
        tensors = load_file(lora)
        save_file({name: -3 * tensor for name, tensor in tensors.items()}, lora)
        verdict = (await replayed(client, file))["replay"]
        save_file(tensors, lora)
    assert (verdict["agrees"], verdict["contract"], codes(verdict)) == (False, None, ["lora_changed"])
    assert "'ink'" in verdict["reasons"][0]["detail"]


@pytest.mark.asyncio
async def test_a_changed_weight_file_takes_the_promise_away(workshop: Workshop) -> None:
    weights = workshop.folder / "models" / "shifting" / "unet" / "diffusion_pytorch_model.safetensors"
    async with workshop.serving() as client:
        file = await drawn(client, STRICT | {"model": "shifting"})
        digest = workshop.fleet.board.catalogue()["shifting"].digest
        tensors = load_file(weights)
        tensors["conv_in.bias"] = tensors["conv_in.bias"] + torch.tensor(0.5)
        save_file(tensors, weights)
        workshop.fleet.wait_for(lambda: workshop.fleet.board.catalogue()["shifting"].digest != digest)
        verdict = (await replayed(client, file))["replay"]
    assert (verdict["agrees"], verdict["contract"], codes(verdict)) == (False, None, ["model_changed"])


@pytest.mark.asyncio
async def test_inpainting_is_drawn_again_from_what_is_held_and_from_what_is_sent_again(workshop: Workshop) -> None:
    body = STRICT | {
        "task": "inpainting",
        "image": text_of(upload()),
        "mask_image": text_of(mask()),
        "mask_blur": 3,
        "padding_mask_crop": 10,
        "outpaint_right": 6,
    }
    async with workshop.serving() as client:
        first = (await client.post("/generate", json=body, headers=WAIT)).json()
        file = (await client.get(first["images"][0]["url"])).content
        held = await replayed(client, file)
        assert_exact(held["replay"], "strict")
        for job in (first, held):
            assert (await client.delete(job["links"]["self"])).status_code < 300
        gone = await client.post("/replay", files={"image": ("a.png", file)})
        assert (gone.status_code, gone.json()["code"]) == (422, "upload_unknown")
        wrong = await client.post("/replay", files={"image": ("a.png", file), "init_image": ("b.png", png())})
        assert (wrong.status_code, wrong.json()["code"]) == (422, "upload_mismatch")
        sent = await replayed(client, file, init_image=png_of(upload()), mask_image=png_of(mask()))
    assert_exact(sent["replay"], "strict")


# --- what dies meanwhile ---------------------------------------------------------------------------------------------


def test_a_verdict_survives_the_worker_that_began_the_picture(fleet: Fleet) -> None:
    request = make_submission(steps=60, seed=3).request
    pixels = draw_fake(request, 0)
    edited = pixels.copy()
    edited[0, 0] ^= 255
    reference = "ab" * 32
    submissions = [
        Submission(
            tenant="ann",
            request=request,  # type: ignore[arg-type]
            original=Original(provenance=provenance_of_fake(request, 0), picture=f"sha256:{reference}"),
        )
        for _ in range(2)
    ]
    ids = [new_job_id() for _ in submissions]
    for job_id, shown, submission in zip(ids, (pixels, edited), submissions, strict=True):
        fleet.store.put(job_id, f"{reference}.png", png_of(Image.fromarray(shown)))
        fleet.board.submit(submission, fleet.entry, job_id)
    first = fleet.start(FAKE_STEP_S="0.02")
    fleet.wait_running(ids, step=10)
    first.kill()
    fleet.start()
    verdicts = [view.record.outcome.replay for view in fleet.wait_ended(ids) if view.record.outcome]
    assert [verdict and verdict.agrees for verdict in verdicts] == [True, False]
    assert [json.loads(verdict.model_dump_json())["differing_pixels"] for verdict in verdicts if verdict] == [0, 1]
    fleet.assert_rq_is_at_rest(ids)
