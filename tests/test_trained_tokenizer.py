"""A byte-level BPE with its own window, as the bundled model has: every prompt is read, here and in diffusers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoint import Checkpoint, load_checkpoint
from models.device import choose_placement
from models.engine import Drawn, Engine, Prepared
from models.errors import CheckpointRefused
from models.four_channel_view import four_channel_view
from models.request import TextToImageRequest
from tests.tiny import SIDE, save_tiny_inpainting_checkpoint, save_trained_tokenizer

CPU = choose_placement("cpu")
CONTEXT = 32
PIECES = 320
SENTENCES = (
    "a red apple on a white background",
    "a blue car, flat icon",
    "a smiling face, 3d render",
    "two green apples left of a red car",
    "a yellow star above a black cat on a light blue background",
)
LONG_CHINESE = "一只红色的苹果在蓝色汽车旁边，背景是绿色的草地"
PROMPTS = (
    "a red apple",
    "",
    "A  RED\tapple\n",
    "🦊 a fox",
    "👩‍🚀 family 👨‍👩‍👧",
    "一只红色的苹果",
    "تفاحة حمراء",
    "cafe\u0301 \x00 \U0010ffff",
    "a red apple " * 20,
    LONG_CHINESE,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_inpainting_checkpoint(tmp_path_factory.mktemp("models") / "nine")
    save_trained_tokenizer(folder, SENTENCES, pieces=PIECES, context=CONTEXT)
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint("nine", str(folder), CPU)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Any:
    return checkpoint.conditioner._tokenizer


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    """diffusers' text-to-image pipeline of the checkpoint."""
    inpainting = StableDiffusionInpaintPipeline.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    parts = inpainting.components | {"unet": four_channel_view(inpainting.unet)}
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_window_is_the_tokenizers_and_two_tokens_frame_a_prompt(checkpoint: Checkpoint, tokenizer: Any) -> None:
    conditioner = checkpoint.conditioner
    assert (conditioner.context_length(), conditioner.window_tokens) == (CONTEXT, CONTEXT - 2)
    assert len(tokenizer) == PIECES + 2
    assert len(tokenizer.tokenize("a red apple")) < len("a red apple") / 2, "it must have learned some pieces"


@settings(deadline=None, database=None, max_examples=300)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_is_read_without_loss(tokenizer: Any, text: str) -> None:
    tokens = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    assert max(tokens, default=0) < PIECES, "no unknown and no special token"
    read = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    assert read.removeprefix(" ") == tokenizer.backend_tokenizer.normalizer.normalize_str(text).removeprefix(" ")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_fills_the_window_with_end_tokens(tokenizer: Any, prompt: str) -> None:
    start, end = PIECES, PIECES + 1
    tokens = tokenizer(prompt, padding="max_length", max_length=CONTEXT, truncation=True).input_ids
    pieces = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids[: CONTEXT - 2]
    assert tokens == [start, *pieces] + [end] * (CONTEXT - 1 - len(pieces))


def test_prompts_are_encoded_as_the_pipelines_of_diffusers_encode_them(checkpoint: Checkpoint, pipeline: Any) -> None:
    ours = [text.states for text in checkpoint.conditioner.encode(PROMPTS)]
    for prompt, states in zip(PROMPTS, ours, strict=True):
        theirs, negative = pipeline.encode_prompt(prompt, "cpu", 1, True, negative_prompt="")
        assert states.shape == (CONTEXT, 32)
        torch.testing.assert_close(states, theirs[0])
        torch.testing.assert_close(ours[PROMPTS.index("")], negative[0])
    assert (ours[0] - ours[5]).abs().max() > 0.1, "prompts must matter"


@pytest.mark.parametrize("prompt", [LONG_CHINESE, "🦊" * 20, "a red apple " * 20])
def test_the_warning_names_what_was_cut_in_whole_characters(
    checkpoint: Checkpoint, tokenizer: Any, prompt: str
) -> None:
    warning = checkpoint.conditioner.warn_of_cut(prompt)
    assert warning is not None
    cut = warning.rpartition(": '")[2].removesuffix("'.")
    assert cut
    assert prompt.strip().endswith(cut)
    kept = prompt.strip()[: -len(cut)].rstrip()
    assert len(tokenizer(kept, add_special_tokens=False).input_ids) <= CONTEXT - 2
    assert len(tokenizer(f"{kept} {cut[:1]}", add_special_tokens=False).input_ids) >= CONTEXT - 2


def test_a_prompt_that_fits_is_not_warned_of(checkpoint: Checkpoint) -> None:
    assert checkpoint.conditioner.warn_of_cut("🦊 一只") is None


@pytest.mark.parametrize("prompt", ["a 🦊 beside a car", LONG_CHINESE])
def test_the_engine_draws_what_diffusers_draws_of_any_script(
    checkpoint: Checkpoint, pipeline: Any, prompt: str
) -> None:
    request = TextToImageRequest(
        model="nine",
        prompt=prompt,
        prompt_syntax="plain",
        width=SIDE,
        height=SIDE,
        num_inference_steps=4,
        guidance_scale=4.0,
        sampler="pndm",
        noise_schedule="default",
        seed=3,
        num_images=1,
    )
    engine = Engine()
    engine.admit("one", request, checkpoint)
    events = []
    while not engine.is_idle:
        events += engine.step()
    prepared, drawn = events
    assert isinstance(prepared, Prepared)
    assert isinstance(drawn, Drawn)
    assert bool(prepared.warnings) == (prompt == LONG_CHINESE)
    generator = torch.Generator().manual_seed(3)
    theirs = np.asarray(pipeline(prompt, num_inference_steps=4, guidance_scale=4.0, generator=generator).images[0])
    assert theirs.std() > 20
    assert np.abs(theirs.astype(int) - drawn.pictures[0].astype(int)).max() <= 2


# --- tokenizers that could not serve any prompt -----------------------------------------------------------------------


def test_a_tokenizer_that_cannot_pad_is_refused_when_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copy / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["pad_token"]
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointRefused, match="pad_token"):
        load_checkpoint("nine", str(copy), CPU)


def test_a_tokenizer_with_more_tokens_than_the_text_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shutil.copytree(
        save_tiny_inpainting_checkpoint(tmp_path / "other") / "tokenizer", copy / "tokenizer", dirs_exist_ok=True
    )
    with pytest.raises(CheckpointRefused, match=f"514 tokens and the text_encoder knows {PIECES + 2}"):
        load_checkpoint("nine", str(copy), CPU)
