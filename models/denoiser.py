"""The noise-predicting UNet (arXiv 2112.10752, epsilon_theta(z_t, t, tau_theta(y))), wrapped once.

Owns what is concatenated to the latents, and casts between the engine's float32 latents and the network's precision.
Knows nothing of samplers, guidance or slots: every row stands for itself, with its own timestep, its own context and
its own extra channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from models.control import ControlUse, residuals
from models.errors import CheckpointRefused
from models.lora import LoraUse, RowLoras


@dataclass(frozen=True)
class Rows:
    """What one forward call is given; every row stands for itself.

    latents: (N, C, h, w) float32, already scaled by the step table. timesteps: (N,) float32, may be fractional.
    context: (N, T, D). extras: for each row (E, h, w) float32, not scaled, or None for zeros; all zeros without it.
    input_scales: (N,) float32, what the latents were scaled by; ones without it. guidance_scales: (N,) float32, for a
    network that is told of it. pooled: (N, P) and time_ids: (N, 6), for SDXL. noise_levels: (N,) int64, for an
    upscaler. loras, controls: those of each row; none without it.
    """

    latents: Tensor
    timesteps: Tensor
    context: Tensor
    extras: Sequence[Tensor | None] | None = None
    input_scales: Tensor | None = None
    guidance_scales: Tensor | None = None
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    noise_levels: Tensor | None = None
    loras: Sequence[tuple[LoraUse, ...]] | None = None
    controls: Sequence[tuple[ControlUse, ...]] | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def split(self, size: int) -> Iterator[Rows]:
        """Parts of at most `size` rows."""
        for start in range(0, len(self), size):
            yield self._each(itemgetter(slice(start, start + size)))

    def take(self, indices: Sequence[int]) -> Rows:
        """The rows of these numbers, in this order; one may be there several times."""
        index = torch.tensor(indices, device=self.latents.device)
        return self._each(
            lambda value: value[index] if isinstance(value, Tensor) else [value[each] for each in indices]
        )

    def _each(self, choose: Callable[[Any], Any]) -> Rows:
        """What `choose` takes of each field that is there."""
        own = ((field.name, getattr(self, field.name)) for field in fields(self))
        chosen: dict[str, Any] = {name: None if value is None else choose(value) for name, value in own}
        return Rows(**chosen)

    def kinds(self) -> list[list[int]]:
        """Numbers of the rows that take the same way through the networks: with the same LoRAs and ControlNets."""
        kinds: dict[tuple[object, ...], list[int]] = {}
        for row in range(len(self)):
            loras = self.loras[row] if self.loras else ()
            nets = tuple(id(use.net) for use in self.controls[row]) if self.controls else ()
            kinds.setdefault((loras, nets), []).append(row)
        return list(kinds.values())


class Denoiser:
    """A UNet2DConditionModel: 4 channels in and out; 9 in and 4 out for one that was trained to inpaint, 7 and 4 for
    one that was trained to enlarge."""

    def __init__(self, unet: Any) -> None:
        self.network = unet
        config = unet.config
        self.latent_channels: int = config.out_channels
        self.extra_channels: int = config.in_channels - config.out_channels
        """Input channels behind the latents (arXiv 2112.10752, section 3.3, conditioning by concatenation)."""
        self.sample_size: int = _square_side(config.sample_size)
        """Side of the latents it was trained on."""
        # Not every class of UNet has an entry for each of these.
        self.guidance_width: int | None = config.get("time_cond_proj_dim")
        """Width of the embedding that tells it the guidance scale (arXiv 2310.04378); None: guidance is two rows."""
        self.is_sdxl: bool = config.get("addition_embed_type") == "text_time"
        """It is told the sizes of the picture and the pooled prompt (arXiv 2307.01952, section 2.2)."""
        self.max_noise_level: int | None = config.num_class_embeds and config.num_class_embeds - 1
        """Largest noise level of a small picture that it can be told; None: it is told none."""
        self.multiple: int = 2 ** (len(config.block_out_channels) - 1)
        """Sides of its latents are multiples of this, so that all its levels halve evenly."""
        self._loras = RowLoras(unet, "unet")
        # Kept: diffusers looks through all parameters to answer these, which takes milliseconds a call.
        self.device: torch.device = unet.device
        self.dtype: torch.dtype = unet.dtype

    @torch.inference_mode()
    def predict(self, rows: Rows) -> Tensor:
        """One forward call: the network's output (epsilon or v, as it was trained) as (N, C, h, w) float32."""
        try:
            self._loras.activate(rows.loras or (), self.device)
            inputs = self._with_extras(rows).to(self.dtype)
            output: Tensor = self.network(inputs, rows.timesteps, **self._told(rows), return_dict=False)[0]
            return output.float()
        finally:
            self._loras.clear()

    def predict_exactly(self, rows: Rows, count: int) -> Tensor:
        """The same in calls of exactly `count` rows each, all of one kind.

        Kernels choose the order of their sums by the shape of a call and by nothing that is in it, so a row becomes the
        same to the last bit whatever its place and its neighbours are. What is missing is filled up with copies.
        """
        outputs = rows.latents.new_empty((len(rows), self.latent_channels, *rows.latents.shape[2:]))
        for kind in rows.kinds():
            for start in range(0, len(kind), count):
                own = kind[start : start + count]
                call = self.predict(rows.take(own + (count - len(own)) * own[-1:]))
                outputs[own] = call[: len(own)]
        return outputs

    def _told(self, rows: Rows) -> dict[str, Any]:
        """What the network is told beside latents and timesteps, by the names of its arguments."""
        assert (rows.noise_levels is None) == (self.max_noise_level is None), "Noise levels. This is a bug."
        context, guidance, added, steered = rows.context.to(self.dtype), None, None, None
        if self.is_sdxl:
            assert rows.pooled is not None, "SDXL wants pooled prompts. This is a bug."
            assert rows.time_ids is not None, "SDXL wants time ids. This is a bug."
            added = {"text_embeds": rows.pooled.to(self.dtype), "time_ids": rows.time_ids.to(self.dtype)}
        if self.guidance_width is not None:
            assert rows.guidance_scales is not None, "This network is told the guidance scale. This is a bug."
            guidance = guidance_embedding(rows.guidance_scales, self.guidance_width).to(self.dtype)
        if rows.controls:
            steered = residuals(rows.controls, rows.latents.to(self.dtype), rows.timesteps, context, added)
        down, middle = steered or (None, None)
        return {
            "encoder_hidden_states": context,
            "timestep_cond": guidance,
            "class_labels": rows.noise_levels,
            "added_cond_kwargs": added,
            "down_block_additional_residuals": down,
            "mid_block_additional_residual": middle,
        }

    def _with_extras(self, rows: Rows) -> Tensor:
        """(N, C, h, w) -> (N, C + E, h, w)."""
        if not self.extra_channels:
            assert all(own is None for own in rows.extras or ()), "This network takes latents only. This is a bug."
            return rows.latents
        return torch.cat([rows.latents, self._extras(rows)], dim=1)

    def _extras(self, rows: Rows) -> Tensor:
        """(N, E, h, w)."""
        # Zeros go through the same convolution as anything else: a narrower one is another kernel, which may round
        # differently, and a picture would change when a neighbour with extra channels joins.
        zeros = rows.latents.new_zeros((self.extra_channels, *rows.latents.shape[2:]))
        return torch.stack([zeros if own is None else own for own in rows.extras or [None] * len(rows)])


def guidance_embedding(guidance_scales: Tensor, width: int) -> Tensor:
    """Sines and cosines of 1000 (w - 1), (N,) to (N, width): how consistency models are told w, as in diffusers."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=guidance_scales.device) * -(math.log(10_000) / (half - 1)))
    angles = (guidance_scales - 1)[:, None] * 1000 * frequencies[None]
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def _square_side(sample_size: int | tuple[int, int] | list[int] | None) -> int:
    if sample_size is None:
        raise CheckpointRefused("unet/config.json does not say sample_size, the side of the latents it was trained on.")
    return int(sample_size if isinstance(sample_size, int) else max(sample_size))
