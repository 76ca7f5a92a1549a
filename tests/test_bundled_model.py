"""The model in the box: whole, within its size, and drawn by diffusers' own pipelines as by the engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench.engine import make_pipeline
from models.checkpoint import load_checkpoint
from models.device import choose_placement
from models.engine import Broken, Drawn, Engine
from models.request import TextToImageRequest
from workers.settings import BUNDLED_MODEL, BUNDLED_SOURCE

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


def test_every_file_is_the_one_that_is_listed_and_together_they_are_small() -> None:
    listed = json.loads((FOLDER / "files.json").read_text(encoding="utf-8"))
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert {file["path"] for file in listed["files"]} == there - {"files.json"}
    for file in listed["files"]:
        content = (FOLDER / file["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"]), file["path"]
    assert listed["total_bytes"] == sum(file["bytes"] for file in listed["files"]) < 48_000_000
    assert {"ATTRIBUTION.md", "README.md"} < there


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
