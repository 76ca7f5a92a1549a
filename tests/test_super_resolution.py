"""LDM super-resolution in the running batch: parity with diffusers, tiles, neighbours, and what is refused.

`python -m tests.test_super_resolution` prints the maxima that `docs/parity.md` tells.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.checkpoint import Checkpoint, load_checkpoint
from models.checkpoint_files import files_to_fetch
from models.device import choose_placement
from models.engine import Engine, EngineSettings, Prepared
from models.errors import CheckpointMissing, CheckpointRefused
from models.prepare import Inputs, rows_of
from models.samplers import SAMPLERS
from models.start import small_picture
from models.tiles import tile
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
    assert not {key: worst for key, worst in differences.items() if worst > TOLERANCE}


def test_a_tensor_of_any_size_is_shown_as_it_is_in_diffusers(folder: Path, checkpoint: Checkpoint) -> None:
    """A tensor is not cut to a multiple of 32, nor is any picture here."""
    pipeline = diffusers.LDMSuperResolutionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    image, request = picture(30, 22), asked(30, 22)
    theirs = enlarge_with_diffusers(pipeline, small_picture(image, (30, 22))[None], request)
    (ours,) = draw(checkpoint, (request, image))
    assert difference(ours.pictures[0], theirs) <= TOLERANCE


def test_requests_are_enlarged_beside_each_other_as_alone(checkpoint: Checkpoint) -> None:
    jobs = [
        (asked(70, 50, num_images=2), picture(70, 50)),
        (asked(sampler="euler_ancestral", seed=8), picture()),
        (asked(64, 32, seed=9, sampler="dpmpp_2m", num_inference_steps=9), picture(64, 32)),
        (asked(sampler="euler", noise_schedule="karras", num_inference_steps=3), picture(31, 32)),
    ]
    together = draw(checkpoint, *jobs)
    for job, drawn in zip(jobs, together, strict=True):
        (alone,) = draw(checkpoint, job)
        for one, other in zip(drawn.pictures, alone.pictures, strict=True):
            assert difference(one, other) <= 1
    assert difference(*together[0].pictures) > 20


@pytest.mark.parametrize(("width", "height"), [(70, 50), (33, 24), (5, 90), (1, 1)])
def test_a_picture_of_any_size_is_enlarged_four_times(checkpoint: Checkpoint, width: int, height: int) -> None:
    (drawn,) = draw(checkpoint, (asked(width, height, num_inference_steps=2), picture(width, height)))
    assert drawn.pictures[0].shape == (4 * height, 4 * width, 3)


@pytest.mark.parametrize("axis", [0, 1])
def test_no_seam_is_seen_where_tiles_meet(checkpoint: Checkpoint, axis: int) -> None:
    """Neighbouring pixels differ there no more than anywhere else; in tiles that end in the middle of what they share
    they would by a quarter."""
    (drawn,) = draw(checkpoint, (asked(100, 90), picture(100, 90)))
    spans = ((0, 32), (23, 55), (45, 77), (68, 100)) if axis else ((0, 32), (19, 51), (39, 71), (58, 90))
    tiling = tile((100, 90), 32, 8, 2)
    assert spans == (tiling.columns if axis else tiling.rows)
    steps = np.abs(np.diff(drawn.pictures[0].astype(float), axis=axis)).mean((1 - axis, 2))
    for place in (0.0, 0.5, 1.0):
        meets = [round(4 * (right[0] + place * (left[1] - right[0]))) for left, right in pairwise(spans)]
        assert np.mean([steps[pixel - 1] for pixel in meets]) < 1.1 * steps.mean()


def test_guidance_prompts_and_noise_levels_change_nothing(checkpoint: Checkpoint) -> None:
    told = asked(prompt="a cat", negative_prompt="a dog", guidance_scale=9.0, guidance_rescale=0.5, noise_level=20)
    assert rows_of(told, checkpoint) == 1
    (silent,) = draw(checkpoint, (asked(), picture()))
    engine = Engine()
    engine.admit("told", told, checkpoint, Inputs(picture()))
    (prepared,) = engine.step()
    assert isinstance(prepared, Prepared)
    assert prepared.warnings == (
        "This model reads no prompt; it was not read.",
        "This model reads no negative prompt; it was not read.",
    )
    (drawn,) = draw(checkpoint, (told, picture()))
    assert np.array_equal(drawn.pictures[0], silent.pictures[0])


def test_it_is_loaded_as_a_model_that_only_enlarges(checkpoint: Checkpoint) -> None:
    assert list(checkpoint.networks) == ["unet"]
    assert checkpoint.size_bytes > 100_000
    entry = describe_model(checkpoint)
    assert entry.tasks == ("upscale",)
    assert (entry.upscale_factor, entry.max_noise_level, entry.defaults.noise_level) == (4, None, None)
    assert (entry.defaults.width, entry.defaults.sampler, entry.defaults.guidance_scale) == (128, "ddim", 1.0)
    assert (entry.max_size, entry.max_pixels, entry.window_tokens) == (8192, 8192**2, 0)
    assert 2 <= Engine(EngineSettings(max_rows=4)).warm_up(checkpoint) <= 4


def test_as_a_second_half_it_is_told_no_noise_level(checkpoint: Checkpoint) -> None:
    drawn = np.asarray(picture())
    request = enlarging(asked(num_images=1, prompt="a cat"), [drawn], checkpoint)
    assert (request.noise_level, request.prompt, request.guidance_scale) == (None, "", 1.0)
    assert (request.width, request.height) == (4 * drawn.shape[1], 4 * drawn.shape[0])


def test_the_nearest_code_is_found_whatever_the_precision_of_the_network(folder: Path) -> None:
    """Latents and their nearest codes, looked up here in float64, are one picture."""
    autoencoder = load_checkpoint("ldm", str(folder), choose_placement("cpu", "bfloat16")).autoencoder
    weights = load_file(folder / "vqvae" / "diffusion_pytorch_model.safetensors")
    codebook = weights["quantize.embedding.weight"].bfloat16().double()
    latents = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    positions = latents.permute(0, 2, 3, 1).flatten(0, 2).double()  # (2 * h * w, 3)
    nearest = (positions[:, None] - codebook[None]).square().sum(2).argmin(1)
    codes = codebook[nearest].view(2, 32, 32, 3).permute(0, 3, 1, 2).float()
    for drawn, expected in zip(autoencoder.decode(latents), autoencoder.decode(codes), strict=True):
        assert drawn is not None
        assert expected is not None
        assert np.array_equal(drawn, expected)


def changed(folder: Path, tmp_path: Path, component: str, changes: dict[str, Any]) -> str:
    """A copy of the checkpoint with another configuration of one network."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copy / component / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(copy)


@pytest.mark.parametrize(
    ("component", "changes", "words"),
    [
        ("unet", {"in_channels": 3}, "3 input and 3 output channels; networks for super-resolution with 6 and 3"),
        ("unet", {"out_channels": 6}, "6 input and 6 output channels"),
        ("unet", {"num_class_embeds": 10}, "is told a class"),
        ("unet", {"class_embed_type": "timestep"}, "is told a class"),
        ("unet", {"time_embedding_type": "fourier"}, "positional timesteps"),
        ("unet", {"sample_size": None}, "sample_size"),
        ("vqvae", {"latent_channels": 4}, "3 channels of latents"),
        ("vqvae", {"vq_embed_dim": 4}, "3 channels of latents"),
        ("vqvae", {"lookup_from_codebook": True}, "indices of codes"),
    ],
)
def test_another_network_is_refused(
    folder: Path, tmp_path: Path, component: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointRefused, match=words):
        load_checkpoint("ldm", changed(folder, tmp_path, component, changes), CPU)


def test_weights_that_do_not_fit_their_configuration_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="The vqvae cannot be loaded"):
        load_checkpoint("ldm", changed(folder, tmp_path, "vqvae", {"num_vq_embeddings": 65}), CPU)


def test_another_autoencoder_is_refused_by_its_class(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"vqvae": ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(CheckpointRefused, match="The vqvae of .* is a AutoencoderKL; a VQModel is needed"):
        load_checkpoint("ldm", str(copy), CPU)


def test_pickles_are_refused_and_missing_weights_named(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = copy / "vqvae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointRefused, match=r"vqvae/diffusion_pytorch_model\.bin is a pickle"):
        load_checkpoint("ldm", str(copy), CPU)
    shutil.rmtree(copy / "vqvae")
    with pytest.raises(CheckpointMissing, match="vqvae"):
        load_checkpoint("ldm", str(copy), CPU)


def test_of_a_repository_its_two_networks_are_fetched() -> None:
    wanted = "model_index.json scheduler/scheduler_config.json unet/config.json vqvae/config.json"
    weights = [f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "vqvae")]
    pickles = [f"{name}/diffusion_pytorch_model.bin" for name in ("unet", "vqvae")]
    names = [PurePosixPath(name) for name in [*wanted.split(), *weights, *pickles, "README.md"]]
    assert {str(name) for name in files_to_fetch(names)} == {*wanted.split(), *weights}


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        differences = measure(save_tiny_super_resolution(Path(temporary) / "ldm"))
    print(", ".join(f"{sampler} {schedule} {worst}" for (sampler, schedule), worst in differences.items()))
    print(f"\nmaximum {max(differences.values())}")


if __name__ == "__main__":
    main()
