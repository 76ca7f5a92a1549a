"""Inpainting in the running batch: what is kept of the picture at every step, and what each network is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.autoencoder import Autoencoder
from models.batch import step_together
from models.checkpoint import Checkpoint, load_checkpoint
from models.denoiser import Denoiser, Rows
from models.device import choose_placement
from models.engine import Drawn, Engine
from models.prepare import Inputs, step_table_of
from models.request import InpaintingRequest, PictureRequest, TextToImageRequest
from models.slot import Conditioning, GroupKey, Slot, SlotState
from models.start import encode_uploads, start
from tests.tiny import SIDE, save_tiny_checkpoint, save_tiny_inpainting_checkpoint

UPLOAD = f"sha256:{'0' * 64}"
SHAPE = (4, SIDE // 8, SIDE // 8)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "four")
    return load_checkpoint("four", str(folder), choose_placement("cpu"))


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder: Path = save_tiny_inpainting_checkpoint(tmp_path_factory.mktemp("models") / "nine")
    return load_checkpoint("nine", str(folder), choose_placement("cpu"))


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "model": "tiny",
        "prompt": "a cat",
        "width": SIDE,
        "height": SIDE,
        "num_inference_steps": 8,
        "guidance_scale": 3.0,
        "sampler": "euler",
        "noise_schedule": "default",
        "seed": 3,
        "num_images": 1,
    } | changes


def inpainting(**changes: Any) -> InpaintingRequest:
    own = {"image": UPLOAD, "mask_image": UPLOAD, "strength": 1.0, "mask_blur": 0}
    return InpaintingRequest(**fields(**(own | changes)))


def picture() -> Image.Image:
    coarse = np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def left_half() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[:, : SIDE // 2] = True
    return mask


def slot_of(checkpoint: Checkpoint, request: InpaintingRequest, mask: np.ndarray) -> Slot:
    table = step_table_of(request, checkpoint)
    has_channels = checkpoint.denoiser.extra_channels > 0
    encoded = encode_uploads(checkpoint.autoencoder, request, picture(), mask, has_channels)
    generator = torch.Generator().manual_seed(request.seed)
    begun = start(table, encoded, request.strength, SHAPE, generator)
    states = checkpoint.conditioner.encode([request.prompt, ""])
    conditioning = Conditioning(states[0], states[1], request.guidance_scale, extra=begun.extra)
    registers = torch.zeros(table.num_registers, *SHAPE)
    key = GroupKey(checkpoint.name, SHAPE, checkpoint.conditioner.context_length())
    state = SlotState(begun.latents, registers, generator.get_state())
    return Slot("job", 0, key, table, conditioning, generator, state, begun.known)


def draw(checkpoint: Checkpoint, *jobs: tuple[PictureRequest, np.ndarray | None]) -> list[np.ndarray]:
    engine = Engine()
    for index, (request, mask) in enumerate(jobs):
        engine.admit(str(index), request, checkpoint, Inputs(None if mask is None else picture(), mask))
    pictures: dict[str, np.ndarray] = {}
    while not engine.is_idle:
        pictures |= {event.job_id: event.pictures[0] for event in engine.step() if isinstance(event, Drawn)}
    return [pictures[str(index)] for index in range(len(jobs))]


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "euler_ancestral"])
def test_blending_keeps_what_is_known_at_the_noise_of_every_step(four: Checkpoint, sampler: str) -> None:
    slot = slot_of(four, inpainting(sampler=sampler), left_half())
    known = slot.known
    assert known is not None
    kept = (~known.is_drawn).expand(SHAPE)
    while not slot.is_done:
        step_together(four.denoiser, [slot])
        signal, noise = slot.table.signal_scale[slot.step], slot.table.noise_scale[slot.step]
        assert torch.equal(slot.latents[kept], (signal * known.latents + noise * known.noise)[kept])
        assert slot.predicted_x0 is not None
        assert torch.equal(slot.predicted_x0[kept], known.latents[kept]), "a preview would show noise there"
    assert torch.equal(slot.latents[kept], known.latents[kept]), "the last step leaves the picture clean"


def test_a_network_with_channels_is_shown_the_mask_and_the_picture_with_a_hole(nine: Checkpoint) -> None:
    mask = left_half()
    slot = slot_of(nine, inpainting(), mask)
    assert slot.known is None
    extra = slot.conditioning.extra
    assert extra is not None
    assert extra.shape == (5, *SHAPE[1:])
    assert torch.equal(extra[0] > 0, torch.from_numpy(mask[::8, ::8]))
    holed = nine.autoencoder.encode(picture(), SIDE, SIDE, hole=mask)
    assert ((extra[1:] - holed.mean * holed.scaling_factor).abs() <= 6 * holed.std * holed.scaling_factor).all()


class _Counting(Autoencoder):
    """The real one, and how often it encoded."""

    def __init__(self, inner: Autoencoder) -> None:
        self.__dict__ = inner.__dict__
        self.calls = 0

    def encode(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return super().encode(*arguments, **options)


@pytest.mark.parametrize(("has_channels", "strength", "calls"), [(True, 1.0, 1), (True, 0.5, 2), (False, 1.0, 1)])
def test_nothing_is_encoded_that_is_not_looked_at(
    four: Checkpoint, has_channels: bool, strength: float, calls: int
) -> None:
    counting = _Counting(four.autoencoder)
    encode_uploads(counting, inpainting(strength=strength), picture(), left_half(), has_channels)
    assert counting.calls == calls


def test_a_line_between_the_corners_of_all_patches_is_drawn_all_the_same(four: Checkpoint) -> None:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[13, 5:40] = True
    slot = slot_of(four, inpainting(), mask)
    assert slot.known is not None
    expected = torch.zeros(1, SIDE // 8, SIDE // 8, dtype=torch.bool)
    expected[0, 1, :5] = True
    assert torch.equal(slot.known.is_drawn, expected)


@pytest.mark.parametrize("which", ["four", "nine"])
def test_tasks_of_one_network_share_its_calls_and_do_not_touch_each_other(
    which: str, request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(which)
    jobs: list[tuple[PictureRequest, np.ndarray | None]] = [
        (inpainting(seed=1), left_half()),
        (inpainting(seed=2, strength=0.6, sampler="dpmpp_2m", guidance_scale=1.0), ~left_half()),
        (TextToImageRequest(**fields(seed=3, sampler="heun")), None),
        (inpainting(seed=4, sampler="unipc", num_inference_steps=12), left_half().T),
    ]
    together = draw(checkpoint, *jobs)
    for job, picture_there in zip(jobs, together, strict=True):
        (alone,) = draw(checkpoint, job)
        assert np.abs(alone.astype(int) - picture_there.astype(int)).max() <= 1


def test_a_batch_takes_as_many_calls_as_its_longest_job(four: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    predict = Denoiser.predict

    def counted(self: Denoiser, rows: Rows) -> Tensor:
        calls.append(len(rows))
        return predict(self, rows)

    monkeypatch.setattr(Denoiser, "predict", counted)
    draw(four, (TextToImageRequest(**fields(num_inference_steps=8)), None), (inpainting(), left_half()))
    assert calls == [4] * 8
