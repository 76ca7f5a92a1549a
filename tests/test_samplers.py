"""The catalogue of samplers: names, refusals, and the diffusers scheduler each name builds."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import diffusers
import pytest

from models.errors import SamplerRefused
from models.samplers import (
    ALIASES,
    NOISE_SCHEDULES,
    SAMPLERS,
    build_scheduler,
    check_scheduler_config,
    max_steps_of,
    resolve_sampler,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
PNDM_CONFIG = {**BETAS, "_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False}
OTHER_SOLVER_CONFIG = {
    **BETAS,
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "sde-dpmsolver++",
    "solver_order": 3,
    "solver_type": "heun",
    "use_karras_sigmas": True,
    "use_lu_lambdas": True,
    "euler_at_final": True,
    "final_sigmas_type": "sigma_min",
    "lower_order_final": False,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "variance_type": None,
}
EVERY_NAME = [(sampler.name, schedule) for sampler in SAMPLERS.values() for schedule in sampler.noise_schedules]


def test_the_samplers_of_two_network_calls_a_step_say_so() -> None:
    assert {name for name, sampler in SAMPLERS.items() if sampler.order == 2} == {"heun", "kdpm2", "kdpm2_ancestral"}
    assert {sampler.order for sampler in SAMPLERS.values()} == {1, 2}


def test_reading_the_catalogue_loads_neither_torch_nor_diffusers() -> None:
    code = "import models.samplers, sys; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_sampler_says_what_it_is() -> None:
    for name, sampler in SAMPLERS.items():
        assert sampler.name == name
        assert sampler.description
        assert sampler.noise_schedules[0] == "default"
        assert set(sampler.noise_schedules) <= set(NOISE_SCHEDULES)
        assert 1 == sampler.min_steps < sampler.max_steps
        assert getattr(diffusers, sampler.class_name).order == sampler.order


@pytest.mark.parametrize(
    ("name", "schedule", "meaning"),
    [
        ("ddim", "default", ("ddim", "default")),
        ("euler_a", "default", ("euler_ancestral", "default")),
        ("euler_a", "trailing", ("euler_ancestral", "trailing")),
        ("plms", "default", ("pndm", "default")),
        ("dpmpp_2m_karras", "default", ("dpmpp_2m", "karras")),
        ("dpmpp_2m_karras", "karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE Karras", "default", ("dpmpp_2m_sde", "karras")),
        ("dpm2_a_exponential", "default", ("kdpm2_ancestral", "exponential")),
    ],
)
def test_a_name_means_a_sampler_and_a_noise_schedule(name: str, schedule: str, meaning: tuple[str, str]) -> None:
    assert resolve_sampler(name, schedule) == meaning


def test_every_alias_resolves_and_hides_no_sampler() -> None:
    assert not set(ALIASES) & set(SAMPLERS)
    for alias, meaning in ALIASES.items():
        assert resolve_sampler(alias) == meaning


@pytest.mark.parametrize(
    ("name", "schedule", "hint"),
    [
        ("lms", "default", "dpmpp_2m"),
        ("", "default", "ddim"),
        ("ddim", "karras", "default, trailing"),
        ("lcm", "trailing", "Send one of: default."),
        ("dpmpp_2s", "trailing", "default, karras, exponential"),
        ("euler", "cosine", "default, karras, exponential, trailing"),
        ("dpmpp_2m_karras", "trailing", "'dpmpp_2m'"),
    ],
)
def test_an_unknown_name_is_refused_with_what_to_send(name: str, schedule: str, hint: str) -> None:
    with pytest.raises(SamplerRefused, match="Send") as refusal:
        resolve_sampler(name, schedule)
    assert hint in refusal.value.detail
    assert refusal.value.code == "sampler_refused"


def test_step_limits_follow_the_checkpoint() -> None:
    assert max_steps_of(PNDM_CONFIG, "euler") == 999
    assert max_steps_of({**PNDM_CONFIG, "num_train_timesteps": 100}, "euler") == 99
    assert max_steps_of(PNDM_CONFIG, "lcm") == max_steps_of(PNDM_CONFIG, "tcd") == 50
    assert max_steps_of({**PNDM_CONFIG, "original_inference_steps": 25}, "lcm") == 25


@pytest.mark.parametrize("config", [PNDM_CONFIG, OTHER_SOLVER_CONFIG], ids=["pndm", "other-solver"])
@pytest.mark.parametrize(("name", "schedule"), EVERY_NAME)
def test_a_name_means_the_same_solver_for_every_checkpoint(config: dict[str, Any], name: str, schedule: str) -> None:
    scheduler = build_scheduler(config, name, schedule)
    assert type(scheduler).__name__ == SAMPLERS[name].class_name
    built = {key: scheduler.config[key] for key in inspect.signature(type(scheduler)).parameters}
    for key, value in dict(SAMPLERS[name].settings).items():
        assert built[key] == (value if key != f"use_{schedule}_sigmas" else True)
    for unwanted in ("use_lu_lambdas", "use_beta_sigmas", "use_flow_sigmas", "clip_sample", "thresholding"):
        assert not built.get(unwanted)
    assert built.get("final_sigmas_type", "zero") == "zero"
    assert built.get("use_karras_sigmas", False) == (schedule == "karras")
    assert built.get("use_exponential_sigmas", False) == (schedule == "exponential")
    assert built["prediction_type"] == config.get("prediction_type", "epsilon")
    assert built["beta_schedule"] == "scaled_linear"
    if schedule == "trailing":
        assert built["timestep_spacing"] == "trailing"


def test_the_checkpoint_keeps_what_is_its_own() -> None:
    built = build_scheduler({**PNDM_CONFIG, "set_alpha_to_one": False}, "ddim", "default").config
    assert (built.set_alpha_to_one, built.steps_offset, built.clip_sample) == (False, 1, False)
    assert (
        build_scheduler({**PNDM_CONFIG, "variance_type": None}, "ddpm", "default").config.variance_type == "fixed_small"
    )
    large = build_scheduler({**PNDM_CONFIG, "variance_type": "fixed_large"}, "ddpm", "default")
    assert large.config.variance_type == "fixed_large"


@pytest.mark.parametrize(
    ("change", "sampler"),
    [
        ({"thresholding": True}, "ddim"),
        ({"variance_type": "learned_range"}, "ddpm"),
        ({"prediction_type": "flow_prediction"}, "dpmpp_2m"),
        ({"use_flow_sigmas": True}, "unipc"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "euler"),
        ({"_class_name": "EDMEulerScheduler"}, "euler"),
        ({"timestep_type": "continuous"}, "euler"),
        ({"prediction_type": "sample"}, "pndm"),
        ({"rescale_betas_zero_snr": True}, "heun"),
    ],
)
def test_a_checkpoint_no_table_can_serve_is_refused_by_its_configuration(change: dict[str, Any], sampler: str) -> None:
    with pytest.raises(SamplerRefused):
        check_scheduler_config({**PNDM_CONFIG, **change}, sampler)
    with pytest.raises(SamplerRefused):
        build_scheduler({**PNDM_CONFIG, **change}, sampler, "default")


def test_pixel_clipping_is_switched_off_and_not_refused() -> None:
    for name in SAMPLERS:
        built = build_scheduler({**PNDM_CONFIG, "clip_sample": True, "_class_name": "DDIMScheduler"}, name, "default")
        if name in ("ddim", "ddpm", "heun", "lcm", "tcd"):
            assert built.config.clip_sample is False
