"""Prompts into what cross-attention reads (arXiv 2112.10752, equation of section 3.3: tau_theta(y)).

Owns tokenizing, the token limit, the warning about what was cut, and a cache of encoded prompts. Knows nothing of
requests, guidance or batches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_ENCODE_AT_ONCE = 16


class TextConditioner:
    """A tokenizer and a CLIP-style text encoder.

    Encodes each distinct prompt once and keeps the newest `cache_size` results, so a repeated prompt (and the
    empty negative one) costs nothing. Not safe for threads: the engine's loop owns it.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, cache_size: int = 512) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._cache_size = cache_size
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        positions = text_encoder.config.max_position_embeddings
        # A tokenizer saved without a limit reports a huge one.
        self._window = int(min(tokenizer.model_max_length, positions))
        self._frame = tokenizer.num_special_tokens_to_add(pair=False)

    @property
    def context_length(self) -> int:
        """Tokens of one encoded prompt, padding included."""
        return self._window

    @property
    def token_limit(self) -> int:
        """Tokens of a prompt that reach the network, without those that frame it."""
        return self._window - self._frame

    def warn_of_cut(self, prompt: str, name: str = "prompt") -> str | None:
        """A sentence naming the part of `prompt` behind the token limit, or None when all of it is read; `name` is
        what the sentence calls it."""
        tokens = self._tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        count = len(tokens.input_ids)
        if count <= self.token_limit:
            return None
        cut = prompt[tokens.offset_mapping[self.token_limit][0] :].strip()
        return (
            f"The {name} has {count} tokens and this model reads {self.token_limit}; this part was not read: {cut!r}."
        )

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Last hidden states after the final layer norm, one (context_length, width) tensor a prompt.

        Prompts that are not cached are encoded together.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        fresh: dict[str, Tensor] = {}
        for start in range(0, len(missing), _ENCODE_AT_ONCE):
            chunk = missing[start : start + _ENCODE_AT_ONCE]
            fresh.update(zip(chunk, self._encode_chunk(chunk), strict=True))
        encoded = [fresh[prompt] if prompt in fresh else self._cache[prompt] for prompt in prompts]
        for prompt, states in zip(prompts, encoded, strict=True):
            self._cache[prompt] = states
            self._cache.move_to_end(prompt)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return encoded

    def _encode_chunk(self, prompts: list[str]) -> list[Tensor]:
        tokens = self._tokenizer(
            prompts, padding="max_length", max_length=self._window, truncation=True, return_tensors="pt"
        )
        device = self._text_encoder.device
        uses_mask = getattr(self._text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(device) if uses_mask else None
        states = self._text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0]  # (N, T, D)
        return list(states.unbind(0))
