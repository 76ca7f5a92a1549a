"""Where and in which precision networks run: the only file that decides it, and the only one that names its faults.

Knows nothing of networks or requests.
"""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass

import torch

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Placement:
    """Device and precision of a network's weights. Latents and sampler arithmetic stay float32 everywhere."""

    device: torch.device
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def choose_placement(device: str = "auto", dtype: str = "auto") -> Placement:
    """Place networks on `device` in `dtype`.

    `auto` is CUDA when there is a CUDA device, else the CPU; and bfloat16 on CUDA devices that compute it natively,
    float16 on older ones, float32 on the CPU (where bfloat16 was measured slower without AVX-512: docs/performance.md).

    Raises ValueError for a dtype that is not in DTYPES and RuntimeError for a device that is not there.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    where = torch.device(name)
    torch.empty(1, device=where)  # a device that is not there fails here, by its own name
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is unknown; choose one of auto, {', '.join(DTYPES)}")
        return Placement(where, DTYPES[dtype])
    if where.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Placement(where, torch.bfloat16 if native else torch.float16)
    return Placement(where, torch.float32)


@functools.cache
def kind_of(device: torch.device) -> str:
    """Name and memory of a device: two of one kind hold calls of the same size."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if device.type == "cpu":
        return f"cpu, {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return device.type


@functools.cache
def hardware_of(device: torch.device) -> str:
    """What computes, as far as it decides about the last bits: sums are ordered by kernels, and these are chosen by
    the kind of device, on a CPU also by its vector unit and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).name
    if device.type != "cpu":
        return f"{device.type} {platform.machine()}"
    threads = torch.get_num_threads()
    unit = torch.backends.cpu.get_cpu_capability()
    return f"cpu {platform.machine()} {unit}, {threads} thread{'' if threads == 1 else 's'}"


def is_out_of_memory(error: BaseException) -> bool:
    """True when a smaller batch may succeed. The CPU allocator raises a plain RuntimeError, told by its words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def is_sticky(error: BaseException) -> bool:
    """True when the device context is lost (illegal access, lost device): only a new process helps."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def release_cached_memory(device: torch.device) -> None:
    """Hand unused blocks back to the driver, before the second try of something that did not fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
