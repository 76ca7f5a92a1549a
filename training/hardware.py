"""Where a trainer runs and how it computes there. The one file of `training` that knows devices."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Hardware:
    """`device` is cpu, cuda or auto. bfloat16 needs hardware for it: a recent GPU, or a CPU with AVX-512 BF16 or AMX.

    `compile` costs a minute at the start; on CPUs without AVX-512 it gained nothing here.
    """

    device: str = "auto"
    bfloat16: bool = False
    compile: bool = False

    @property
    def place(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which losses are computed; weights and optimiser stay float32."""
        return torch.autocast(self.place.type, torch.bfloat16, enabled=self.bfloat16)

    def prepare(self, model: nn.Module, compiled: Iterable[nn.Module]) -> None:
        """Move `model` there in place; its parts `compiled` are compiled when asked. Names of weights stay the same."""
        model.to(self.place)
        if self.bfloat16:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile:
            for part in compiled:
                part.compile()
