"""The running batch: whatever shares it, each picture is the one it would be alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.autoencoder import Autoencoder, Posterior
from models.capacity import measure_rows
from models.checkpoint import Checkpoint, load_checkpoint
from models.counts import distributions
from models.denoiser import Denoiser, Rows
from models.device import choose_placement
from models.engine import Broken, Drawn, Engine, EngineSettings, Event, Prepared
from models.errors import InternalError, NotFinite, OutOfMemory
from models.prepare import Inputs
from models.request import ImageToImageRequest, PictureRequest, TextToImageRequest
from tests.tiny import save_tiny_checkpoint, save_tiny_guided_checkpoint

TOLERANCE = 1
"""Levels of 255 that a picture may differ from its solo run."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    return load_checkpoint("tiny", str(folder), choose_placement("cpu"))


def make_request(prompt: str = "a cat", **changes: Any) -> PictureRequest:
    fields: dict[str, Any] = {
        "model": "tiny",
        "prompt": prompt,
        "width": 64,
        "height": 64,
        "num_inference_steps": 6,
        "guidance_scale": 4.0,
        "sampler": "ddim",
        "noise_schedule": "default",
        "seed": 7,
        "num_images": 1,
    } | changes
    if "strength" in fields:
        return ImageToImageRequest(image=f"sha256:{'0' * 64}", **fields)
    return TextToImageRequest(**fields)


def make_upload(seed: int, width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def run_to_end(engine: Engine, max_ticks: int = 2000) -> list[Event]:
    events: list[Event] = []
    for _ in range(max_ticks):
        if engine.is_idle:
            return events
        events += engine.step()
    raise AssertionError("the batch did not empty")


def drawn(events: list[Event]) -> dict[str, Drawn]:
    return {event.job_id: event for event in events if isinstance(event, Drawn)}


def broken(events: list[Event]) -> dict[str, Broken]:
    return {event.job_id: event for event in events if isinstance(event, Broken)}


def draw_alone(checkpoint: Checkpoint, request: PictureRequest, image: Image.Image | None = None) -> np.ndarray:
    engine = Engine()
    engine.admit("alone", request, checkpoint, Inputs(image))
    return drawn(run_to_end(engine))["alone"].pictures[0]


def difference(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@dataclasses.dataclass
class Arrival:
    tick: int
    request: PictureRequest
    image: Image.Image | None = None


def sixteen_different() -> list[Arrival]:
    """No two alike in anything that can differ: prompt, seed, steps 1 to 30, sampler, guidance, strength, two sizes."""
    samplers = ["ddim", "ddpm", "pndm", "euler", "euler_ancestral", "heun", "kdpm2", "kdpm2_ancestral", "dpmpp_2m"]
    samplers += ["dpmpp_2m_sde", "dpmpp_3m", "dpmpp_2s", "deis", "unipc", "lcm", "tcd"]
    steps = [1, 30, 7, 12, 20, 5, 9, 6, 25, 14, 17, 10, 3, 11, 4, 8]
    arrivals = []
    for index, sampler in enumerate(samplers):
        changes: dict[str, Any] = {
            "seed": 100 + 13 * index,
            "num_inference_steps": steps[index],
            "sampler": sampler,
            "guidance_scale": (1.0, 3.0, 7.5, 5.0)[index % 4],
            "width": 96 if index % 3 == 0 else 64,
            "negative_prompt": None if index % 2 else f"no {index}",
        }
        image = None
        if index % 4 in (1, 2):
            changes["strength"] = 0.35 + 0.04 * index
            image = make_upload(index, changes["width"], 64)
        arrivals.append(Arrival(index * 2 % 19, make_request(f"prompt number {index}", **changes), image))
    return arrivals


class CallCounter:
    """Counts UNet calls per latent width, by a hook on the real network."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.calls: Counter[int] = Counter()
        self.order: list[int] = []
        self.rows: list[int] = []
        self._handle = checkpoint.denoiser.network.register_forward_hook(self._count)

    def _count(self, _module: object, inputs: tuple[Tensor, ...], _output: object) -> None:
        self.calls[inputs[0].shape[-1]] += 1
        self.order.append(inputs[0].shape[-1])
        self.rows.append(inputs[0].shape[0])

    def close(self) -> None:
        self._handle.remove()


def test_sixteen_different_requests_in_one_batch_are_what_they_are_alone(checkpoint: Checkpoint) -> None:
    arrivals = sixteen_different()
    solo = [draw_alone(checkpoint, arrival.request, arrival.image) for arrival in arrivals]
    engine, counter = Engine(EngineSettings(max_rows=64)), CallCounter(checkpoint)
    lives: dict[int, set[int]] = {8: set(), 12: set()}
    pictures: dict[str, Drawn] = {}
    together = 0
    for tick in range(2000):
        for index, arrival in enumerate(arrivals):
            if arrival.tick == tick:
                engine.admit(str(index), arrival.request, checkpoint, Inputs(arrival.image))
        before = Counter(counter.calls)
        for event in engine.step():
            assert not isinstance(event, Broken), event
            if isinstance(event, Prepared):
                width = arrivals[int(event.job_id)].request.width // 8
                lives[width] |= set(range(before[width], before[width] + event.steps))
            if isinstance(event, Drawn):
                pictures[event.job_id] = event
        together = max(together, len(engine.job_ids))
        if engine.is_idle and tick > 20:
            break
    counter.close()
    worst = max(difference(pictures[str(index)].pictures[0], solo[index]) for index in range(16))
    assert worst <= TOLERANCE
    assert together >= 8, "the script must make them overlap"
    # One call serves every live slot of a shape: the calls are the union of the slots' lives, not their sum.
    assert counter.calls == {width: len(life) for width, life in lives.items()}
    others = [difference(solo[a], solo[b]) for a in range(16) for b in range(a) if solo[a].shape == solo[b].shape]
    assert min(others) > 20 * TOLERANCE, "pictures that look alike would prove nothing"


def test_picture_n_of_a_request_is_the_picture_of_seed_plus_n(checkpoint: Checkpoint) -> None:
    engine = Engine()
    engine.admit("four", make_request(num_images=4, sampler="euler_ancestral"), checkpoint)
    four = drawn(run_to_end(engine))["four"]
    assert four.seeds == (7, 8, 9, 10)
    for index, picture in enumerate(four.pictures):
        alone = draw_alone(checkpoint, make_request(seed=7 + index, sampler="euler_ancestral"))
        assert difference(picture, alone) <= TOLERANCE


def test_a_slot_without_guidance_costs_one_row(checkpoint: Checkpoint) -> None:
    engine, counter = Engine(), CallCounter(checkpoint)
    engine.admit("guided", make_request(num_inference_steps=3), checkpoint)
    engine.admit("plain", make_request(num_inference_steps=3, guidance_scale=1.0), checkpoint)
    run_to_end(engine)
    counter.close()
    assert counter.rows == [3, 3, 3]


def test_shapes_take_turns_so_that_none_waits_twice(checkpoint: Checkpoint) -> None:
    engine, counter = Engine(EngineSettings(max_rows=8)), CallCounter(checkpoint)
    for index in range(8):
        engine.admit(f"small {index}", make_request(seed=index, num_inference_steps=20), checkpoint)
    engine.admit("wide", make_request(width=96, num_inference_steps=5), checkpoint)
    run_to_end(engine)
    counter.close()
    first = counter.order.index(12)
    assert counter.order[first : first + 9] == [12, 8] * 4 + [12]


def test_slots_beyond_the_ceiling_advance_evenly(checkpoint: Checkpoint) -> None:
    engine = Engine(EngineSettings(max_rows=4))
    for index in range(5):
        engine.admit(str(index), make_request(seed=index, num_inference_steps=10), checkpoint)
    for _ in range(14):
        engine.step()
        steps = [done for done, _, _ in engine.progress().values()]
    assert len(steps) == 5
    assert max(steps) - min(steps) <= 1


def test_a_cancelled_job_leaves_at_once_and_its_neighbour_does_not_notice(checkpoint: Checkpoint) -> None:
    alone = draw_alone(checkpoint, make_request("stays"))
    engine, counter = Engine(), CallCounter(checkpoint)
    engine.admit("goes", make_request("goes", num_images=2, num_inference_steps=30), checkpoint)
    engine.admit("stays", make_request("stays"), checkpoint)
    engine.step()
    engine.step()
    assert engine.cancel("goes")
    events = run_to_end(engine)
    counter.close()
    assert counter.rows == [6, 6, 2, 2, 2, 2]
    assert not engine.cancel("goes")
    assert difference(drawn(events)["stays"].pictures[0], alone) <= TOLERANCE
    assert set(drawn(events)) == {"stays"}


def test_a_newcomer_can_be_cancelled_before_it_is_prepared(checkpoint: Checkpoint) -> None:
    engine = Engine()
    engine.admit("early", make_request(), checkpoint)
    assert engine.cancel("early")
    assert engine.is_idle
    assert engine.step() == []


def test_a_row_that_overflows_fails_alone(checkpoint: Checkpoint) -> None:
    alone = draw_alone(checkpoint, make_request("sane"))
    engine = Engine()
    engine.admit("mad", make_request("mad", guidance_scale=3e38, num_images=2), checkpoint)
    engine.admit("sane", make_request("sane"), checkpoint)
    events = run_to_end(engine)
    assert isinstance(broken(events)["mad"].error, NotFinite)
    assert [event.job_id for event in events if isinstance(event, Broken)] == ["mad"]
    assert difference(drawn(events)["sane"].pictures[0], alone) <= TOLERANCE


class FaultyDenoiser(Denoiser):
    """The real network behind a fault: `fault(latents, context)` may raise before the call."""

    def __init__(self, real: Denoiser, fault: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__(real.network)
        self._fault = fault

    def predict(self, rows: Rows) -> Tensor:
        self._fault(rows.latents, rows.context)
        return super().predict(rows)


def with_fault(checkpoint: Checkpoint, fault: Callable[[Tensor, Tensor], None]) -> Checkpoint:
    return dataclasses.replace(checkpoint, denoiser=FaultyDenoiser(checkpoint.denoiser, fault))


def test_a_job_that_makes_the_network_raise_fails_alone(checkpoint: Checkpoint) -> None:
    poison = checkpoint.conditioner.encode(["poison"])[0].states

    def fault(_latents: Tensor, context: Tensor) -> None:
        if any(torch.equal(row, poison) for row in context):
            raise ValueError("poisoned row")

    faulty = with_fault(checkpoint, fault)
    engine = Engine()
    for name in ("one", "poison", "two"):
        engine.admit(name, make_request(name, sampler="euler_ancestral"), faulty)
    events = run_to_end(engine)
    assert isinstance(broken(events)["poison"].error, InternalError)
    for name in ("one", "two"):
        alone = draw_alone(checkpoint, make_request(name, sampler="euler_ancestral"))
        assert difference(drawn(events)[name].pictures[0], alone) <= TOLERANCE


def out_of_memory_above(rows: int, tried: list[int]) -> Callable[[Tensor, Tensor], None]:
    def fault(latents: Tensor, _context: Tensor) -> None:
        tried.append(len(latents))
        if len(latents) > rows:
            raise torch.OutOfMemoryError("no room")

    return fault


def test_out_of_memory_halves_the_call_remembers_and_loses_nobody(checkpoint: Checkpoint) -> None:
    tried: list[int] = []
    small = with_fault(checkpoint, out_of_memory_above(5, tried))
    engine = Engine(EngineSettings(max_rows=16, prepare_at_once=6))
    for index in range(6):
        engine.admit(str(index), make_request(seed=index, sampler="dpmpp_2m_sde"), small)
    events = run_to_end(engine)
    assert not broken(events)
    assert [rows for rows in tried if rows > 5] == [12, 6], "each size is tried once, then the ceiling holds"
    for index in range(6):
        alone = draw_alone(checkpoint, make_request(seed=index, sampler="dpmpp_2m_sde"))
        assert difference(drawn(events)[str(index)].pictures[0], alone) <= TOLERANCE


def test_a_ceiling_rises_again_by_one_row_after_clean_minutes(checkpoint: Checkpoint) -> None:
    now = [0.0]
    tried: list[int] = []
    limit = [3]

    def fault(latents: Tensor, _context: Tensor) -> None:
        tried.append(len(latents))
        if len(latents) > limit[0]:
            raise torch.OutOfMemoryError("a neighbour's spike")

    small = with_fault(checkpoint, fault)
    engine = Engine(EngineSettings(max_rows=4, probe_after_s=60), clock=lambda: now[0])
    for index in range(4):
        engine.admit(str(index), make_request(seed=index, guidance_scale=1.0, num_inference_steps=30), small)
    for _ in range(8):
        engine.step()
    assert tried[-1] == 2
    limit[0] = 4
    for expected in (3, 4, 4):
        now[0] += 61
        engine.step()
        assert tried[-1] == expected
    assert not broken(run_to_end(engine))


def test_a_guided_picture_that_fits_only_row_by_row_is_finished(checkpoint: Checkpoint) -> None:
    tried: list[int] = []
    engine = Engine()
    engine.admit("tight", make_request(), with_fault(checkpoint, out_of_memory_above(1, tried)))
    events = run_to_end(engine)
    assert difference(drawn(events)["tight"].pictures[0], draw_alone(checkpoint, make_request())) <= TOLERANCE
    assert 1 in tried


def test_a_picture_that_fits_only_row_by_row_takes_turns_like_any_other(checkpoint: Checkpoint) -> None:
    order: list[tuple[int, int]] = []

    def fault(latents: Tensor, _context: Tensor) -> None:
        order.append((latents.shape[-1], len(latents)))
        if latents.shape[-1] > 8 and len(latents) > 1:
            raise torch.OutOfMemoryError("too wide")

    faulty = with_fault(checkpoint, fault)
    engine = Engine()
    engine.admit("wide", make_request(width=96, num_inference_steps=3), faulty)
    engine.admit("narrow", make_request(num_inference_steps=3), faulty)
    assert not broken(run_to_end(engine))
    assert order == [(12, 2), (8, 2), (12, 1), (12, 1), (8, 2), (12, 1), (12, 1), (8, 2), (12, 1), (12, 1)]


def test_a_preview_that_cannot_be_decoded_harms_nobody(checkpoint: Checkpoint) -> None:
    class SmallMemoryAutoencoder(Autoencoder):
        is_full = False

        def decode(self, latents: Tensor, whole_up_to: int | None = None) -> list[np.ndarray | None]:
            if self.is_full:
                raise torch.OutOfMemoryError("no room")
            return super().decode(latents, whole_up_to)

    autoencoder = SmallMemoryAutoencoder(checkpoint.autoencoder._vae)
    engine = Engine()
    engine.admit("any", make_request(), dataclasses.replace(checkpoint, autoencoder=autoencoder))
    engine.step()
    autoencoder.is_full = True
    assert engine.preview("any") is None
    autoencoder.is_full = False
    assert set(drawn(run_to_end(engine))) == {"any"}


def test_memory_that_is_short_while_a_job_is_prepared_gets_a_second_try(checkpoint: Checkpoint) -> None:
    class ShortOnce(Autoencoder):
        tries = 0

        def encode(self, *arguments: Any, **options: Any) -> Posterior:
            self.tries += 1
            if self.tries == 1:
                raise torch.OutOfMemoryError("a spike")
            return super().encode(*arguments, **options)

    autoencoder = ShortOnce(checkpoint.autoencoder._vae)
    request, upload = make_request(strength=0.5), make_upload(1, 64, 64)
    engine = Engine()
    engine.admit("any", request, dataclasses.replace(checkpoint, autoencoder=autoencoder), Inputs(upload))
    picture = drawn(run_to_end(engine))["any"].pictures[0]
    assert autoencoder.tries == 2
    assert difference(picture, draw_alone(checkpoint, request, upload)) <= TOLERANCE


def test_a_decode_that_does_not_fit_is_tried_one_by_one(checkpoint: Checkpoint) -> None:
    class OneAtATime(Autoencoder):
        def decode(self, latents: Tensor, whole_up_to: int | None = None) -> list[np.ndarray | None]:
            if len(latents) > 1:
                raise torch.OutOfMemoryError("no room")
            return super().decode(latents, whole_up_to)

    autoencoder = OneAtATime(checkpoint.autoencoder._vae)
    engine = Engine()
    engine.admit("four", make_request(num_images=4), dataclasses.replace(checkpoint, autoencoder=autoencoder))
    four = drawn(run_to_end(engine))["four"]
    for index, picture in enumerate(four.pictures):
        assert difference(picture, draw_alone(checkpoint, make_request(seed=7 + index))) <= TOLERANCE


def test_what_does_not_fit_even_alone_fails_and_the_rest_goes_on(checkpoint: Checkpoint) -> None:
    def fault(latents: Tensor, _context: Tensor) -> None:
        if latents.shape[-1] > 8:
            raise torch.OutOfMemoryError("too wide")

    faulty = with_fault(checkpoint, fault)
    engine = Engine()
    engine.admit("wide", make_request(width=96), faulty)
    engine.admit("fits", make_request(), faulty)
    events = run_to_end(engine)
    assert isinstance(broken(events)["wide"].error, OutOfMemory)
    assert set(drawn(events)) == {"fits"}


def test_a_lost_device_ends_the_process_instead_of_the_jobs(checkpoint: Checkpoint) -> None:
    def fault(_latents: Tensor, _context: Tensor) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    engine = Engine()
    engine.admit("any", make_request(), with_fault(checkpoint, fault))
    with pytest.raises(torch.AcceleratorError):
        engine.step()


def test_a_refused_sampler_breaks_its_job_before_it_joins(checkpoint: Checkpoint) -> None:
    engine = Engine()
    engine.admit("lcm", make_request(sampler="lcm", num_inference_steps=900), checkpoint)
    engine.admit("fine", make_request(), checkpoint)
    events = run_to_end(engine)
    assert broken(events)["lcm"].error.code == "sampler_refused"
    assert set(drawn(events)) == {"fine"}


def test_prompts_of_newcomers_are_encoded_together_and_once(checkpoint: Checkpoint) -> None:
    batches: list[int] = []
    encoder = checkpoint.conditioner.encoders[0].network
    handle = encoder.register_forward_pre_hook(lambda _module, inputs: batches.append(len(inputs[0])))
    engine = Engine()
    for index in range(4):
        engine.admit(str(index), make_request(f"fresh {index % 3}", negative_prompt="fresh no"), checkpoint)
    run_to_end(engine)
    engine.admit("again", make_request("fresh 1", negative_prompt="fresh no"), checkpoint)
    run_to_end(engine)
    handle.remove()
    assert batches == [4], "three prompts and one negative prompt in one call, and none for the repetition"


def test_decoding_does_not_stop_the_steps_of_others(checkpoint: Checkpoint) -> None:
    engine, counter = Engine(EngineSettings(max_rows=16)), CallCounter(checkpoint)
    decoded: list[int] = []
    vae = checkpoint.autoencoder._vae
    handle = vae.decoder.register_forward_pre_hook(lambda _module, inputs: decoded.append(len(inputs[0])))
    engine.admit("eight", make_request(num_images=8, guidance_scale=1, num_inference_steps=2), checkpoint)
    engine.admit("long", make_request(num_inference_steps=30), checkpoint)
    events: list[Event] = []
    while "eight" in engine.job_ids:
        calls, chunks = len(counter.order), len(decoded)
        events += engine.step()
        assert len(counter.order) == calls + 1
        assert len(decoded) <= chunks + 1
    handle.remove()
    counter.close()
    assert "eight" in drawn(events)
    assert sum(decoded) == 8


def test_progress_counts_network_calls_and_knows_an_eta(checkpoint: Checkpoint) -> None:
    engine = Engine()
    engine.admit("heun", make_request(sampler="heun", num_inference_steps=20), checkpoint)
    prepared = engine.step()[0]
    assert isinstance(prepared, Prepared)
    assert prepared.steps == 39
    engine.step()
    step, steps, eta_s = engine.progress()["heun"]
    assert (step, steps) == (2, 39)
    assert eta_s is not None
    assert eta_s > 0
    assert engine.loads()["tiny"].cost_in_flight == 2 * 37


def test_a_preview_shows_the_predicted_picture_and_ends_at_the_real_one(checkpoint: Checkpoint) -> None:
    engine = Engine()
    engine.admit("seen", make_request(num_inference_steps=4, sampler="euler"), checkpoint)
    assert engine.preview("seen") is None
    engine.step()
    early = engine.preview("seen")
    assert early is not None
    assert early.shape == (64, 64, 3)
    engine.step()
    engine.step()
    engine._decode_some = list  # type: ignore[method-assign]  # keep the job in the batch to look at its last step
    engine.step()
    last = engine.preview("seen")
    final = draw_alone(checkpoint, make_request(num_inference_steps=4, sampler="euler"))
    assert last is not None
    assert difference(last, final) <= TOLERANCE
    assert difference(early, final) > 20


def test_every_call_is_counted_for_its_model(checkpoint: Checkpoint) -> None:
    engine = Engine(EngineSettings(max_rows=4))
    engine.admit("guided", make_request(), checkpoint)
    engine.admit("plain", make_request(guidance_scale=1.0), checkpoint)
    run_to_end(engine)
    counts = engine.counters
    assert (counts["steps:tiny"], counts["rows:tiny"], counts["rows_allowed:tiny"]) == (6, 6 * 3, 6 * 4)
    assert (counts["slot_steps:tiny"], counts["decoded_pictures:tiny"]) == (12, 2)
    seconds = distributions(counts, "step_seconds")["tiny"]
    assert seconds.buckets[-1] == (float("inf"), 6)
    assert seconds.total > 0


def test_room_is_counted_in_rows_of_one_shape(checkpoint: Checkpoint) -> None:
    engine = Engine(EngineSettings(max_rows=4))
    assert engine.has_room(make_request(num_images=16), checkpoint), "alone, a large job is taken in turns"
    engine.admit("one", make_request(), checkpoint)
    assert engine.has_room(make_request(), checkpoint)
    engine.admit("two", make_request(), checkpoint)
    assert not engine.has_room(make_request(), checkpoint)
    assert engine.has_room(make_request(width=96), checkpoint)


def test_a_cut_prompt_is_named_in_the_warnings(checkpoint: Checkpoint) -> None:
    engine = Engine()
    engine.admit("long", make_request("abcdefghij " * 16 + "uvwxyz", num_inference_steps=1), checkpoint)
    prepared = engine.step()[0]
    assert isinstance(prepared, Prepared)
    assert len(prepared.warnings) == 1
    assert "'uvwxyz'" in prepared.warnings[0]
    run_to_end(engine)


def test_warm_up_measures_a_ceiling_within_the_setting(checkpoint: Checkpoint) -> None:
    engine = Engine(EngineSettings(max_rows=8))
    assert 2 <= engine.warm_up(checkpoint) <= 8


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        ({2: 0.09, 4: 0.14, 8: 0.25, 16: 0.45, 32: 0.90, 64: 1.80}, 16),
        ({2: 0.09, 4: 0.19, 8: 0.25, 16: 0.49, 32: 0.98}, 8),  # a neighbour disturbed the second size
        ({2: 0.09, 4: 0.18, 8: 0.36}, 2),
        ({2: 0.09, 4: 0.14, 8: 0.25, 16: None}, 8),  # memory ends
        ({2: 1.50, 4: 2.20}, 2),  # longer steps than anybody should wait for
        ({2: 0.010, 4: 0.011, 8: 0.013, 16: 0.017, 32: 0.025, 64: 0.040}, 64),
    ],
)
def test_rows_are_measured_as_far_as_they_pay(
    checkpoint: Checkpoint, seconds: dict[int, float | None], rows: int
) -> None:
    def time_call(_checkpoint: Checkpoint, rows: int) -> float:
        if (measured := seconds[rows]) is None:
            raise torch.OutOfMemoryError("no room")
        return measured

    assert measure_rows(checkpoint, 64, 1.0, time_call) == rows


def test_two_models_share_an_engine_and_keep_their_own_pictures(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "other", prediction_type="v_prediction", seed=1)
    other = load_checkpoint("other", str(folder), choose_placement("cpu"))
    engine = Engine()
    engine.admit("a", make_request(), checkpoint)
    engine.admit("b", make_request(model="other"), other)
    assert engine.models_in_use() == {"tiny", "other"}
    events = drawn(run_to_end(engine))
    assert difference(events["a"].pictures[0], draw_alone(checkpoint, make_request())) <= TOLERANCE
    assert difference(events["b"].pictures[0], draw_alone(other, make_request(model="other"))) <= TOLERANCE
    assert difference(events["a"].pictures[0], events["b"].pictures[0]) > 20


def test_prompts_of_any_length_are_drawn_beside_each_other(checkpoint: Checkpoint) -> None:
    """Their contexts differ in length, so they take turns; each is the picture it would be alone."""
    long = "a cat on a wall beside a dog on a mat under a lamp"
    requests = {
        "short": make_request("a cat"),
        "weighted": make_request("a (cat:1.4)"),
        "long": make_request(long, negative_prompt="blurry"),
        "long negative": make_request("a cat", negative_prompt=long),
        "plain": make_request(long, prompt_syntax="plain"),
        "skipped": make_request("a cat", clip_skip=1),
    }
    engine = Engine(EngineSettings(prepare_at_once=16))
    for name, request in requests.items():
        engine.admit(name, request, checkpoint)
    events = run_to_end(engine)
    together = drawn(events)
    assert [event.job_id for event in events if isinstance(event, Prepared) and event.warnings] == ["plain"]
    alone = {}
    for name, request in requests.items():
        engine = Engine()
        engine.admit(name, request, checkpoint)
        alone[name] = drawn(run_to_end(engine))[name].pictures[0].astype(int)
        assert np.abs(together[name].pictures[0].astype(int) - alone[name]).max() <= TOLERANCE
    for name in ("weighted", "long", "long negative", "skipped"):
        assert np.abs(alone[name] - alone["short"]).max() > 20, f"{name} must matter"


def test_a_negative_prompt_that_is_not_read_is_told(checkpoint: Checkpoint, tmp_path: Path) -> None:
    told = load_checkpoint("told", str(save_tiny_guided_checkpoint(tmp_path / "told")), choose_placement("cpu"))
    engine = Engine()
    engine.admit("off", make_request(guidance_scale=1.0, negative_prompt="blurry"), checkpoint)
    engine.admit("on", make_request(negative_prompt="blurry"), checkpoint)
    engine.admit("one row", make_request(negative_prompt="blurry"), told)
    engine.admit("none", make_request(guidance_scale=1.0), checkpoint)
    warnings = {event.job_id: event.warnings for event in run_to_end(engine) if isinstance(event, Prepared)}
    assert "guidance_scale is 1 or less" in warnings["off"][0]
    assert "is told the guidance scale" in warnings["one row"][0]
    assert warnings["on"] == warnings["none"] == ()


def test_rescaled_guidance_leaves_its_neighbours_alone(checkpoint: Checkpoint) -> None:
    requests = {f"{phi}": make_request("a cat", guidance_rescale=phi, guidance_scale=9.0) for phi in (0.0, 0.7)}
    engine = Engine()
    for name, request in requests.items():
        engine.admit(name, request, checkpoint)
    together = drawn(run_to_end(engine))
    alone = {name: draw_alone(checkpoint, request) for name, request in requests.items()}
    for name in requests:
        assert difference(together[name].pictures[0], alone[name]) <= TOLERANCE
    assert difference(alone["0.0"], alone["0.7"]) > 20


class RecordingAutoencoder(Autoencoder):
    """The real one, which notes how many positions each call decodes, and fails above `room`."""

    def __init__(self, real: Autoencoder, room: int = 10**9) -> None:
        super().__init__(real._vae)
        self.room = room
        self.positions: list[int] = []

    def _decode_whole(self, latents: Tensor) -> Tensor:
        positions = len(latents) * latents.shape[-1] * latents.shape[-2]
        if positions > self.room:
            raise torch.OutOfMemoryError("no room")
        self.positions.append(positions)
        return super()._decode_whole(latents)


def test_a_large_picture_is_decoded_in_tiles_without_seams(checkpoint: Checkpoint) -> None:
    autoencoder = RecordingAutoencoder(checkpoint.autoencoder)
    plain = torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(0)).expand(2, 4, 70, 90)
    (whole, _) = autoencoder.decode(plain)
    autoencoder.positions = []
    (tiled, other) = autoencoder.decode(plain, whole_up_to=40 * 40)
    assert tiled is not None
    assert whole is not None
    assert tiled.shape == (560, 720, 3)
    assert max(autoencoder.positions) <= 40 * 40
    assert np.array_equal(tiled, other)
    # The decoder's norms average over what they see, and a tile has more edge for its size: tones shift a little.
    assert difference(tiled[100:460, 100:620], whole[100:460, 100:620]) <= 24
    steps = np.abs(np.diff(tiled.astype(int), axis=1)).max(), np.abs(np.diff(tiled.astype(int), axis=0)).max()
    edges = np.abs(np.diff(whole.astype(int), axis=1)).max(), np.abs(np.diff(whole.astype(int), axis=0)).max()
    assert max(steps) <= max(edges) + 1, "a seam is a larger step than any in the picture as a whole"


def test_a_picture_whose_decode_does_not_fit_alone_is_decoded_in_tiles(checkpoint: Checkpoint) -> None:
    autoencoder = RecordingAutoencoder(checkpoint.autoencoder, room=30 * 30)
    small = dataclasses.replace(checkpoint, autoencoder=autoencoder)
    engine = Engine()
    engine.admit("large", make_request(width=8 * 64, height=8 * 48, num_inference_steps=1), small)
    events = run_to_end(engine)
    assert drawn(events)["large"].pictures[0].shape == (384, 512, 3)
    assert max(autoencoder.positions) <= 30 * 30
    autoencoder.room = 10**9
    autoencoder.positions = []
    assert autoencoder.decode(torch.zeros(1, 4, 48, 64))[0] is not None
    assert autoencoder.positions == [64 * 48], "a spike of one picture is not held against the next"


class RecordingEncoder(Autoencoder):
    """The real one, which notes how many positions each call encodes, and fails above `room`."""

    def __init__(self, real: Autoencoder, room: int = 10**9) -> None:
        super().__init__(real._vae)
        self.room = room
        self.positions: list[int] = []

    def _encode_whole(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        positions = pixels.shape[-1] * pixels.shape[-2] // self.factor**2
        if positions > self.room:
            raise torch.OutOfMemoryError("no room")
        self.positions.append(positions)
        return super()._encode_whole(pixels)


def test_an_upload_that_does_not_fit_is_encoded_in_tiles_without_seams(checkpoint: Checkpoint) -> None:
    upload = make_upload(3, 8 * 70, 8 * 60)
    whole = checkpoint.autoencoder.encode(upload, 8 * 70, 8 * 60)
    autoencoder = RecordingEncoder(checkpoint.autoencoder, room=40 * 40)
    tiled = autoencoder.encode(upload, 8 * 70, 8 * 60)
    assert max(autoencoder.positions) <= 40 * 40
    assert len(autoencoder.positions) >= 4
    assert tiled.mean.shape == tiled.std.shape == whole.mean.shape
    # The encoder's norms average over what they see: a tile differs in tone, most with weights that never learned.
    assert (tiled.mean - whole.mean).abs().mean() < 0.5 * whole.mean.std()
    for axis in (1, 2):
        jumps = (tiled.mean - whole.mean).diff(dim=axis).abs().amax()
        assert jumps < 0.5 * whole.mean.diff(dim=axis).abs().amax(), "a seam would be a jump"
    assert (tiled.std / whole.std).log().abs().mean() < 0.5


def test_an_upload_for_which_there_is_no_memory_at_all_fails_its_job_alone(checkpoint: Checkpoint) -> None:
    small = dataclasses.replace(checkpoint, autoencoder=RecordingEncoder(checkpoint.autoencoder, room=0))
    engine = Engine()
    engine.admit("none", make_request(strength=0.5), small, Inputs(make_upload(1, 64, 64)))
    engine.admit("fine", make_request(), checkpoint)
    events = run_to_end(engine)
    (broken,) = (event for event in events if isinstance(event, Broken))
    assert (broken.job_id, broken.error.code) == ("none", "out_of_memory")
    assert set(drawn(events)) == {"fine"}
