"""The compiler of step tables: a diffusers scheduler in, one small matrix per step out.

Owns how a table is read off, and the check of every table against its scheduler. Knows nothing of networks, requests or
guidance, keeps no table, and holds no sampler mathematics of its own.

Every scheduler of the catalogue is, per step, a linear map from (sample x, model output o, noise n, what it remembers)
to (next sample, what it remembers next). So one run on unit vectors reads the map off, without any fitting: before each
step, x, o, n and each remembered tensor (a *register*) are replaced by unit vectors of one small space, and after it
the components of the results are the coefficients. A scheduler treats every channel alike, so other channels of the
same run carry a *witness*: random numbers that nobody replaces, and that the table must step as the scheduler did.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.errors import SamplerRefused
from models.samplers import SAMPLERS
from models.step_table import StepTable, advance
from models.table_plan import TablePlan

MAX_REGISTERS = 4
"""Most tensors a table of the catalogue carries from step to step: memory per slot is (1 + MAX_REGISTERS) latents."""

TOLERANCE = 1e-5
"""Largest relative error of a table against its scheduler; some schedulers cast to float32 inside `step`."""

FloatArray = npt.NDArray[np.float64]

_SAMPLE, _OUTPUT, _NOISE, _INPUTS = 0, 1, 2, 3
_NUM_PROBES = _INPUTS + 8
_NUM_WITNESSES = 64


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


class _StepWithNoise:
    """A stochastic scheduler's step that takes the noise; returns the next sample, and whether the noise was drawn."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def __call__(self, output: Tensor, timestep: Tensor, sample: Tensor, noise: Tensor) -> tuple[Tensor, bool]:
        with _GivenNoise(noise) as draws:
            following = self._scheduler.step(output, timestep, sample, return_dict=False)[0]
        assert draws.num_draws <= 1, f"{type(self._scheduler).__name__} draws twice in one step. This is a bug."
        return following, draws.num_draws == 1


class _StepWithoutNoise:
    """A deterministic scheduler's step, without `_GivenNoise`, which takes a third of the time of a solver's step."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._generator = torch.Generator().manual_seed(0)
        self._untouched = self._generator.get_state()
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        self._options = {"generator": self._generator} if takes_generator else {}

    def __call__(self, output: Tensor, timestep: Tensor, sample: Tensor, noise: Tensor) -> tuple[Tensor, bool]:
        following = self._scheduler.step(output, timestep, sample, return_dict=False, **self._options)[0]
        is_untouched = torch.equal(self._generator.get_state(), self._untouched)
        assert is_untouched, f"{type(self._scheduler).__name__} is said to draw no noise. This is a bug."
        return following, False


def _channels(index: int, witness: Tensor) -> Tensor:
    """The unit vector `index` in the probe channels, `witness` (_NUM_WITNESSES,) in its own: (1, channels, 1, 1)."""
    assert index < _NUM_PROBES, f"A scheduler keeps more than {_NUM_PROBES - _INPUTS} samples. This is a bug."
    channels = torch.zeros(_NUM_PROBES + _NUM_WITNESSES, dtype=torch.float64)
    channels[index] = 1.0
    channels[_NUM_PROBES:] = witness
    return channels[None, :, None, None]  # (1, channels, 1, 1)


def _swap_registers(scheduler: Any, visit: Callable[[Tensor], Tensor]) -> None:
    """Replace every sample-shaped tensor in the scheduler's attributes and lists by what `visit` returns for it."""

    def swap(value: Any) -> Any:
        is_sample = isinstance(value, Tensor) and value.shape == (1, _NUM_PROBES + _NUM_WITNESSES, 1, 1)
        return visit(value) if is_sample else value

    for name, value in list(vars(scheduler).items()):
        if isinstance(value, (list, tuple)):
            setattr(scheduler, name, type(value)(swap(item) for item in value))
        elif isinstance(value, Tensor):
            setattr(scheduler, name, swap(value))


def _take_registers(scheduler: Any) -> list[Tensor]:
    """Read what the scheduler remembers, each (channels,), and put unit vectors in the place of its probes.

    Equal values become one register.
    """
    found: list[Tensor] = []

    def visit(value: Tensor) -> Tensor:
        flat = value.flatten()
        index = next((i for i, known in enumerate(found) if torch.equal(known, flat)), len(found))
        if index == len(found):
            found.append(flat)
        return _channels(_INPUTS + index, flat[_NUM_PROBES:])

    _swap_registers(scheduler, visit)
    return found


@dataclass(frozen=True)
class _Row:
    """One step as read off, in float64, and what its witness saw, in (_NUM_WITNESSES,) each.

    `matrix` is (1 + registers after, 3 + registers before).
    """

    timestep: float
    input_scale: float
    signal_scale: float
    noise_scale: float
    matrix: FloatArray
    draws_noise: bool
    latents: Tensor
    output: Tensor
    noise: Tensor
    expected: Tensor


def _read_rows(scheduler: Any, timesteps: Tensor, is_stochastic: bool) -> Iterator[_Row]:
    """Run the scheduler once on unit vectors and a witness; it is used up afterwards.

    The witness's latents are changed between steps, as inpainting does by blending: a table that fits undisturbed runs
    only must not pass.
    """
    step = _StepWithNoise(scheduler) if is_stochastic else _StepWithoutNoise(scheduler)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(_NUM_WITNESSES, generator=generator)
    registers = _take_registers(scheduler)
    for timestep in timesteps:
        output, noise, change = torch.randn(3, _NUM_WITNESSES, generator=generator)
        x, o, n = _channels(_SAMPLE, latents), _channels(_OUTPUT, output), _channels(_NOISE, noise)
        # Before the step, in the pipelines' order: what add_noise means depends on the scheduler's own counter.
        noisy = scheduler.add_noise(x, n, timestep[None]).flatten()
        scaled = scheduler.scale_model_input(x, timestep).flatten()
        sample, draws_noise = step(o, timestep, x, n)
        num_inputs = _INPUTS + len(registers)
        registers = _take_registers(scheduler)
        results = torch.stack([sample.double().flatten(), *(register.double() for register in registers)])
        expected = results[0, _NUM_PROBES:]
        yield _Row(
            timestep=float(timestep),
            input_scale=float(scaled[_SAMPLE]),
            signal_scale=float(noisy[_SAMPLE]),
            noise_scale=float(noisy[_NOISE]),
            matrix=results[:, :num_inputs].numpy(),
            draws_noise=draws_noise,
            latents=latents,
            output=output,
            noise=noise,
            expected=expected,
        )
        latents = (expected + 0.1 * change).float()


def _stack_live(matrices: list[FloatArray]) -> Tensor:
    """Drop registers that nothing later reads, close the gaps, pad to one shape (rows, 1 + R, 3 + R) float32."""
    pruned: list[FloatArray] = []
    live: list[int] = []
    num_registers = 0
    for matrix in reversed(matrices):
        kept = matrix[[0, *(1 + register for register in live)]]
        live = [column for column in range(matrix.shape[1] - _INPUTS) if bool(kept[:, _INPUTS + column].any())]
        pruned.append(kept[:, [_SAMPLE, _OUTPUT, _NOISE, *(_INPUTS + register for register in live)]])
        num_registers = max(num_registers, len(live))
    assert not live, "A fresh scheduler remembers a sample. This is a bug."
    assert num_registers <= MAX_REGISTERS, f"A table needs {num_registers} registers. This is a bug."
    stacked = np.zeros((len(pruned), 1 + num_registers, _INPUTS + num_registers), dtype=np.float32)
    for index, matrix in enumerate(reversed(pruned)):
        stacked[index, : matrix.shape[0], : matrix.shape[1]] = matrix
    return torch.from_numpy(stacked)


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
    rows = list(_read_rows(scheduler, timesteps, SAMPLERS[plan.sampler].is_stochastic))
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
    error = _table_error(table, rows)
    assert error <= TOLERANCE, f"The table of {plan} is {error:.1e} off its scheduler. This is a bug."
    return table


def _table_error(table: StepTable, rows: Sequence[_Row]) -> float:
    """Largest relative error of a table, stepped in float32, on the latents, outputs and noise of the witness.

    The scheduler stepped it in float64, because its own rounding can be larger than TOLERANCE (heun in two steps:
    1e-5).
    """
    registers = torch.zeros(1, table.num_registers, _NUM_WITNESSES, 1, 1)
    error = 0.0
    for index, row in enumerate(rows):
        noise = row.noise if row.draws_noise else torch.zeros_like(row.noise)
        latents, output, noise = torch.stack([row.latents, row.output, noise])[:, None, :, None, None]
        actual, registers = advance(table.coefficients[index, None], latents, output, noise, registers)
        error = max(error, float((actual.flatten() - row.expected).abs().max() / row.expected.abs().max()))
    return error if math.isfinite(error) else math.inf
