"""Prompts into what cross-attention reads (arXiv 2112.10752, equation of section 3.3: tau_theta(y)).

Owns tokenizing, windows, weights, the token limit, the warning about what was cut, and a cache of encoded windows.
Knows nothing of requests, guidance, batches or what is inside a text encoder.

A text encoder reads one window of tokens. A longer prompt is read in several, each framed and encoded alone, laid
behind each other: the way of the AUTOMATIC1111 web UI, whose weights are these, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from models.lora import LoraUse
from models.prompt_weights import Passage, plain, read_weights
from models.request import PromptSyntax
from models.slot import Text
from models.text_encoder import TextEncoder, Window

MOST_WINDOWS = 8
_ENCODE_AT_ONCE = 16
_COMMA_WITHIN = 20
"""A window that is full ends behind a comma instead, if there is one among so many tokens before its end."""


@dataclass(frozen=True)
class PromptOptions:
    """clip_skip: layers of the text encoder that are left out at its end, counted as diffusers counts them (1 is the
    "2" of other tools). loras: what the text encoders are adapted by. is_strict: each window in a call of its own."""

    syntax: PromptSyntax = "plain"
    clip_skip: int = 0
    loras: tuple[LoraUse, ...] = ()
    is_strict: bool = False


PLAIN = PromptOptions()


@dataclass(frozen=True)
class Reading:
    """A prompt as it is read. num_tokens: of the whole prompt. left_out: what was cut of it, or None."""

    windows: tuple[Window, ...]
    num_tokens: int
    left_out: str | None


@dataclass(frozen=True)
class _Key:
    """What an encoded window depends on."""

    window: Window
    clip_skip: int
    loras: tuple[tuple[tuple[object, ...], float], ...]
    """Identity and weight of each: the cache shall not keep their matrices in memory."""
    is_strict: bool


@dataclass(frozen=True)
class _Token:
    id: int
    weight: float
    passage: int
    start: int
    """Of its text in the passage."""


class TextConditioner:
    """A tokenizer and the text encoders that read its tokens: one, or the two of SDXL, whose states lie side by side.

    Encodes each distinct window once and keeps the newest `cache_size` results, so a repeated prompt (and the
    empty negative one) costs nothing. Not safe for threads: the engine's loop owns it.
    """

    def __init__(
        self,
        tokenizer: Any,
        encoders: Sequence[TextEncoder],
        window_length: int,
        cache_size: int = 512,
        most_windows: int = MOST_WINDOWS,
    ) -> None:
        """`window_length`: tokens of a window, padding included."""
        self._tokenizer = tokenizer
        self.encoders = tuple(encoders)
        self._length = window_length
        self._cache_size = cache_size
        self._cache: OrderedDict[_Key, Text] = OrderedDict()
        self._most_windows = most_windows
        self._frame = _frame_of(tokenizer)
        self.window_tokens = self._length - sum(map(len, self._frame))
        """Tokens of a prompt that one window holds, without those that frame it."""
        comma = tokenizer(",", add_special_tokens=False).input_ids
        self._comma = comma[-1] if comma else None
        self.read = lru_cache(maxsize=512)(self._read)

    @property
    def token_limit(self) -> int:
        """Tokens of a prompt that reach the network, without those that frame its windows."""
        return self._most_windows * self.window_tokens

    @property
    def max_clip_skip(self) -> int:
        """Layers of the text encoder that can be left out."""
        return min(encoder.max_skip for encoder in self.encoders)

    def context_length(self, prompts: Sequence[str] = ("",), syntax: PromptSyntax = "plain") -> int:
        """Tokens, padding included, of these prompts encoded together: those of the longest."""
        return self._length * max(len(self.read(prompt, syntax).windows) for prompt in prompts)

    def warn_of_cut(self, prompt: str, name: str = "prompt", syntax: PromptSyntax = "plain") -> str | None:
        """A sentence naming the part of `prompt` behind the token limit, or None when all of it is read; `name` is
        what the sentence calls it."""
        reading = self.read(prompt, syntax)
        if reading.left_out is None:
            return None
        limit = self.window_tokens if syntax == "plain" else self.token_limit
        return (
            f"The {name} has {reading.num_tokens} tokens and this model reads {limit};"
            f" this part was not read: {reading.left_out!r}."
        )

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], options: PromptOptions = PLAIN) -> list[Text]:
        """One text a prompt: the weighted hidden states (context_length, width), and the first window pooled.

        All have the length of the longest; behind a shorter one come empty windows. Windows that are not cached are
        encoded together.
        """
        readings = [self.read(prompt, options.syntax) for prompt in prompts]
        count = max(len(reading.windows) for reading in readings)
        empty = self.read("", options.syntax).windows
        windows = [reading.windows + (count - len(reading.windows)) * empty for reading in readings]
        texts = self._encode_windows([window for own in windows for window in own], options)
        parts = [texts[start : start + count] for start in range(0, len(texts), count)]
        return [Text(torch.cat([text.states for text in own]), own[0].pooled) for own in parts]

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(self, prompt: str, syntax: PromptSyntax) -> Reading:
        passages = plain(prompt) if syntax == "plain" else read_weights(prompt)
        split: list[list[_Token]] = [[]]
        for number, passage in enumerate(passages):
            if passage.begins_window:
                split.append([])
            tokens = self._tokens_of(passage, number)
            if syntax == "plain":
                split = [tokens[: self.window_tokens], tokens[self.window_tokens :]]
            else:
                split[-1:] = _split(split[-1] + tokens, self.window_tokens, self._comma)
        most = 1 if syntax == "plain" else self._most_windows
        cut = [token for window in split[most:] for token in window]
        return Reading(
            windows=tuple(self._framed(window) for window in split[:most]),
            num_tokens=sum(len(window) for window in split),
            left_out=_text_from(passages, cut[0]) if cut else None,
        )

    def _tokens_of(self, passage: Passage, number: int) -> list[_Token]:
        found = self._tokenizer(passage.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pairs = zip(found.input_ids, found.offset_mapping, strict=True)
        return [_Token(token, passage.weight, number, start) for token, (start, _) in pairs]

    def _framed(self, tokens: list[_Token]) -> Window:
        spare = self.window_tokens - len(tokens)
        before, behind = self._frame
        return Window(
            (*before, *(token.id for token in tokens), *behind, *spare * [self._tokenizer.pad_token_id]),
            (*len(before) * [1.0], *(token.weight for token in tokens), *(len(behind) + spare) * [1.0]),
            num_used=self._length - spare,
        )

    # --- encoding -----------------------------------------------------------------------------------------------------

    def _encode_windows(self, windows: Sequence[Window], options: PromptOptions) -> list[Text]:
        """(T, D) each."""
        loras = tuple((use.lora.identity, use.weight) for use in options.loras)
        keys = [_Key(window, options.clip_skip, loras, options.is_strict) for window in windows]
        missing = [key for key in dict.fromkeys(keys) if key not in self._cache]
        fresh: dict[_Key, Text] = {}
        at_once = 1 if options.is_strict else _ENCODE_AT_ONCE
        for start in range(0, len(missing), at_once):
            chunk = missing[start : start + at_once]
            fresh.update(zip(chunk, self._encode_chunk([key.window for key in chunk], options), strict=True))
        encoded = [fresh[key] if key in fresh else self._cache[key] for key in keys]
        for key, text in zip(keys, encoded, strict=True):
            self._cache[key] = text
            self._cache.move_to_end(key)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return encoded

    def _encode_chunk(self, windows: Sequence[Window], options: PromptOptions) -> list[Text]:
        texts = []
        by_encoder = [encoder.encode(windows, options.clip_skip, options.loras) for encoder in self.encoders]
        for window, encoded in zip(windows, zip(*by_encoder, strict=True), strict=True):
            states = torch.cat([_weighted(one.states, window.weights) for one in encoded], dim=1)  # (T, D)
            texts.append(Text(states, encoded[-1].pooled))
        return texts


class NoText:
    """In place of a TextConditioner where a network reads no prompt."""

    encoders: tuple[TextEncoder, ...] = ()
    window_tokens = token_limit = max_clip_skip = 0

    def __init__(self, device: torch.device) -> None:
        self._text = Text(torch.zeros(1, 1, device=device))

    def context_length(self, prompts: Sequence[str] = ("",), syntax: PromptSyntax = "plain") -> int:
        return 1

    def warn_of_cut(self, prompt: str, name: str = "prompt", syntax: PromptSyntax = "plain") -> str | None:
        return f"This model reads no {name}; it was not read." if prompt.strip() else None

    def encode(self, prompts: Sequence[str], options: PromptOptions = PLAIN) -> list[Text]:
        return [self._text for _ in prompts]


def _frame_of(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and behind a prompt."""
    inner = tokenizer("a", add_special_tokens=False).input_ids
    framed = tokenizer("a").input_ids
    start = next(i for i in range(len(framed)) if framed[i : i + len(inner)] == inner)
    return framed[:start], framed[start + len(inner) :]


def _split(tokens: list[_Token], size: int, comma: int | None) -> list[list[_Token]]:
    """Windows of at most `size` tokens; where one is full it ends behind its last comma, if that is near."""
    windows: list[list[_Token]] = [[]]
    last_comma: int | None = None
    for token in tokens:
        current = windows[-1]
        is_full = len(current) == size
        if token.id == comma and not is_full:
            last_comma = len(current)
        if is_full:
            is_near = last_comma is not None and token.id != comma and size - last_comma <= _COMMA_WITHIN
            kept = last_comma + 1 if is_near and last_comma is not None else size
            windows[-1:] = [current[:kept], current[kept:]]
            last_comma = None
        windows[-1].append(token)
    return windows


def _text_from(passages: Sequence[Passage], token: _Token) -> str:
    first = passages[token.passage].text[token.start :]
    return (first + "".join(passage.text for passage in passages[token.passage + 1 :])).strip()


def _weighted(states: Tensor, weights: Sequence[float]) -> Tensor:
    """(T, D) times its weights, with the mean brought back to what it was, as the web UI does."""
    if all(weight == 1 for weight in weights):
        return states
    factors = torch.tensor(weights, device=states.device, dtype=states.dtype)
    weighted = states * factors[:, None]
    before, after = states.float().mean().item(), weighted.float().mean().item()
    # Some encoders have a mean near zero, and their ratio means nothing. Where all signs are the same, weights cannot
    # change it by more than these bounds.
    low, high = 1 / max(1.0, *weights), 1 / max(0.1, min(1.0, *weights))
    return weighted * (min(max(before / after, low), high) if after else 1.0)
