"""Checkpoints: what is loaded, what is refused and in which words, and how many fit beside each other."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

from models.autoencoder import Autoencoder
from models.checkpoint import load_checkpoint
from models.checkpoint_files import files_to_fetch
from models.device import choose_placement, is_out_of_memory, is_sticky
from models.errors import CheckpointError, CheckpointMissing, CheckpointRefused
from models.shelf import Shelf
from tests.tiny import CONTEXT, save_tiny_checkpoint, save_tiny_sdxl_checkpoint

CPU = choose_placement("cpu")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that the test may break."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def test_a_directory_in_diffusers_layout_is_loaded_with_its_own_defaults(original: Path) -> None:
    checkpoint = load_checkpoint("tiny", str(original), CPU)
    assert (checkpoint.defaults.width, checkpoint.defaults.height) == (64, 64)
    assert checkpoint.defaults.sampler == "pndm"
    assert (checkpoint.window_tokens, checkpoint.token_limit) == (CONTEXT - 2, 8 * (CONTEXT - 2))
    assert checkpoint.max_clip_skip == 1
    assert checkpoint.prediction_type == "epsilon"
    assert (checkpoint.device, checkpoint.dtype) == ("cpu", "float32")
    assert checkpoint.size_bytes > 3_000_000


def test_denoised_json_sets_defaults_and_is_checked(folder: Path) -> None:
    (folder / "denoised.json").write_text('{"num_inference_steps": 12, "guidance_scale": 4, "sampler": "euler"}')
    defaults = load_checkpoint("tiny", str(folder), CPU).defaults
    assert (defaults.num_inference_steps, defaults.guidance_scale, defaults.sampler) == (12, 4, "euler")
    (folder / "denoised.json").write_text('{"steps": 12}')
    with pytest.raises(CheckpointRefused, match="steps"):
        load_checkpoint("tiny", str(folder), CPU)


def test_a_checkpoint_may_say_how_long_its_prompts_are(folder: Path) -> None:
    (folder / "denoised.json").write_text('{"prompt_windows": 1}')
    checkpoint = load_checkpoint("tiny", str(folder), CPU)
    assert checkpoint.token_limit == checkpoint.window_tokens == CONTEXT - 2
    assert checkpoint.conditioner.warn_of_cut("abcdefghij" * 4, syntax="a1111") is not None
    for wrong in ("0", "9", '"2"', "1.5"):
        (folder / "denoised.json").write_text(f'{{"prompt_windows": {wrong}}}')
        with pytest.raises(CheckpointRefused, match="prompt_windows"):
            load_checkpoint("tiny", str(folder), CPU)
    (folder / "denoised.json").write_text('{"clip_skip": 2}')
    with pytest.raises(CheckpointRefused, match="clip_skip 2, and 1 layers"):
        load_checkpoint("tiny", str(folder), CPU)


def test_the_digest_names_the_weights_and_nothing_else(original: Path, folder: Path) -> None:
    digest = load_checkpoint("tiny", str(original), CPU).digest
    assert load_checkpoint("other name", str(folder), CPU).digest == digest
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_out.bias"] += 1
    save_file(weights, file, {"format": "pt"})
    assert load_checkpoint("tiny", str(folder), CPU).digest != digest


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt", "weights.pt"])
def test_a_pickle_is_refused_by_name_and_never_opened(folder: Path, component: str, name: str) -> None:
    for file in (folder / component).glob("*.safetensors"):
        file.unlink()
    (folder / component / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(CheckpointRefused, match=rf"{component}/{name} is a pickle.*safetensors"):
        load_checkpoint("tiny", str(folder), CPU)


def test_a_pickle_beside_safetensors_is_ignored(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert load_checkpoint("tiny", str(folder), CPU).denoiser.latent_channels == 4


def test_the_half_precision_variant_is_loaded_when_it_is_the_only_one(folder: Path) -> None:
    for file in folder.glob("*/*.safetensors"):
        weights = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(weights, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
        file.unlink()
    checkpoint = load_checkpoint("tiny", str(folder), CPU)
    assert checkpoint.denoiser.dtype == torch.float32


def change_index(folder: Path, **changes: object) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | changes))


def test_another_pipeline_is_refused_by_its_class(folder: Path) -> None:
    change_index(folder, _class_name="FluxPipeline")
    with pytest.raises(CheckpointRefused, match="FluxPipeline"):
        load_checkpoint("tiny", str(folder), CPU)


def test_another_component_is_refused_by_its_class(folder: Path) -> None:
    change_index(folder, text_encoder=["transformers", "T5EncoderModel"])
    with pytest.raises(CheckpointRefused, match="text_encoder.*T5EncoderModel"):
        load_checkpoint("tiny", str(folder), CPU)


def test_truncated_weights_are_refused_with_the_component(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="unet"):
        load_checkpoint("tiny", str(folder), CPU)


def test_weights_that_lack_a_tensor_are_refused_by_its_name(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if not key.startswith("mid_block")}, file)
    with pytest.raises(CheckpointRefused, match="The unet lacks mid_block"):
        load_checkpoint("tiny", str(folder), CPU)


def test_a_text_encoder_that_lacks_a_tensor_is_refused_by_its_name(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    kept = {key: tensor for key, tensor in load_file(file).items() if "layers.0." not in key}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointRefused, match=r"The text_encoder lacks .*layers\.0\."):
        load_checkpoint("tiny", str(folder), CPU)


@pytest.mark.parametrize("shard", ["shard.bin", "../shard.safetensors", "absent.safetensors", None])
@pytest.mark.parametrize(("component", "stem"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_parts_of_weights_that_are_no_safetensors_beside_their_list_are_never_opened(
    folder: Path, component: str, stem: str, shard: str | None
) -> None:
    (folder / component / "shard.bin").write_bytes(b"a pickle")
    (folder / "shard.safetensors").write_bytes(b"elsewhere")
    index = {"metadata": {}, "weight_map": {"conv_in.weight": shard}}
    (folder / component / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointRefused, match=rf"{component}/{stem}.safetensors.index.json names"):
        load_checkpoint("tiny", str(folder), CPU)


def test_a_unet_that_does_not_say_its_size_is_refused(folder: Path) -> None:
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": None}))
    with pytest.raises(CheckpointRefused, match="sample_size"):
        load_checkpoint("tiny", str(folder), CPU)


def test_whatever_the_client_of_the_hub_raises_is_a_model_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(Exception):
        pass

    def fail(*_: object) -> None:
        raise Elsewhere("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fail)
    with pytest.raises(CheckpointMissing, match="somebody/model.*no route to host"):
        load_checkpoint("tiny", "somebody/model", CPU)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nothing", "nothing"])
def test_a_directory_that_is_not_there_is_named(source: str) -> None:
    with pytest.raises(CheckpointMissing, match=source):
        load_checkpoint("tiny", source, CPU)


def test_a_hub_model_that_cannot_be_fetched_is_missing() -> None:
    with pytest.raises(CheckpointMissing, match="someone/something"):
        load_checkpoint("tiny", "someone/something", CPU)


def test_a_hub_model_is_loaded_from_the_local_cache_by_its_id(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "a" * 40
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(original, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_checkpoint("tiny", "someone/tiny", CPU).window_tokens == CONTEXT - 2


def test_only_what_is_read_is_fetched_from_the_hub() -> None:
    repository = """
        README.md model_index.json v1-5-pruned.safetensors v1-5-pruned.ckpt
        feature_extractor/preprocessor_config.json safety_checker/model.safetensors safety_checker/config.json
        scheduler/scheduler_config.json tokenizer/merges.txt tokenizer/vocab.json tokenizer/tokenizer_config.json
        text_encoder/config.json text_encoder/model.safetensors text_encoder/model.fp16.safetensors
        text_encoder/pytorch_model.bin unet/config.json unet/diffusion_pytorch_model.safetensors.index.json
        unet/diffusion_pytorch_model-00001-of-00002.safetensors unet/diffusion_pytorch_model-00002-of-00002.safetensors
        unet/diffusion_pytorch_model.non_ema.safetensors vae/config.json vae/diffusion_pytorch_model.fp16.safetensors
    """
    fetched = {str(name) for name in files_to_fetch([PurePosixPath(name) for name in repository.split()])}
    left = {name for name in repository.split() if name not in fetched}
    assert left == {
        "README.md",
        "v1-5-pruned.safetensors",
        "v1-5-pruned.ckpt",
        "feature_extractor/preprocessor_config.json",
        "safety_checker/model.safetensors",
        "safety_checker/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
    }


def test_a_directory_without_an_index_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match=r"model_index\.json"):
        load_checkpoint("tiny", str(tmp_path), CPU)


def test_the_shelf_loads_on_demand_and_evicts_what_was_used_longest_ago(original: Path) -> None:
    size = load_checkpoint("one", str(original), CPU).size_bytes
    shelf = Shelf(dict.fromkeys(("one", "two", "three"), str(original)), CPU, budget_bytes=2 * size + 1000)
    assert not shelf.is_loaded("one")
    one = shelf.get("one")
    shelf.get("two")
    assert shelf.get("one") is one
    assert shelf.get("three") is not None
    assert [checkpoint.name for checkpoint in shelf.loaded()] == ["one", "three"]


def test_the_shelf_never_evicts_a_model_in_use(original: Path) -> None:
    size = load_checkpoint("one", str(original), CPU).size_bytes
    shelf = Shelf({"one": str(original), "two": str(original)}, CPU, budget_bytes=size + 1000)
    shelf.get("one")
    assert shelf.get("two", in_use={"one"}) is None
    assert shelf.is_loaded("one")
    assert shelf.get("two") is not None
    assert not shelf.is_loaded("one")


def test_a_model_larger_than_the_budget_is_refused_and_evicts_nobody(original: Path, tmp_path: Path) -> None:
    large = save_tiny_checkpoint(tmp_path / "large", width=64)
    size = load_checkpoint("one", str(original), CPU).size_bytes
    shelf = Shelf({"one": str(original), "large": str(large)}, CPU, budget_bytes=size + 1000)
    shelf.get("one")
    with pytest.raises(CheckpointRefused, match="budget"):
        shelf.get("large")
    assert shelf.is_loaded("one")
    with pytest.raises(CheckpointMissing, match="'four'"):
        shelf.get("four")


def test_the_shelf_counts_the_weights_that_are_loaded_and_no_others(original: Path, folder: Path) -> None:
    size = load_checkpoint("one", str(original), CPU).size_bytes
    for file in folder.glob("*/*.safetensors"):
        shutil.copy(file, file.with_suffix(".fp16.safetensors"))
    shelf = Shelf({"one": str(folder)}, CPU, budget_bytes=size + 1000)
    assert shelf.get("one") is not None


def test_a_decode_that_overflows_in_half_precision_is_repeated_in_float32(original: Path) -> None:
    vae = AutoencoderKL.from_pretrained(original / "vae", low_cpu_mem_usage=False).eval()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # A hidden layer beyond 65,504 that the layer behind it brings back.
        vae.post_quant_conv.weight.mul_(4e4)
        vae.decoder.conv_in.weight.mul_(1 / 4e4)
        expected = Autoencoder(copy.deepcopy(vae).half().float()).decode(latents)
        half = Autoencoder(vae.half())
        assert not torch.isfinite(vae.decode(latents.half() / 0.18215).sample).all(), "it must overflow"
        pictures = half.decode(latents)
    assert vae.dtype == torch.float16
    for picture, reference in zip(pictures, expected, strict=True):
        assert picture is not None
        assert reference is not None
        assert np.abs(picture.astype(int) - reference.astype(int)).max() <= 1


def test_an_upload_of_another_size_is_resized_before_it_is_encoded(original: Path) -> None:
    autoencoder = load_checkpoint("tiny", str(original), CPU).autoencoder
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 130, 3), dtype=np.uint8))
    posterior = autoencoder.encode(image, 96, 64)
    assert posterior.mean.shape == (4, 8, 12)
    resized = autoencoder.encode(image.resize((96, 64), Image.Resampling.LANCZOS), 96, 64)
    assert torch.equal(posterior.mean, resized.mean)


def test_faults_of_the_device_are_told_apart() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert is_sticky(torch.AcceleratorError("an illegal memory access was encountered"))
    assert not is_sticky(torch.OutOfMemoryError("CUDA out of memory"))


def test_an_unknown_dtype_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        choose_placement("cpu", "int3")


def test_an_sdxl_checkpoint_is_loaded_with_both_encoders(tmp_path: Path) -> None:
    checkpoint = load_checkpoint("xl", str(save_tiny_sdxl_checkpoint(tmp_path / "xl")), CPU)
    (text,) = checkpoint.conditioner.encode(["a cat"])
    assert text.states.shape == (CONTEXT, 64)
    assert text.pooled is not None
    assert text.pooled.shape == (32,)
    assert checkpoint.zeroes_absent_negative
    assert checkpoint.max_clip_skip == 1
    assert Shelf({"xl": str(tmp_path / "xl")}, CPU)._size_of("xl") == pytest.approx(checkpoint.size_bytes, rel=0.01)


def test_an_sdxl_checkpoint_without_its_second_encoder_is_named(tmp_path: Path) -> None:
    folder = save_tiny_sdxl_checkpoint(tmp_path / "xl")
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(CheckpointMissing, match="'text_encoder_2' is missing"):
        load_checkpoint("xl", str(folder), CPU)


def test_tokenizers_that_disagree_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_sdxl_checkpoint(tmp_path / "xl")
    file = folder / "tokenizer_2" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointRefused, match="different tokens"):
        load_checkpoint("xl", str(folder), CPU)


def test_the_files_of_an_sdxl_repository_are_fetched_with_its_second_half() -> None:
    names = [
        PurePosixPath(name)
        for name in (
            "model_index.json",
            "sd_xl_base_1.0.safetensors",
            "text_encoder_2/config.json",
            "text_encoder_2/model.fp16.safetensors",
            "text_encoder_2/model.safetensors",
            "tokenizer_2/merges.txt",
            "unet/diffusion_pytorch_model.safetensors",
            "vae_1_0/diffusion_pytorch_model.safetensors",
        )
    ]
    assert {str(name) for name in files_to_fetch(names)} == {
        "model_index.json",
        "text_encoder_2/config.json",
        "text_encoder_2/model.safetensors",
        "tokenizer_2/merges.txt",
        "unet/diffusion_pytorch_model.safetensors",
    }
