"""One step of many pictures: a single UNet call for whatever is stacked.

Owns the layout of rows, guidance and the sampler arithmetic of a batch. Knows nothing of jobs, turns or faults: it
either commits the step of every slot that stayed finite, or raises and has written nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.denoiser import Denoiser, Rows
from models.slot import Slot
from models.step_table import advance


def step_together(
    denoiser: Denoiser, slots: Sequence[Slot], rows_at_once: int | None = None, rows_exactly: int | None = None
) -> list[Slot]:
    """Take one sampler step of every slot, all of one group, each with its own timestep, sampler and guidance.

    Returns the slots whose latents turned NaN or infinite; they are not committed. `rows_at_once` splits the UNet call
    for a device that cannot hold all rows; None is one call. `rows_exactly`: rows of every UNet call, for strict slots.
    """
    # Guided slots first: rows are [negatives of the guided, positives of all], so a slot without guidance costs one.
    ordered = sorted(slots, key=lambda slot: slot.conditioning.negative is None)
    latents = torch.stack([slot.latents for slot in ordered])  # (B, C, h, w)
    outputs = _guided_outputs(denoiser, ordered, latents, rows_at_once, rows_exactly)  # (B, C, h, w)
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
            result = following[index].clone(), registers[index, :own].clone(), predicted_x0[index].clone()
            slot.commit(*result, is_exact=rows_exactly is not None)
    return [slot for slot, good in zip(ordered, finite, strict=True) if not good]


def _guided_outputs(
    denoiser: Denoiser, ordered: Sequence[Slot], latents: Tensor, rows_at_once: int | None, rows_exactly: int | None
) -> Tensor:
    """Outputs (B, C, h, w), with classifier-free guidance u + w (c - u) (arXiv 2207.12598) where there is some."""
    guided = sum(slot.conditioning.negative is not None for slot in ordered)
    rows = _rows(ordered, guided, latents)
    if rows_exactly is None:
        outputs = torch.cat([denoiser.predict(part) for part in rows.split(rows_at_once or len(rows))])
    else:
        outputs = denoiser.predict_exactly(rows, rows_exactly)
    if not guided:
        return outputs
    weights = torch.tensor([slot.conditioning.guidance_scale for slot in ordered[:guided]], device=outputs.device)
    negative, positive = outputs[:guided], outputs[guided : 2 * guided]
    mixed = negative + weights[:, None, None, None] * (positive - negative)
    phis = [slot.conditioning.guidance_rescale for slot in ordered[:guided]]
    if any(phis):
        mixed = _rescaled(mixed, positive, torch.tensor(phis, device=outputs.device))
    return torch.cat([mixed, outputs[2 * guided :]])


def _rows(ordered: Sequence[Slot], guided: int, latents: Tensor) -> Rows:
    """The negatives of the first `guided` slots, then the positives of all; latents (B, C, h, w)."""
    device = latents.device
    twice = [*ordered[:guided], *ordered]
    scales = torch.stack([slot.table.input_scale[slot.step] for slot in ordered]).to(device)
    scaled = latents * scales[:, None, None, None]
    texts = [slot.conditioning.negative for slot in ordered[:guided]] + [slot.conditioning.positive for slot in ordered]
    return Rows(
        latents=torch.cat([scaled[:guided], scaled]),
        timesteps=torch.stack([slot.table.timesteps[slot.step] for slot in twice]).to(device),
        context=torch.stack([text.states for text in texts if text is not None]),  # (guided + B, T, D)
        extras=[slot.conditioning.extra for slot in twice],
        input_scales=torch.cat([scales[:guided], scales]),
        guidance_scales=torch.tensor([slot.conditioning.guidance_scale for slot in twice], device=device),
        pooled=_stacked([text.pooled for text in texts if text is not None]),
        time_ids=_stacked([slot.conditioning.time_ids for slot in twice]),
        loras=[slot.conditioning.loras for slot in twice],
        controls=[slot.controls for slot in twice],
        noise_levels=_noise_levels([slot.conditioning.noise_level for slot in twice], device),
    )


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """All of them, or None where a network has none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None


def _noise_levels(levels: Sequence[int | None], device: torch.device) -> Tensor | None:
    known = [level for level in levels if level is not None]
    return torch.tensor(known, device=device) if known else None


def _rescaled(mixed: Tensor, positive: Tensor, phis: Tensor) -> Tensor:
    """Guided outputs brought towards the deviation of the positive ones (arXiv 2305.08891, equations 15 and 16)."""
    shape = (-1, 1, 1, 1)
    # One by one: how a sum over all of a picture is split depends on how many there are.
    ratios = torch.stack([own.std() / both.std() for own, both in zip(positive, mixed, strict=True)])
    blended = phis.view(shape) * (mixed * ratios.view(shape)) + (1 - phis.view(shape)) * mixed
    return torch.where(phis.view(shape) > 0, blended, mixed)


def _noise_or_zeros(slot: Slot) -> Tensor:
    noise = slot.noise()
    return torch.zeros_like(slot.latents) if noise is None else noise


def _padded(registers: Tensor, count: int) -> Tensor:
    """(R, C, h, w) -> (count, C, h, w), zeros behind."""
    missing = count - registers.shape[0]
    if not missing:
        return registers
    return torch.cat([registers, registers.new_zeros((missing, *registers.shape[1:]))])
