"""Memory that each phase of drawing takes at its peak, beyond what is there anyway.

    python -m bench.memory [--model DIR] [--sides 128 512 1024] [--rows 16] [--device auto]

`load` is the weights with all that loading takes; `prompt` one encoded prompt; `upload` an encoded picture; `step` one
UNet call of so many rows at that side; `decode` one picture. On the CPU it is the peak of the resident set (Linux,
reset between phases), on CUDA the peak of what torch has allocated. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from models.capacity import trial_rows
from models.checkpoint import Checkpoint, load_checkpoint
from models.device import Placement, choose_placement
from workers.settings import BUNDLED_SOURCE

_MIB = 2**20


def peak_mib(run: Callable[[], object], device: torch.device) -> float:
    """Mebibytes at the peak of `run` above what was there when it began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / _MIB
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """A figure of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(checkpoint: Checkpoint, side: int, rows: int) -> dict[str, float]:
    """Peaks in MiB of the phases at `side` pixels."""
    factor, device = checkpoint.autoencoder.factor, checkpoint.denoiser.device
    picture = Image.fromarray(np.zeros((side, side, 3), np.uint8))
    latents = torch.zeros(1, checkpoint.denoiser.latent_channels, side // factor, side // factor, device=device)
    trial = trial_rows(checkpoint, rows, side // factor)
    phases: dict[str, Callable[[], object]] = {
        "upload": lambda: checkpoint.autoencoder.encode(picture, side, side),
        "step": lambda: checkpoint.denoiser.predict(trial),
        "decode": lambda: checkpoint.autoencoder.decode(latents),
    }
    return {name: peak_mib(run, device) for name, run in phases.items()}


def load(source: str, placement: Placement) -> Checkpoint:
    return load_checkpoint(Path(source).name, source, placement)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED_SOURCE)
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    placement = choose_placement(arguments.device, "auto")
    checkpoints: list[Checkpoint] = []
    first = peak_mib(lambda: checkpoints.append(load(arguments.model, placement)), placement.device)
    checkpoint = checkpoints[0]
    prompt = peak_mib(lambda: checkpoint.conditioner.encode(["a red apple"]), placement.device)
    print(f"load {first:.0f} MiB, of it weights {checkpoint.size_bytes / _MIB:.0f}; prompt {prompt:.1f}")
    found = {side: measure(checkpoint, side, arguments.rows) for side in arguments.sides}
    print(f"| side | upload | step of {arguments.rows} rows | decode |\n| --- | --- | --- | --- |")
    for side, peaks in found.items():
        print(f"| {side} | {peaks['upload']:.0f} | {peaks['step']:.0f} | {peaks['decode']:.0f} |")
    print(
        json.dumps(
            {"device": str(placement.device), "load": round(first), "weights": checkpoint.size_bytes, "mib": found}
        )
    )


if __name__ == "__main__":
    main()
