"""Which software computes.

Owns the list of packages whose version may decide about pixels.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping
from types import MappingProxyType

COMPUTING = ("denoised", "diffusers", "torch", "transformers")
"""Ours, step tables and networks, kernels, text encoders."""


@functools.cache
def software_versions() -> Mapping[str, str]:
    """Versions by package; one that is not installed as such is left out."""
    found = {}
    for package in COMPUTING:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return MappingProxyType(found)
