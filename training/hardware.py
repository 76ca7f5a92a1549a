"""Where a trainer runs and how it computes there. The one file of `training` that knows devices."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class Hardware:
    """`device` is cpu, cuda or auto. bfloat16 is for hardware that multiplies it: recent GPUs, and CPUs with AVX-512
    BF16 or AMX, where a step of the denoiser takes half the time; "auto" finds out.

    `compile` costs one to three minutes at the start; on two CPU cores it gained nothing without AVX-512, and 5 % with.
    """

    device: str = "auto"
    bfloat16: bool | Literal["auto"] = False
    compile: bool = False

    @property
    def place(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        is_half = _multiplies_bfloat16(self.place) if self.bfloat16 == "auto" else self.bfloat16
        return torch.bfloat16 if is_half else torch.float32

    @contextmanager
    def precision(self) -> Iterator[None]:
        """The context in which losses are computed; weights and optimiser stay float32."""
        # PyTorch's fused attention for CPUs is slow in bfloat16 with its gradient: of a denoiser step it took a tenth.
        is_half = self.dtype == torch.bfloat16
        attention = sdpa_kernel(SDPBackend.MATH) if is_half and self.place.type == "cpu" else nullcontext()
        with torch.autocast(self.place.type, torch.bfloat16, enabled=is_half), attention:
            yield

    def prepare(self, model: nn.Module, compiled: Iterable[nn.Module]) -> None:
        """Move `model` there in place; its parts `compiled` are compiled when asked. Names of weights stay the same."""
        model.to(self.place)
        if self.dtype == torch.bfloat16 and self.place.type == "cuda":  # on CPUs it gained nothing
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile:
            for part in compiled:
                part.compile()


def _multiplies_bfloat16(place: torch.device) -> bool:
    if place.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
