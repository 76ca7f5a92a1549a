"""One picture on its way through the batch.

Owns everything that belongs to one picture alone: latents, step table and position in it, registers, random numbers,
conditioning. Knows nothing of the other slots: that a picture does not depend on its neighbours starts here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.control import ControlUse
from models.lora import LoraUse
from models.step_table import StepTable


@dataclass(frozen=True)
class GroupKey:
    """Slots with equal keys share a UNet call: same network, same latent shape, same length of context."""

    network: str
    shape: tuple[int, ...]
    """(C, h, w) of the latents."""
    context_length: int
    is_strict: bool = False
    """Its calls have one fixed number of rows."""


@dataclass(frozen=True)
class Text:
    """An encoded prompt: states (T, D) for cross-attention, and for SDXL the whole prompt pooled to (P,)."""

    states: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Conditioning:
    """The prompt, and the negative prompt when guidance takes a second row.

    guidance_scale: w of arXiv 2207.12598 in the form u + w (c - u), or what a network without `negative` is told.
    guidance_rescale: phi of arXiv 2305.08891, equation 16. extra: (E, h, w) float32, what is concatenated to the
    latents of both rows of a network that takes more than latents; None is zeros. time_ids: (6,) float32, for SDXL.
    noise_level: of the small picture in `extra`, for an upscaler.
    """

    positive: Text
    negative: Text | None
    guidance_scale: float
    guidance_rescale: float = 0.0
    extra: Tensor | None = None
    time_ids: Tensor | None = None
    noise_level: int | None = None
    loras: tuple[LoraUse, ...] = ()
    controls: tuple[ControlUse, ...] = ()

    @property
    def rows(self) -> int:
        """UNet rows a step costs."""
        return 1 if self.negative is None else 2


@dataclass(frozen=True)
class Known:
    """What stays of an upload where the network has no channels for it (blending, arXiv 2201.09865, section 4.1).

    latents: (C, h, w), clean. noise: (C, h, w), the one draw it is noised with. is_drawn: bool (1, h, w).
    """

    latents: Tensor
    noise: Tensor
    is_drawn: Tensor

    def to(self, device: torch.device) -> Known:
        return Known(self.latents.to(device), self.noise.to(device), self.is_drawn.to(device))

    def keep(self, latents: Tensor, signal_scale: Tensor, noise_scale: Tensor) -> Tensor:
        """`latents` (C, h, w) where the picture is drawn, elsewhere the known ones at this noise level."""
        known = signal_scale * self.latents + noise_scale * self.noise
        return torch.where(self.is_drawn, latents, known)


@dataclass(frozen=True)
class SlotState:
    """How far a picture has come. Never changed, only replaced whole, so that any thread reads one moment of it.

    latents: (C, h, w) float32. registers: (R, C, h, w) float32, what the sampler keeps between steps. generator: uint8,
    the state of the picture's generator before the draw of the next step. predicted_x0: (C, h, w), the picture as the
    network sees it now. is_exact: every call for it had the form that strict ones have.
    """

    latents: Tensor
    registers: Tensor
    generator: Tensor
    step: int = 0
    predicted_x0: Tensor | None = None
    is_exact: bool = True


@dataclass(eq=False)
class Slot:
    """One picture. Its state is replaced only by a step that has succeeded, so any step can be repeated."""

    job_id: str
    index: int
    """Of the picture in its job."""
    key: GroupKey
    table: StepTable
    conditioning: Conditioning
    generator: torch.Generator
    state: SlotState
    known: Known | None = None
    tile: int = 0
    """Of the picture, where it is enlarged in several."""
    stepped_at: float = 0.0
    """Monotonic; its last turn, or when it came."""
    _noise: Tensor | None = field(default=None, repr=False)

    @property
    def latents(self) -> Tensor:
        return self.state.latents

    @property
    def registers(self) -> Tensor:
        return self.state.registers

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def predicted_x0(self) -> Tensor | None:
        return self.state.predicted_x0

    @property
    def is_exact(self) -> bool:
        return self.state.is_exact

    @property
    def is_done(self) -> bool:
        return self.step >= len(self.table)

    @property
    def rows(self) -> int:
        return self.conditioning.rows

    @property
    def steps_left(self) -> int:
        return len(self.table) - self.step

    @property
    def controls(self) -> tuple[ControlUse, ...]:
        """Those that steer this step."""
        return tuple(use for use in self.conditioning.controls if use.is_active(self.step, len(self.table)))

    def noise(self) -> Tensor | None:
        """The draw of this step, (C, h, w), or None when the sampler takes none; drawn once and kept until `commit`."""
        if self._noise is None and self.table.draws_noise[self.step]:
            self._noise = torch.randn(self.key.shape, generator=self.generator).to(self.latents.device)
        return self._noise

    def with_known(self, following: Tensor, predicted_x0: Tensor) -> tuple[Tensor, Tensor]:
        """Result of this step, (C, h, w) each, with what is known of the picture put back."""
        if self.known is None:
            return following, predicted_x0
        signal, noise = self.table.signal_scale[self.step + 1], self.table.noise_scale[self.step + 1]
        clean = self.table.signal_scale[-1], self.table.noise_scale[-1]
        return self.known.keep(following, signal, noise), self.known.keep(predicted_x0, *clean)

    def commit(self, latents: Tensor, registers: Tensor, predicted_x0: Tensor, is_exact: bool) -> None:
        """Take the result of a step that succeeded. is_exact: its call had the form that strict ones have."""
        is_exact = self.is_exact and is_exact
        generator = self.state.generator if self._noise is None else self.generator.get_state()
        self.state = SlotState(latents, registers, generator, self.step + 1, predicted_x0, is_exact)
        self._noise = None

    def resume(self, state: SlotState) -> None:
        """Go on from what this picture had come to before."""
        self.state = state
        self.generator.set_state(state.generator)
        self._noise = None

    def lose_exactness(self) -> None:
        """Something was done for it in another form than strict ones have."""
        self.state = replace(self.state, is_exact=False)
