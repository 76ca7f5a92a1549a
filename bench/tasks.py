"""A mixed stream of tasks through one engine, against diffusers' pipelines one after another: same weights, one run.

    python -m bench.tasks [--model DIR] [--upscaler DIR] [--steps 20] [--repeats 3] [--rounds 2] [--device auto]

What is compared, and why:

- `stream`  : rounds of text-to-image, inpainting, image-to-image and upscaling, all in the engine at
  once, against the same requests one after another through the pipeline of each task. The gain is what it is worth
  that tasks of one network share its calls.
- `row_cost`: seconds of a step of eight inpainting rows over those of eight text-to-image rows of the same network:
  what mask and picture cost beside the latents. The goal is at most 1.05.

Both sides include text encoding, uploads, denoising and decoding to 8-bit pixels; pasting back, files and HTTP are
left out. The order of the two sides alternates, and the median of the paired ratios is shown. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from bench.engine import SAMPLERS, SUBJECTS, open_model, paired
from models.checkpoint import Checkpoint, load_checkpoint
from models.engine import Broken, Drawn, Engine, EngineSettings
from models.four_channel_view import four_channel_view
from models.prepare import Inputs
from models.request import (
    ImageToImageRequest,
    InpaintingRequest,
    PictureRequest,
    TextToImageRequest,
    UpscaleRequest,
)
from models.samplers import build_scheduler
from workers.settings import BUNDLED, BUNDLED_SOURCE, BUNDLED_UPSCALER

UPLOAD = f"sha256:{'0' * 64}"
STRENGTH = 0.6
Job = tuple[PictureRequest, Checkpoint, Inputs]


def picture(side: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def mask(side: int) -> np.ndarray:
    """bool (side, side): the middle quarter."""
    drawn = np.zeros((side, side), np.bool_)
    drawn[side // 4 : side // 4 * 3, side // 4 : side // 4 * 3] = True
    return drawn


def make_jobs(checkpoint: Checkpoint, upscaler: Checkpoint | None, rounds: int, steps: int, salt: int) -> list[Job]:
    """One job of each task a round; no two are alike, and every one but the upscaler's is guided."""
    side, jobs = checkpoint.defaults.width, []
    for index in range(rounds):
        common: dict[str, Any] = {
            "model": checkpoint.name,
            "prompt": f"a {SUBJECTS[index % 8]} {salt} {index}",
            "width": side,
            "height": side,
            "num_inference_steps": steps,
            "guidance_scale": 3.0 + index % 5,
            "sampler": SAMPLERS[index % 8],
            "noise_schedule": "default",
            "seed": 1000 * salt + index,
            "num_images": 1,
        }
        upload = {"image": UPLOAD, "strength": STRENGTH}
        whole = common | {"image": UPLOAD, "strength": 1.0, "mask_blur": 0}
        jobs += [
            (TextToImageRequest(**common), checkpoint, Inputs()),
            (InpaintingRequest(**whole), checkpoint, Inputs(picture(side), mask(side))),
            (ImageToImageRequest(**common, **upload), checkpoint, Inputs(picture(side))),
        ]
        if upscaler and upscaler.upscaling:
            small, factor = upscaler.upscaling.tile, upscaler.upscaling.factor
            own = {"width": factor * small, "height": factor * small, "guidance_scale": 1.0, "prompt": ""}
            own |= {"model": upscaler.name, "num_inference_steps": upscaler.defaults.num_inference_steps}
            request = UpscaleRequest(**common | own, image=UPLOAD, noise_level=20)
            jobs.append((request, upscaler, Inputs(picture(small))))
    return jobs


def run_engine(engine: Engine, jobs: list[Job]) -> None:
    for index, (request, checkpoint, inputs) in enumerate(jobs):
        engine.admit(str(index), request, checkpoint, inputs)
    pictures = 0
    while not engine.is_idle:
        for event in engine.step():
            assert not isinstance(event, Broken), event
            pictures += isinstance(event, Drawn)
    assert pictures == len(jobs)


def run_one_by_one(pipelines: dict[str, Any], jobs: list[Job]) -> None:
    for request, checkpoint, inputs in jobs:
        task = request.model_dump()["task"]
        pipeline = pipelines[task]
        pipeline.scheduler = build_scheduler(checkpoint.scheduler_config, request.sampler, request.noise_schedule)
        options: dict[str, Any] = {
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            "output_type": "np",
        }
        if task == "upscale":
            options |= {"prompt_embeds": torch.zeros(1, 1, 1), "image": inputs.image, "noise_level": 20}
        else:
            options["prompt"] = request.prompt
        if task in ("image-to-image", "inpainting"):
            options |= {"image": inputs.image, "strength": request.model_dump()["strength"]}
        if inputs.mask is not None:
            options["mask_image"] = Image.fromarray(inputs.mask)
        if task in ("text-to-image", "inpainting"):
            options |= {"width": request.width, "height": request.height}
        images = pipeline(**options).images
        assert (images * 255).round().astype("uint8").ndim == 4


def open_pipelines(model: str, upscaler: str, device: str) -> dict[str, Any]:
    inpainting = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
        model, use_safetensors=True, low_cpu_mem_usage=False
    )
    unet = inpainting.unet
    parts = inpainting.components | {"unet": four_channel_view(unet) if unet.config.in_channels == 9 else unet}
    unchecked = {"requires_safety_checker": False}
    pipelines = {
        "text-to-image": diffusers.StableDiffusionPipeline(**parts, **unchecked),
        "image-to-image": diffusers.StableDiffusionImg2ImgPipeline(**parts, **unchecked),
        "inpainting": inpainting,
        "upscale": diffusers.StableDiffusionUpscalePipeline.from_pretrained(
            upscaler, text_encoder=None, tokenizer=None, low_cpu_mem_usage=False
        ),
    }
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(device, torch.float32)
    return pipelines


def step_s(checkpoint: Checkpoint, jobs: list[Job], repeats: int) -> float:
    """Median seconds of a step of all jobs at once, after their preparation."""
    engine = Engine(EngineSettings(max_rows=64, prepare_at_once=64))
    for index, (request, _, inputs) in enumerate(jobs):
        engine.admit(str(index), request, checkpoint, inputs)
    while len(engine.progress()) < len(jobs):
        engine.step()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def row_cost(checkpoint: Checkpoint, repeats: int) -> float:
    """Median over `repeats` of inpainting's step time over that of text-to-image, eight rows each."""
    by_task: dict[str, list[Job]] = {}
    for salt in range(8):
        for job in make_jobs(checkpoint, None, 1, 60, salt):
            plain = job[0].model_copy(update={"sampler": "ddim", "guidance_scale": 1.0})
            by_task.setdefault(job[0].model_dump()["task"], []).append((plain, *job[1:]))
    ratios = []
    for _ in range(repeats):
        text, holes = (step_s(checkpoint, by_task[task], 20) for task in ("text-to-image", "inpainting"))
        ratios.append(holes / text)
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED_SOURCE, help="an SD 1.x checkpoint in diffusers layout")
    parser.add_argument("--upscaler", default=BUNDLED[BUNDLED_UPSCALER], help="an x4 upscaler that reads no prompts")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2, help="jobs of each task in the engine at once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    checkpoint, placement = open_model(arguments.model, arguments.device, "float32")
    upscaler = load_checkpoint("upscaler", arguments.upscaler, placement)
    pipelines = open_pipelines(arguments.model, arguments.upscaler, str(placement.device))
    engine = Engine(EngineSettings(prepare_at_once=64))
    for loaded in (checkpoint, upscaler):
        engine.warm_up(loaded)

    def jobs(repeat: int) -> list[Job]:
        return make_jobs(checkpoint, upscaler, arguments.rounds, arguments.steps, repeat)

    ours, theirs, ratio = paired(
        lambda repeat: run_engine(engine, jobs(repeat)),
        lambda repeat: run_one_by_one(pipelines, jobs(repeat)),
        arguments.repeats,
    )
    count, cost = len(jobs(0)), row_cost(checkpoint, arguments.repeats)
    print(f"stream of {count}: {count / ours:.2f} images/s, one by one {count / theirs:.2f}, ratio {ratio:.2f}")
    print(f"a row of inpainting costs {cost:.3f} of one of text-to-image")
    print(
        json.dumps(
            {
                "device": str(placement.device),
                "tasks": sorted(pipelines),
                "images_per_s": round(count / ours, 3),
                "one_by_one_images_per_s": round(count / theirs, 3),
                "stream_ratio": round(ratio, 3),
                "row_cost": round(cost, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
