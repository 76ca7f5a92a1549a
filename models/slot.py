"""One picture on its way through the batch.

Owns everything that belongs to one picture alone: latents, step table and position in it, registers, random numbers,
conditioning. Knows nothing of the other slots: that a picture does not depend on its neighbours starts here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.step_table import StepTable


@dataclass(frozen=True)
class GroupKey:
    """Slots with equal keys share a UNet call: same network, same latent shape, same length of context."""

    network: str
    shape: tuple[int, ...]
    """(C, h, w) of the latents."""
    context_length: int


@dataclass(frozen=True)
class Conditioning:
    """What cross-attention reads: (T, D) for the prompt, and for the negative prompt when there is guidance.

    guidance_scale: w of arXiv 2207.12598 in the form u + w (c - u); ignored without `negative`. extra: (E, h, w)
    float32, what is concatenated to the latents of both rows of a network that takes more than latents; None is zeros.
    """

    positive: Tensor
    negative: Tensor | None
    guidance_scale: float
    extra: Tensor | None = None

    @property
    def rows(self) -> int:
        """UNet rows a step costs."""
        return 1 if self.negative is None else 2


@dataclass(eq=False)
class Slot:
    """The state of one picture. `commit` is the only writer after construction, so any step can be repeated."""

    job_id: str
    index: int
    key: GroupKey
    table: StepTable
    conditioning: Conditioning
    generator: torch.Generator
    latents: Tensor
    """(C, h, w) float32."""
    registers: Tensor
    """(R, C, h, w) float32: what the sampler keeps between steps."""
    step: int = 0
    predicted_x0: Tensor | None = None
    """(C, h, w): the picture as the network sees it now."""
    _noise: Tensor | None = field(default=None, repr=False)

    @property
    def is_done(self) -> bool:
        return self.step >= len(self.table)

    @property
    def rows(self) -> int:
        return self.conditioning.rows

    @property
    def steps_left(self) -> int:
        return len(self.table) - self.step

    def noise(self) -> Tensor | None:
        """The draw of this step, (C, h, w), or None when the sampler takes none; drawn once and kept until `commit`."""
        if self._noise is None and self.table.draws_noise[self.step]:
            self._noise = torch.randn(self.key.shape, generator=self.generator).to(self.latents.device)
        return self._noise

    def commit(self, latents: Tensor, registers: Tensor, predicted_x0: Tensor) -> None:
        """Take the result of a step that succeeded."""
        self.latents = latents
        self.registers = registers
        self.predicted_x0 = predicted_x0
        self._noise = None
        self.step += 1


def start_from_noise(table: StepTable, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Latents of a text-to-image start: the first draw, scaled to the sampler's largest noise."""
    return torch.randn(shape, generator=generator) * table.initial_noise_scale


def start_from_latents(table: StepTable, latents: Tensor, generator: torch.Generator) -> Tensor:
    """Latents of an image-to-image start (arXiv 2108.01073): `latents`, noised to the first row of the table."""
    noise = torch.randn(latents.shape, generator=generator)
    return table.signal_scale[0].item() * latents + table.noise_scale[0].item() * noise
