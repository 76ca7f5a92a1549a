"""One step of many pictures: a single UNet call for whatever is stacked.

Owns the layout of rows, guidance and the sampler arithmetic of a batch. Knows nothing of jobs, turns or faults: it
either commits the step of every slot that stayed finite, or raises and has written nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.denoiser import Denoiser
from models.slot import Slot
from models.step_table import advance


def step_together(denoiser: Denoiser, slots: Sequence[Slot], rows_at_once: int | None = None) -> list[Slot]:
    """Take one sampler step of every slot, all of one group, each with its own timestep, sampler and guidance.

    Returns the slots whose latents turned NaN or infinite; they are not committed. `rows_at_once` splits the UNet call
    for a device that cannot hold all rows; None is one call.
    """
    # Guided slots first: rows are [negatives of the guided, positives of all], so a slot without guidance costs one.
    ordered = sorted(slots, key=lambda slot: slot.conditioning.negative is None)
    latents = torch.stack([slot.latents for slot in ordered])  # (B, C, h, w)
    outputs = _guided_outputs(denoiser, ordered, latents, rows_at_once)  # (B, C, h, w)
    num_registers = max(slot.table.num_registers for slot in ordered)
    coefficients = torch.stack([slot.table.row(slot.step, num_registers) for slot in ordered]).to(latents.device)
    noise = torch.stack([_noise_or_zeros(slot) for slot in ordered])
    registers = torch.stack([_padded(slot.registers, num_registers) for slot in ordered])  # (B, R, C, h, w)
    following, registers = advance(coefficients, latents, outputs, noise, registers)
    weights = torch.stack([slot.table.predicted_x0[slot.step] for slot in ordered]).to(latents.device)
    weights = weights[:, :, None, None, None]  # (B, 2, 1, 1, 1)
    predicted_x0 = weights[:, 0] * latents + weights[:, 1] * outputs
    for index, slot in enumerate(ordered):
        following[index], predicted_x0[index] = slot.with_known(following[index], predicted_x0[index])
    # The one wait for the device in a step: it also keeps the loop from running ahead of a cancel.
    finite = torch.isfinite(following).flatten(1).all(1).tolist()
    for index, slot in enumerate(ordered):
        if finite[index]:
            own = slot.table.num_registers
            # Clones, so that a slot does not keep the memory of the whole batch alive.
            slot.commit(following[index].clone(), registers[index, :own].clone(), predicted_x0[index].clone())
    return [slot for slot, good in zip(ordered, finite, strict=True) if not good]


def _guided_outputs(denoiser: Denoiser, ordered: Sequence[Slot], latents: Tensor, rows_at_once: int | None) -> Tensor:
    """Outputs (B, C, h, w), with classifier-free guidance u + w (c - u) (arXiv 2207.12598) where there is some."""
    guided = sum(slot.conditioning.negative is not None for slot in ordered)
    scales = torch.stack([slot.table.input_scale[slot.step] for slot in ordered]).to(latents.device)
    timesteps = torch.stack([slot.table.timesteps[slot.step] for slot in ordered]).to(latents.device)
    scaled = latents * scales[:, None, None, None]
    rows = torch.cat([scaled[:guided], scaled])  # (guided + B, C, h, w)
    timesteps = torch.cat([timesteps[:guided], timesteps])
    context = torch.stack(_contexts(ordered))  # (guided + B, T, D)
    own = [slot.conditioning.extra for slot in ordered]
    extras = own[:guided] + own
    size = rows_at_once or len(rows)
    parts = [slice(start, start + size) for start in range(0, len(rows), size)]
    outputs = torch.cat([denoiser.predict(rows[part], timesteps[part], context[part], extras[part]) for part in parts])
    if not guided:
        return outputs
    weights = torch.tensor([slot.conditioning.guidance_scale for slot in ordered[:guided]], device=outputs.device)
    negative, positive = outputs[:guided], outputs[guided : 2 * guided]
    mixed = negative + weights[:, None, None, None] * (positive - negative)
    return torch.cat([mixed, outputs[2 * guided :]])


def _contexts(ordered: Sequence[Slot]) -> list[Tensor]:
    negatives = [slot.conditioning.negative for slot in ordered if slot.conditioning.negative is not None]
    return negatives + [slot.conditioning.positive for slot in ordered]


def _noise_or_zeros(slot: Slot) -> Tensor:
    noise = slot.noise()
    return torch.zeros_like(slot.latents) if noise is None else noise


def _padded(registers: Tensor, count: int) -> Tensor:
    """(R, C, h, w) -> (count, C, h, w), zeros behind."""
    missing = count - registers.shape[0]
    if not missing:
        return registers
    return torch.cat([registers, registers.new_zeros((missing, *registers.shape[1:]))])
