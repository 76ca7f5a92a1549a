"""The upscaler's trainers: matching pictures, steps, resuming, and what diffusers makes of the result."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionUpscalePipeline
from diffusers.models.attention_processor import Attention
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, CLIPTextModel

from tests.tiny import save_tiny_checkpoint
from training.pictures import to_pixels, to_tensor
from training.settings import FOLDER, load
from training.upscaler import autoencoder_run, denoiser_run, main
from training.upscaler_data import (
    Batches,
    Pairs,
    ViewSettings,
    reduced,
    through_jpeg,
    turned,
)
from training.upscaler_model import (
    SCALING,
    AutoencoderSettings,
    DenoiserSettings,
    fit_to_pipeline,
    new_upscaler_autoencoder,
    new_upscaler_unet,
)
from training.upscaler_pictures import Drawing, PictureSettings, read_drawings, write_pictures, write_soft
from training.upscaler_tasks import DenoiserTask

TINY = """
[views]
crop = 32
whole_share = 0.0
jpeg_share = 0.5

[autoencoder]
channels = [8, 8, 8]

[denoiser]
channels = [8, 8]
layers = 1
groups = 4
max_noise_level = 30
default_steps = 2
report_side = 64

[autoencoder_loop]
steps = 4
batch_size = 2
learning_rate = 1e-3

[denoiser_loop]
steps = 4
batch_size = 2
learning_rate = 1e-3

[hardware]
device = "cpu"
"""
PLACES = np.stack(np.broadcast_arrays(*np.ogrid[:128, :128], 0), -1).astype(np.uint8)
"""A small picture [128, 128, 3] whose colours say where each pixel is."""


def discs(broken: str = "") -> list[Drawing]:
    """Drawings of two discs; the one called `broken` is no SVG."""
    splits = ["val", "val", "train", "train", "train"]
    return [
        Drawing(f"disc-{row}", split, "no drawing" if broken == f"disc-{row}" else disc(row))
        for row, split in enumerate(splits)
    ]


def disc(row: int) -> str:
    small = f'<circle cx="50" cy="50" r="6" fill="rgb({40 * row},200,90)"/>'
    large = f'<circle cx="{40 + 5 * row}" cy="50" r="40" fill="rgb({40 * row},0,90)"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">{large}{small}</svg>'


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three pictures to learn from and two held out, with soft small versions."""
    folder = tmp_path_factory.mktemp("pictures")
    settings = PictureSettings(count=3, held_out=2)
    write_pictures(discs(), settings, folder)
    torch.manual_seed(0)
    write_soft(folder, new_upscaler_autoencoder(AutoencoderSettings((8, 8, 8))).eval(), settings)
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "upscaler.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: Path, settings: Path) -> Path:
    """A run folder with both stages, made and exported (to `checkpoint`) by the commands."""
    folder = tmp_path_factory.mktemp("run")
    for stage in ("autoencoder", "denoiser"):
        run_command(stage, "--pictures", pictures, "--run", folder, "--settings", settings)
    run_command("export", folder, folder / "checkpoint", "--pictures", pictures, "--settings", settings)
    return folder


def run_command(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["upscaler", *(str(argument) for argument in arguments)])
        main()


def start(stage: str, pictures: Path, folder: Path, settings: Path) -> Any:
    """A new or resumed run of one stage; the second gets an autoencoder of random weights."""
    if stage == "autoencoder":
        return autoencoder_run(pictures, folder, settings)
    if not (folder / "vae").exists():
        torch.manual_seed(1)
        new_upscaler_autoencoder(AutoencoderSettings((8, 8, 8))).save_pretrained(folder / "vae")
    return denoiser_run(pictures, folder, settings)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


def operations(model: nn.Module, *inputs: torch.Tensor | None, **named: torch.Tensor) -> float:
    """GFLOP of one call."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(*inputs, **named)
    return counter.get_total_flops() / 1e9


def test_the_shipped_networks_keep_their_budgets() -> None:
    file = FOLDER / "upscaler.toml"
    with torch.device("meta"):
        unet = new_upscaler_unet(load(file, "denoiser", DenoiserSettings))
        autoencoder = new_upscaler_autoencoder(load(file, "autoencoder", AutoencoderSettings))
        level, small = torch.zeros(1, dtype=torch.long), torch.empty(1, 7, 128, 128)
        call = operations(unet, small, torch.zeros(1), None, class_labels=level)
        decoding = operations(autoencoder.decoder, torch.empty(1, 4, 128, 128))
    size = sum(p.numel() for network in (unet, autoencoder) for p in network.parameters())

    assert 30 < call < 40
    assert 25 < decoding < 35
    assert 10 * call + decoding < 450, "ten steps at 100 GFLOP/s would not be done in five seconds"
    assert size < 4_000_000, "8 MB in float16"
    assert not [m for network in (unet, autoencoder) for m in network.modules() if isinstance(m, Attention)]


@pytest.mark.parametrize("whole_share", [0.0, 1.0], ids=["crops", "whole pictures"])
@pytest.mark.parametrize("is_soft", [False, True], ids=["clean", "soft"])
def test_true_and_small_squares_show_the_same_place_in_every_orientation(is_soft: bool, whole_share: float) -> None:
    true = PLACES.repeat(4, axis=0).repeat(4, axis=1)[None]  # [1, 512, 512, 3]
    soft = PLACES[None] + np.array([0, 0, 255], np.uint8)
    pairs = Pairs(true, soft if is_soft else None, [{"id": "places", "split": "train"}])
    batches = Batches(pairs, ViewSettings(32, whole_share, soft_share=1.0, jpeg_share=0.0), size=40)

    high, low = batches.draw(np.random.default_rng(0))

    assert high.shape == ((1, 512, 512, 3) if whole_share else (40, 32, 32, 3))
    assert np.array_equal(low[..., :2], high[:, ::4, ::4, :2])
    assert (low[..., 2] == (255 if is_soft else 0)).all()
    if not whole_share:
        corners = {tuple(square[0, 0]) for square in high}
        assert len(corners) > 30


def test_a_square_can_be_laid_down_in_eight_ways() -> None:
    assert len({turned(PLACES, turn).tobytes() for turn in range(8)}) == 8
    assert turned(PLACES, 0) is PLACES


def test_a_small_pixel_is_the_mean_of_the_sixteen_it_covers() -> None:
    true = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    assert np.array_equal(reduced(true)[1, 2], np.floor(true[4:, 8:].mean((0, 1)) + 0.5))


def test_jpeg_changes_a_picture_a_little() -> None:
    spoilt = through_jpeg(PLACES, 80).astype(int)
    assert 0 < abs(spoilt - PLACES).mean() < 4


def test_pictures_are_drawn_from_their_split_and_the_same_after_an_interruption(tmp_path: Path) -> None:
    settings = PictureSettings(count=3, held_out=1, smaller_share=0.5)
    write_pictures(discs(), settings, tmp_path / "one")
    write_pictures(discs(), settings, tmp_path / "two")
    lines = (tmp_path / "two" / "index.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "two" / "index.jsonl").write_text("".join(lines[:2]))
    np.load(tmp_path / "two" / "high.npy", mmap_mode="r+")[2:] = 0
    with pytest.raises(ValueError, match="2 of 4 pictures"):
        Pairs.open(tmp_path / "two")

    write_pictures(discs(), settings, tmp_path / "two")

    one, two = Pairs.open(tmp_path / "one"), Pairs.open(tmp_path / "two")
    assert [record["split"] for record in one.records] == ["val"] + ["train"] * 3
    assert one.records == two.records
    assert np.array_equal(one.high, two.high)
    assert len({picture.tobytes() for picture in one.high}) == 4


def test_a_drawing_that_cannot_be_rendered_is_passed_over(tmp_path: Path) -> None:
    write_pictures(discs(broken="disc-3"), PictureSettings(count=3, held_out=1), tmp_path)
    assert {record["id"] for record in Pairs.open(tmp_path).records[1:]} == {"disc-2", "disc-4"}


def test_drawings_are_the_records_whose_package_holds_a_vector_picture(tmp_path: Path) -> None:
    package = tmp_path / "node_modules" / "@iconify-json" / "twemoji"
    package.mkdir(parents=True)
    icons = {name: {"body": f'<path id="{name}"/>'} for name in ("fox", "cat", "owl")}
    (package / "icons.json").write_text(json.dumps({"prefix": "twemoji", "icons": icons}))
    of_sources = {"twemoji": ["fox", "owl", "gone"], "noto": ["fox"]}
    splits = {"fox": "train", "owl": "val", "gone": "train"}
    records = [
        {"id": f"{source}/{name}", "src": source, "path": name, "paint": None, "split": splits[name]}
        for source, names in of_sources.items()
        for name in names
    ]

    drawings = read_drawings(tmp_path, records)

    assert [(drawing.identity, drawing.split) for drawing in drawings] == [
        ("twemoji/fox", "train"),
        ("twemoji/owl", "val"),
    ]
    assert 'id="owl"' in drawings[1].svg


def test_a_folder_of_another_number_of_pictures_is_refused(tmp_path: Path) -> None:
    write_pictures(discs(), PictureSettings(count=1, held_out=1), tmp_path)
    with pytest.raises(ValueError, match="give another folder"):
        write_pictures(discs(), PictureSettings(count=2, held_out=1), tmp_path)


def test_soft_pictures_are_what_the_autoencoder_makes_of_the_small_ones(tmp_path: Path) -> None:
    settings = PictureSettings(count=1, held_out=1, latent_noise=0.0)
    torch.manual_seed(0)
    autoencoder = new_upscaler_autoencoder(AutoencoderSettings((8, 8, 8))).eval()
    write_pictures(discs(), settings, tmp_path)
    write_soft(tmp_path, autoencoder, settings)

    pairs = Pairs.open(tmp_path)
    with torch.inference_mode():
        again = autoencoder(to_tensor(reduced(pairs.high[1])[None])).sample
    assert pairs.soft is not None
    assert abs(pairs.soft[1].astype(int) - to_pixels(again)[0]).max() <= 1


@pytest.mark.parametrize("stage", ["autoencoder", "denoiser"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    stage: str, pictures: Path, settings: Path, tmp_path: Path
) -> None:
    whole = start(stage, pictures, tmp_path / "whole", settings)
    untrained = weights(whole.task.model)
    whole.train()
    first = start(stage, pictures, tmp_path / "parts", settings)
    first.train(until=lambda: first.step == 2)
    second = start(stage, pictures, tmp_path / "parts", settings)
    assert second.step == 2
    second.train()

    assert not differences(weights(whole.task.model), weights(second.task.model))
    assert not differences(weights(whole.averaged), weights(second.averaged))
    assert differences(untrained, weights(whole.task.model)) == list(untrained), "some weights never learn"


@pytest.mark.parametrize("stage", ["autoencoder", "denoiser"])
def test_a_step_in_bfloat16_is_close_to_one_in_float32(
    stage: str, pictures: Path, settings: Path, tmp_path: Path
) -> None:
    task = start(stage, pictures, tmp_path, settings).task
    losses = []
    for is_half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            loss, _ = task.loss(0, np.random.default_rng(0))
        loss.backward()
        losses.append(loss.item())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_noise_levels_of_small_pictures_are_mostly_light_and_never_above_the_limit(pictures: Path) -> None:
    batches = Batches(Pairs.open(pictures), ViewSettings(crop=32), 2)
    tiny = DenoiserSettings((8, 8), 1, 4, max_noise_level=30, report_side=64)
    task = DenoiserTask(batches, new_upscaler_autoencoder(AutoencoderSettings((8, 8, 8))), tiny)
    levels = task._levels(4000, np.random.default_rng(0))
    assert set(levels.tolist()) == set(range(31))
    assert levels.float().median() < 10


def test_the_latents_are_brought_to_unit_variance_without_changing_pictures() -> None:
    torch.manual_seed(0)
    autoencoder = new_upscaler_autoencoder(AutoencoderSettings((8, 8, 8))).eval()
    squares = to_tensor(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8))
    with torch.no_grad():
        before = autoencoder.encode(squares).latent_dist
        pictures = autoencoder.decode(before.mean).sample
        fit_to_pipeline(autoencoder, squares)
        after = autoencoder.encode(squares).latent_dist
        latents = after.mean * SCALING

    assert autoencoder.config.scaling_factor == SCALING
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(autoencoder.decode(after.mean).sample, pictures, atol=1e-4, rtol=1e-4)
    relative = after.std / after.mean.std((0, 2, 3), keepdim=True)
    torch.testing.assert_close(relative, before.std / before.mean.std((0, 2, 3), keepdim=True), atol=1e-4, rtol=1e-3)


def test_the_commands_leave_figures_and_a_sheet(trained: Path) -> None:
    figures = [json.loads(line) for line in (trained / "denoiser" / "log.jsonl").read_text().splitlines()]
    names = {"ceiling", "clean", "clean_bicubic", "soft", "soft_bicubic"}
    assert set(figures[-1]) == {"step"} | {f"{name}_psnr_db" for name in names}
    assert figures[-1]["clean_bicubic_psnr_db"] > figures[-1]["soft_bicubic_psnr_db"]
    with Image.open(trained / "denoiser" / "sheets" / "0000004.png") as sheet:
        assert sheet.size == (4 * 64, 2 * 64)


def test_an_autoencoder_is_not_trained_under_a_denoiser(trained: Path, pictures: Path, settings: Path) -> None:
    with pytest.raises(ValueError, match="train in another folder"):
        autoencoder_run(pictures, trained, settings)


def test_a_denoiser_needs_an_autoencoder(pictures: Path, settings: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `autoencoder` first"):
        denoiser_run(pictures, tmp_path, settings)


def test_training_goes_on_from_an_exported_checkpoint(
    trained: Path, pictures: Path, settings: Path, tmp_path: Path
) -> None:
    run = denoiser_run(pictures, tmp_path, settings, start_from=trained / "checkpoint")
    state = torch.load(trained / "denoiser" / "state.pt", weights_only=True)
    for name, tensor in weights(run.task.model).items():
        torch.testing.assert_close(tensor, state["averaged"][name].half().float(), atol=0, rtol=0)
    assert (tmp_path / "vae" / "config.json").exists()
    with pytest.raises(ValueError, match="autoencoder of its own"):
        denoiser_run(pictures, trained, settings, start_from=trained / "checkpoint")


def test_the_export_upscales_in_diffusers_with_and_without_a_text_encoder(trained: Path, tmp_path: Path) -> None:
    small = Image.fromarray(PLACES).resize((64, 64))
    alone = StableDiffusionUpscalePipeline.from_pretrained(
        trained / "checkpoint", text_encoder=None, tokenizer=None, low_cpu_mem_usage=False
    )
    text = save_tiny_checkpoint(tmp_path / "text")
    spoken = StableDiffusionUpscalePipeline.from_pretrained(
        trained / "checkpoint",
        text_encoder=CLIPTextModel.from_pretrained(text / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(text / "tokenizer"),
        low_cpu_mem_usage=False,
    )
    prompts: list[dict[str, Any]] = [{"prompt_embeds": torch.zeros(1, 1, 1)}, {"prompt": "discs"}]
    drawn = []
    for pipeline, prompt in zip((alone, spoken), prompts, strict=True):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        steps: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0, "noise_level": 20}
        drawn.append(np.asarray(pipeline(image=small, generator=generator, **prompt, **steps).images[0]))

    assert drawn[0].shape == (256, 256, 3)
    assert drawn[0].std() > 1
    assert np.array_equal(drawn[0], drawn[1]), "text is not read"
    assert alone.vae.config.scaling_factor == SCALING
    assert alone.config.max_noise_level == 30
    defaults = json.loads((trained / "checkpoint" / "denoised.json").read_text())
    assert (defaults["num_inference_steps"], defaults["noise_level"]) == (2, 20)
    listed = {file["path"] for file in json.loads((trained / "checkpoint" / "files.json").read_text())["files"]}
    assert listed >= {"ATTRIBUTION.md", "denoised.json", "unet/diffusion_pytorch_model.safetensors"}
    sizes = (trained / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert sizes < 2.2 * sum(p.numel() for p in alone.unet.parameters()) + 20_000, "not float16"
