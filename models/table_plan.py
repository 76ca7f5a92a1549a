"""What a step table depends on beside the checkpoint, and where its run begins in the scheduler's own schedule.

Owns the refusals that a step count or a strength decides. Knows nothing of what is in a table.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.errors import SamplerRefused
from models.samplers import SAMPLERS, max_steps_of, resolve_sampler


@dataclass(frozen=True)
class TablePlan:
    """Everything a table depends on beside the checkpoint. `kept_steps` None is text-to-image."""

    sampler: str
    noise_schedule: str
    num_inference_steps: int
    kept_steps: int | None

    def start(self, unstepped: Any) -> tuple[Any, Tensor]:
        """A copy of the scheduler at its first row, and the timesteps of all rows (rows,).

        A strength begins inside the full schedule: a slice of a full table would be another, wrong, multistep history.
        """
        scheduler = copy.deepcopy(unstepped)
        scheduler.set_timesteps(self.num_inference_steps)
        skipped_steps = 0 if self.kept_steps is None else self.num_inference_steps - self.kept_steps
        begin = skipped_steps * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        if bool((scheduler.timesteps < 0).any()):
            # numpy's arange rounds 62 of the 1000 step counts up to one step too many; diffusers runs it at t = -1.
            raise SamplerRefused(
                f"In {self.num_inference_steps} steps, trailing timesteps run past the first one, because of a"
                " rounding error in diffusers. Send another num_inference_steps."
            )
        return scheduler, scheduler.timesteps[begin:]


def plan_table(
    scheduler_config: Mapping[str, Any], name: tuple[str, str], num_inference_steps: int, strength: float | None
) -> TablePlan:
    """What a request means for a checkpoint; SamplerRefused where name, step count or strength allow no table."""
    sampler, noise_schedule = resolve_sampler(*name)
    low, high = SAMPLERS[sampler].min_steps, max_steps_of(scheduler_config, sampler)
    if not low <= num_inference_steps <= high:
        raise SamplerRefused(
            f"Sampler {sampler!r} runs {low} to {high} steps with this model, not {num_inference_steps}."
            f" Send num_inference_steps from {low} to {high}."
        )
    if strength is None:
        return TablePlan(sampler, noise_schedule, num_inference_steps, None)
    kept_steps = min(int(num_inference_steps * strength), num_inference_steps)
    if kept_steps < 1:
        smallest = math.ceil(1000 / num_inference_steps) / 1000
        raise SamplerRefused(
            f"Strength {strength} of {num_inference_steps} steps leaves no step to run."
            f" Send a strength of {smallest} or more, or more steps."
        )
    return TablePlan(sampler, noise_schedule, num_inference_steps, kept_steps)
