"""What a request names beside its model, as a value.

Owns nothing but the noun; imports no torch, so that the queue's side can write it down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Materials:
    """SHA-256 of the files that were read for a request, by name: LoRAs and ControlNets."""

    loras: Mapping[str, str] = field(default_factory=dict)
    controls: Mapping[str, str] = field(default_factory=dict)
