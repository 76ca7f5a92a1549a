"""Checkpoints in one file of the original key layout: the same networks as the directory they came from, the places of
their configuration, and what is refused in which words."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from models.checkpoint import load_checkpoint
from models.checkpoint_files import Header, configuration_files
from models.device import choose_placement
from models.engine import Broken, Drawn, Engine, EngineSettings
from models.errors import CheckpointMissing, CheckpointRefused
from models.original_layout import recognise
from models.prepare import Inputs
from models.request import InpaintingRequest, PictureRequest, TextToImageRequest, UpscaleRequest
from models.shelf import Shelf
from models.single_file import _REPOSITORIES, _refuse_difference
from models.weights import find_weights
from tests.original_layout import copy_configuration, original_tensors, read_original, write_single_file
from tests.tiny import (
    CONTEXT,
    SIDE,
    save_tiny_checkpoint,
    save_tiny_inpainting_checkpoint,
    save_tiny_sd2_checkpoint,
    save_tiny_sdxl_checkpoint,
    save_tiny_upscaler,
)

CPU = choose_placement("cpu")
UPLOAD = f"sha256:{'0' * 64}"
SAVE: dict[str, Callable[[Path], Path]] = {
    "sd1": save_tiny_checkpoint,
    "inpainting": save_tiny_inpainting_checkpoint,
    "sd2-v": save_tiny_sd2_checkpoint,
    "sdxl": save_tiny_sdxl_checkpoint,
    "x4": save_tiny_upscaler,
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind -> a tiny checkpoint of it in diffusers layout, which no test may change."""
    root, made = tmp_path_factory.mktemp("models"), dict[str, Path]()

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = SAVE[kind](root / kind)
        return made[kind]

    return get


@pytest.fixture
def original(originals: Callable[[str], Path]) -> Path:
    return originals("sd1")


@pytest.fixture
def file(original: Path, tmp_path: Path) -> Path:
    """A single file with its configuration beside it; the test may break both."""
    copy_configuration(original, tmp_path / "dream.v8")
    return write_single_file(original, tmp_path / "dream.v8.safetensors")


@pytest.fixture
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def rewrite(file: Path, change: Callable[[dict[str, Tensor]], object], metadata: dict[str, str] | None = None) -> None:
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file, metadata)


def request_of(kind: str) -> PictureRequest:
    common: dict[str, Any] = {
        "model": kind,
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "width": SIDE,
        "height": SIDE,
        "num_inference_steps": 4,
        "guidance_scale": 4.0,
        "sampler": "ddim",
        "noise_schedule": "default",
        "seed": 7,
        "num_images": 1,
    }
    if kind == "x4":
        return UpscaleRequest(**common | {"width": 128, "height": 128}, image=UPLOAD, noise_level=20)
    if kind == "inpainting":
        return InpaintingRequest(**common, image=UPLOAD, mask_image=UPLOAD, strength=1.0, mask_blur=0)
    return TextToImageRequest(**common)


def draw(kind: str, source: Path) -> np.ndarray:
    """(height, width, 3) uint8, by the engine, from the checkpoint at `source`."""
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    inputs = {
        "x4": Inputs(image.resize((32, 32))),
        "inpainting": Inputs(image, np.ones((SIDE, SIDE), np.bool_)),
    }.get(kind, Inputs())
    engine = Engine(EngineSettings(max_rows=8))
    engine.admit("0", request_of(kind), load_checkpoint(kind, str(source), CPU), inputs)
    pictures: list[np.ndarray] = []
    while not engine.is_idle:
        for event in engine.step():
            assert not isinstance(event, Broken), event.error
            if isinstance(event, Drawn):
                pictures += event.pictures
    (picture,) = pictures
    assert picture.std() > 5, "a flat picture proves nothing"
    return np.asarray(picture)


@pytest.mark.parametrize("kind", SAVE)
def test_a_single_file_is_the_checkpoint_it_was_made_from(
    kind: str, originals: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = originals(kind)
    file = write_single_file(folder, tmp_path / "one.safetensors")
    copy_configuration(folder, tmp_path / "one")
    theirs, ours = find_weights(str(folder)), find_weights(str(file))
    assert ours.components == theirs.components
    assert ours.count_elements() == theirs.count_elements()
    for component in theirs.components:
        expected, loaded = theirs.load(component, CPU), ours.load(component, CPU)
        assert loaded.state_dict().keys() == expected.state_dict().keys()
        for key, tensor in expected.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], tensor), f"{component}: {key}"
        assert not loaded.training
        assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert np.array_equal(draw(kind, folder), draw(kind, file))
    assert load_checkpoint(kind, str(file), CPU).tasks == load_checkpoint(kind, str(folder), CPU).tasks


def clip(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


SDXL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.mark.parametrize(
    ("family", "unet", "encoders", "count"),
    [
        ("SD 1.x", {"cross_attention_dim": 768}, [clip(768, 12, 12)], 1130),
        (
            "SD 2.x",
            {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
            [clip(1024, 23, 16)],
            1214,
        ),
        ("SDXL", SDXL_UNET, [clip(768, 12, 12), clip(1280, 32, 20)], 2513),
    ],
)
def test_every_key_of_the_real_networks_has_its_place(
    family: str, unet: dict[str, Any], encoders: list[dict[str, Any]], count: int
) -> None:
    with torch.device("meta"):
        networks = {
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
            ),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**encoders[0])),
        }
        if len(encoders) > 1:
            networks["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**encoders[1]))
        tensors = original_tensors(networks)
    assert len(tensors) == count
    header = Header({key: tuple(tensor.shape) for key, tensor in tensors.items()}, {})
    anatomy = recognise(header, "real")
    assert (anatomy.family, anatomy.channels) == (family, 4)
    assert anatomy.context_width == unet["cross_attention_dim"]
    for component, part in anatomy.parts.items():
        outline = {key: tensors[key] for key in part.keys(header)}
        _refuse_difference("real", component, outline, part.convert, networks[component])


def test_the_test_writes_the_keys_by_which_diffusers_knows_the_families(
    originals: Callable[[str], Path],
) -> None:
    sd1, sd2, sdxl = (read_original(originals(kind)) for kind in ("sd1", "sd2-v", "sdxl"))
    assert CHECKPOINT_KEY_NAMES["inpainting"] in sd1
    assert CHECKPOINT_KEY_NAMES["clip"] in sd1
    assert CHECKPOINT_KEY_NAMES["v2"] in sd2
    assert CHECKPOINT_KEY_NAMES["open_clip"] in sd2
    assert CHECKPOINT_KEY_NAMES["clip_sdxl"] in sdxl
    assert CHECKPOINT_KEY_NAMES["open_clip_sdxl"] in sdxl


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_precision_is_loaded_in_that_of_the_device(
    original: Path, tmp_path: Path, stored: torch.dtype, dtype: str
) -> None:
    copy_configuration(original, tmp_path / "one")
    file = write_single_file(original, tmp_path / "one.safetensors", dtype=stored)
    placement = choose_placement("cpu", dtype)
    expected = find_weights(str(original)).load("unet", CPU).conv_in.weight.to(stored).to(placement.dtype)
    network = find_weights(str(file)).load("unet", placement)
    assert torch.equal(network.conv_in.weight, expected)
    assert {tensor.dtype for tensor in network.parameters()} == {placement.dtype}


def test_the_weights_stay_when_the_file_is_overwritten(file: Path) -> None:
    network = find_weights(str(file)).load("unet", CPU)
    before = network.conv_in.weight.clone()
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(bytes(file.stat().st_size // 2))
    assert torch.equal(network.conv_in.weight, before)


def test_what_no_network_reads_does_not_count(original: Path, file: Path, tmp_path: Path) -> None:
    more = {
        "model_ema.diffusion_modelinput_blocks00weight": torch.ones(4),
        "model_ema.decay": torch.tensor(0.5),
        "alphas_cumprod": torch.ones(1000),
        "sqrt_one_minus_alphas_cumprod": torch.ones(1000),
        "posterior_mean_coef1": torch.ones(1000),
        "first_stage_model.loss.discriminator.main.0.weight": torch.ones(4),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(CONTEXT)[None],
        "global_step": torch.tensor(470000),
    }
    write_single_file(original, tmp_path / "more.safetensors", **more)
    copy_configuration(original, tmp_path / "more")
    padded = find_weights(str(tmp_path / "more.safetensors"))
    assert padded.count_elements() == find_weights(str(file)).count_elements()
    assert torch.equal(
        padded.load("text_encoder", CPU).embeddings.token_embedding.weight,
        find_weights(str(file)).load("text_encoder", CPU).embeddings.token_embedding.weight,
    )


def test_the_last_layer_of_the_text_encoder_of_sd2_is_in_the_file_and_not_read(
    originals: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = originals("sd2-v")
    tensors = read_original(folder)
    block = "cond_stage_model.model.transformer.resblocks."
    more = {
        key.replace(f"{block}22.", f"{block}23."): tensor for key, tensor in tensors.items() if f"{block}22." in key
    }
    assert len(more) == 12
    more |= {"cond_stage_model.model.text_projection": torch.ones(32, 16)}
    more |= {"cond_stage_model.model.logit_scale": torch.tensor(4.6)}
    file = write_single_file(folder, tmp_path / "one.safetensors", **more)
    copy_configuration(folder, tmp_path / "one")
    loaded, expected = (find_weights(str(source)).load("text_encoder", CPU) for source in (file, folder))
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in expected.state_dict().items())


def test_the_digest_is_the_checksum_of_the_file_whatever_its_name(file: Path, tmp_path: Path) -> None:
    digest = load_checkpoint("one", str(file), CPU).digest
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    shutil.copytree(file.with_suffix(""), tmp_path / "other")
    assert load_checkpoint("one", str(file.rename(tmp_path / "other.safetensors")), CPU).digest == digest


def test_the_configuration_may_hold_defaults(file: Path) -> None:
    (file.with_suffix("") / "denoised.json").write_text('{"num_inference_steps": 12, "sampler": "euler"}')
    defaults = load_checkpoint("one", str(file), CPU).defaults
    assert (defaults.num_inference_steps, defaults.sampler, defaults.width) == (12, "euler", SIDE)


def test_the_shelf_counts_and_loads_single_files(file: Path) -> None:
    shelf = Shelf({"one": str(file)}, CPU)
    checkpoint = shelf.get("one")
    assert checkpoint is not None
    assert shelf._size_of("one") == pytest.approx(checkpoint.size_bytes, rel=0.01)


# --- where the configuration lies ---------------------------------------------------------------------------------


def test_one_folder_of_the_name_of_the_repository_serves_every_file_beside_it(
    original: Path, file: Path, tmp_path: Path
) -> None:
    file.with_suffix("").rename(tmp_path / "stable-diffusion-v1-5")
    other = Path(shutil.copy(file, tmp_path / "other.safetensors"))
    for single in (file, other):
        assert find_weights(str(single)).folder == tmp_path / "stable-diffusion-v1-5"


def test_a_folder_of_the_name_of_the_file_goes_first_if_it_has_an_index(file: Path, tmp_path: Path) -> None:
    own = file.with_suffix("")
    shutil.copytree(own, tmp_path / "stable-diffusion-v1-5")
    assert find_weights(str(file)).folder == own
    (own / "model_index.json").unlink()
    assert find_weights(str(file)).folder == tmp_path / "stable-diffusion-v1-5"


def test_the_configuration_is_taken_from_the_cache_of_the_hub(file: Path, empty_hub_cache: Path) -> None:
    revision = "a" * 40
    repository = empty_hub_cache / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    (repository / "snapshots").mkdir(parents=True)
    file.with_suffix("").rename(repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    assert load_checkpoint("one", str(file), CPU).window_tokens == CONTEXT - 2
    shutil.rmtree(repository / "snapshots" / revision / "tokenizer")
    with pytest.raises(CheckpointMissing, match="tokenizer"):
        find_weights(str(file))


def test_no_weights_are_fetched_for_a_configuration() -> None:
    repository = """
        README.md model_index.json v1-5-pruned.safetensors safety_checker/config.json scheduler/scheduler_config.json
        tokenizer/merges.txt tokenizer/vocab.json text_encoder/config.json text_encoder/model.safetensors
        unet/config.json unet/diffusion_pytorch_model.safetensors unet/diffusion_pytorch_model.bin vae/config.json
    """
    assert {str(name) for name in configuration_files([PurePosixPath(name) for name in repository.split()])} == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "text_encoder/config.json",
        "unet/config.json",
        "vae/config.json",
    }


REPOSITORIES = {
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "x4": "stabilityai/stable-diffusion-x4-upscaler",
}


@pytest.mark.parametrize("kind", REPOSITORIES)
@pytest.mark.usefixtures("empty_hub_cache")
def test_without_a_configuration_the_refusal_says_which_files_go_where(
    kind: str, originals: Callable[[str], Path], tmp_path: Path
) -> None:
    file = write_single_file(originals(kind), tmp_path / "one.safetensors")
    with pytest.raises(CheckpointMissing) as refused:
        load_checkpoint("one", str(file), CPU)
    sentence, folder = str(refused.value), tmp_path / "one"
    copy_configuration(originals(kind), folder)
    named = [name for name in re.split(r",? into |, | Put ", sentence) if (folder / name).exists()]
    assert {"model_index.json", "scheduler/scheduler_config.json", "tokenizer/", "unet/config.json"} <= set(named)
    assert ("tokenizer_2/" in named, "low_res_scheduler/scheduler_config.json" in named) == (
        kind == "sdxl",
        kind == "x4",
    )
    assert f" {folder}/, or for all such files into {tmp_path / REPOSITORIES[kind].split('/')[1]}/." in sentence
    assert f"of {REPOSITORIES[kind]} " in sentence
    assert "hf download REPOSITORY" in sentence


@pytest.mark.usefixtures("empty_hub_cache")
def test_a_file_of_sd2_that_does_not_say_what_it_predicts_gets_no_guess(
    originals: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = originals("sd2-v")
    file = write_single_file(folder, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointMissing, match=r"stable-diffusion-2-1 \(v_prediction\) or .*does not say which"):
        find_weights(str(file))
    copy_configuration(folder, tmp_path / "stable-diffusion-2-1")
    assert find_weights(str(file)).folder == tmp_path / "stable-diffusion-2-1"
    copy_configuration(folder, tmp_path / "stable-diffusion-2-1-base")
    with pytest.raises(CheckpointMissing, match="does not say which"):
        find_weights(str(file))
    rewrite(file, lambda _: None, {"modelspec.architecture": "stable-diffusion-v2-768-v"})
    assert find_weights(str(file)).folder == tmp_path / "stable-diffusion-2-1"


def test_every_repository_is_in_the_documentation() -> None:
    page = (Path(__file__).parent.parent / "docs" / "operations.md").read_text("utf-8")
    names = [name for known in _REPOSITORIES.values() for name in known.values()]
    assert len(names) == 8
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_an_incomplete_configuration_is_refused_with_what_it_lacks(file: Path) -> None:
    folder = file.with_suffix("")
    shutil.rmtree(folder / "tokenizer")
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointMissing, match=r"dream\.v8\.safetensors and lacks vae/config\.json, tokenizer/\."):
        load_checkpoint("one", str(file), CPU)


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for source in (str(tmp_path / "no.safetensors"), "models/no.safetensors"):
        with pytest.raises(CheckpointMissing, match=r"There is no file '.*no\.safetensors'"):
            load_checkpoint("one", source, CPU)


@pytest.mark.parametrize("name", ["dream.ckpt", "dream.pt"])
def test_a_pickle_is_refused_by_name_and_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(CheckpointRefused, match=rf"{name} is a pickle.*safetensors"):
        load_checkpoint("one", str(tmp_path / name), CPU)


def test_a_damaged_file_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<!DOCTYPE html>" * 10):
        file.write_bytes(content)
        with pytest.raises(CheckpointRefused, match=r"dream\.v8\.safetensors cannot be read as a safetensors file"):
            load_checkpoint("one", str(file), CPU)


def only(*prefixes: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if not key.startswith(prefixes)]:
            del tensors[key]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (only("model.diffusion_model."), "holds a UNet and no VAE and no text encoder. Give the checkpoint"),
        (only("model.", "cond_stage_model."), "holds a UNet and no VAE. Give the checkpoint"),
        (only("model.", "first_stage_model."), "holds a UNet and no text encoder. Give the checkpoint"),
        (only("first_stage_model."), "is a VAE alone"),
        (only("cond_stage_model."), "is a text encoder alone"),
    ],
)
def test_a_part_of_a_checkpoint_is_refused_as_what_it_is(
    file: Path, change: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    rewrite(file, change)
    with pytest.raises(CheckpointRefused, match=rf"dream\.v8\.safetensors {words}"):
        load_checkpoint("one", str(file), CPU)


UNET = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["lora_unet_down_blocks_0.lora_down.weight"], "a LoRA, .*DENOISED_LORAS"),
        (["unet.mid_block.attentions.0.lora_A.weight"], "a LoRA"),
        (["control_model.input_hint_block.0.weight", UNET], "a ControlNet; .*DENOISED_CONTROLNETS"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "a Flux network"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "an SD 3 network"),
        (["conditioner.embedders.0.model.ln_final.weight", UNET, "first_stage_model.x"], "an SDXL refiner"),
        (["down_blocks.0.resnets.0.conv1.weight"], "a UNet alone"),
        (["decoder.conv_in.weight"], "a VAE alone"),
        (["text_model.final_layer_norm.weight"], "a text encoder alone"),
        (["emb_params"], "a textual inversion"),
        (["something.else"], r"no Stable Diffusion checkpoint: its keys are such as something\.else"),
        ([], "no Stable Diffusion checkpoint: its keys are such as none"),
    ],
)
def test_what_is_no_checkpoint_is_told_from_its_keys(keys: list[str], words: str, tmp_path: Path) -> None:
    save_file({key: torch.zeros(1, 1, 1, 1) for key in keys}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointRefused, match=rf"x\.safetensors is {words}"):
        find_weights(str(tmp_path / "x.safetensors"))


def test_a_network_of_a_task_that_is_not_served_is_refused_by_its_channels(file: Path) -> None:
    rewrite(file, lambda tensors: tensors.update({UNET: torch.zeros(32, 8, 3, 3)}))
    with pytest.raises(CheckpointRefused, match="with 8 input channels; those with 4 are served"):
        load_checkpoint("one", str(file), CPU)


@pytest.mark.parametrize(
    ("kind", "configuration", "words"),
    [
        ("inpainting", "sd1", r"input channels 9 in the file, 4 in unet/config\.json"),
        ("sd1", "inpainting", r"input channels 4 in the file, 9 in unet/config\.json"),
        ("sd1", "sdxl", r"networks .* in the file, .*'text_encoder_2'.* in model_index\.json"),
        ("sdxl", "sd1", r"networks .*'text_encoder_2'.* in the file, .* in model_index\.json"),
        ("sd1", "sd2-v", "The unet of one.safetensors"),
    ],
)
def test_the_configuration_of_another_model_is_refused(
    kind: str, configuration: str, words: str, originals: Callable[[str], Path], tmp_path: Path
) -> None:
    file = write_single_file(originals(kind), tmp_path / "one.safetensors")
    copy_configuration(originals(configuration), tmp_path / "one")
    with pytest.raises(CheckpointRefused, match=words):
        load_checkpoint("one", str(file), CPU)


def set_in(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet", {"cross_attention_dim": 48}, r"width of the text 32 in the file, 48 in unet/config\.json"),
        ("unet", {"layers_per_block": 2}, "The unet of .* lacks "),
        (
            "unet",
            {"block_out_channels": [16, 64]},
            r"another shape than its config\.json says: .*\(128, 32\) in the file, \(64, 16\)",
        ),
        ("unet", {"block_out_channels": [30, 64]}, r"unet/config\.json describes no network"),
        (
            "unet",
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 80,
            },
            r"The unet of .* lacks label_emb\.0\.0\.weight",
        ),
        ("vae", {"mid_block_add_attention": True}, "The vae of .* lacks decoder.mid_block.attentions.0"),
        (
            "text_encoder",
            {"num_hidden_layers": 1},
            r"The text_encoder of .* has no place for cond_stage_model.*encoder\.layers\.1",
        ),
        ("text_encoder", {"vocab_size": 600}, r"another shape .*token_embedding\.weight is \(514, .*\(600, "),
    ],
)
def test_a_configuration_that_is_wrong_is_refused_by_what_differs(
    file: Path, part: str, changes: dict[str, object], words: str
) -> None:
    set_in(file.with_suffix("") / part / "config.json", **changes)
    with pytest.raises(CheckpointRefused, match=words):
        load_checkpoint("one", str(file), CPU)


@pytest.mark.parametrize(
    ("sign", "metadata", "words"),
    [
        ("v_pred", None, "prediction type v_prediction in the file, epsilon in scheduler"),
        (None, {"modelspec.prediction_type": "v"}, "prediction type v_prediction in the file, epsilon in scheduler"),
        ("ztsnr", None, "zero terminal SNR True in the file, False in scheduler"),
    ],
)
def test_a_scheduler_that_contradicts_the_file_is_refused(
    file: Path, sign: str | None, metadata: dict[str, str] | None, words: str
) -> None:
    rewrite(file, lambda tensors: tensors.update({sign: torch.zeros(0)} if sign else {}), metadata)
    with pytest.raises(CheckpointRefused, match=words):
        load_checkpoint("one", str(file), CPU)
    scheduler = file.with_suffix("") / "scheduler" / "scheduler_config.json"
    set_in(scheduler, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert find_weights(str(file)).folder == file.with_suffix("")


@pytest.mark.usefixtures("empty_hub_cache")
def test_a_file_that_predicts_velocity_is_not_given_the_configuration_of_one_that_does_not(file: Path) -> None:
    file.with_suffix("").rename(file.parent / "stable-diffusion-v1-5")
    rewrite(file, lambda _: None, {"modelspec.prediction_type": "v"})
    with pytest.raises(CheckpointMissing, match=r"dream\.v8/; no repository is known .* predicts v_prediction"):
        find_weights(str(file))


def test_a_header_that_says_epsilon_is_no_argument_against_a_folder_of_the_file(file: Path) -> None:
    rewrite(file, lambda _: None, {"modelspec.prediction_type": "epsilon"})
    set_in(file.with_suffix("") / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert load_checkpoint("one", str(file), CPU).prediction_type == "v_prediction"


LOST = "model.diffusion_model.input_blocks.1.0.in_layers.2.bias"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(LOST), r"The unet of .* lacks down_blocks\.0\.resnets\.0\.conv1\.bias\."),
        (
            lambda tensors: tensors.update({"model.diffusion_model.adapter.weight": torch.ones(2)}),
            r"The unet of .* has no place for model\.diffusion_model\.adapter\.weight\.",
        ),
        (
            lambda tensors: tensors.update({"first_stage_model.decoder.extra.bias": torch.ones(2)}),
            r"The vae of .* has no place for first_stage_model\.decoder\.extra\.bias\.",
        ),
        (
            lambda tensors: tensors.update({"cond_stage_model.transformer.text_model.extra": torch.ones(2)}),
            r"The text_encoder of .* has no place for cond_stage_model\.transformer\.text_model\.extra\.",
        ),
        (
            lambda tensors: tensors.update({f"edm_{number}": torch.ones(2) for number in range(5)}),
            r"holds what nothing here reads: edm_0, edm_1, edm_2 and 2 more\.",
        ),
    ],
)
def test_keys_too_few_and_too_many_are_refused_by_name(
    file: Path, change: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    rewrite(file, change)
    with pytest.raises(CheckpointRefused, match=words):
        load_checkpoint("one", str(file), CPU)


def test_a_key_too_many_of_an_open_clip_encoder_is_refused_by_name(
    originals: Callable[[str], Path], tmp_path: Path
) -> None:
    more = {"conditioner.embedders.1.model.visual.proj": torch.ones(2)}
    file = write_single_file(originals("sdxl"), tmp_path / "one.safetensors", **more)
    copy_configuration(originals("sdxl"), tmp_path / "one")
    with pytest.raises(CheckpointRefused, match=r"text_encoder_2 of .* no place for conditioner.*visual\.proj\."):
        load_checkpoint("one", str(file), CPU)
