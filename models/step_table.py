"""A sampler as a table: one small matrix per step, and the one function that steps a batch with them.

Owns what a table holds and how it is applied. Knows nothing of diffusers, networks, requests or guidance, holds no
sampler mathematics, and does not say where a table comes from: `models.table_compiler` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class StepTable:
    """What one sampler does at each of its rows (one row is one network call). All tensors are on the CPU.

    With R registers, row i maps [x, model output, noise, R registers] to [x', R registers'].

    - `timesteps` (rows,) float32: what the network is told.
    - `input_scale` (rows,) float32: the network sees `input_scale * x`.
    - `coefficients` (rows, 1 + R, 3 + R) float32.
    - `predicted_x0` (rows, 2) float32: x0 = c0 * x + c1 * model output, x not scaled.
    - `draws_noise`: rows at which diffusers takes one draw of the latents' shape from the generator, used or not.
    - `signal_scale`, `noise_scale` (rows + 1,) float32: `add_noise` before row i; the last entry is the clean (1, 0).
      Image-to-image starts with entry 0, blending after row i uses entry i + 1.
    - `initial_noise_scale`: text-to-image starts with this times standard normal noise.
    - `has_strength`: compiled for a strength, that is to start from a noised picture.
    """

    sampler: str
    noise_schedule: str
    num_inference_steps: int
    has_strength: bool
    timesteps: Tensor
    input_scale: Tensor
    coefficients: Tensor
    predicted_x0: Tensor
    draws_noise: tuple[bool, ...]
    signal_scale: Tensor
    noise_scale: Tensor
    initial_noise_scale: float

    def __len__(self) -> int:
        return len(self.draws_noise)

    @property
    def num_registers(self) -> int:
        return self.coefficients.shape[1] - 1

    def row(self, index: int, num_registers: int) -> Tensor:
        """Coefficients of one row, padded with zeros for a batch that carries `num_registers` registers.

        Returns (1 + num_registers, 3 + num_registers) float32; `num_registers` is at least this table's own.
        """
        spare = num_registers - self.num_registers
        assert spare >= 0, f"A batch of {num_registers} registers cannot hold {self.num_registers}. This is a bug."
        return torch.nn.functional.pad(self.coefficients[index], (0, spare, 0, spare))


def advance(
    coefficients: Tensor, latents: Tensor, outputs: Tensor, noise: Tensor, registers: Tensor
) -> tuple[Tensor, Tensor]:
    """One sampler step for a batch of any mixture of tables, in float32.

    `coefficients` (B, 1 + R, 3 + R), `latents`, `outputs`, `noise` (B, C, H, W), `registers` (B, R, C, H, W), all
    float32 on one device; pass zeros, never uninitialised memory, for noise that is not drawn and registers not yet
    written. Returns the next latents (B, C, H, W) and registers (B, R, C, H, W).
    """
    inputs = torch.cat([torch.stack([latents, outputs, noise], dim=1), registers], dim=1)  # (B, 3 + R, C, H, W)
    columns = coefficients[..., None, None, None]  # (B, 1 + R, 3 + R, 1, 1, 1)
    # One fixed order of sums, unlike a matrix product, whose kernel depends on the batch: so a picture is the same to
    # the last bit alone and beside any neighbours, and padding changes nothing.
    results = columns[:, :, 0] * inputs[:, None, 0]  # (B, 1 + R, C, H, W)
    for index in range(1, inputs.shape[1]):
        results = torch.addcmul(results, columns[:, :, index], inputs[:, None, index])
    return results[:, 0], results[:, 1:]
