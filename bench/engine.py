"""The engine against diffusers' own pipeline: same weights, same precision, one run, ratios.

    python -m bench.engine [--model DIR] [--steps 20] [--repeats 3] [--counts 1 2 4 8 16] [--device auto] [--dtype auto]

What is compared, and why:

- `mixed n` : n different requests (prompts, seeds, samplers, guidance scales) that are in the batch at the same time,
  against the same n requests one after another through `StableDiffusionPipeline`. The gain is what batching is worth
  on this device: a call of 16 rows costs less a row than a call of 2.
- `ceiling` : 8 mixed requests against ONE homogeneous diffusers batch of 8 pictures (one prompt list, one sampler, one
  guidance scale), which is the most that batching can give. All have the same number of steps, or the comparison would
  be of unequal work.
- `lone`    : one request alone against the plain pipeline: what a server's engine costs a lone user.
- `overhead`: the engine's own time per step, outside the network and the autoencoder, as a share of the step.

Both sides include text encoding, denoising, decoding to 8-bit pixels; neither includes files or HTTP. The order of the
two sides alternates, and the median of the paired ratios is shown. Prompts are new in each repeat, so that the
embedding cache does not help. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from models.checkpoint import Checkpoint, load_checkpoint
from models.counts import of_model
from models.device import Placement, choose_placement
from models.engine import Broken, Drawn, Engine, EngineSettings
from models.four_channel_view import four_channel_view
from models.request import TextToImageRequest
from models.samplers import build_scheduler
from workers.settings import BUNDLED_SOURCE

SAMPLERS = ("dpmpp_2m", "euler", "ddim", "euler_ancestral", "unipc", "deis", "dpmpp_2m_sde", "dpmpp_3m")
SUBJECTS = ("red heart", "smiling face", "green apple", "blue car", "yellow star", "brown dog", "orange fish", "house")
COUNTS = (1, 2, 4, 8, 16)


def make_requests(checkpoint: Checkpoint, count: int, steps: int, salt: int) -> list[TextToImageRequest]:
    """`count` requests of which no two are alike; every one guided, so that the work is equal on both sides."""
    return [
        TextToImageRequest(
            model=checkpoint.name,
            prompt=f"a {SUBJECTS[index % 8]} {salt} {index}",
            width=checkpoint.defaults.width,
            height=checkpoint.defaults.height,
            num_inference_steps=steps,
            guidance_scale=3.0 + index % 5,
            sampler=SAMPLERS[index % 8],
            noise_schedule="default",
            seed=1000 * salt + index,
            num_images=1,
        )
        for index in range(count)
    ]


def run_engine(engine: Engine, checkpoint: Checkpoint, requests: list[TextToImageRequest]) -> None:
    for index, request in enumerate(requests):
        engine.admit(str(index), request, checkpoint)
    pictures = 0
    while not engine.is_idle:
        for event in engine.step():
            assert not isinstance(event, Broken), event
            pictures += isinstance(event, Drawn)
    assert pictures == len(requests)


def run_one_by_one(pipeline: Any, checkpoint: Checkpoint, requests: list[TextToImageRequest]) -> None:
    for request in requests:
        run_pipeline(pipeline, checkpoint, [request])


def run_pipeline(pipeline: Any, checkpoint: Checkpoint, requests: list[TextToImageRequest]) -> None:
    """One diffusers call; sampler and guidance are the first request's."""
    first = requests[0]
    pipeline.scheduler = build_scheduler(checkpoint.scheduler_config, first.sampler, first.noise_schedule)
    images = pipeline(
        [request.prompt for request in requests],
        width=first.width,
        height=first.height,
        num_inference_steps=first.num_inference_steps,
        guidance_scale=first.guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(request.seed) for request in requests],
        output_type="np",
    ).images
    assert len((images * 255).round().astype("uint8")) == len(requests)


def seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def open_model(source: str, device: str, dtype: str = "auto") -> tuple[Checkpoint, Placement]:
    """The model that a bench draws with, in silence, and where it lies."""
    transformers.utils.logging.set_verbosity_error()
    placement = choose_placement(device, dtype)
    return load_checkpoint(Path(source).name, source, placement), placement


def paired(ours: Callable[[int], None], theirs: Callable[[int], None], repeats: int) -> tuple[float, float, float]:
    """(median seconds of ours, of theirs, median of theirs / ours), after one uncounted pair."""
    pairs = []
    for repeat in range(repeats + 1):
        sides = [lambda r=repeat: ours(r), lambda r=repeat: theirs(r)]
        if repeat % 2:
            second, first = seconds(sides[1]), seconds(sides[0])
            pairs.append((first, second))
        else:
            pairs.append((seconds(sides[0]), seconds(sides[1])))
    counted = pairs[1:]
    ratio = statistics.median(their / our for our, their in counted)
    return statistics.median(our for our, _ in counted), statistics.median(their for _, their in counted), ratio


def measure_overhead(checkpoint: Checkpoint, steps: int, repeats: int) -> dict[str, float]:
    """Engine time per step outside the networks, for 1 and 8 requests, in ms and as a share of the step."""
    result, calls = {}, of_model("steps", checkpoint.name)
    for count in (1, 8):
        inside = Stopwatch(checkpoint)
        engine = Engine(EngineSettings(max_rows=64))
        run_engine(engine, checkpoint, make_requests(checkpoint, count, steps, salt=900))
        shares, per_step = [], []
        for repeat in range(repeats):
            requests = make_requests(checkpoint, count, steps, salt=901 + repeat)
            inside.total_s, before, started = 0.0, engine.counters[calls], time.perf_counter()
            run_engine(engine, checkpoint, requests)
            total = time.perf_counter() - started
            outside = total - inside.total_s
            per_step.append(1000 * outside / (engine.counters[calls] - before))
            shares.append(outside / total)
        inside.close()
        result[f"overhead_ms_{count}"] = statistics.median(per_step)
        result[f"overhead_share_{count}"] = statistics.median(shares)
    return result


class Stopwatch:
    """Time inside the UNet, text encoder and autoencoder of a checkpoint, by hooks on the modules."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.total_s = 0.0
        self._started = 0.0
        encoders = [encoder.network for encoder in checkpoint.conditioner.encoders]
        modules = (checkpoint.denoiser.network, *encoders, checkpoint.autoencoder._vae.decoder)
        self._handles = [module.register_forward_pre_hook(self._start) for module in modules]
        self._handles += [module.register_forward_hook(self._stop) for module in modules]

    def _start(self, *_: object) -> None:
        self._wait()
        self._started = time.perf_counter()

    def _stop(self, *_: object) -> None:
        self._wait()
        self.total_s += time.perf_counter() - self._started

    @staticmethod
    def _wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def make_pipeline(model: str, placement: Placement) -> Any:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        model, dtype=placement.dtype, use_safetensors=True, low_cpu_mem_usage=False
    ).to(placement.device)
    if pipeline.unet.config.in_channels > pipeline.unet.config.out_channels:
        parts = pipeline.components | {"unet": four_channel_view(pipeline.unet)}
        pipeline = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED_SOURCE, help="directory in diffusers layout")
    parser.add_argument("--steps", type=int, default=20, help="steps of every request")
    parser.add_argument("--repeats", type=int, default=3, help="counted pairs; more for a noisy machine")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="requests in the batch")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    placement = choose_placement(options.device, options.dtype)
    checkpoint = load_checkpoint("bench", options.model, placement)
    pipeline = make_pipeline(options.model, placement)
    engine = Engine(EngineSettings(max_rows=64, prepare_at_once=64, decode_at_once=16))
    steps, repeats = options.steps, options.repeats
    result: dict[str, Any] = {"device": checkpoint.device, "dtype": checkpoint.dtype, "steps": steps}
    result["torch_threads"] = torch.get_num_threads()
    print(f"{checkpoint.device} {checkpoint.dtype}, {steps} steps, median of {repeats} pairs")
    print(f"{'what':>10} {'ours s':>8} {'theirs s':>8} {'ratio':>6} {'ours images/s':>14}")

    def compare(name: str, count: int, theirs: Callable[..., None]) -> None:
        our_s, their_s, ratio = paired(
            lambda r: run_engine(engine, checkpoint, make_requests(checkpoint, count, steps, 2 * r)),
            lambda r: theirs(pipeline, checkpoint, make_requests(checkpoint, count, steps, 2 * r + 1)),
            repeats,
        )
        result[name.replace(" ", "_")] = {"ours_s": our_s, "theirs_s": their_s, "ratio": ratio}
        print(f"{name:>10} {our_s:8.2f} {their_s:8.2f} {ratio:6.2f} {count / our_s:14.3f}", flush=True)

    for count in options.counts:
        compare(f"mixed {count}", count, run_one_by_one)
    compare("ceiling", 8, run_pipeline)
    result |= measure_overhead(checkpoint, steps, repeats)
    for count in (1, 8):
        share = 100 * result[f"overhead_share_{count}"]
        print(f"engine's own time a step, {count} requests: {result[f'overhead_ms_{count}']:.2f} ms, {share:.1f} %")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
