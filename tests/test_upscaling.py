"""Upscaling in the running batch: parity with diffusers, tiles, neighbours, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoint import Checkpoint, load_checkpoint
from models.device import choose_placement
from models.engine import Broken, Drawn, Engine, EngineSettings, Prepared
from models.errors import CheckpointRefused
from models.prepare import Inputs, rows_of
from models.request import UpscaleRequest
from models.samplers import SAMPLERS
from models.start import small_picture, start_tiles
from models.tiles import tile
from tests.test_parity import DIFFUSERS, SCHEDULES, TOLERANCE, UPLOAD
from tests.tiny import save_tiny_upscaler
from workers.catalogue import describe_model

CPU = choose_placement("cpu")
WIDTH, HEIGHT = 32, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_upscaler(tmp_path_factory.mktemp("models") / "x4")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint("x4", str(folder), CPU)


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    coarse = np.random.default_rng(5).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def request_of(width: int = WIDTH, height: int = HEIGHT, **changes: Any) -> UpscaleRequest:
    fields: dict[str, Any] = {
        "model": "x4",
        "prompt": "a cat",
        "width": 4 * width,
        "height": 4 * height,
        "num_inference_steps": 5,
        "guidance_scale": 4.0,
        "sampler": "ddim",
        "noise_schedule": "default",
        "seed": 7,
        "num_images": 1,
        "image": UPLOAD,
        "noise_level": 20,
    } | changes
    return UpscaleRequest(**fields)


def draw(checkpoint: Checkpoint, *jobs: tuple[UpscaleRequest, Image.Image]) -> list[Drawn]:
    engine = Engine(EngineSettings(max_rows=64, prepare_at_once=64))
    for index, (request, image) in enumerate(jobs):
        engine.admit(str(index), request, checkpoint, Inputs(image))
    drawn: dict[str, Drawn] = {}
    while not engine.is_idle:
        for event in engine.step():
            assert not isinstance(event, Broken), event.error
            if isinstance(event, Drawn):
                drawn[event.job_id] = event
    return [drawn[str(index)] for index in range(len(jobs))]


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("reads_prompts", [True, False])
def test_every_sampler_enlarges_as_the_diffusers_pipeline_does(reads_prompts: bool, tmp_path: Path) -> None:
    folder = save_tiny_upscaler(tmp_path / "x4", reads_prompts=reads_prompts)
    pipeline = diffusers.StableDiffusionUpscalePipeline.from_pretrained(
        folder, low_cpu_mem_usage=False, **({} if reads_prompts else {"text_encoder": None, "tokenizer": None})
    )
    pipeline.set_progress_bar_config(disable=True)
    config = dict(pipeline.scheduler.config)
    requests = [
        request_of(
            sampler=name,
            noise_schedule=sampler.noise_schedules[0],
            seed=100 + index,
            guidance_scale=3.0 if reads_prompts and index % 3 else 1.0,
            noise_level=(0, 7, 50)[index % 3],
            prompt="a cat" if reads_prompts else "",
        )
        for index, (name, sampler) in enumerate(SAMPLERS.items())
    ]
    checkpoint = load_checkpoint("x4", str(folder), CPU)
    ours = draw(checkpoint, *((request, picture()) for request in requests))
    for request, drawn in zip(requests, ours, strict=True):
        class_name, own = DIFFUSERS[request.sampler]
        settings = own | SCHEDULES[request.noise_schedule]
        pipeline.scheduler = getattr(diffusers, class_name).from_config(config, **settings)
        text = {"prompt": request.prompt} if reads_prompts else {"prompt_embeds": torch.zeros(1, 1, 1)}
        theirs = pipeline(
            **text,
            image=picture(),
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            noise_level=request.noise_level,
            generator=torch.Generator().manual_seed(request.seed),
            **({"eta": 0.3} if request.sampler == "tcd" else {}),
        ).images[0]
        assert np.asarray(theirs).std() > 20, "a flat picture would prove nothing"
        assert difference(drawn.pictures[0], np.asarray(theirs)) <= TOLERANCE, request.sampler


@pytest.mark.parametrize(("width", "height"), [(70, 50), (33, 24), (5, 90), (1, 1)])
def test_a_picture_of_any_size_is_enlarged_four_times(checkpoint: Checkpoint, width: int, height: int) -> None:
    (drawn,) = draw(checkpoint, (request_of(width, height, num_images=2), picture(width, height)))
    assert [enlarged.shape for enlarged in drawn.pictures] == [(4 * height, 4 * width, 3)] * 2
    assert difference(*drawn.pictures) > 20
    (alone,) = draw(checkpoint, (request_of(width, height, seed=8), picture(width, height)))
    assert difference(drawn.pictures[1], alone.pictures[0]) <= 1


def test_tiles_begin_with_the_same_noise_where_they_overlap(checkpoint: Checkpoint) -> None:
    tiling = tile((70, 50), 32, 16, 2)
    table = checkpoint.tables.get("ddim", "default", 5, None)
    shown = small_picture(picture(70, 50), tiling.size)
    starts = start_tiles(table, shown, tiling, 4, torch.Generator().manual_seed(3))
    assert len(starts) == len(tiling.boxes) > 4
    (left, _), (right, _) = starts[:2]
    shared = tiling.boxes[0].right - tiling.boxes[1].left
    assert shared >= 16
    assert torch.equal(left.latents[:, :, -shared:], right.latents[:, :, :shared])
    assert left.extra is not None
    assert right.extra is not None
    assert torch.equal(left.extra[:, :, -shared:], right.extra[:, :, :shared])
    seeds = {generator.initial_seed() for _, generator in starts}
    assert len(seeds) == len(starts)


def test_pictures_are_enlarged_beside_each_other_as_alone(checkpoint: Checkpoint) -> None:
    jobs = [
        (request_of(70, 50, noise_level=0), picture(70, 50)),
        (request_of(guidance_scale=1.0, sampler="euler_ancestral", noise_level=50), picture()),
        (request_of(64, 32, seed=9, sampler="dpmpp_2m", num_inference_steps=9), picture(64, 32)),
    ]
    for job, drawn in zip(jobs, draw(checkpoint, *jobs), strict=True):
        (alone,) = draw(checkpoint, job)
        assert difference(drawn.pictures[0], alone.pictures[0]) <= 1


def test_without_a_noise_level_it_is_the_models_own(checkpoint: Checkpoint) -> None:
    (silent,) = draw(checkpoint, (request_of(noise_level=None), picture()))
    (told,) = draw(checkpoint, (request_of(noise_level=checkpoint.defaults.noise_level), picture()))
    assert np.array_equal(silent.pictures[0], told.pictures[0])


def test_its_catalogue_entry_names_factor_and_noise_levels(checkpoint: Checkpoint) -> None:
    entry = describe_model(checkpoint)
    assert entry.tasks == ("upscale",)
    assert (entry.upscale_factor, entry.max_noise_level, entry.defaults.noise_level) == (4, 50, 20)
    assert (entry.max_size, entry.max_pixels) == (8192, 8192**2)
    assert 2 <= Engine(EngineSettings(max_rows=4)).warm_up(checkpoint) <= 4


def test_an_upscaler_that_reads_no_prompt_says_so(tmp_path: Path) -> None:
    checkpoint = load_checkpoint("x4", str(save_tiny_upscaler(tmp_path / "x4", reads_prompts=False)), CPU)
    engine = Engine()
    engine.admit("told", request_of(guidance_scale=1.0), checkpoint, Inputs(picture()))
    engine.admit("silent", request_of(prompt="", guidance_scale=1.0), checkpoint, Inputs(picture()))
    warnings: dict[str, tuple[str, ...]] = {}
    while not engine.is_idle:
        warnings |= {event.job_id: event.warnings for event in engine.step() if isinstance(event, Prepared)}
    assert rows_of(request_of(guidance_scale=4.0), checkpoint) == 1, "there is nothing to be guided by"
    assert checkpoint.defaults.guidance_scale == 1
    assert warnings == {"told": ("This model reads no prompt; it was not read.",), "silent": ()}


@pytest.mark.parametrize("changes", [{"in_channels": 4}, {"num_class_embeds": None}])
def test_another_network_in_an_upscaler_is_refused(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copy / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointRefused, match="upscalers with 7 and 4 channels"):
        load_checkpoint("x4", str(copy), CPU)
