"""ControlNets: parity with diffusers, beside rows without any, and what is refused."""

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
from safetensors.torch import load_file, save_file

from models.checkpoint import Checkpoint, load_checkpoint
from models.control_files import ControlFiles
from models.device import choose_placement
from models.engine import Broken, Drawn, Engine, EngineSettings
from models.errors import ControlRefused
from models.prepare import Inputs
from models.request import ImageToImageRequest, InpaintingRequest, PictureRequest, TextToImageRequest
from models.samplers import SAMPLERS
from tests.test_parity import DIFFUSERS, SCHEDULES, STRENGTH, TOLERANCE, UPLOAD, make_mask, make_upload
from tests.tiny import save_tiny_checkpoint, save_tiny_controlnet, save_tiny_sdxl_checkpoint
from workers.catalogue import controlnet_names

CPU = choose_placement("cpu")
WIDTH, HEIGHT = 64, 72


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def controlnets(folder: Path) -> Path:
    """A directory with two of them."""
    for seed, name in enumerate(("edges", "depth")):
        save_tiny_controlnet(folder, folder.parent / "controlnets" / name, seed=seed)
    return folder.parent / "controlnets"


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint("tiny", str(folder), CPU)


def edges(seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    lines = np.random.default_rng(seed).integers(0, 2, (9, 8, 1), dtype=np.uint8) * 255
    return Image.fromarray(lines.repeat(3, 2)).resize((width, height), Image.Resampling.NEAREST)


def control(name: str = "edges", **changes: Any) -> dict[str, Any]:
    return {"name": name, "image": UPLOAD} | changes


def fields(*controls: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "model": "tiny",
        "prompt": "a cat",
        "width": WIDTH,
        "height": HEIGHT,
        "num_inference_steps": 6,
        "guidance_scale": 3.0,
        "sampler": "ddim",
        "noise_schedule": "default",
        "seed": 7,
        "num_images": 1,
        "controls": controls,
    } | changes


def inputs_of(request: PictureRequest, checkpoint: Checkpoint, controlnets: Path) -> Inputs:
    nets = ControlFiles(controlnets).of(request, checkpoint)
    pictures = [(net, edges(number)) for number, net in enumerate(nets)]
    image = None if isinstance(request, TextToImageRequest) else make_upload()
    mask = make_mask() if isinstance(request, InpaintingRequest) else None
    return Inputs(image, mask, controlnets=tuple(pictures))


def draw(checkpoint: Checkpoint, controlnets: Path, *requests: PictureRequest) -> list[np.ndarray]:
    engine = Engine(EngineSettings(max_rows=256, prepare_at_once=64))
    for index, request in enumerate(requests):
        engine.admit(str(index), request, checkpoint, inputs_of(request, checkpoint, controlnets))
    pictures: dict[str, np.ndarray] = {}
    while not engine.is_idle:
        for event in engine.step():
            assert not isinstance(event, Broken), event.error
            if isinstance(event, Drawn):
                pictures[event.job_id] = event.pictures[0].astype(int)
    return [pictures[str(index)] for index in range(len(requests))]


def make_requests() -> list[PictureRequest]:
    """Every sampler once, the tasks and the ways to steer in turn."""
    requests: list[PictureRequest] = []
    for number, (name, sampler) in enumerate(SAMPLERS.items()):
        spans = ({}, {"weight": 0.6}, {"start": 0.2, "end": 0.8}, {"end": 0.5})
        steered = [control(**spans[number % 4])] + [control("depth", weight=0.5)] * (number % 5 == 0)
        guidance = 1.0 if number % 6 == 5 else 3.0
        own = fields(
            *steered,
            sampler=name,
            noise_schedule=sampler.noise_schedules[0],
            seed=number,
            guidance_scale=guidance,
            num_inference_steps=10,
        )
        if number % 3 == 0:
            requests.append(TextToImageRequest(**own))
        elif number % 3 == 1:
            requests.append(ImageToImageRequest(**own, image=UPLOAD, strength=STRENGTH))
        else:
            requests.append(InpaintingRequest(**own, image=UPLOAD, mask_image=UPLOAD, strength=1.0, mask_blur=0))
    return requests


def theirs(folder: Path, controlnets: Path, request: PictureRequest) -> np.ndarray:
    nets = [
        diffusers.ControlNetModel.from_pretrained(controlnets / used.name, low_cpu_mem_usage=False)
        for used in request.controls
    ]
    several = len(nets) > 1
    text = diffusers.StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    classes = {
        "text-to-image": diffusers.StableDiffusionControlNetPipeline,
        "image-to-image": diffusers.StableDiffusionControlNetImg2ImgPipeline,
        "inpainting": diffusers.StableDiffusionControlNetInpaintPipeline,
    }
    task = request.model_dump()["task"]
    pipeline = classes[task](**text.components, controlnet=nets if several else nets[0], requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    class_name, own = DIFFUSERS[request.sampler]
    settings = own | SCHEDULES[request.noise_schedule]
    pipeline.scheduler = getattr(diffusers, class_name).from_config(dict(text.scheduler.config), **settings)
    maps = [edges(number) for number in range(len(nets))]

    def one_or_all(values: list[Any]) -> Any:
        return values if several else values[0]

    options: dict[str, Any] = {
        "prompt": request.prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "generator": torch.Generator().manual_seed(request.seed),
        "controlnet_conditioning_scale": one_or_all([used.weight for used in request.controls]),
        "control_guidance_start": one_or_all([used.start for used in request.controls]),
        "control_guidance_end": one_or_all([used.end for used in request.controls]),
    }
    if request.sampler == "tcd":
        options["eta"] = 0.3
    if isinstance(request, TextToImageRequest):
        options |= {"image": one_or_all(maps), "width": WIDTH, "height": HEIGHT}
    else:
        options |= {
            "image": make_upload(),
            "control_image": one_or_all(maps),
            "strength": request.model_dump()["strength"],
        }
    if isinstance(request, InpaintingRequest):
        options |= {"mask_image": Image.fromarray(make_mask()), "width": WIDTH, "height": HEIGHT}
    return np.asarray(pipeline(**options).images[0]).astype(int)


def test_every_sampler_is_steered_as_in_diffusers(checkpoint: Checkpoint, folder: Path, controlnets: Path) -> None:
    requests = make_requests()
    ours = draw(checkpoint, controlnets, *requests)
    plain = draw(checkpoint, controlnets, *(request.model_copy(update={"controls": ()}) for request in requests))
    wrong = {}
    for request, drawn, unsteered in zip(requests, ours, plain, strict=True):
        difference = int(np.abs(drawn - theirs(folder, controlnets, request)).max())
        if difference > TOLERANCE:
            wrong[request.sampler] = difference
        assert np.abs(drawn - unsteered).max() > 20, f"{request.sampler}: a ControlNet that changes nothing"
    assert not wrong


def test_rows_with_and_without_controls_share_a_batch(checkpoint: Checkpoint, controlnets: Path) -> None:
    requests: list[PictureRequest] = [
        TextToImageRequest(**fields()),
        TextToImageRequest(**fields(control())),
        TextToImageRequest(**fields(control(weight=0.5), control("depth"), guidance_scale=1.0)),
        ImageToImageRequest(**fields(control("depth", end=0.5), sampler="euler"), image=UPLOAD, strength=0.8),
    ]
    for request, together in zip(requests, draw(checkpoint, controlnets, *requests), strict=True):
        (alone,) = draw(checkpoint, controlnets, request)
        assert np.abs(alone - together).max() <= 1


def test_what_is_there_is_named_and_no_name_leads_elsewhere(checkpoint: Checkpoint, controlnets: Path) -> None:
    assert controlnet_names(controlnets) == ("depth", "edges")
    assert controlnet_names(controlnets / "nowhere") == ()
    for name in ("../tiny/unet", "..", "*", "nothing", str(controlnets / "edges")):
        with pytest.raises(ControlRefused, match="There is no ControlNet"):
            ControlFiles(controlnets).of(TextToImageRequest(**fields(control(name))), checkpoint)


def test_a_loaded_one_stays_until_others_need_the_room(checkpoint: Checkpoint, controlnets: Path) -> None:
    files = ControlFiles(controlnets, keep=1)
    edges_request, depth = (TextToImageRequest(**fields(control(name))) for name in ("edges", "depth"))
    (first,) = files.of(edges_request, checkpoint)
    assert files.of(edges_request, checkpoint)[0] is first
    files.of(depth, checkpoint)
    assert files.of(edges_request, checkpoint)[0] is not first


def test_one_for_another_network_is_refused_by_name(controlnets: Path, tmp_path: Path) -> None:
    xl = load_checkpoint("xl", str(save_tiny_sdxl_checkpoint(tmp_path / "xl")), CPU)
    request = TextToImageRequest(**fields(control()))
    with pytest.raises(ControlRefused, match="'edges' is made for another network: its cross_attention_dim is 32"):
        ControlFiles(controlnets).of(request, xl)


@pytest.mark.parametrize("damage", ["weights", "tensor", "link", "config", "class"])
def test_a_damaged_one_is_refused_by_name(
    checkpoint: Checkpoint, controlnets: Path, tmp_path: Path, damage: str
) -> None:
    copy = tmp_path / "edges"
    shutil.copytree(controlnets / "edges", copy)
    if damage == "weights":
        (copy / "diffusion_pytorch_model.safetensors").unlink()
    elif damage == "tensor":
        file = copy / "diffusion_pytorch_model.safetensors"
        save_file({key: tensor for key, tensor in load_file(file).items() if "mid_block" not in key}, file)
    elif damage == "link":
        (copy / "diffusion_pytorch_model.safetensors").unlink()
        (copy / "diffusion_pytorch_model.safetensors").symlink_to("nowhere")
    elif damage == "config":
        (copy / "config.json").write_text("[]")
    else:
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"_class_name": "T2IAdapter"}))
    with pytest.raises(ControlRefused, match="'edges'"):
        ControlFiles(tmp_path).of(TextToImageRequest(**fields(control())), checkpoint)
