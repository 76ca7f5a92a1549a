"""Prompts into windows of tokens, weighted, and what the text encoder makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.checkpoint import load_checkpoint
from models.conditioning import MOST_WINDOWS, PLAIN, PromptOptions, Reading, TextConditioner
from models.device import choose_placement
from tests.tiny import CONTEXT, save_tiny_checkpoint

ROOM = CONTEXT - 2
WEB = PromptOptions("a1111")
LONG = "a cat on a wall beside a dog on a mat under a lamp in a house"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def conditioner(folder: Path) -> TextConditioner:
    """A token a letter: what is in which window can be counted by hand."""
    return load_checkpoint("tiny", str(folder), choose_placement("cpu")).conditioner


def letters(conditioner: TextConditioner, reading: Reading) -> list[str]:
    """What stands in each window."""
    names = conditioner._tokenizer.convert_ids_to_tokens
    windows = [names(list(window.tokens[1 : window.num_used - 1])) for window in reading.windows]
    return ["".join(window).replace("</w>", "").replace("Ġ", " ") for window in windows]


def encoded(conditioner: TextConditioner, tokens: list[int], skip: int = 0) -> Tensor:
    """Straight from the text encoder: (1, T, D)."""
    with torch.no_grad():
        network = conditioner.encoders[0].network
        found = network(torch.tensor([tokens]), output_hidden_states=True)
        return network.final_layer_norm(found.hidden_states[-1 - skip]) if skip else found[0]


def states_of(conditioner: TextConditioner, *prompts: str, options: PromptOptions = PLAIN) -> list[Tensor]:
    return [text.states for text in conditioner.encode(prompts, options)]


def test_a_short_prompt_is_the_same_in_both_syntaxes(conditioner: TextConditioner) -> None:
    (ours,), (theirs,) = states_of(conditioner, "a red cat", options=WEB), states_of(conditioner, "a red cat")
    assert torch.equal(ours, theirs)
    tokens = conditioner._tokenizer("a red cat", padding="max_length", max_length=CONTEXT).input_ids
    torch.testing.assert_close(ours, encoded(conditioner, tokens)[0])


def test_a_long_prompt_is_cut_in_one_syntax_and_read_on_in_the_other(conditioner: TextConditioner) -> None:
    cut, read = conditioner.read(LONG, "plain"), conditioner.read(LONG, "a1111")
    count = len(conditioner._tokenizer(LONG, add_special_tokens=False).input_ids)
    assert (len(cut.windows), cut.num_tokens, read.num_tokens) == (1, count, count)
    assert len(read.windows) == -(-count // ROOM)
    assert read.left_out is None
    assert "".join(letters(conditioner, read)) == LONG
    warning = conditioner.warn_of_cut(LONG)
    assert warning is not None
    assert f"has {count} tokens and this model reads {ROOM}" in warning
    assert conditioner.warn_of_cut(LONG, syntax="a1111") is None


def test_each_window_is_framed_and_encoded_alone(conditioner: TextConditioner) -> None:
    (states,) = states_of(conditioner, LONG, options=WEB)
    windows = conditioner.read(LONG, "a1111").windows
    expected = torch.cat([encoded(conditioner, list(window.tokens)) for window in windows], dim=1)[0]
    torch.testing.assert_close(states, expected)
    start, end = conditioner._tokenizer.bos_token_id, conditioner._tokenizer.eos_token_id
    for window in windows:
        assert (window.tokens[0], window.tokens[window.num_used - 1]) == (start, end)
        assert len(window.tokens) == CONTEXT


def test_a_shorter_prompt_is_followed_by_empty_windows(conditioner: TextConditioner) -> None:
    long, short = states_of(conditioner, LONG, "blurry", options=WEB)
    assert long.shape == short.shape == (conditioner.context_length([LONG, "blurry"], "a1111"), 32)
    (alone,), (empty,) = states_of(conditioner, "blurry", options=WEB), states_of(conditioner, "", options=WEB)
    assert torch.equal(short[:CONTEXT], alone)
    assert torch.equal(short[CONTEXT : 2 * CONTEXT], empty)


def test_a_window_ends_behind_a_comma_that_is_near_its_end(conditioner: TextConditioner) -> None:
    first, rest = "abcdefgh,ij,", "klmnopqrstuvw"
    assert letters(conditioner, conditioner.read(first + rest, "a1111")) == [first, rest]
    whole = "abcdefghijklmnopqrstuvwxyz"
    assert letters(conditioner, conditioner.read(whole, "a1111")) == [whole[:ROOM], whole[ROOM:]]
    far = "a," + whole
    assert letters(conditioner, conditioner.read(far, "a1111")) == [far[:ROOM], far[ROOM:]], "21 tokens are too many"
    full = whole[:ROOM] + ","
    assert letters(conditioner, conditioner.read(full, "a1111")) == [whole[:ROOM], ","]


def test_a_break_begins_a_window(conditioner: TextConditioner) -> None:
    reading = conditioner.read("a cat BREAK a dog", "a1111")
    assert letters(conditioner, reading) == ["a cat", "a dog"]
    assert len(conditioner.read("a cat BREAK a dog", "plain").windows) == 1


def test_what_no_window_holds_is_named(conditioner: TextConditioner) -> None:
    prompt = "".join(f"{number:04d}" for number in range(60))
    reading = conditioner.read(prompt, "a1111")
    assert "".join(letters(conditioner, reading)) == prompt[: MOST_WINDOWS * ROOM]
    assert reading.left_out == prompt[MOST_WINDOWS * ROOM :]
    warning = conditioner.warn_of_cut(prompt, "negative prompt", "a1111")
    assert warning is not None
    assert warning.startswith(f"The negative prompt has 240 tokens and this model reads {MOST_WINDOWS * ROOM};")


def test_weights_scale_the_states_of_their_tokens_and_keep_the_mean(conditioner: TextConditioner) -> None:
    (window,) = conditioner.read("a (red:1.5) cat", "a1111").windows
    assert window.weights.count(1.5) == 3
    plain = encoded(conditioner, list(window.tokens))[0]
    factors = torch.tensor(window.weights)[:, None]
    ratio = (plain.mean() / (plain * factors).mean()).clamp(1 / 1.5, 1.0)
    (weighted,) = states_of(conditioner, "a (red:1.5) cat", options=WEB)
    torch.testing.assert_close(weighted, plain * factors * ratio)
    assert (weighted - plain).abs().max() > 0.1


def test_no_weight_leaves_the_range_of_the_encoder(conditioner: TextConditioner) -> None:
    for prompt in ("(a:0) (b:0)", "(a cat:-1)", "(a:100)", "((((a))))", "[[[a]]]"):
        (states,) = states_of(conditioner, prompt, options=WEB)
        assert torch.isfinite(states).all(), prompt
        assert states.abs().max() < 2000, prompt


@pytest.mark.parametrize("skip", [0, 1])
def test_clip_skip_takes_an_earlier_layer_through_the_final_norm(conditioner: TextConditioner, skip: int) -> None:
    tokens = conditioner._tokenizer("a red cat", padding="max_length", max_length=CONTEXT).input_ids
    (states,) = states_of(conditioner, "a red cat", options=PromptOptions(clip_skip=skip))
    torch.testing.assert_close(states, encoded(conditioner, tokens, skip)[0])
    assert conditioner.max_clip_skip == 1


def test_windows_are_cached_by_what_is_in_them(conditioner: TextConditioner) -> None:
    batches: list[int] = []
    hook: Any = conditioner.encoders[0].network.register_forward_pre_hook(
        lambda _module, inputs: batches.append(len(inputs[0]))
    )
    conditioner.encode(["a fresh prompt", "a fresh prompt"], WEB)
    conditioner.encode(["a fresh prompt"])
    conditioner.encode(["a (fresh) prompt"], WEB)
    conditioner.encode(["a fresh prompt"], PromptOptions(clip_skip=1))
    hook.remove()
    assert batches == [1, 1, 1]
