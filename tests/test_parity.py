"""Our pictures against the diffusers pipelines: same weights, seed and sampler, float32 on the CPU.

All requests of one network run in ONE mixed batch here, while each pipeline runs alone. The schedulers are built the
way a diffusers user builds them, from a table of this file's own. `python -m tests.test_parity` prints the maxima that
`docs/parity.md` shows.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoint import load_checkpoint
from models.device import choose_placement
from models.engine import Broken, Drawn, Engine, EngineSettings
from models.four_channel_view import four_channel_view
from models.prepare import Inputs
from models.request import ImageToImageRequest, InpaintingRequest, PictureRequest, TextToImageRequest
from models.samplers import SAMPLERS
from tests.tiny import (
    save_tiny_checkpoint,
    save_tiny_guided_checkpoint,
    save_tiny_inpainting_checkpoint,
    save_tiny_sdxl_checkpoint,
)

TOLERANCE = 2
"""Levels of 255, of any channel of any pixel."""

DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "dpmpp_3m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 3}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "default": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "trailing": {"timestep_spacing": "trailing"},
}
STRENGTH = 0.6
DRAWN = ("text-to-image", "image-to-image", "inpainting")
UPLOAD = f"sha256:{'0' * 64}"
STEPS = 7


def make_requests() -> list[PictureRequest]:
    """Every sampler with every noise schedule it offers, for every task; inpainting at full strength and at less."""
    requests: list[PictureRequest] = []
    for sampler, entry in SAMPLERS.items():
        for schedule in entry.noise_schedules:
            index = len(requests) // 4  # requests a noise schedule
            fields: dict[str, Any] = {
                "model": "tiny",
                "prompt": f"picture {index}",
                "negative_prompt": "blurry" if index % 3 else None,
                "width": 64,
                "height": 72,
                "num_inference_steps": STEPS,
                "guidance_scale": 1.0 if index % 5 == 0 else 3.0 + index % 4,
                "sampler": sampler,
                "noise_schedule": schedule,
                "seed": 1000 + index,
                "num_images": 1,
            }
            rescale = 0.7 if index % 4 == 0 else 0.0  # diffusers offers it for text-to-image alone
            requests.append(TextToImageRequest(**fields, guidance_rescale=rescale))
            requests.append(ImageToImageRequest(**fields, image=UPLOAD, strength=STRENGTH))
            for strength in (1.0, STRENGTH):
                requests.append(
                    InpaintingRequest(**fields, image=UPLOAD, mask_image=UPLOAD, strength=strength, mask_blur=0)
                )
    return requests


def make_upload() -> Image.Image:
    coarse = np.random.default_rng(5).integers(0, 256, (7, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 72), Image.Resampling.BICUBIC)


def make_mask() -> np.ndarray:
    """Nothing round: an odd blob whose edges lie on no border of a latent."""
    rows, columns = np.mgrid[:72, :64]
    return np.asarray((rows - 30) ** 2 / 500 + (columns - 40) ** 2 / 300 < 1)


def draw_ours(folder: Path, requests: list[PictureRequest]) -> list[np.ndarray]:
    checkpoint = load_checkpoint("tiny", str(folder), choose_placement("cpu"))
    engine = Engine(EngineSettings(max_rows=256, prepare_at_once=256))
    for index, request in enumerate(requests):
        image = None if isinstance(request, TextToImageRequest) else make_upload()
        mask = make_mask() if isinstance(request, InpaintingRequest) else None
        engine.admit(str(index), request, checkpoint, Inputs(image, mask))
    pictures: dict[int, np.ndarray] = {}
    while not engine.is_idle:
        for event in engine.step():
            assert not isinstance(event, Broken), (requests[int(event.job_id)], event.error)
            if isinstance(event, Drawn):
                pictures[int(event.job_id)] = event.pictures[0]
    return [pictures[index] for index in range(len(requests))]


Pipelines = dict[str, Any]
"""Task -> pipeline."""


def make_pipelines(folder: Path) -> Pipelines:
    text = diffusers.StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    return of_every_task(text, text.unet)


def make_pipelines_of_view(folder: Path) -> Pipelines:
    """The same for a 9-channel network, through its 4-channel view where that serves."""
    inpainting = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
        folder, use_safetensors=True, low_cpu_mem_usage=False
    )
    parts = inpainting.components | {"unet": four_channel_view(inpainting.unet)}
    text = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    return of_every_task(text, inpainting.unet)


def make_sdxl_pipelines(folder: Path) -> Pipelines:
    text = diffusers.StableDiffusionXLPipeline.from_pretrained(
        folder, use_safetensors=True, low_cpu_mem_usage=False, add_watermarker=False
    )
    parts = text.components | {"force_zeros_for_empty_prompt": True, "add_watermarker": False}
    return silent(
        {
            "text-to-image": text,
            "image-to-image": diffusers.StableDiffusionXLImg2ImgPipeline(**parts),
            "inpainting": diffusers.StableDiffusionXLInpaintPipeline(**parts),
        }
    )


def of_every_task(text: Any, inpainting_unet: Any) -> Pipelines:
    parts, unchecked = text.components, {"requires_safety_checker": False}
    pipelines = {
        "text-to-image": text,
        "image-to-image": diffusers.StableDiffusionImg2ImgPipeline(**parts, **unchecked),
        "inpainting": diffusers.StableDiffusionInpaintPipeline(**parts | {"unet": inpainting_unet}, **unchecked),
    }
    return silent(pipelines)


def silent(pipelines: Pipelines) -> Pipelines:
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    return pipelines


def draw_theirs(pipeline: Any, config: dict[str, Any], request: PictureRequest) -> np.ndarray:
    class_name, own = DIFFUSERS[request.sampler]
    settings = own | SCHEDULES[request.noise_schedule]
    scheduler = getattr(diffusers, class_name).from_config(config, **settings)
    options: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "generator": torch.Generator("cpu").manual_seed(request.seed),
    }
    if request.clip_skip:
        options["clip_skip"] = request.clip_skip
    if request.guidance_rescale:
        options["guidance_rescale"] = request.guidance_rescale
    if request.sampler == "tcd":
        options["eta"] = 0.3  # gamma of arXiv 2402.19159 and the scheduler's default; the pipelines' own default is 0
    if isinstance(request, ImageToImageRequest | InpaintingRequest):
        options |= {"image": make_upload(), "strength": request.strength}
    if isinstance(request, InpaintingRequest):
        options["mask_image"] = Image.fromarray(make_mask())
    if not isinstance(request, ImageToImageRequest):
        options |= {"width": request.width, "height": request.height}
    pipeline.scheduler = scheduler
    return np.asarray(pipeline(**options).images[0])


def measure(folder: Path, requests: list[PictureRequest], pipelines: Pipelines) -> dict[tuple[str, str, str], int]:
    """(task, sampler, noise schedule) -> largest difference in levels of 255."""
    ours = draw_ours(folder, requests)
    config = dict(pipelines["text-to-image"].scheduler.config)
    differences: dict[tuple[str, str, str], int] = {}
    for request, picture in zip(requests, ours, strict=True):
        task = request.model_dump()["task"]
        theirs = draw_theirs(pipelines[task], config, request)
        assert theirs.shape == picture.shape
        assert theirs.std() > 20, "a flat picture would prove nothing"
        worst = int(np.abs(theirs.astype(int) - picture.astype(int)).max())
        row = task, request.sampler, request.noise_schedule
        differences[row] = max(worst, differences.get(row, 0))
    return differences


def save_zero_snr_checkpoint(folder: Path) -> Path:
    """Velocity, zero terminal SNR, trailing timesteps (arXiv 2305.08891)."""
    save_tiny_checkpoint(folder, prediction_type="v_prediction")
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text()) | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    file.write_text(json.dumps(config))
    return folder


def make_shorter_requests() -> list[PictureRequest]:
    """Every task with every sampler, each with its first noise schedule."""
    return [
        request for request in make_requests() if request.noise_schedule == SAMPLERS[request.sampler].noise_schedules[0]
    ]


def make_zero_snr_requests() -> list[PictureRequest]:
    return [request for request in make_requests() if SAMPLERS[request.sampler].has_zero_terminal_snr]


def make_sdxl_requests() -> list[PictureRequest]:
    # diffusers skips layers for the prompt alone, we for the negative prompt, too: compared without one.
    return [
        request.model_copy(update={"clip_skip": int(request.negative_prompt is None and request.seed % 2)})
        for request in make_shorter_requests()
    ]


@dataclass(frozen=True)
class Case:
    """A network class: how its tiny checkpoint is made, with what it is compared, and what is asked of both."""

    save: Callable[[Path], Path]
    requests: Callable[[], list[PictureRequest]] = make_requests
    pipelines: Callable[[Path], Pipelines] = make_pipelines

    def measure(self, folder: Path) -> dict[tuple[str, str, str], int]:
        self.save(folder)
        return measure(folder, self.requests(), self.pipelines(folder))


CASES = {
    "SD, epsilon": Case(save_tiny_checkpoint),
    "SD, v": Case(partial(save_tiny_checkpoint, prediction_type="v_prediction")),
    "v, zero SNR": Case(save_zero_snr_checkpoint, make_zero_snr_requests),
    "SD, 9 channels": Case(save_tiny_inpainting_checkpoint, make_shorter_requests, make_pipelines_of_view),
    "SDXL": Case(save_tiny_sdxl_checkpoint, make_sdxl_requests, make_sdxl_pipelines),
    "told the guidance": Case(save_tiny_guided_checkpoint, make_shorter_requests),
}


@pytest.mark.parametrize("network", CASES)
def test_every_task_and_sampler_draws_what_the_diffusers_pipeline_draws(network: str, tmp_path: Path) -> None:
    differences = CASES[network].measure(tmp_path / "tiny")
    wrong = {key: worst for key, worst in differences.items() if worst > TOLERANCE}
    assert not wrong


def test_what_is_compared() -> None:
    for network in ("SD, epsilon", "SD, v", "SD, 9 channels", "SDXL", "told the guidance"):
        asked = {(request.model_dump()["task"], request.sampler) for request in CASES[network].requests()}
        assert asked == {(task, sampler) for task in DRAWN for sampler in DIFFUSERS}, "every one of the catalogue"
    assert set(DIFFUSERS) == set(SAMPLERS)
    zero_snr = make_zero_snr_requests()
    assert {request.sampler for request in zero_snr} >= {"ddim", "euler"}
    assert any(request.guidance_rescale and request.has_guidance for request in zero_snr)
    kinds = {
        (request.negative_prompt is None, request.has_guidance, request.clip_skip) for request in make_sdxl_requests()
    }
    assert kinds >= {(True, True, 0), (True, True, 1), (False, True, 0)}


def main() -> None:
    """Print the table of `docs/parity.md`."""
    columns = {}
    for network, case in CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            columns[network] = case.measure(Path(temporary) / "tiny")
    print(f"| sampler | noise schedule | {' | '.join(CASES)} |\n| --- | --- |{' --- |' * len(CASES)}")
    for sampler, entry in SAMPLERS.items():
        for schedule in entry.noise_schedules:
            cells = [
                " ".join(str(found.get((task, sampler, schedule), "")) for task in DRAWN).strip()
                for found in columns.values()
            ]
            print(f"| {sampler} | {schedule} | {' | '.join(cells)} |")
    print(f"\nmaximum {max(worst for found in columns.values() for worst in found.values())}")


if __name__ == "__main__":
    main()
