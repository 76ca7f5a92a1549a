"""A 9-channel network that draws from text alone: loaded, batched with neighbours, measured, and shown to diffusers."""

from __future__ import annotations

import inspect
import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from models.batch import step_together
from models.capacity import measure_rows
from models.checkpoint import Checkpoint, load_checkpoint
from models.denoiser import Denoiser, Rows
from models.device import choose_placement
from models.engine import Drawn, Engine, EngineSettings
from models.errors import CheckpointRefused
from models.four_channel_view import four_channel_view
from models.request import TextToImageRequest
from models.slot import Conditioning, GroupKey, Slot, SlotState
from tests.tiny import CONTEXT, SIDE, save_tiny_checkpoint, save_tiny_inpainting_checkpoint
from workers.catalogue import describe_model

CPU = choose_placement("cpu")
SIDE_OF_LATENTS = SIDE // 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_inpainting_checkpoint(tmp_path_factory.mktemp("models") / "nine")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder that the test may change."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint("nine", str(folder), CPU)


def load_unet(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False).eval()


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_request(prompt: str = "a cat", **changes: Any) -> TextToImageRequest:
    fields: dict[str, Any] = {
        "model": "nine",
        "prompt": prompt,
        "width": SIDE,
        "height": SIDE,
        "num_inference_steps": 6,
        "guidance_scale": 4.0,
        "sampler": "ddim",
        "noise_schedule": "default",
        "seed": 7,
        "num_images": 1,
    } | changes
    return TextToImageRequest(**fields)


def draw(checkpoint: Checkpoint, requests: list[TextToImageRequest]) -> list[np.ndarray]:
    engine = Engine(EngineSettings(max_rows=64, prepare_at_once=16))
    for index, request in enumerate(requests):
        engine.admit(str(index), request, checkpoint)
    pictures: dict[str, np.ndarray] = {}
    while not engine.is_idle:
        pictures |= {event.job_id: event.pictures[0] for event in engine.step() if isinstance(event, Drawn)}
    return [pictures[str(index)] for index in range(len(requests))]


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_nine_channel_checkpoint_is_catalogued_for_drawing_from_text_and_from_a_picture(
    checkpoint: Checkpoint,
) -> None:
    assert (checkpoint.denoiser.latent_channels, checkpoint.denoiser.extra_channels) == (4, 5)
    assert describe_model(checkpoint).tasks == ("text-to-image", "image-to-image", "inpainting")


def test_its_denoised_json_may_hold_defaults_beside_the_declaration(copy: Path) -> None:
    (copy / "denoised.json").write_text('{"text_to_image": "zero-channels", "guidance_scale": 3, "sampler": "euler"}')
    defaults = load_checkpoint("nine", str(copy), CPU).defaults
    assert (defaults.guidance_scale, defaults.sampler, defaults.width) == (3, "euler", SIDE)


@pytest.mark.parametrize("own", [None, {}])
def test_an_inpainting_network_that_does_not_declare_zeros_inpaints_and_nothing_else(copy: Path, own: object) -> None:
    (copy / "denoised.json").unlink()
    if own is not None:
        (copy / "denoised.json").write_text(json.dumps(own))
    assert load_checkpoint("nine", str(copy), CPU).tasks == ("inpainting",)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"text_to_image": "full-mask"}, "'full-mask'; only 'zero-channels' is known"),
        ({"text_to_image": ["zero-channels"]}, "only 'zero-channels' is known"),
        ([], "denoised.json is not a JSON object"),
    ],
)
def test_an_unknown_declaration_is_refused(copy: Path, own: object, words: str) -> None:
    (copy / "denoised.json").write_text(json.dumps(own))
    with pytest.raises(CheckpointRefused, match=words):
        load_checkpoint("nine", str(copy), CPU)


def change_unet_config(folder: Path, **changes: int) -> None:
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_four_channel_network_has_no_channels_to_declare(copy: Path) -> None:
    change_unet_config(copy, in_channels=4)
    with pytest.raises(CheckpointRefused, match="4 input channels"):
        load_checkpoint("four", str(copy), CPU)


@pytest.mark.parametrize(("channels", "out_channels"), [(7, 4), (8, 4), (9, 8), (4, 8)])
def test_any_other_number_of_channels_is_refused_with_the_known_ones(
    copy: Path, channels: int, out_channels: int
) -> None:
    change_unet_config(copy, in_channels=channels, out_channels=out_channels)
    with pytest.raises(CheckpointRefused, match=f"{channels} input and {out_channels} output channels.*with 9 and 4"):
        load_checkpoint("other", str(copy), CPU)


# --- in the running batch ---------------------------------------------------------------------------------------------


def test_different_requests_in_one_batch_are_what_they_are_alone(checkpoint: Checkpoint) -> None:
    samplers = ("ddim", "euler_ancestral", "dpmpp_2m", "heun", "lcm", "unipc")
    requests = [
        make_request(
            f"picture {index}", seed=index, sampler=sampler, num_inference_steps=4 + index, guidance_scale=scale
        )
        for index, (sampler, scale) in enumerate(zip(samplers, (1, 3, 7, 1, 4, 5), strict=True))
    ]
    together = draw(checkpoint, requests)
    for picture, request in zip(together, requests, strict=True):
        alone = draw(checkpoint, [request])[0]
        assert np.abs(picture.astype(int) - alone.astype(int)).max() <= 1
    assert min(np.abs(one.astype(int) - together[0]).max() for one in together[1:]) > 20


def make_slot(checkpoint: Checkpoint, prompt: str, extra: Tensor | None, sampler: str = "ddim") -> Slot:
    table = checkpoint.tables.get(sampler, "default", 6, None)
    positive, negative = checkpoint.conditioner.encode([prompt, ""])
    shape = (4, SIDE_OF_LATENTS, SIDE_OF_LATENTS)
    key = GroupKey(checkpoint.name, shape, CONTEXT)
    latents, registers = normal(3, *shape), torch.zeros((table.num_registers, *shape))
    generator = torch.Generator()
    state = SlotState(latents, registers, generator.get_state())
    return Slot(prompt, 0, key, table, Conditioning(positive, negative, 4.0, extra=extra), generator, state)


def step_of(checkpoint: Checkpoint, extras: list[Tensor | None], rows_at_once: int | None = None) -> list[Tensor]:
    """Latents after one step of slots that differ in prompt and extra channels, all in one call."""
    slots = [make_slot(checkpoint, f"prompt {index}", extra) for index, extra in enumerate(extras)]
    assert not step_together(checkpoint.denoiser, slots, rows_at_once)
    return [slot.latents for slot in slots]


def test_a_row_with_extra_channels_does_not_move_a_bit_of_its_neighbours(checkpoint: Checkpoint) -> None:
    extra = normal(4, 5, SIDE_OF_LATENTS, SIDE_OF_LATENTS)
    plain, mixed = step_of(checkpoint, [None, None, None]), step_of(checkpoint, [None, extra, None])
    assert torch.equal(mixed[0], plain[0])
    assert torch.equal(mixed[2], plain[2])
    assert (mixed[1] - plain[1]).abs().max() > 0.05, "the extra channels must reach the network"


def test_both_rows_of_a_guided_picture_get_its_extra_channels_unscaled(checkpoint: Checkpoint) -> None:
    extra = normal(4, 5, SIDE_OF_LATENTS, SIDE_OF_LATENTS)
    slots = [make_slot(checkpoint, "text", None, "euler"), make_slot(checkpoint, "extra", extra, "euler")]
    assert slots[0].table.input_scale[0] < 0.5, "a sampler that scales the latents"
    seen: list[Tensor] = []
    unet = checkpoint.denoiser.network
    handle = unet.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    step_together(checkpoint.denoiser, slots)
    handle.remove()
    (rows,) = seen
    zeros = torch.zeros_like(extra)
    assert torch.equal(rows[:, 4:], torch.stack([zeros, extra, zeros, extra]))
    assert torch.equal(rows[0, :4], normal(3, 4, SIDE_OF_LATENTS, SIDE_OF_LATENTS) * slots[0].table.input_scale[0])


@pytest.mark.parametrize("rows_at_once", [None, 1, 2, 5])
def test_each_row_gets_its_own_extra_channels_however_the_call_is_split(
    checkpoint: Checkpoint, rows_at_once: int | None
) -> None:
    extras = [None, *(normal(seed, 5, SIDE_OF_LATENTS, SIDE_OF_LATENTS) for seed in (5, 6)), None]
    together = step_of(checkpoint, extras, rows_at_once)
    for index, extra in enumerate(extras):
        slot = make_slot(checkpoint, f"prompt {index}", extra)
        step_together(checkpoint.denoiser, [slot])
        torch.testing.assert_close(together[index], slot.latents, atol=2e-4, rtol=1e-3)


def test_a_network_of_latents_only_is_never_given_more(tmp_path: Path) -> None:
    denoiser = Denoiser(load_unet(save_tiny_checkpoint(tmp_path / "four")))
    with pytest.raises(AssertionError, match="latents only"):
        denoiser.predict(
            Rows(normal(1, 1, 4, 8, 8), torch.ones(1), normal(2, 1, CONTEXT, 32), extras=[normal(3, 5, 8, 8)])
        )


def test_its_rows_are_measured_like_any_others(checkpoint: Checkpoint) -> None:
    assert 2 <= measure_rows(checkpoint, 4, 1.0) <= 4
    assert 2 <= Engine(EngineSettings(max_rows=4)).warm_up(checkpoint) <= 4


# --- in diffusers -----------------------------------------------------------------------------------------------------


def test_the_view_is_the_network_with_zeros_and_shares_its_weights(folder: Path) -> None:
    unet = load_unet(folder)
    view = four_channel_view(unet)
    assert (view.config.in_channels, unet.config.in_channels) == (4, 9)
    assert torch.equal(view.conv_in.weight, unet.conv_in.weight[:, :4])
    own = dict(view.named_parameters())
    assert own.keys() == dict(unet.named_parameters()).keys()
    assert [name for name, parameter in unet.named_parameters() if own[name] is not parameter] == ["conv_in.weight"]
    latents, context = normal(1, 2, 4, SIDE_OF_LATENTS, SIDE_OF_LATENTS), normal(2, 2, CONTEXT, 32)
    timesteps = torch.tensor([100.0, 900.0])
    with torch.no_grad():
        padded = torch.cat([latents, torch.zeros(2, 5, SIDE_OF_LATENTS, SIDE_OF_LATENTS)], dim=1)
        torch.testing.assert_close(view(latents, timesteps, context).sample, unet(padded, timesteps, context).sample)


def test_the_view_can_be_saved_as_a_network_of_its_own(folder: Path, tmp_path: Path) -> None:
    view = four_channel_view(load_unet(folder))
    view.save_pretrained(tmp_path / "unet")
    again = load_unet(tmp_path)
    assert again.config.in_channels == 4
    assert torch.equal(again.conv_in.weight, view.conv_in.weight)


def test_a_network_without_extra_channels_has_no_view(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Use it as it is"):
        four_channel_view(load_unet(save_tiny_checkpoint(tmp_path / "four")))


def test_the_example_of_the_view_runs_and_draws_the_servers_picture(
    folder: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = inspect.getdoc(four_channel_view) or ""
    code = textwrap.dedent(text[text.index("    from diffusers") :])
    # Only so that the noise is known: the example leaves it to chance.
    call = diffusers.StableDiffusionPipeline.__call__

    def seeded(self: object, *arguments: Any, **options: Any) -> Any:
        return call(self, *arguments, **options, generator=torch.Generator().manual_seed(11))

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "__call__", seeded)
    names: dict[str, Any] = {"folder": folder}
    exec(code, names)
    request = make_request("a red apple", num_inference_steps=25, seed=11, sampler="pndm")
    ours, theirs = draw(checkpoint, [request])[0], np.asarray(names["picture"])
    assert theirs.std() > 20
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 2


def test_diffusers_inpaints_with_the_folder_as_it_is(folder: Path) -> None:
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    assert pipeline.unet.config.in_channels == 9
    pipeline.set_progress_bar_config(disable=True)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[:, SIDE // 2 :] = 255
    picture = pipeline(
        "a cat",
        image=Image.fromarray(pixels),
        mask_image=Image.fromarray(mask),
        width=SIDE,
        height=SIDE,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert picture.size == (SIDE, SIDE)
    assert np.asarray(picture).std() > 20
