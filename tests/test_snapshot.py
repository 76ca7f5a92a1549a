"""A job that is moved from engine to engine in mid-flight draws the picture that it draws in one."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.denoiser import Denoiser, Rows
from models.engine import Broken, Drawn, Engine, EngineSettings, Event, Prepared
from models.prepare import step_table_of
from models.request import PictureRequest, UpscaleRequest
from models.samplers import SAMPLERS
from models.snapshot import SnapshotRefused, read_snapshot
from models.tiles import Mosaic, tile
from tests.test_engine import make_request
from tests.test_strict import NETWORKS, Studio, make_alike

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=NETWORKS)
def studio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(NETWORKS[request.param], tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(NETWORKS["SD"], tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(NETWORKS["x4 upscaler"], tmp_path_factory.mktemp("x4"))


def move_about(
    studio: Studio, requests: list[PictureRequest], ticks: Callable[[], int], limits: EngineSettings | None = None
) -> tuple[list[Drawn], list[int]]:
    """Draw all of them, with an end to the engine after `ticks` ticks; the next one has nothing but the snapshots.

    Returns what was drawn, and the step at which each stay of a job after its first began.
    """
    ended: dict[str, Drawn] = {}
    snapshots: dict[str, bytes] = {}
    steps: list[int] = []
    while len(ended) < len(requests):
        engine = Engine(limits)
        for index, request in enumerate(requests):
            if str(index) not in ended:
                engine.admit(
                    str(index), request, studio.checkpoint, studio.inputs_of(request), snapshots.get(str(index))
                )
        for event in run_for(engine, ticks()):
            assert not isinstance(event, Broken), event.error
            if isinstance(event, Drawn):
                ended[event.job_id] = event
            elif event.job_id in snapshots:
                steps.append(event.step)
        taken = {job_id: engine.snapshot(job_id) for job_id in engine.job_ids}
        snapshots |= {job_id: snapshot.to_bytes() for job_id, snapshot in taken.items() if snapshot}
    return [ended[str(index)] for index in range(len(requests))], steps


def run_for(engine: Engine, ticks: int) -> Iterator[Event]:
    for _ in range(ticks):
        yield from engine.step()


def test_strict_pictures_that_move_have_the_bytes_of_those_that_stay(studio: Studio) -> None:
    dice = random.Random(5)
    requests = [studio.request(dice, "strict") for _ in range(2 if studio.checkpoint.upscaling else 5)]
    found, steps = move_about(studio, requests, lambda: dice.randint(2, 6))
    assert max(steps) > 0
    for event, request in zip(found, requests, strict=True):
        assert event.is_exact
        for own, expected in zip(event.pictures, studio.draw_alone(request).pictures, strict=True):
            assert np.array_equal(own, expected)


def test_standard_pictures_that_move_stay_within_one_level(studio: Studio) -> None:
    dice = random.Random(6)
    requests = [studio.request(dice, "standard") for _ in range(2 if studio.checkpoint.upscaling else 5)]
    found, _ = move_about(studio, requests, lambda: dice.randint(2, 6))
    for event, request in zip(found, requests, strict=True):
        for own, expected in zip(event.pictures, studio.draw_alone(request).pictures, strict=True):
            assert np.abs(own.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_goes_on_from_every_step(sd: Studio, sampler: str) -> None:
    request = make_request(sampler=sampler, num_inference_steps=4, reproducibility="strict")
    expected = sd.draw_alone(request).pictures[0]
    (event,), resumed = move_about(sd, [request], lambda: 1)
    assert resumed == list(range(1, len(step_table_of(request, sd.checkpoint))))
    assert np.array_equal(event.pictures[0], expected)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stays=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3, unique=True),
    sampler=st.sampled_from(["euler_ancestral", "dpmpp_2m_sde", "lcm", "heun"]),
    num_images=st.integers(1, 3),
)
def test_however_often_and_whenever_it_moves(
    sd: Studio, stays: list[int], seeds: list[int], sampler: str, num_images: int
) -> None:
    requests = [
        make_request(seed=seed, sampler=sampler, num_images=num_images, num_inference_steps=4, reproducibility="strict")
        for seed in seeds
    ]
    left = iter(stays)
    found, _ = move_about(sd, requests, lambda: next(left, 100), EngineSettings(decode_at_once=1))
    for event, request in zip(found, requests, strict=True):
        for own, expected in zip(event.pictures, sd.draw_alone(request).pictures, strict=True):
            assert np.array_equal(own, expected)


def test_pictures_and_tiles_that_are_done_are_not_drawn_again(
    upscaler: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = next(
        found
        for number in range(100)
        if isinstance(found := upscaler.request(random.Random(number), "strict"), UpscaleRequest)
    ).model_copy(update={"width": 4 * 64, "height": 4 * 32, "num_inference_steps": 2, "num_images": 2})
    upscaling = upscaler.checkpoint.upscaling
    assert upscaling is not None
    expected = upscaler.draw_alone(request)
    rows = count_rows(monkeypatch)
    upscaler.draw_alone(request)
    in_one = sum(rows)
    rows.clear()
    (event,), _ = move_about(upscaler, [request], lambda: 3)
    assert sum(rows) == in_one
    for own, alone in zip(event.pictures, expected.pictures, strict=True):
        assert np.array_equal(own, alone)


def count_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    predict_exactly, counted = Denoiser.predict_exactly, []

    def count(denoiser: Denoiser, rows: Rows, exactly: int) -> torch.Tensor:
        counted.append(len(rows))
        return predict_exactly(denoiser, rows, exactly)

    monkeypatch.setattr(Denoiser, "predict_exactly", count)
    return counted


def test_another_thread_takes_it_while_a_call_runs_and_gets_the_step_before(
    sd: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(sampler="euler_ancestral", num_inference_steps=6, reproducibility="strict")
    expected = sd.draw_alone(request).pictures[0]
    engine = Engine()
    engine.admit("job", request, sd.checkpoint)
    list(run_for(engine, 3))
    began, may_go_on = threading.Event(), threading.Event()
    predict = Denoiser.predict

    def wait_inside(denoiser: Denoiser, rows: Rows) -> torch.Tensor:
        began.set()
        assert may_go_on.wait(60)
        return predict(denoiser, rows)

    monkeypatch.setattr(Denoiser, "predict", wait_inside)
    loop = threading.Thread(target=engine.step)
    loop.start()
    assert began.wait(60)
    snapshot = engine.snapshot("job")
    assert snapshot is not None
    assert snapshot.step == 3
    data = snapshot.to_bytes()
    may_go_on.set()
    loop.join()
    monkeypatch.undo()
    other = Engine()
    other.admit("job", request, sd.checkpoint, snapshot=data)
    prepared, *events = list(run_for(other, 4))
    assert isinstance(prepared, Prepared)
    assert prepared.step == 3
    assert isinstance(events[-1], Drawn)
    assert np.array_equal(events[-1].pictures[0], expected)


def snapshot_of(studio: Studio, request: PictureRequest, ticks: int = 2) -> bytes:
    engine = Engine()
    engine.admit("job", request, studio.checkpoint)
    list(run_for(engine, ticks))
    snapshot = engine.snapshot("job")
    assert snapshot is not None
    return snapshot.to_bytes()


def test_there_is_none_before_a_job_is_prepared_nor_after_its_end(sd: Studio) -> None:
    engine = Engine()
    assert engine.snapshot("unknown") is None
    engine.admit("job", make_request(num_inference_steps=1), sd.checkpoint)
    assert engine.snapshot("job") is None
    list(run_for(engine, 5))
    assert engine.snapshot("job") is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:8] + b"x" + data[9:],
        lambda data: data.replace(b'\\"format\\": \\"1\\"', b'\\"format\\": \\"2\\"'),
        lambda data: data.replace(b"latents", b"letters"),
        lambda data: data.replace(b'\\"fingerprint\\": \\"', b'\\"fingerprint\\": \\"0')[:-1] + b"0",
        lambda data: data.replace(b"[[0, 0, 2, ", b"[[0, 0, 9, "),
        lambda data: data.replace(b"[[0, 0, 2, ", b"[[1, 0, 2, "),
    ],
    ids=["empty", "cut", "no header", "format", "names", "shifted", "step", "picture"],
)
def test_a_spoilt_snapshot_costs_the_steps_and_nothing_else(sd: Studio, spoil: Callable[[bytes], bytes]) -> None:
    request = make_alike("strict")[1]
    data = snapshot_of(sd, request)
    assert read_snapshot(data, CPU).step == 2
    spoilt = spoil(data)
    assert spoilt != data
    begins_anew(sd, request, spoilt)


def test_a_snapshot_of_another_request_is_not_taken_up(sd: Studio) -> None:
    one, other = make_alike("strict")[1:3]
    begins_anew(sd, other, snapshot_of(sd, one))


def begins_anew(studio: Studio, request: PictureRequest, snapshot: bytes) -> None:
    engine = Engine()
    engine.admit("job", request, studio.checkpoint, snapshot=snapshot)
    prepared, drawn = list(run_for(engine, 6))
    assert isinstance(prepared, Prepared)
    assert prepared.step == 0
    assert engine.counters["resumed"] == 0
    assert isinstance(drawn, Drawn)
    assert np.array_equal(drawn.pictures[0], studio.draw_alone(request).pictures[0])


def test_bytes_of_anything_else_are_refused() -> None:
    with pytest.raises(SnapshotRefused, match="cannot be read"):
        read_snapshot(b"\x80\x04K\x01.", CPU)


def test_a_mosaic_takes_the_state_of_its_own_tiling_only() -> None:
    tiling = tile((48, 16), 16, 4, 8)
    mosaic = Mosaic(tiling, 4)
    mosaic.add(0, np.full((64, 64, 3), 7, np.uint8))
    state = mosaic.state()
    mosaic.add(1, np.full((64, 64, 3), 7, np.uint8))
    assert 1 in state.missing  # a copy
    Mosaic(tiling, 4).resume(state)
    with pytest.raises(ValueError, match="another mosaic"):
        Mosaic(tile((64, 16), 16, 4, 8), 4).resume(state)
