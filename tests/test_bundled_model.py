"""The models in the box: whole, within their size, and drawn by diffusers' own pipelines as by the engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionUpscalePipeline
from PIL import Image

from bench.engine import make_pipeline
from models.checkpoint import load_checkpoint
from models.device import choose_placement
from models.engine import Broken, Drawn, Engine
from models.prepare import Inputs
from models.request import TextToImageRequest, UpscaleRequest
from training.upscaler_model import upscaled
from workers.settings import BUNDLED, BUNDLED_MODEL, BUNDLED_SOURCE, BUNDLED_UPSCALER

FOLDER = Path(BUNDLED_SOURCE)
PROMPTS = ("a red heart", "a panda, 3d render", "")
STEPS = 8
PLACEMENT = choose_placement("cpu", "float32")


def drawn_by_the_engine(prompts: Sequence[str]) -> list[np.ndarray]:
    """Pictures uint8 [128, 128, 3] of `prompts`, all in one batch, with the checkpoint's own defaults; seed n for n."""
    checkpoint = load_checkpoint(BUNDLED_MODEL, BUNDLED_SOURCE, PLACEMENT)
    engine, defaults = Engine(), checkpoint.defaults
    for number, prompt in enumerate(prompts):
        request = TextToImageRequest(
            model=BUNDLED_MODEL,
            prompt=prompt,
            width=defaults.width,
            height=defaults.height,
            num_inference_steps=STEPS,
            guidance_scale=defaults.guidance_scale,
            sampler=defaults.sampler,
            noise_schedule=defaults.noise_schedule,
            seed=number,
            num_images=1,
        )
        engine.admit(str(number), request, checkpoint)
    pictures: dict[str, np.ndarray] = {}
    while not engine.is_idle:
        for event in engine.step():
            assert not isinstance(event, Broken), event.error
            if isinstance(event, Drawn):
                pictures[event.job_id] = event.pictures[0]
    return [pictures[str(number)] for number in range(len(prompts))]


@pytest.mark.parametrize("name", BUNDLED)
def test_every_file_is_the_one_that_is_listed(name: str) -> None:
    folder = Path(BUNDLED[name])
    listed = json.loads((folder / "files.json").read_text(encoding="utf-8"))
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {file["path"] for file in listed["files"]} == there - {"files.json"}
    for file in listed["files"]:
        content = (folder / file["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"]), file["path"]
        assert file["licence"] == "Apache-2.0"
    assert listed["total_bytes"] == sum(file["bytes"] for file in listed["files"])
    assert {"ATTRIBUTION.md", "README.md"} < there


def test_together_they_are_small() -> None:
    files = [file for source in BUNDLED.values() for file in Path(source).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 48_000_000


def test_diffusers_draws_the_same_pictures_through_the_four_channel_view() -> None:
    pipeline = make_pipeline(BUNDLED_SOURCE, PLACEMENT)
    guidance = json.loads((FOLDER / "denoised.json").read_text())["guidance_scale"]
    for number, ours in enumerate(drawn_by_the_engine(PROMPTS)):
        theirs = pipeline(
            PROMPTS[number],
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(number),
        ).images[0]
        assert ours.std() > 20, "a flat picture would prove nothing"
        assert np.abs(np.asarray(theirs).astype(int) - ours).max() <= 2


def test_it_draws_the_colour_that_is_asked_for() -> None:
    colours = ("red", "green", "blue")
    for number, picture in enumerate(drawn_by_the_engine([f"a {colour} heart" for colour in colours])):
        middle = picture[40:88, 40:88].mean((0, 1))
        assert int(middle.argmax()) == number, f"{middle} is not {colours[number]}"


def test_diffusers_enlarges_as_the_engine_does() -> None:
    checkpoint = load_checkpoint(BUNDLED_UPSCALER, BUNDLED[BUNDLED_UPSCALER], PLACEMENT)
    defaults, small = checkpoint.defaults, drawn_by_the_engine(["a red heart"])[0][::2, ::2]
    assert defaults.num_inference_steps <= 10
    assert defaults.guidance_scale <= 1
    request = UpscaleRequest(
        model=BUNDLED_UPSCALER,
        prompt="",
        width=256,
        height=256,
        num_inference_steps=defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        sampler=defaults.sampler,
        noise_schedule=defaults.noise_schedule,
        seed=5,
        num_images=1,
        image=f"sha256:{'0' * 64}",
    )
    engine = Engine()
    engine.admit("x4", request, checkpoint, Inputs(Image.fromarray(small)))
    events = []
    while not engine.is_idle:
        events += engine.step()
    assert isinstance(events[-1], Drawn), events
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(
        BUNDLED[BUNDLED_UPSCALER], text_encoder=None, tokenizer=None, dtype=torch.float32, low_cpu_mem_usage=False
    )
    pipeline.set_progress_bar_config(disable=True)
    pixels = torch.from_numpy(small.copy()).permute(2, 0, 1)[None] / 127.5 - 1  # (1, 3, 64, 64)
    theirs = upscaled(pipeline, pixels, defaults.num_inference_steps, defaults.noise_level, seed=5)
    found = ((theirs[0].permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1) * 255).round().astype(int)
    ours = events[-1].pictures[0]
    assert ours.std() > 20, "a flat picture would prove nothing"
    assert np.abs(found - ours).max() <= 2
