"""LDM super-resolution in the running batch: parity with diffusers, tiles, neighbours, and what is refused."""

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
from models.checkpoint_files import PICKLE_SUFFIXES
from models.device import choose_placement
from models.engine import Engine, EngineSettings, Prepared
from models.errors import CheckpointMissing, CheckpointRefused
from models.prepare import Inputs, rows_of
from models.samplers import SAMPLERS
from models.start import small_picture
from models.super_resolution import QuantizingAutoencoder
from tests.test_parity import DIFFUSERS, SCHEDULES, TOLERANCE
from tests.test_upscaling import CPU, difference, draw, picture, request_of
from tests.tiny import save_tiny_super_resolution
from workers.catalogue import describe_model
from workers.enlarging import enlarging

SIDE = 32
"""Pixels of the upload that one tile has: diffusers' pipeline cuts pictures to multiples of 32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_super_resolution(tmp_path_factory.mktemp("models") / "ldm")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint("ldm", str(folder), CPU)


def asked(width: int = SIDE, height: int = SIDE, **changes: Any) -> Any:
    own = {"model": "ldm", "prompt": "", "noise_level": None, "guidance_scale": 1.0}
    return request_of(width, height, **own | changes)


def enlarge_with_diffusers(pipeline: Any, image: Any, request: Any) -> np.ndarray:
    """The pipeline hands its generator to no step: what steps draw comes from the global one, so all of it does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        steps = request.num_inference_steps
        options = {"eta": 0.3} if request.sampler == "tcd" else {}
        return np.asarray(pipeline(image, num_inference_steps=steps, **options).images[0])


def measure(folder: Path) -> dict[tuple[str, str], int]:
    """(sampler, noise schedule) -> largest difference in levels of 255; all of ours in one batch."""
    pipeline = diffusers.LDMSuperResolutionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    config = dict(pipeline.scheduler.config)
    names = [(name, schedule) for name, sampler in SAMPLERS.items() for schedule in sampler.noise_schedules]
    requests = [asked(sampler=name, noise_schedule=kind, seed=100 + index) for index, (name, kind) in enumerate(names)]
    ours = draw(load_checkpoint("ldm", str(folder), CPU), *((request, picture(SIDE, SIDE)) for request in requests))
    differences = {}
    for request, drawn in zip(requests, ours, strict=True):
        class_name, own = DIFFUSERS[request.sampler]
        settings = own | SCHEDULES[request.noise_schedule]
        pipeline.scheduler = getattr(diffusers, class_name).from_config(config, **settings)
        theirs = enlarge_with_diffusers(pipeline, picture(SIDE, SIDE), request)
        assert theirs.std() > 20, "a flat picture would prove nothing"
        differences[request.sampler, request.noise_schedule] = difference(drawn.pictures[0], theirs)
    return differences


def test_every_sampler_enlarges_as_the_diffusers_pipeline_does(folder: Path) -> None:
    differences = measure(folder)
    assert {sampler for sampler, _ in differences} == set(DIFFUSERS)
    print(differences)
    assert not {key: worst for key, worst in differences.items() if worst > TOLERANCE}
