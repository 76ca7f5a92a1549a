"""What the first stage saves: a step of the bundled model's UNet on latents of f = 8, of f = 4, and on pixels.

    python -m bench.two_stage [--model DIR] [--rows 2] [--repeats 5] [--device auto]

The argument of the latent diffusion paper (arXiv:2112.10752, section 4.1) on our own network: the same weights run on
what a picture of the model's size is at each factor, and only the number of positions differs. Counts the arithmetic of
a row and of the decoder, and times calls side by side, one of each in turn; ratios are medians of the turns. What it
draws at sizes that it was not trained at is nothing to look at; the cost is the same.

What the factors cost in fidelity is in docs/model.md: `python -m training.evaluate` measures the reconstruction.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from bench.engine import seconds
from models.capacity import trial_rows
from models.checkpoint import Checkpoint, load_checkpoint
from models.denoiser import Rows
from models.device import choose_placement
from workers.settings import BUNDLED_SOURCE

FACTORS = (8, 4, 1)


def inputs_at(checkpoint: Checkpoint, factor: int, rows: int) -> Rows:
    """Rows of pictures of the model's size that were shrunk by `factor` a side."""
    return trial_rows(checkpoint, rows, checkpoint.defaults.width // factor)


def gflop_a_row(checkpoint: Checkpoint, factor: int) -> float:
    """Billions of multiplications and additions of one row of the UNet."""
    with FlopCounterMode(display=False) as counter:
        checkpoint.denoiser.predict(inputs_at(checkpoint, factor, 1))
    return counter.get_total_flops() / 1e9


def gflop_of_decoding(checkpoint: Checkpoint) -> float:
    side = checkpoint.defaults.width // 8
    with FlopCounterMode(display=False) as counter:
        checkpoint.autoencoder.decode(
            torch.zeros(1, checkpoint.denoiser.latent_channels, side, side, device=checkpoint.denoiser.device)
        )
    return counter.get_total_flops() / 1e9


def call(checkpoint: Checkpoint, inputs: Rows) -> None:
    """One forward call, waited for."""
    checkpoint.denoiser.predict(inputs).sum().item()


def measure(checkpoint: Checkpoint, rows: int, repeats: int) -> list[dict[str, Any]]:
    """One line a factor: positions, GFLOP a row, ms a row, and how many times those of f = 8 they are."""
    inputs = {factor: inputs_at(checkpoint, factor, rows) for factor in FACTORS}
    turns = [{f: seconds(partial(call, checkpoint, inputs[f])) for f in FACTORS} for _ in range(repeats + 1)][1:]
    gflops = {factor: gflop_a_row(checkpoint, factor) for factor in FACTORS}
    lines = []
    for factor, gflop in gflops.items():
        lines.append(
            {
                "factor": factor,
                "positions": (checkpoint.defaults.width // factor) ** 2,
                "gflop_a_row": round(gflop, 2),
                "gflop_ratio": round(gflop / gflops[FACTORS[0]], 1),
                "ms_a_row": round(1000 * statistics.median(turn[factor] for turn in turns) / rows, 1),
                "time_ratio": round(statistics.median(turn[factor] / turn[FACTORS[0]] for turn in turns), 1),
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED_SOURCE, help="directory in diffusers layout, f = 8")
    parser.add_argument("--rows", type=int, default=2, help="rows of a call: 2 are one guided picture")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    checkpoint = load_checkpoint("bench", options.model, choose_placement(options.device))
    lines = measure(checkpoint, options.rows, options.repeats)
    print(
        "| factor | positions | GFLOP a row | to f = 8 | ms a row | to f = 8 |\n| --- | --- | --- | --- | --- | --- |"
    )
    for line in lines:
        print("| " + " | ".join(str(value) for value in line.values()) + " |")
    decoding = round(gflop_of_decoding(checkpoint), 2)
    print(f"Decoding a picture once: {decoding} GFLOP.")
    print(json.dumps({"device": checkpoint.device, "lines": lines, "decode_gflop": decoding}))


if __name__ == "__main__":
    main()
