"""Our names of samplers and noise schedules as other tools show them: in picture files and in lists of dialects."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SAMPLER_TITLES: Mapping[str, str] = MappingProxyType(
    {
        "ddim": "DDIM",
        "ddpm": "DDPM",
        "pndm": "PLMS",
        "euler": "Euler",
        "euler_ancestral": "Euler a",
        "heun": "Heun",
        "kdpm2": "DPM2",
        "kdpm2_ancestral": "DPM2 a",
        "dpmpp_2m": "DPM++ 2M",
        "dpmpp_2m_sde": "DPM++ 2M SDE",
        "dpmpp_3m": "DPM++ 3M",
        "dpmpp_2s": "DPM++ 2S",
        "deis": "DEIS",
        "unipc": "UniPC",
        "lcm": "LCM",
        "tcd": "TCD",
        "lms": "LMS",
    }
)
"""Our sampler names as other tools show them."""

SCHEDULE_TITLES: Mapping[str, str] = MappingProxyType(
    {"default": "Automatic", "karras": "Karras", "exponential": "Exponential", "trailing": "SGM Uniform"}
)
"""Our noise schedules as other tools show them."""
