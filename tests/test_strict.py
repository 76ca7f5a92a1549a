"""Strict pictures: the same bytes whatever shares the batch, whatever its size, and in which order all came.

`python -m tests.test_strict 500` draws so many random mixes of each network; the tests draw a few dozen.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.autoencoder import Autoencoder
from models.batch import step_together
from models.checkpoint import Checkpoint, load_checkpoint
from models.control_files import ControlFiles
from models.denoiser import Denoiser, Rows
from models.device import choose_placement
from models.engine import Broken, Drawn, Engine, EngineSettings
from models.lora_files import LoraFiles
from models.prepare import Inputs, prepare, step_table_of
from models.request import (
    ImageToImageRequest,
    InpaintingRequest,
    PictureRequest,
    TextToImageRequest,
    UpscaleRequest,
)
from models.samplers import SAMPLERS
from models.slot import Slot
from tests.test_control import edges
from tests.test_engine import make_upload
from tests.test_lora import kohya, matrices
from tests.test_parity import UPLOAD
from tests.tiny import (
    save_tiny_checkpoint,
    save_tiny_controlnet,
    save_tiny_inpainting_checkpoint,
    save_tiny_sdxl_checkpoint,
    save_tiny_upscaler,
)

MIXES = 5
"""Of each network, in a test."""


class Studio:
    """A network with what requests may name beside it."""

    def __init__(self, save: Callable[[Path], Path], folder: Path) -> None:
        self.checkpoint: Checkpoint = load_checkpoint("tiny", str(save(folder / "tiny")), choose_placement("cpu"))
        self.names: tuple[str, ...] = ()
        self._folder = folder
        if save is save_tiny_checkpoint:
            (folder / "loras").mkdir()
            for seed in range(2):
                save_file(kohya(matrices(self.checkpoint, seed)), folder / "loras" / f"lora{seed}.safetensors")
                save_tiny_controlnet(folder / "tiny", folder / "controlnets" / f"net{seed}", seed=seed)
            self.names = ("0", "1")
        self._loras, self._controlnets = LoraFiles(folder / "loras"), ControlFiles(folder / "controlnets")

    def inputs_of(self, request: PictureRequest) -> Inputs:
        needs_image = not isinstance(request, TextToImageRequest)
        image = make_upload(request.seed, request.width // 4, request.height // 4) if needs_image else None
        mask = None
        if isinstance(request, InpaintingRequest):
            mask = np.zeros((request.height, request.width), np.bool_)
            mask[8 : 32 + request.seed % 8, 16:40] = True
        nets = self._controlnets.of(request, self.checkpoint) if request.controls else ()
        pictures = tuple((net, edges(request.seed, request.width, request.height)) for net in nets)
        loras = self._loras.of(request, self.checkpoint) if request.loras else ()
        return Inputs(image, mask, loras=loras, controlnets=pictures)

    def request(self, random: random.Random, reproducibility: str) -> PictureRequest:
        """Anything that this network draws, in a few steps."""
        sampler = random.choice(sorted(SAMPLERS))
        fields: dict[str, Any] = {
            "model": "tiny",
            "prompt": random.choice(["a cat", "a dog, (red:1.3)", "", "one two three four five six seven eight nine"]),
            "negative_prompt": random.choice([None, "blurry"]),
            "width": random.choice([64, 64, 96]),
            "height": 64,
            "num_inference_steps": random.randint(2, 5),
            "guidance_scale": random.choice([1.0, 3.0, 7.5]),
            "guidance_rescale": random.choice([0.0, 0.0, 0.7]),
            "sampler": sampler,
            "noise_schedule": random.choice(SAMPLERS[sampler].noise_schedules),
            "seed": random.randrange(1000),
            "num_images": random.choice([1, 1, 2]),
            "reproducibility": reproducibility,
        }
        if self.checkpoint.upscaling:
            size = {"width": random.choice([128, 160]), "height": 128, "num_images": 1}
            return UpscaleRequest(**fields | size, image=UPLOAD, noise_level=random.choice([0, 20]))
        if self.names and random.random() < 0.3:
            fields["loras"] = [{"name": f"lora{random.choice(self.names)}", "weight": random.choice([0.5, 1.0])}]
        if self.names and random.random() < 0.3:
            fields["controls"] = [{"name": f"net{random.choice(self.names)}", "image": UPLOAD, "end": 0.8}]
        task = random.choice(["text", "image", "hole"])
        if task == "text":
            return TextToImageRequest(**fields)
        if task == "image":
            return ImageToImageRequest(**fields, image=UPLOAD, strength=0.7)
        return InpaintingRequest(**fields, image=UPLOAD, mask_image=UPLOAD, strength=0.8, mask_blur=0)

    def draw(self, requests: list[PictureRequest], settings: EngineSettings, ticks: list[int]) -> list[Drawn]:
        """Each request joins at its own tick."""
        engine, events, waiting = Engine(settings), {}, sorted(zip(ticks, range(len(requests)), strict=True))
        tick = 0
        while waiting or not engine.is_idle:
            while waiting and (waiting[0][0] <= tick or engine.is_idle):
                index = waiting.pop(0)[1]
                engine.admit(str(index), requests[index], self.checkpoint, self.inputs_of(requests[index]))
            for event in engine.step():
                assert not isinstance(event, Broken), event.error
                if isinstance(event, Drawn):
                    events[event.job_id] = event
            tick += 1
        return [events[str(index)] for index in range(len(requests))]

    def draw_alone(self, request: PictureRequest) -> Drawn:
        return self.draw([request], EngineSettings(), [0])[0]


NETWORKS: dict[str, Callable[[Path], Path]] = {
    "SD": save_tiny_checkpoint,
    "SD, 9 channels": save_tiny_inpainting_checkpoint,
    "SDXL": save_tiny_sdxl_checkpoint,
    "x4 upscaler": save_tiny_upscaler,
}


def count_differences(studio: Studio, mixes: int, reproducibility: str, seed: int = 0) -> tuple[int, int]:
    """Pictures drawn in random company whose bytes are not those drawn alone, and how many were drawn."""
    random_ = random.Random(seed)
    pool = [studio.request(random_, reproducibility) for _ in range(12)]
    alone = [studio.draw_alone(request) for request in pool]
    different = drawn = 0
    for _ in range(mixes):
        chosen = random_.sample(range(len(pool)), random_.randint(1, 6))
        others = [studio.request(random_, "standard") for _ in range(random_.randint(0, 4))]
        mixed = [pool[index] for index in chosen] + others
        settings = EngineSettings(
            max_rows=random_.randint(2, 24), decode_at_once=random_.randint(1, 8), prepare_at_once=random_.randint(1, 4)
        )
        found = studio.draw(mixed, settings, [random_.randint(0, 5) for _ in mixed])
        for index, event in zip(chosen, found, strict=False):
            assert event.is_exact == (reproducibility == "strict")
            for own, expected in zip(event.pictures, alone[index].pictures, strict=True):
                different += not np.array_equal(own, expected)
                drawn += 1
    return different, drawn


@pytest.fixture(scope="module", params=NETWORKS)
def studio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(NETWORKS[request.param], tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(save_tiny_checkpoint, tmp_path_factory.mktemp("sd"))


def test_in_any_company_a_strict_picture_has_the_bytes_that_it_has_alone(studio: Studio) -> None:
    mixes = 2 if studio.checkpoint.upscaling else MIXES
    different, drawn = count_differences(studio, mixes, "strict")
    assert different == 0
    assert drawn > mixes


def slots_of(studio: Studio, requests: list[PictureRequest]) -> list[Slot]:
    slots: list[Slot] = []
    for index, request in enumerate(requests):
        table = step_table_of(request, studio.checkpoint)
        slots += prepare(str(index), request, studio.checkpoint, studio.inputs_of(request), table).slots
    return slots


def make_alike(reproducibility: str) -> list[PictureRequest]:
    """Requests of one group."""
    return [
        TextToImageRequest.model_validate(
            {
                "model": "tiny",
                "prompt": "a cat",
                "width": 64,
                "height": 64,
                "num_inference_steps": 4,
                "guidance_scale": 1.0 + number % 3,
                "guidance_rescale": 0.7 * (number % 2),
                "sampler": "euler_ancestral",
                "noise_schedule": "default",
                "seed": number,
                "num_images": 1,
                "reproducibility": reproducibility,
            }
        )
        for number in range(7)
    ]


def latents_after(studio: Studio, requests: list[PictureRequest], rows_exactly: int | None) -> list[torch.Tensor]:
    slots = slots_of(studio, requests)
    for _ in range(4):
        assert not step_together(studio.checkpoint.denoiser, slots, rows_exactly=rows_exactly)
    return [slot.latents for slot in slots]


@pytest.mark.parametrize("rows", [2, 3, 8])
def test_latents_are_the_same_to_the_last_bit_in_calls_of_one_size(sd: Studio, rows: int) -> None:
    requests = make_alike("strict")
    together = latents_after(sd, requests, rows)
    for request, expected in zip(requests, together, strict=True):
        assert torch.equal(latents_after(sd, [request], rows)[0], expected)


def test_without_that_they_are_not(sd: Studio) -> None:
    """Or the tests above would prove nothing."""
    requests = make_alike("standard")
    together = latents_after(sd, requests, None)
    alone = [latents_after(sd, [request], None)[0] for request in requests]
    assert not all(torch.equal(own, expected) for own, expected in zip(alone, together, strict=True))


def test_memory_that_does_not_suffice_for_the_form_costs_the_form_and_not_the_picture(
    sd: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_alike("strict")[1]
    expected = sd.draw_alone(request)
    predict, calls = Denoiser.predict, []

    def fail_twice(denoiser: Denoiser, rows: Rows) -> torch.Tensor:
        calls.append(len(rows))
        if len(rows) > 1 and len(calls) < 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(denoiser, rows)

    monkeypatch.setattr(Denoiser, "predict", fail_twice)
    event = sd.draw_alone(request)
    assert 1 in calls
    assert not event.is_exact
    assert np.abs(event.pictures[0].astype(int) - expected.pictures[0]).max() <= 1


@pytest.mark.parametrize("method", ["_encode_whole", "_decode_whole"])
def test_an_autoencoder_that_must_make_do_with_tiles_says_so(
    sd: Studio, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    fields = make_alike("strict")[1].model_dump() | {"width": 384, "height": 384, "num_inference_steps": 2}
    request = ImageToImageRequest(**{**fields, "task": "image-to-image"}, image=UPLOAD, strength=1.0)
    assert sd.draw_alone(request).is_exact
    whole = getattr(Autoencoder, method)
    limit = 300 if method == "_encode_whole" else 40

    def fail_for_large(autoencoder: Autoencoder, tensor: torch.Tensor) -> Any:
        if tensor.shape[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(autoencoder, tensor)

    monkeypatch.setattr(Autoencoder, method, fail_for_large)
    assert not sd.draw_alone(request).is_exact


def main(mixes: int) -> None:
    for name, save in NETWORKS.items():
        with tempfile.TemporaryDirectory() as temporary:
            studio = Studio(save, Path(temporary))
            for reproducibility in ("strict", "standard"):
                different, drawn = count_differences(studio, mixes, reproducibility, seed=1)
                print(f"{name}, {reproducibility}: {different} of {drawn} pictures in {mixes} mixes differ", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
