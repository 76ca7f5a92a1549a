"""May bfloat16 be the default on this device? Only if it is faster and draws the same pictures within 2/255.

    python -m bench.precision [--model DIR] [--device auto] [--rows 2 16] [--pictures 6] [--steps 20]

Times a UNet call of the bundled model in float32 and bfloat16, with and without channels_last (median of 8 calls after
two that warm up), and draws the same requests in both precisions: the largest and the mean difference in levels of
255. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from bench.engine import make_requests
from models.capacity import trial_rows
from models.checkpoint import Checkpoint, load_checkpoint
from models.device import choose_placement
from models.engine import Drawn, Engine
from workers.settings import BUNDLED_SOURCE


def call_ms(checkpoint: Checkpoint, rows: int) -> float:
    """Median milliseconds of a UNet call of `rows` rows."""
    trial = trial_rows(checkpoint, rows, checkpoint.denoiser.sample_size)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        checkpoint.denoiser.predict(trial).sum().item()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[2:])


def draw(checkpoint: Checkpoint, count: int, steps: int) -> np.ndarray:
    """Different pictures, uint8 (count, H, W, 3)."""
    engine = Engine()
    for index, request in enumerate(make_requests(checkpoint, count, steps, salt=1)):
        engine.admit(str(index), request, checkpoint)
    pictures: dict[str, np.ndarray] = {}
    while not engine.is_idle:
        for event in engine.step():
            if isinstance(event, Drawn):
                pictures[event.job_id] = event.pictures[0]
    return np.stack([pictures[str(index)] for index in range(count)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED_SOURCE, help="directory in diffusers layout")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--pictures", type=int, default=6, help="drawn in both precisions")
    parser.add_argument("--steps", type=int, default=20, help="of each picture")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    result: dict[str, Any] = {}
    pictures = {}
    for dtype in ("float32", "bfloat16"):
        checkpoint = load_checkpoint("bench", options.model, choose_placement(options.device, dtype))
        result["device"] = checkpoint.device
        pictures[dtype] = draw(checkpoint, options.pictures, options.steps)
        for layout in ("contiguous", "channels_last"):
            if layout == "channels_last":
                checkpoint.denoiser.network.to(memory_format=torch.channels_last)
            for rows in options.rows:
                ms = call_ms(checkpoint, rows)
                result[f"{dtype}_{layout}_{rows}_rows_ms"] = ms
                print(
                    f"{dtype:>9} {layout:>13} {rows:3} rows: {ms:8.1f} ms a call, {ms / rows:6.1f} ms a row", flush=True
                )
    gap = np.abs(pictures["float32"].astype(int) - pictures["bfloat16"].astype(int))
    result["max_difference"], result["mean_difference"] = int(gap.max()), float(gap.mean())
    print(f"bfloat16 against float32: at most {gap.max()} of 255, mean {gap.mean():.2f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
