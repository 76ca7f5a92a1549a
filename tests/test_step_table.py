"""Step tables against the diffusers schedulers they were compiled from.

Every parity test builds the scheduler itself and steps it as the diffusers pipelines do, in float32, with the noise
from a real generator, and changes the latents between steps as inpainting does.
"""

from __future__ import annotations

import copy
import inspect
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import table_cache
from models.errors import SamplerRefused
from models.samplers import SAMPLERS, build_scheduler
from models.step_table import StepTable, advance
from models.table_cache import StepTables
from models.table_compiler import MAX_REGISTERS

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
EPSILON_CONFIG = {
    **BETAS,
    "_class_name": "PNDMScheduler",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
"""As Stable Diffusion 1.x ships it: spacing and prediction type are left to each class's default."""
V_CONFIG = {
    **BETAS,
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "prediction_type": "v_prediction",
    "solver_order": 2,
    "solver_type": "midpoint",
    "steps_offset": 1,
    "timestep_spacing": "linspace",
    "variance_type": None,
}
LEADING_CONFIG = {**EPSILON_CONFIG, "_class_name": "DDIMScheduler", "timestep_spacing": "leading"}
EVERY_NAME = [(sampler.name, schedule) for sampler in SAMPLERS.values() for schedule in sampler.noise_schedules]
SHAPE = (1, 4, 4, 4)


@cache
def build_once(config: str, sampler: str, noise_schedule: str) -> Any:
    """Building kdpm2 takes 0.4 s, so each scheduler is built once, never stepped, and copied by who steps it."""
    return build_scheduler(json.loads(config), sampler, noise_schedule)


@pytest.fixture(autouse=True)
def tables_share_the_built_schedulers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_cache, "build_scheduler", lambda config, *name: build_once(json.dumps(config), *name))


@cache
def tables_of(config: str) -> StepTables:
    return StepTables(json.loads(config))


def table_of(config: dict[str, Any], name: tuple[str, str], steps: int, strength: float | None) -> StepTable:
    return tables_of(json.dumps(config)).get(*name, steps, strength)


class Rival:
    """A diffusers scheduler stepped as `StableDiffusionImg2ImgPipeline` does (get_timesteps, prepare_latents)."""

    def __init__(self, config: dict[str, Any], name: tuple[str, str], steps: int, strength: float | None) -> None:
        self.scheduler = copy.deepcopy(build_once(json.dumps(config), *name))
        self.scheduler.set_timesteps(steps)
        kept = steps if strength is None else min(int(steps * strength), steps)
        begin = max(steps - kept, 0) * self.scheduler.order
        self.timesteps: Tensor = self.scheduler.timesteps[begin:]
        if strength is not None and hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        self.generator = torch.Generator().manual_seed(7)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        self._options = {"generator": self.generator} if takes_generator else {}

    def step(self, index: int, latents: Tensor, output: Tensor) -> Any:
        self.scheduler.scale_model_input(latents, self.timesteps[index])
        return self.scheduler.step(output, self.timesteps[index], latents, **self._options)


STRENGTHS = (None, 0.3, 0.6, 1.0)
FEW_RUNS = ((1, None), (2, 0.6), (3, 1.0), (10, None), (10, 0.3), (30, 0.6), (50, 0.3))


def grid(counts: tuple[int, ...]) -> tuple[tuple[int, float | None], ...]:
    """Every count with every strength that leaves a step to run."""
    return tuple((n, s) for n in counts for s in STRENGTHS if s is None or int(n * s) >= 1)


def runs_of(config: dict[str, Any], noise_schedule: str) -> tuple[tuple[int, float | None], ...]:
    if noise_schedule != "default":
        return FEW_RUNS
    return grid((1, 2, 3, 10, 30, 50)) if config is EPSILON_CONFIG else (*grid((3, 10, 30)), (1, None), (2, 0.6))


def parity_error(table: StepTable, rival: Rival) -> float:
    """Largest relative error over all rows; asserts that both took the same draws from their generators."""
    data, own = torch.Generator().manual_seed(3), torch.Generator().manual_seed(7)
    theirs = ours = torch.randn(SHAPE, generator=data) * table.initial_noise_scale
    registers = torch.zeros(1, table.num_registers, *SHAPE[1:])
    error = 0.0
    assert len(table) == len(rival.timesteps)
    for index in range(len(table)):
        output = torch.randn(SHAPE, generator=data)
        noise = torch.randn(SHAPE, generator=own) if table.draws_noise[index] else torch.zeros(SHAPE)
        theirs = rival.step(index, theirs, output).prev_sample
        ours, registers = advance(table.coefficients[index, None], ours, output, noise, registers)
        error = max(error, float((ours - theirs).abs().max() / theirs.abs().max()))
        change = 0.1 * torch.randn(SHAPE, generator=data)
        theirs, ours = theirs + change, ours + change
    assert torch.equal(own.get_state(), rival.generator.get_state())
    return error


@pytest.mark.parametrize("config", [EPSILON_CONFIG, V_CONFIG], ids=["epsilon", "v"])
@pytest.mark.parametrize("name", EVERY_NAME, ids="-".join)
def test_a_table_steps_as_its_scheduler_does(config: dict[str, Any], name: tuple[str, str]) -> None:
    for steps, strength in runs_of(config, name[1]):
        table = table_of(config, name, steps, strength)
        error = parity_error(table, Rival(config, name, steps, strength))
        # In two steps, second-order solvers lose digits in diffusers' own float32: (x - x0) / sigma cancels.
        assert error <= (5e-5 if steps == 2 and SAMPLERS[name[0]].order == 2 else 1e-5), (steps, strength, error)
        assert table.num_registers <= MAX_REGISTERS
        assert any(table.draws_noise) <= SAMPLERS[name[0]].is_stochastic


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.sampled_from([EPSILON_CONFIG, V_CONFIG, LEADING_CONFIG]),
    name=st.sampled_from(EVERY_NAME),
    steps=st.one_of(st.integers(1, 40), st.integers(1, 999)),
    strength=st.none() | st.floats(0, 1, exclude_min=True),
)
def test_any_steps_and_any_strength_are_the_schedulers_or_are_refused(
    config: dict[str, Any], name: tuple[str, str], steps: int, strength: float | None
) -> None:
    try:
        table = table_of(config, name, steps, strength)
    except SamplerRefused:
        return
    assert parity_error(table, Rival(config, name, steps, strength)) <= 1e-4, (name, steps, strength)


@pytest.mark.parametrize("name", EVERY_NAME, ids="-".join)
def test_leading_timesteps_are_the_checkpoints_own(name: tuple[str, str]) -> None:
    table = table_of(LEADING_CONFIG, name, 7, 0.5)
    assert parity_error(table, Rival(LEADING_CONFIG, name, 7, 0.5)) <= 1e-5


def mixed_tables() -> list[StepTable]:
    names = [("ddim", 5), ("unipc", 9), ("pndm", 8), ("heun", 4), ("dpmpp_3m_karras", 7), ("lcm", 6), ("euler_a", 5)]
    return [table_of(V_CONFIG, (name, "default"), steps, None) for name, steps in names]


def test_a_mixed_batch_gives_each_picture_what_it_gets_alone_to_the_last_bit() -> None:
    tables = mixed_tables()
    widest = max(table.num_registers for table in tables)
    data = torch.Generator().manual_seed(0)
    latents, together = (torch.randn(len(tables), 4, 9, 7, generator=data),) * 2
    registers = torch.zeros(len(tables), widest, 4, 9, 7)
    alone = list(zip(latents.split(1), [torch.zeros(1, t.num_registers, 4, 9, 7) for t in tables], strict=True))
    for index in range(5):
        outputs, noise = torch.randn(2, len(tables), 4, 9, 7, generator=data)
        coefficients = torch.stack([table.row(index, widest) for table in tables])
        together, registers = advance(coefficients, together, outputs, noise, registers)
        for place, table in enumerate(tables):
            x, kept = alone[place]
            row = table.coefficients[index, None]
            alone[place] = advance(row, x, outputs[place, None], noise[place, None], kept)
            assert torch.equal(alone[place][0], together[place, None])
            assert torch.equal(alone[place][1], registers[place, None, : table.num_registers])


@pytest.mark.parametrize("config", [EPSILON_CONFIG, V_CONFIG], ids=["epsilon", "v"])
@pytest.mark.parametrize("name", EVERY_NAME, ids="-".join)
def test_a_perfect_denoiser_is_read_exactly_and_leads_to_its_picture(
    config: dict[str, Any], name: tuple[str, str]
) -> None:
    """The network answers from the noise level `add_noise` states, or at the midpoints of DPM-Solver-2, its own."""
    table = table_of(config, name, 10, None)
    scheduler = Rival(config, name, 10, None).scheduler
    x0, noise, fresh = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    x, registers = noise * table.initial_noise_scale, torch.zeros(1, table.num_registers, *SHAPE[1:])
    for index in range(len(table)):
        signal, scale = float(table.signal_scale[index]), float(table.noise_scale[index])
        if name[0].startswith("kdpm2") and index % 2:
            scale = float(scheduler.sigmas_interpol[index if name[0] == "kdpm2" else index - 1])
        eps = (x - signal * x0) / scale
        a, s = signal / (signal**2 + scale**2) ** 0.5, scale / (signal**2 + scale**2) ** 0.5
        output = a * eps - s * x0 if config is V_CONFIG else eps
        c0, c1 = table.predicted_x0[index].tolist()
        assert float((c0 * x + c1 * output - x0).abs().max()) < 2e-4
        drawn = fresh.float() if table.draws_noise[index] else torch.zeros(SHAPE)
        stepped, registers = advance(table.coefficients[index, None], x.float(), output.float(), drawn, registers)
        x = stepped.double()
    leaves_noise = name[0] in ("deis", "tcd", "pndm") or (name[0] == "ddim" and config is EPSILON_CONFIG)
    assert float((x - x0).abs().max()) < (0.3 if leaves_noise else 5e-3)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler_ancestral", "heun", "kdpm2", "kdpm2_ancestral"])
@pytest.mark.parametrize("config", [EPSILON_CONFIG, V_CONFIG], ids=["epsilon", "v"])
def test_predicted_x0_is_what_the_scheduler_itself_predicts(config: dict[str, Any], name: str) -> None:
    table, rival = (
        table_of(config, (name, "default"), 6, None),
        Rival(config, (name, "default"), 6, None),
    )
    data = torch.Generator().manual_seed(1)
    for index in range(len(table)):
        x, output = torch.randn(2, *SHAPE, generator=data)
        expected = rival.step(index, x, output).pred_original_sample
        c0, c1 = table.predicted_x0[index]
        torch.testing.assert_close(c0 * x + c1 * output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strength", [None, 0.6])
@pytest.mark.parametrize("name", EVERY_NAME, ids="-".join)
def test_noise_scales_are_what_the_pipelines_get_from_add_noise(name: tuple[str, str], strength: float | None) -> None:
    """Before the first step as image-to-image starts; after step i, as inpainting blends, with timestep i + 1."""
    table, rival = (
        table_of(V_CONFIG, name, 10, strength),
        Rival(V_CONFIG, name, 10, strength or 1.0),
    )
    x0, noise, output = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2))
    for index in range(len(table)):
        expected = rival.scheduler.add_noise(x0, noise, rival.timesteps[index : index + 1])
        ours = table.signal_scale[index] * x0 + table.noise_scale[index] * noise
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            table.input_scale[index] * x0, rival.scheduler.scale_model_input(x0, rival.timesteps[index])
        )
        assert float(table.timesteps[index]) == pytest.approx(float(rival.timesteps[index]))
        rival.step(index, x0, output)
    assert (table.signal_scale[-1], table.noise_scale[-1]) == (1.0, 0.0)
    assert table.initial_noise_scale == pytest.approx(float(rival.scheduler.init_noise_sigma))


@pytest.mark.parametrize("name", EVERY_NAME, ids="-".join)
def test_the_step_limit_is_the_last_count_that_works(name: tuple[str, str]) -> None:
    most = SAMPLERS[name[0]].max_steps
    table = table_of(EPSILON_CONFIG, name, most, 0.02)
    assert len(table) >= int(most * 0.02) > 0
    for steps in (0, most + 1):
        with pytest.raises(SamplerRefused, match=f"Send num_inference_steps from 1 to {most}") as refusal:
            table_of(EPSILON_CONFIG, name, steps, None)
        assert refusal.value.code == "sampler_refused"


def test_the_longest_table_agrees_to_its_end() -> None:
    assert len(table_of(V_CONFIG, ("dpmpp_2m", "default"), 999, None)) == 999


@pytest.mark.parametrize(("steps", "strength", "smallest"), [(2, 0.3, 0.5), (30, 0.033, 0.034), (999, 0.001, 0.002)])
def test_a_strength_that_leaves_no_step_names_one_that_does(steps: int, strength: float, smallest: float) -> None:
    with pytest.raises(SamplerRefused, match=f"Send a strength of {smallest} or more"):
        table_of(EPSILON_CONFIG, ("ddim", "default"), steps, strength)
    assert len(table_of(EPSILON_CONFIG, ("ddim", "default"), steps, smallest)) == 1


def test_trailing_step_counts_that_diffusers_rounds_to_one_too_many_are_refused() -> None:
    with pytest.raises(SamplerRefused, match="Send another num_inference_steps"):
        table_of(EPSILON_CONFIG, ("ddim", "trailing"), 61, None)
    assert len(table_of(EPSILON_CONFIG, ("ddim", "trailing"), 60, None)) == 60


def test_zero_terminal_snr_starts_from_noise_alone_where_the_network_predicts_v() -> None:
    config = {**V_CONFIG, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for name in ("ddim", "ddpm", "euler", "dpmpp_2m", "unipc"):
        table = table_of(config, (name, "default"), 10, None)
        assert bool(table.predicted_x0.isfinite().all())
        assert bool(table.coefficients.isfinite().all())
    with pytest.raises(SamplerRefused, match="divides by zero"):
        table_of({**config, "prediction_type": "epsilon"}, ("ddim", "default"), 10, None)


def test_a_network_that_predicts_the_picture_is_previewed_as_it_is() -> None:
    table = table_of({**V_CONFIG, "prediction_type": "sample"}, ("dpmpp_2m", "default"), 5, None)
    assert table.predicted_x0.tolist() == [[0.0, 1.0]] * 5


def test_tables_are_compiled_once_and_the_oldest_are_forgotten() -> None:
    tables = StepTables(EPSILON_CONFIG, capacity=2)
    first = tables.get("ddim", "default", 10, 0.61)
    assert tables.get("ddim", "default", 10, 0.69) is first
    assert tables.get("ddim", "default", 10, None) is tables.get("ddim", "default", 10, None)
    assert tables.get("ddim", "default", 10, 0.6) is first
    tables.get("ddim", "default", 11, None)
    tables.get("ddim", "default", 12, None)
    assert tables.get("ddim", "default", 10, 0.6) is not first


class HeldBuild:
    """Builds as ever, but tells when a scheduler of one name is begun, and waits there until let go."""

    def __init__(self, held: str) -> None:
        self.held, self.begun, self.let_go, self.count = held, threading.Event(), threading.Event(), 0

    def __call__(self, config: dict[str, Any], *name: str) -> Any:
        if name[0] == self.held:
            self.count += 1
            self.begun.set()
            assert self.let_go.wait(60)
        return build_once(json.dumps(config), *name)


def test_a_table_that_is_being_compiled_holds_up_nobody_who_wants_another(monkeypatch: pytest.MonkeyPatch) -> None:
    build = HeldBuild("unipc")
    monkeypatch.setattr(table_cache, "build_scheduler", build)
    tables = StepTables(EPSILON_CONFIG)
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(tables.get, "unipc", "default", 4, None)
        assert build.begun.wait(60)
        try:
            assert len(threads.submit(tables.get, "ddim", "default", 4, None).result(60)) == 4
            assert not slow.done()
        finally:
            build.let_go.set()
        assert slow.result(60) is tables.get("unipc", "default", 4, None)


def test_a_table_that_several_threads_want_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    build = HeldBuild("unipc")
    compiled: list[Any] = []
    compile_table = table_cache.compile_table

    def count(*arguments: Any) -> StepTable:
        compiled.append(arguments)
        return compile_table(*arguments)

    monkeypatch.setattr(table_cache, "build_scheduler", build)
    monkeypatch.setattr(table_cache, "compile_table", count)
    tables = StepTables(EPSILON_CONFIG)
    everybody = threading.Barrier(4)

    def want() -> StepTable:
        everybody.wait(60)
        return tables.get("unipc", "default", 4, None)

    with ThreadPoolExecutor(4) as threads:
        wanted = [threads.submit(want) for _ in range(4)]
        assert build.begun.wait(60)
        build.let_go.set()
        assert {id(future.result(60)) for future in wanted} == {id(tables.get("unipc", "default", 4, None))}
    assert len(compiled) == build.count == 1


def test_a_compilation_that_fails_is_tried_again_by_who_asks_next(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [MemoryError("no room")]

    def build(config: dict[str, Any], *name: str) -> Any:
        if failures:
            raise failures.pop()
        return build_once(json.dumps(config), *name)

    monkeypatch.setattr(table_cache, "build_scheduler", build)
    tables = StepTables(EPSILON_CONFIG)
    with pytest.raises(MemoryError):
        tables.get("ddim", "default", 4, None)
    assert len(tables.get("ddim", "default", 4, None)) == 4


class FakeNonlinearScheduler(DDIMScheduler):
    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        (following,) = super().step(model_output, timestep, sample, **{**options, "return_dict": False})[:1]
        return (following + 1e-3 * sample**2,)


class FakeDrawingScheduler(DDIMScheduler):
    def step(self, *arguments: Any, generator: torch.Generator | None = None, **options: Any) -> Any:
        torch.randn(1, generator=generator)
        return super().step(*arguments, generator=generator, **options)


@pytest.mark.parametrize(
    ("scheduler_class", "complaint"),
    [(FakeNonlinearScheduler, "off its scheduler"), (FakeDrawingScheduler, "said to draw no noise")],
)
def test_a_scheduler_that_no_table_can_say_is_found_out(
    monkeypatch: pytest.MonkeyPatch, scheduler_class: Any, complaint: str
) -> None:
    monkeypatch.setattr(table_cache, "build_scheduler", lambda config, *name: scheduler_class.from_config(config))
    with pytest.raises(AssertionError, match=complaint):
        StepTables(EPSILON_CONFIG).get("ddim", "default", 5, None)


def test_compiling_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    StepTables(EPSILON_CONFIG).get("euler_ancestral", "default", 4, None)
    assert torch.equal(before, torch.get_rng_state())
