"""One CLIP-style text encoder: windows of tokens to hidden states, wrapped once.

Owns which layer is taken and how its padding is marked. Knows nothing of prompts, weights or caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.lora import LoraUse, RowLoras


@dataclass(frozen=True)
class Window:
    """The tokens of one window, those that frame it and padding included, and how strongly each counts; the first
    `num_used` are not padding."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    num_used: int


@dataclass(frozen=True)
class Encoded:
    """states: (T, D). pooled: (P,), where the network has a projection."""

    states: Tensor
    pooled: Tensor | None


class TextEncoder:
    """A CLIPTextModel, or one with a projection.

    `is_penultimate`: SDXL's way, the last layer but one without the final norm (arXiv 2307.01952, section 2.1);
    otherwise the last layer with it.
    """

    def __init__(
        self, network: Any, pad_token: int, is_penultimate: bool = False, component: str = "text_encoder"
    ) -> None:
        self.network = network
        self.component = component
        self._loras = RowLoras(network, component)
        self._pad_token = pad_token
        self._is_penultimate = is_penultimate
        self._has_mask = bool(getattr(network.config, "use_attention_mask", False))

    @property
    def max_skip(self) -> int:
        """Layers that can be left out at the end."""
        return int(self.network.config.num_hidden_layers) - (2 if self._is_penultimate else 1)

    def encode(self, windows: Sequence[Window], skip: int = 0, loras: tuple[LoraUse, ...] = ()) -> list[Encoded]:
        """All windows in one call, adapted by `loras`; `skip` layers are left out at the end."""
        try:
            self._loras.activate([loras] * len(windows), self.network.device)
            return self._encode(windows, skip)
        finally:
            self._loras.clear()

    def _encode(self, windows: Sequence[Window], skip: int) -> list[Encoded]:
        device = self.network.device
        tokens = torch.tensor([self._padded(window) for window in windows], device=device)
        used = torch.tensor([window.num_used for window in windows], device=device)
        mask = (torch.arange(tokens.shape[1], device=device)[None] < used[:, None]).long() if self._has_mask else None
        needs_all = skip > 0 or self._is_penultimate
        found = self.network(tokens, attention_mask=mask, output_hidden_states=needs_all)
        pooled = getattr(found, "text_embeds", None)
        if self._is_penultimate:
            states = found.hidden_states[-2 - skip]  # (N, T, D)
        elif skip:
            # Since transformers 5 a CLIPTextModel is flat; with a projection it still is not.
            norm = getattr(self.network, "text_model", self.network).final_layer_norm
            states = norm(found.hidden_states[-1 - skip])
        else:
            states = found.last_hidden_state
        return [Encoded(own, None if pooled is None else pooled[index]) for index, own in enumerate(states.unbind(0))]

    def _padded(self, window: Window) -> list[int]:
        """The window with this network's own padding."""
        return [*window.tokens[: window.num_used], *(len(window.tokens) - window.num_used) * [self._pad_token]]
