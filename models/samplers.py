"""The samplers by name: what each is called, offers and allows, and how diffusers builds it.

Owns the catalogue (names, aliases, noise schedules, step limits) and the refusals that a checkpoint's scheduler
configuration alone decides. Knows nothing of latents, tables or requests, and imports neither torch nor diffusers
until `build_scheduler` is called, so that the catalogue can be read anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from models.errors import SamplerRefused
from models.request import fold_name

DEFAULT_SCHEDULE = "default"
NOISE_SCHEDULES: Mapping[str, str] = MappingProxyType(
    {
        "default": "the checkpoint's own timestep spacing",
        "karras": "noise levels spaced as in arXiv 2206.00364, equation 5, rho = 7",
        "exponential": "noise levels spaced evenly in the logarithm of sigma",
        "trailing": "timesteps counted back from the last one (arXiv 2305.08891, table 2)",
    }
)
"""Every noise schedule a sampler can offer, with one line for people."""

MAX_STEPS = 999
"""One less than the usual 1000 training timesteps: with 1000, `leading` spacing with an offset leaves the table of
alphas, and multistep solvers meet the same timestep twice and divide by a zero step."""

DISTILLED_STEPS = 50
"""`original_inference_steps`: the steps that consistency checkpoints were distilled on."""

_SPACED = ("default", "trailing")
_SIGMAS = ("default", "karras", "exponential")
_ALL = (*_SIGMAS, "trailing")
_UNREADABLE_FAMILIES = ("FlowMatch", "FlowMap", "EDM", "CogVideoX", "Cosine", "Inverse", "Wuerstchen", "VQDiffusion")


@dataclass(frozen=True)
class Sampler:
    """One sampler of the catalogue.

    `settings` are the constructor arguments of the diffusers class that the name promises whatever the checkpoint's
    own scheduler was configured with. `order` is UNet evaluations per step, to predict what a step costs: 2 for heun,
    kdpm2 and kdpm2_ancestral, but 1 at their last step. `is_stochastic` samplers may draw noise at a step; the others
    must not, and a table that does is not compiled.
    """

    name: str
    class_name: str
    description: str
    noise_schedules: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...] = ()
    min_steps: int = 1
    max_steps: int = MAX_STEPS
    is_stochastic: bool = False
    order: int = 1
    has_zero_terminal_snr: bool = True
    """The class knows `rescale_betas_zero_snr` (arXiv 2305.08891, algorithm 1)."""
    has_sample_prediction: bool = True
    """The class can step a network that predicts x0."""


_NOT_PIXELS = (("clip_sample", False), ("thresholding", False))
_SIGMA_FLAGS = (("use_beta_sigmas", False), ("use_karras_sigmas", False), ("use_exponential_sigmas", False))
_NO_FLOW = (("use_flow_sigmas", False), ("use_dynamic_shifting", False), ("flow_shift", 1.0))
_EULER = (*_SIGMA_FLAGS, ("interpolation_type", "linear"), ("final_sigmas_type", "zero"))
_SOLVER = (*_SIGMA_FLAGS, *_NO_FLOW, ("thresholding", False), ("lower_order_final", True))
_DPMPP = (*_SOLVER, ("algorithm_type", "dpmsolver++"), ("solver_type", "midpoint"), ("final_sigmas_type", "zero"))
_MULTISTEP = (*_DPMPP, ("euler_at_final", False), ("use_lu_lambdas", False))


def _catalogue() -> tuple[Sampler, ...]:
    multistep, singlestep = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
    return (
        Sampler("ddim", "DDIMScheduler", "DDIM, deterministic (arXiv 2010.02502)", _SPACED, _NOT_PIXELS),
        Sampler(
            "ddpm",
            "DDPMScheduler",
            "DDPM, ancestral; wants many steps (arXiv 2006.11239)",
            _SPACED,
            _NOT_PIXELS,
            is_stochastic=True,
        ),
        Sampler(
            "pndm",
            "PNDMScheduler",
            "PLMS, linear multistep of order 4 (arXiv 2202.09778)",
            _SPACED,
            (("skip_prk_steps", True),),
            has_zero_terminal_snr=False,
            has_sample_prediction=False,
        ),
        Sampler("euler", "EulerDiscreteScheduler", "Euler steps in sigma (arXiv 2206.00364)", _ALL, _EULER),
        Sampler(
            "euler_ancestral",
            "EulerAncestralDiscreteScheduler",
            "Euler steps with fresh noise at each",
            _SPACED,
            is_stochastic=True,
            has_sample_prediction=False,
        ),
        Sampler(
            "heun",
            "HeunDiscreteScheduler",
            "Heun's second-order steps, two network calls each (arXiv 2206.00364, algorithm 1)",
            _ALL,
            (*_SIGMA_FLAGS, ("clip_sample", False)),
            order=2,
            has_zero_terminal_snr=False,
        ),
        Sampler(
            "kdpm2",
            "KDPM2DiscreteScheduler",
            "DPM-Solver-2 in sigma, two network calls per step (arXiv 2206.00927)",
            _ALL,
            _SIGMA_FLAGS,
            order=2,
            has_zero_terminal_snr=False,
            has_sample_prediction=False,
        ),
        Sampler(
            "kdpm2_ancestral",
            "KDPM2AncestralDiscreteScheduler",
            "DPM-Solver-2 with fresh noise, two network calls per step",
            _ALL,
            _SIGMA_FLAGS,
            is_stochastic=True,
            order=2,
            has_zero_terminal_snr=False,
            has_sample_prediction=False,
        ),
        Sampler(
            "dpmpp_2m",
            multistep,
            "DPM-Solver++ multistep of order 2; good from 15 to 30 steps (arXiv 2211.01095)",
            _ALL,
            (*_MULTISTEP, ("solver_order", 2)),
        ),
        Sampler(
            "dpmpp_2m_sde",
            multistep,
            "DPM-Solver++ multistep of order 2 on the SDE, with fresh noise (arXiv 2211.01095)",
            _ALL,
            (*_MULTISTEP, ("solver_order", 2), ("algorithm_type", "sde-dpmsolver++")),
            is_stochastic=True,
        ),
        Sampler(
            "dpmpp_3m",
            multistep,
            "DPM-Solver++ multistep of order 3 (arXiv 2211.01095)",
            _ALL,
            (*_MULTISTEP, ("solver_order", 3)),
        ),
        Sampler(
            "dpmpp_2s",
            singlestep,
            "DPM-Solver++ singlestep of order 2 (arXiv 2211.01095)",
            _SIGMAS,
            (*_DPMPP, ("solver_order", 2)),
            has_zero_terminal_snr=False,
        ),
        Sampler(
            "deis",
            "DEISMultistepScheduler",
            "DEIS multistep of order 2 (arXiv 2204.13902)",
            _ALL,
            (*_SOLVER, ("solver_order", 2), ("algorithm_type", "deis"), ("solver_type", "logrho")),
            has_zero_terminal_snr=False,
        ),
        Sampler(
            "unipc",
            "UniPCMultistepScheduler",
            "UniPC predictor-corrector of order 2; good from 8 steps (arXiv 2302.04867)",
            _ALL,
            (
                *_SOLVER,
                ("solver_order", 2),
                ("solver_type", "bh2"),
                ("predict_x0", True),
                ("disable_corrector", []),
                ("solver_p", None),
                ("final_sigmas_type", "zero"),
            ),
        ),
        Sampler(
            "lcm",
            "LCMScheduler",
            "Latent consistency models: 1 to 8 steps, for LCM checkpoints only (arXiv 2310.04378)",
            ("default",),
            _NOT_PIXELS,
            max_steps=DISTILLED_STEPS,
            is_stochastic=True,
        ),
        Sampler(
            "tcd",
            "TCDScheduler",
            "Trajectory consistency: 2 to 8 steps, for TCD checkpoints only (arXiv 2402.19159)",
            ("default",),
            _NOT_PIXELS,
            max_steps=DISTILLED_STEPS,
            is_stochastic=True,
        ),
    )


SAMPLERS: Mapping[str, Sampler] = MappingProxyType({sampler.name: sampler for sampler in _catalogue()})
"""Every sampler by its one name, in the order shown to people."""

_SHORT_NAMES = (
    ("plms", "pndm"),
    ("euler_a", "euler_ancestral"),
    ("dpm2", "kdpm2"),
    ("dpm2_a", "kdpm2_ancestral"),
    ("dpm2_ancestral", "kdpm2_ancestral"),
    ("kdpm2_a", "kdpm2_ancestral"),
)


def _aliases() -> dict[str, tuple[str, str]]:
    names = [*((name, name) for name in SAMPLERS), *_SHORT_NAMES]
    combined = {
        f"{short}_{schedule}": (name, schedule)
        for short, name in names
        for schedule in SAMPLERS[name].noise_schedules
        if schedule != DEFAULT_SCHEDULE
    }
    return {**{short: (name, DEFAULT_SCHEDULE) for short, name in _SHORT_NAMES}, **combined}


ALIASES: Mapping[str, tuple[str, str]] = MappingProxyType(_aliases())
"""Other names, such as `dpmpp_2m_karras` or `euler_a`, with the sampler and the noise schedule they mean."""


def resolve_sampler(name: str, noise_schedule: str = DEFAULT_SCHEDULE) -> tuple[str, str]:
    """The sampler and noise schedule that a name means: ("dpmpp_2m_karras", "default") is ("dpmpp_2m", "karras").

    Capitals, spaces, hyphens and "++" are read as in `dpmpp_2m`. Raises SamplerRefused for an unknown name, a schedule
    the sampler does not offer, and an alias that contradicts `noise_schedule`.
    """
    folded = fold_name(name)
    sampler, alias_schedule = ALIASES.get(folded, (folded, DEFAULT_SCHEDULE))
    if sampler not in SAMPLERS:
        raise SamplerRefused(f"There is no sampler {name!r}. Send one of: {', '.join(SAMPLERS)}.")
    if alias_schedule != DEFAULT_SCHEDULE and noise_schedule not in (DEFAULT_SCHEDULE, alias_schedule):
        raise SamplerRefused(
            f"Sampler {name!r} already means the noise schedule {alias_schedule!r}, and {noise_schedule!r} was sent"
            f" beside it. Send the sampler {sampler!r} with the one noise schedule you want."
        )
    schedule = noise_schedule if alias_schedule == DEFAULT_SCHEDULE else alias_schedule
    offered = SAMPLERS[sampler].noise_schedules
    if schedule not in offered:
        raise SamplerRefused(
            f"Sampler {sampler!r} has no noise schedule {schedule!r}. Send one of: {', '.join(offered)}."
        )
    return sampler, schedule


def max_steps_of(scheduler_config: Mapping[str, Any], sampler: str) -> int:
    """Most steps the sampler runs on a checkpoint: consistency samplers pick theirs from the distilled steps."""
    limit = min(SAMPLERS[sampler].max_steps, scheduler_config.get("num_train_timesteps", 1000) - 1)
    if sampler in ("lcm", "tcd"):
        return min(limit, scheduler_config.get("original_inference_steps") or limit)
    return limit


def check_scheduler_config(scheduler_config: Mapping[str, Any], sampler: str) -> None:
    """Refuse what a linear table cannot say, from the configuration alone: a clipped scheduler compiles silently.

    Raises SamplerRefused for dynamic thresholding, learned variance, flow matching, continuous timesteps, and for a
    sampler whose diffusers class would ignore the checkpoint's zero-terminal-SNR betas or its prediction type.
    `clip_sample` is not refused: `build_scheduler` switches it off, as diffusers' latent pipelines do.
    """
    chosen = SAMPLERS[sampler]
    prediction = scheduler_config.get("prediction_type", "epsilon")
    others = "Use another checkpoint."
    if any(family in str(scheduler_config.get("_class_name", "")) for family in _UNREADABLE_FAMILIES):
        raise SamplerRefused(f"This checkpoint is made for {scheduler_config['_class_name']}, no DDPM noise. {others}")
    if prediction not in ("epsilon", "v_prediction", "sample") or scheduler_config.get("use_flow_sigmas"):
        raise SamplerRefused(f"This checkpoint predicts {prediction!r}, which no sampler here can step. {others}")
    if scheduler_config.get("thresholding"):
        raise SamplerRefused(f"This checkpoint asks for dynamic thresholding, made for pixels, not latents. {others}")
    if str(scheduler_config.get("variance_type") or "").startswith("learned"):
        raise SamplerRefused(f"This checkpoint predicts its own variance, which no sampler here can step. {others}")
    if scheduler_config.get("timestep_type", "discrete") != "discrete":
        raise SamplerRefused(f"This checkpoint is told the noise level instead of a timestep. {others}")
    if prediction == "sample" and not chosen.has_sample_prediction:
        raise SamplerRefused(
            f"Sampler {sampler!r} cannot step a checkpoint that predicts the clean picture. Send one of:"
            f" {', '.join(s.name for s in SAMPLERS.values() if s.has_sample_prediction)}."
        )
    if scheduler_config.get("rescale_betas_zero_snr") and not chosen.has_zero_terminal_snr:
        raise SamplerRefused(
            f"Sampler {sampler!r} does not know this checkpoint's zero-terminal-SNR noise schedule. Send one of:"
            f" {', '.join(s.name for s in SAMPLERS.values() if s.has_zero_terminal_snr)}."
        )


def build_scheduler(scheduler_config: Mapping[str, Any], sampler: str, noise_schedule: str) -> Any:
    """The fresh diffusers scheduler that a name means for a checkpoint.

    `Class.from_config(scheduler_config, **settings)`, just as `pipe.scheduler = Class.from_config(...)`: betas,
    prediction type, spacing, offset and final alpha stay the checkpoint's; solver, sigma spacing and clipping are set,
    because `from_config` would carry another solver's values over. `sampler` and `noise_schedule` are as
    `resolve_sampler` returns them. Raises SamplerRefused as `check_scheduler_config` does.
    """
    check_scheduler_config(scheduler_config, sampler)
    import diffusers

    settings = dict(SAMPLERS[sampler].settings)
    if sampler == "ddpm" and scheduler_config.get("variance_type") != "fixed_large":
        settings["variance_type"] = "fixed_small"
    if noise_schedule in ("karras", "exponential"):
        settings[f"use_{noise_schedule}_sigmas"] = True
    elif noise_schedule == "trailing":
        settings["timestep_spacing"] = "trailing"
    scheduler_class = getattr(diffusers, SAMPLERS[sampler].class_name)
    return scheduler_class.from_config(dict(scheduler_config), **settings)
