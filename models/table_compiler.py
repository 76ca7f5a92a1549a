"""The compiler of step tables: a diffusers scheduler in, one small matrix per step out.

Owns what a table depends on, how it is read off, and the check of every table against its scheduler. Knows nothing of
networks, requests or guidance, keeps no table, and holds no sampler mathematics of its own.

Every scheduler of the catalogue is, per step, a linear map from (sample x, model output o, noise n, what it remembers)
to (next sample, what it remembers next). So one run on unit vectors reads the map off, without any fitting: before each
step, x, o, n and each remembered tensor (a *register*) are replaced by unit vectors of one small space, and after it
the components of the results are the coefficients.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.errors import SamplerRefused
from models.samplers import SAMPLERS, max_steps_of, resolve_sampler
from models.step_table import StepTable, advance

MAX_REGISTERS = 4
"""Most tensors a table of the catalogue carries from step to step: memory per slot is (1 + MAX_REGISTERS) latents."""

TOLERANCE = 1e-5
"""Largest relative error of a table against its scheduler; some schedulers cast to float32 inside `step`."""

_SAMPLE, _OUTPUT, _NOISE, _INPUTS = 0, 1, 2, 3
_BASIS_SIZE = _INPUTS + 8


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


class _GivenNoise(TorchFunctionMode):
    """Within it, and in this thread only, a normal draw of `noise`'s shape returns `noise` and is counted.

    diffusers draws in `randn_tensor`, which calls `torch.randn`; any other way to draw is a reason to fail.
    """

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise
        self.num_draws = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in (torch.randn, torch.randn_like):
            return func(*args, **(kwargs or {}))
        shape = args[0].shape if func is torch.randn_like else torch.Size(args[0])
        assert shape == self.noise.shape, f"A scheduler drew noise of shape {tuple(shape)}. This is a bug."
        self.num_draws += 1
        return self.noise


def _basis(index: int) -> Tensor:
    assert index < _BASIS_SIZE, f"A scheduler keeps more than {_BASIS_SIZE - _INPUTS} samples. This is a bug."
    unit = torch.zeros(1, _BASIS_SIZE, 1, 1, dtype=torch.float64)
    unit[0, index] = 1.0
    return unit


def _swap_registers(scheduler: Any, visit: Callable[[Tensor], Tensor]) -> None:
    """Replace every sample-shaped tensor in the scheduler's attributes and lists by what `visit` returns for it."""

    def swap(value: Any) -> Any:
        is_sample = isinstance(value, Tensor) and value.shape == (1, _BASIS_SIZE, 1, 1)
        return visit(value) if is_sample else value

    for name, value in list(vars(scheduler).items()):
        if isinstance(value, (list, tuple)):
            setattr(scheduler, name, type(value)(swap(item) for item in value))
        elif isinstance(value, Tensor):
            setattr(scheduler, name, swap(value))


def _take_registers(scheduler: Any) -> list[Tensor]:
    """Read what the scheduler remembers and put unit vectors in its place. Equal values become one register."""
    found: list[Tensor] = []

    def visit(value: Tensor) -> Tensor:
        for index, known in enumerate(found):
            if torch.equal(known, value):
                return _basis(_INPUTS + index)
        found.append(value.clone())
        return _basis(_INPUTS + len(found) - 1)

    _swap_registers(scheduler, visit)
    return found


@dataclass(frozen=True)
class _Row:
    """One step as read off, in float64. `matrix` is (1 + registers after, 3 + registers before)."""

    timestep: float
    input_scale: float
    signal_scale: float
    noise_scale: float
    matrix: Tensor
    draws_noise: bool


def _read_rows(scheduler: Any, timesteps: Tensor) -> Iterator[_Row]:
    """Run the scheduler once on unit vectors; it is used up afterwards."""
    registers = _take_registers(scheduler)
    for timestep in timesteps:
        # Before the step, in the pipelines' order: what add_noise means depends on the scheduler's own counter.
        noisy = scheduler.add_noise(_basis(_SAMPLE), _basis(_NOISE), timestep[None]).flatten()
        scaled = scheduler.scale_model_input(_basis(_SAMPLE), timestep).flatten()
        with _GivenNoise(_basis(_NOISE)) as draws:
            sample = scheduler.step(_basis(_OUTPUT), timestep, _basis(_SAMPLE), return_dict=False)[0]
        assert draws.num_draws <= 1, f"{type(scheduler).__name__} draws twice in one step. This is a bug."
        num_inputs = _INPUTS + len(registers)
        registers = _take_registers(scheduler)
        results = torch.stack([sample.double().flatten(), *(register.double().flatten() for register in registers)])
        yield _Row(
            timestep=float(timestep),
            input_scale=float(scaled[_SAMPLE]),
            signal_scale=float(noisy[_SAMPLE]),
            noise_scale=float(noisy[_NOISE]),
            matrix=results[:, :num_inputs],
            draws_noise=draws.num_draws > 0,
        )


def _stack_live(matrices: list[Tensor]) -> Tensor:
    """Drop registers that nothing later reads, close the gaps, pad to one shape (rows, 1 + R, 3 + R) float32."""
    pruned: list[Tensor] = []
    live: list[int] = []
    num_registers = 0
    for matrix in reversed(matrices):
        kept = matrix[[0, *(1 + register for register in live)]]
        live = [column for column in range(matrix.shape[1] - _INPUTS) if bool(kept[:, _INPUTS + column].any())]
        pruned.append(kept[:, [_SAMPLE, _OUTPUT, _NOISE, *(_INPUTS + register for register in live)]])
        num_registers = max(num_registers, len(live))
    assert not live, "A fresh scheduler remembers a sample. This is a bug."
    assert num_registers <= MAX_REGISTERS, f"A table needs {num_registers} registers. This is a bug."
    stacked = torch.zeros(len(pruned), 1 + num_registers, _INPUTS + num_registers, dtype=torch.float64)
    for index, matrix in enumerate(reversed(pruned)):
        stacked[index, : matrix.shape[0], : matrix.shape[1]] = matrix
    return stacked.float()


def _predicted_x0(row: _Row, prediction_type: str) -> tuple[float, float]:
    """(c0, c1) with x0 = c0 * x + c1 * output, for x at the row's own noise level.

    The network's input z = input_scale * x is variance preserving, z = a * x0 + s * eps. Where the sampler keeps x as
    x0 + sigma * eps, its input scale is a = 1 / sqrt(1 + sigma^2), also at the midpoints that `add_noise` does not
    know; elsewhere z is x, and `add_noise` has (a, s). Epsilon: arXiv 2006.11239, equation 15; v: arXiv 2202.00512,
    appendix D.
    """
    a, s = row.signal_scale, row.noise_scale
    if row.input_scale != 1.0:
        a, s = row.input_scale, math.sqrt(1.0 - row.input_scale**2)
    if prediction_type == "sample":
        return 0.0, 1.0
    if prediction_type == "v_prediction":
        return a * row.input_scale, -s
    # Only a zero-terminal-SNR row has a = 0, where noise alone says nothing of the picture.
    return (row.input_scale / a, -s / a) if a > 0 else (0.0, 0.0)


def compile_table(unstepped: Any, plan: TablePlan) -> StepTable:
    """Compile one table and check it once against its scheduler.

    `unstepped` is the scheduler as `build_scheduler` makes it for the plan's name; it is copied. Raises SamplerRefused
    where the numbers do not allow a table, AssertionError where the table does not agree with diffusers.
    """
    scheduler, timesteps = plan.start(unstepped)
    rows = list(_read_rows(scheduler, timesteps))
    table = StepTable(
        sampler=plan.sampler,
        noise_schedule=plan.noise_schedule,
        num_inference_steps=plan.num_inference_steps,
        has_strength=plan.kept_steps is not None,
        timesteps=torch.tensor([row.timestep for row in rows]),
        input_scale=torch.tensor([row.input_scale for row in rows]),
        coefficients=_stack_live([row.matrix for row in rows]),
        predicted_x0=torch.tensor([_predicted_x0(row, scheduler.config.prediction_type) for row in rows]),
        draws_noise=tuple(row.draws_noise for row in rows),
        signal_scale=torch.tensor([*(row.signal_scale for row in rows), 1.0]),
        noise_scale=torch.tensor([*(row.noise_scale for row in rows), 0.0]),
        initial_noise_scale=float(scheduler.init_noise_sigma),
    )
    if not bool(table.coefficients.isfinite().all()):
        raise SamplerRefused(
            f"Sampler {plan.sampler!r} with the noise schedule {plan.noise_schedule!r} divides by zero in"
            f" {plan.num_inference_steps} steps of this model. Send fewer steps, or another sampler."
        )
    error = table_error(table, *plan.start(unstepped))
    assert error <= TOLERANCE, f"The table of {plan} is {error:.1e} off its scheduler. This is a bug."
    return table


def table_error(table: StepTable, scheduler: Any, timesteps: Tensor) -> float:
    """Largest relative error of a table, stepped in float32, against a fresh scheduler on the same random data.

    The scheduler is used up. It steps in float64, because its own rounding can be larger than TOLERANCE (heun in two
    steps: 1e-5). Latents are changed between steps, as inpainting does by blending: a table that fits undisturbed runs
    only fails here.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (1, 4, 4, 4)
    latents = torch.randn(shape, generator=generator)
    registers = torch.zeros(1, table.num_registers, *shape[1:])
    error = 0.0
    for index, timestep in enumerate(timesteps):
        output, noise, change = torch.randn(3, *shape, generator=generator)
        scheduler.scale_model_input(latents.double(), timestep)
        with _GivenNoise(noise.double()) as draws:
            expected = scheduler.step(output.double(), timestep, latents.double(), return_dict=False)[0]
        if table.draws_noise[index] != (draws.num_draws == 1):
            return math.inf
        drawn = noise if table.draws_noise[index] else torch.zeros_like(noise)
        actual, registers = advance(table.coefficients[index, None], latents, output, drawn, registers)
        error = max(error, float((actual - expected).abs().max() / expected.abs().max()))
        latents = (expected + 0.1 * change).float()
    return error if math.isfinite(error) else math.inf
