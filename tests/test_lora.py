"""LoRA: files of every spelling, against merged weights, beside each other in one batch, and what is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.checkpoint import Checkpoint, load_checkpoint
from models.device import choose_placement
from models.engine import Broken, Drawn, Engine, EngineSettings
from models.errors import LoraRefused
from models.lora import Lora, LoraUse, read_lora
from models.lora_files import LoraFiles
from models.prepare import Inputs
from models.request import TextToImageRequest
from tests.tiny import SIDE, save_tiny_checkpoint, save_tiny_sdxl_checkpoint
from workers.catalogue import lora_names

CPU = choose_placement("cpu")
RANK, ALPHA = 3, 6.0
UNET = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.1.attentions.0.proj_in",
)
CONVOLUTIONS = ("down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv", "conv_out")
TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1")

Matrices = dict[tuple[str, str], tuple[Tensor, Tensor]]
"""(component, module path) -> down, up."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint("tiny", str(folder), CPU)


def matrices(checkpoint: Checkpoint, seed: int, convolutions: tuple[str, ...] = CONVOLUTIONS) -> Matrices:
    random = torch.Generator().manual_seed(seed)
    chosen = [("unet", path) for path in (*UNET, *convolutions)] + [("text_encoder", path) for path in TEXT]
    made: Matrices = {}
    for component, path in chosen:
        module = checkpoint.networks[component].get_submodule(path)
        weight = module.weight
        down = torch.randn(RANK, *weight.shape[1:], generator=random)
        up = torch.randn(weight.shape[0], RANK, *(1,) * (weight.dim() - 2), generator=random)
        made[component, path] = down, up * 0.15 * weight.std() / ALPHA
    return made


def kohya(made: Matrices) -> dict[str, Tensor]:
    tensors = {}
    for (component, path), (down, up) in made.items():
        prefix = "lora_unet_" if component == "unet" else "lora_te_text_model_"
        name = prefix + path.replace(".", "_")
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(ALPHA),
        }
    return tensors


def peft(made: Matrices) -> dict[str, Tensor]:
    tensors = {}
    for (component, path), (down, up) in made.items():
        name = f"unet.{path}" if component == "unet" else f"text_encoder.text_model.{path}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up * ALPHA / RANK}
    return tensors


def old_diffusers(made: Matrices) -> dict[str, Tensor]:
    tensors = {}
    for key, tensor in peft(made).items():
        key = key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
        key = re.sub(r"\.(to_q|to_k|to_out)(?:\.0)?\.lora\.(down|up)\.", r".processor.\1_lora.\2.", key)
        tensors[key.replace("text_model.encoder", "encoder").replace("fc1.lora.", "fc1.lora_linear_layer.")] = tensor
    return tensors


def saved(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata)
    return file


def read(checkpoint: Checkpoint, tensors: dict[str, Tensor], tmp_path: Path, name: str = "style") -> Lora:
    return read_lora(saved(tensors, tmp_path / f"{name}.safetensors"), name, checkpoint.networks)


def merged(folder: Path, uses: list[tuple[Matrices, float]]) -> Checkpoint:
    """The checkpoint with all of it written into its weights: what a user without adapters would draw with."""
    checkpoint = load_checkpoint("merged", str(folder), CPU)
    with torch.no_grad():
        for made, weight in uses:
            for (component, path), (down, up) in made.items():
                module: nn.Module = checkpoint.networks[component].get_submodule(path)
                delta = (up.flatten(1) @ down.flatten(1)).view_as(module.weight)  # type: ignore[arg-type]
                module.weight += weight * ALPHA / RANK * delta  # type: ignore[operator]
    return checkpoint


def request_of(prompt: str = "a cat", **changes: Any) -> TextToImageRequest:
    fields: dict[str, Any] = {
        "model": "tiny",
        "prompt": prompt,
        "width": SIDE,
        "height": SIDE,
        "num_inference_steps": 6,
        "guidance_scale": 3.0,
        "sampler": "dpmpp_2m",
        "noise_schedule": "default",
        "seed": 7,
        "num_images": 1,
    }
    return TextToImageRequest(**fields | changes)


def draw(checkpoint: Checkpoint, *jobs: tuple[TextToImageRequest, tuple[LoraUse, ...]]) -> list[np.ndarray]:
    engine = Engine(EngineSettings(prepare_at_once=16))
    for index, (request, loras) in enumerate(jobs):
        engine.admit(str(index), request, checkpoint, Inputs(loras=loras))
    pictures: dict[str, np.ndarray] = {}
    while not engine.is_idle:
        for event in engine.step():
            assert not isinstance(event, Broken), event.error
            if isinstance(event, Drawn):
                pictures[event.job_id] = event.pictures[0].astype(int)
    return [pictures[str(index)] for index in range(len(jobs))]


@pytest.mark.parametrize("spelling", [kohya, peft, old_diffusers])
def test_a_lora_of_any_spelling_draws_what_merged_weights_draw(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path, spelling: Any
) -> None:
    made = matrices(checkpoint, 1)
    lora = read(checkpoint, spelling(made), tmp_path)
    (ours,) = draw(checkpoint, (request_of(), (LoraUse(lora, 0.8),)))
    (theirs,) = draw(merged(folder, [(made, 0.8)]), (request_of(), ()))
    (plain,) = draw(checkpoint, (request_of(), ()))
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(ours - plain).max() > 20, "a LoRA that changes nothing would prove nothing"


def test_different_loras_share_a_batch_with_rows_without_any(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    one, two = matrices(checkpoint, 1), matrices(checkpoint, 2, ())
    first, second = read(checkpoint, kohya(one), tmp_path, "one"), read(checkpoint, peft(two), tmp_path, "two")
    jobs: list[tuple[TextToImageRequest, tuple[LoraUse, ...]]] = [
        (request_of(), ()),
        (request_of(), (LoraUse(first, 1.0),)),
        (request_of(guidance_scale=1.0), (LoraUse(second, 0.7),)),
        (request_of(sampler="euler_ancestral"), (LoraUse(first, 0.5), LoraUse(second, -1.0))),
        (request_of("a dog"), (LoraUse(first, 0.3),)),
    ]
    expected = [
        draw(checkpoint, (jobs[0][0], ()))[0],
        draw(merged(folder, [(one, 1.0)]), (jobs[1][0], ()))[0],
        draw(merged(folder, [(two, 0.7)]), (jobs[2][0], ()))[0],
        draw(merged(folder, [(one, 0.5), (two, -1.0)]), (jobs[3][0], ()))[0],
        draw(merged(folder, [(one, 0.3)]), (jobs[4][0], ()))[0],
    ]
    for number, (ours, theirs) in enumerate(zip(draw(checkpoint, *jobs), expected, strict=True)):
        assert np.abs(ours - theirs).max() <= 1, f"job {number}"


def test_the_weights_of_the_network_stay_as_they_were(checkpoint: Checkpoint, tmp_path: Path) -> None:
    before = {
        (component, name): tensor.clone()
        for component, network in checkpoint.networks.items()
        for name, tensor in network.state_dict().items()
    }
    (plain,) = draw(checkpoint, (request_of("fresh"), ()))
    draw(checkpoint, (request_of("fresh"), (LoraUse(read(checkpoint, kohya(matrices(checkpoint, 1)), tmp_path), 1.0),)))
    for component, network in checkpoint.networks.items():
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, before[component, name])
    (again,) = draw(checkpoint, (request_of("fresh"), ()))
    assert np.array_equal(plain, again)


def test_the_scale_in_pefts_metadata_counts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = matrices(checkpoint, 1)
    told = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2 * RANK, "unet.r": RANK})}
    file = saved(peft(made), tmp_path / "told.safetensors", told)
    ((path, layer),) = list(read_lora(file, "told", checkpoint.networks).of("unet").items())[:1]
    torch.testing.assert_close(layer.up, 2 * made["unet", path][1] * ALPHA / RANK)


def test_sdxl_files_that_count_blocks_as_the_original_code_does_are_read(tmp_path: Path) -> None:
    checkpoint = load_checkpoint("xl", str(save_tiny_sdxl_checkpoint(tmp_path / "xl")), CPU)
    width = checkpoint.networks["unet"].get_submodule(UNET[0]).weight.shape[1]
    tensors = {
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight": torch.randn(2, width),
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight": torch.randn(width, 2),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": torch.randn(2, 32),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": torch.randn(32, 2),
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": torch.randn(2, 32),
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": torch.randn(32, 2),
    }
    lora = read(checkpoint, tensors, tmp_path)
    assert set(lora.of("unet")) == {UNET[0]}
    assert len(lora.of("text_encoder")) == len(lora.of("text_encoder_2")) == 1


def broken(change: str, made: Matrices) -> dict[str, Tensor]:
    tensors = kohya(made)
    name = "lora_unet_" + UNET[0].replace(".", "_")
    if change == "no such module":
        tensors["lora_unet_nowhere.lora_down.weight"] = torch.zeros(1, 1)
    elif change == "half of it":
        del tensors[f"{name}.lora_up.weight"]
    elif change == "another width":
        tensors[f"{name}.lora_down.weight"] = torch.zeros(RANK, 999)
    elif change == "another kind":
        tensors[f"{name}.hada_w1_a"] = torch.zeros(1, 1)
    else:
        tensors["something.else"] = torch.zeros(1)
    return tensors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no such module", "made for another network: this model has no unet.nowhere"),
        ("half of it", "is not whole: it has only alpha, down"),
        ("another width", r"made for another network: \(3, 999\)"),
        ("another kind", "is a LoHa"),
        ("a stranger", "'something.else', which is no part of a LoRA"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(checkpoint: Checkpoint, tmp_path: Path, change: str, words: str) -> None:
    with pytest.raises(LoraRefused, match=words) as caught:
        read(checkpoint, broken(change, matrices(checkpoint, 1)), tmp_path)
    assert "style" in caught.value.detail


def test_a_file_that_is_no_safetensors_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "style.safetensors").write_bytes(b"not at all")
    with pytest.raises(LoraRefused, match="'style' cannot be read"):
        read_lora(tmp_path / "style.safetensors", "style", checkpoint.networks)


# --- a directory of them ----------------------------------------------------------------------------------------------


def asked(*names: str) -> TextToImageRequest:
    return request_of(loras=[{"name": name, "weight": 0.5} for name in names])


def test_a_file_is_read_once_and_again_when_it_has_changed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    saved(kohya(matrices(checkpoint, 1)), tmp_path / "ink.safetensors")
    files = LoraFiles(tmp_path)
    (first,), (again,) = files.of(asked("ink"), checkpoint), files.of(asked("ink"), checkpoint)
    assert first.weight == 0.5
    assert first.lora is again.lora
    saved(kohya(matrices(checkpoint, 2, ())), tmp_path / "ink.safetensors")
    (changed,) = files.of(asked("ink"), checkpoint)
    assert len(changed.lora.of("unet")) < len(first.lora.of("unet"))


def test_no_name_leads_out_of_the_directory(checkpoint: Checkpoint, tmp_path: Path) -> None:
    inside = tmp_path / "loras"
    inside.mkdir()
    saved(kohya(matrices(checkpoint, 1)), tmp_path / "secret.safetensors")
    files = LoraFiles(inside)
    for name in ("../secret", str(tmp_path / "secret"), "secret", "*", ".", "..", "nothing"):
        with pytest.raises(LoraRefused, match="There is no LoRA"):
            files.of(asked(name), checkpoint)
    assert lora_names(inside) == lora_names(tmp_path / "nowhere") == ()
    assert lora_names(tmp_path) == ("secret",)


def test_only_the_most_recently_used_stay_in_memory(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        saved(kohya(matrices(checkpoint, 1, ())), tmp_path / f"{name}.safetensors")
    size = LoraFiles(tmp_path).of(asked("one"), checkpoint)[0].lora.size_bytes
    files = LoraFiles(tmp_path, keep_bytes=2 * size)
    (one,) = files.of(asked("one"), checkpoint)
    files.of(asked("two"), checkpoint)
    assert files.of(asked("one"), checkpoint)[0].lora is one.lora
    files.of(asked("two", "three"), checkpoint)
    assert files.of(asked("one"), checkpoint)[0].lora is not one.lora


def test_names_that_no_request_could_spell_are_left_out(tmp_path: Path) -> None:
    for name in ("ink", "x" * 201, "new\nline"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors")).write_bytes(b"")
    assert lora_names(tmp_path) == ("ink",)
    (tmp_path / "file").write_bytes(b"")
    assert lora_names(tmp_path / "file") == ()


@pytest.mark.parametrize("setting", ["alpha_pattern", "rank_pattern", "use_rslora"])
def test_scales_of_single_layers_are_refused(checkpoint: Checkpoint, tmp_path: Path, setting: str) -> None:
    told = {"unet.lora_alpha": 2, "unet.r": 1, f"unet.{setting}": {"to_q": 3}}
    file = saved(
        peft(matrices(checkpoint, 1)), tmp_path / "told.safetensors", {"lora_adapter_metadata": json.dumps(told)}
    )
    with pytest.raises(LoraRefused, match="scales of their own"):
        read_lora(file, "told", checkpoint.networks)


@pytest.mark.parametrize(
    ("part", "tensor"),
    [("lora_down.weight", torch.zeros(3)), ("lora_down.weight", torch.zeros(0, 32)), ("alpha", torch.ones(2))],
)
def test_a_malformed_layer_is_refused_by_name(
    checkpoint: Checkpoint, tmp_path: Path, part: str, tensor: Tensor
) -> None:
    tensors = kohya(matrices(checkpoint, 1))
    tensors["lora_unet_" + UNET[0].replace(".", "_") + "." + part] = tensor
    with pytest.raises(LoraRefused, match="style"):
        read(checkpoint, tensors, tmp_path)
