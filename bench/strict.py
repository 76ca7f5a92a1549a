"""What strict reproducibility costs: the same requests, strict and standard, in one engine each, side by side.

    python -m bench.strict [--model DIR] [--steps 10] [--repeats 3] [--device auto]

For 1, 4 and 16 guided requests at once, and for calls of 2, 4, 8 and 16 rows: seconds of the strict ones over those of
the standard ones. Few rows suit lone requests, many suit crowds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json

from bench.engine import make_requests, open_model, paired, run_engine
from models.checkpoint import Checkpoint
from models.engine import Engine, EngineSettings
from workers.settings import BUNDLED_SOURCE

ROWS = (2, 4, 8, 16)
REQUESTS = (1, 4, 16)


def price(checkpoint: Checkpoint, rows: int, count: int, steps: int, repeats: int) -> float:
    """Seconds of `count` strict requests over those of as many standard ones."""
    strict, standard = Engine(EngineSettings(strict_rows=rows)), Engine(EngineSettings())

    def draw_strict(repeat: int) -> None:
        requests = make_requests(checkpoint, count, steps, salt=10 * repeat)
        run_engine(
            strict, checkpoint, [request.model_copy(update={"reproducibility": "strict"}) for request in requests]
        )

    def draw_standard(repeat: int) -> None:
        run_engine(standard, checkpoint, make_requests(checkpoint, count, steps, salt=10 * repeat))

    ratio = paired(draw_strict, draw_standard, repeats)[2]
    return 1 / ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED_SOURCE, help="directory in diffusers layout")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    checkpoint, placement = open_model(arguments.model, arguments.device)
    prices: dict[str, dict[str, float]] = {}
    print(f"strict over standard, seconds; {placement.device}, {placement.dtype_name}\n")
    print(f"| rows of a strict call | {' | '.join(f'{count} at once' for count in REQUESTS)} |\n| --- |{' --- |' * 3}")
    for rows in ROWS:
        found = {count: price(checkpoint, rows, count, arguments.steps, arguments.repeats) for count in REQUESTS}
        prices[str(rows)] = {str(count): round(ratio, 3) for count, ratio in found.items()}
        print(f"| {rows} | {' | '.join(f'{ratio:.2f}' for ratio in found.values())} |", flush=True)
    print(json.dumps({"device": str(placement.device), "strict_over_standard": prices}))


if __name__ == "__main__":
    main()
