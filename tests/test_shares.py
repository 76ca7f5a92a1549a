"""Fair shares: tenants share the engine's time, whatever they send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.autoencoder import Autoencoder
from models.call_cost import CallCost
from models.checkpoint import Checkpoint, load_checkpoint
from models.denoiser import Denoiser, Rows
from models.device import choose_placement
from models.engine import Drawn, Engine, EngineSettings
from models.shares import Shares, Standing
from tests.test_engine import make_request
from tests.tiny import save_tiny_checkpoint

HIGH, NORMAL, LOW = 0, 1, 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    return load_checkpoint("tiny", str(folder), choose_placement("cpu"))


@dataclass
class Device:
    """A clock that a call of the network puts forward by `base_s` and `row_s` for each of its rows."""

    row_s: float = 1.0
    base_s: float = 0.0
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Time as a device with such costs would measure it, with the real network at work."""
    device, predict = Device(), Denoiser.predict

    def timed(denoiser: Denoiser, rows: Rows) -> torch.Tensor:
        width = rows.latents.shape[-1] / denoiser.sample_size
        device.now += device.base_s + device.row_s * len(rows) * width
        return predict(denoiser, rows)

    monkeypatch.setattr(Denoiser, "predict", timed)
    return device


def run(engine: Engine, device: Device, until: str) -> float:
    """Step until this job is drawn; returns the seconds that took."""
    started = device.now
    while True:
        if any(isinstance(event, Drawn) and event.job_id == until for event in engine.step()):
            return device.now - started


def flood(engine: Engine, checkpoint: Checkpoint, jobs: int, *, width: int = 64, tenant: str = "flood") -> None:
    for index in range(jobs):
        request = make_request(seed=index, num_inference_steps=60, width=width)
        engine.admit(f"{tenant} {width} {index}", request, checkpoint, standing=Standing(tenant))


def idle_latency(checkpoint: Checkpoint, device: Device) -> float:
    engine = Engine(EngineSettings(max_rows=16), stopwatch=device)
    engine.admit("lone", make_request(num_inference_steps=12), checkpoint, standing=Standing("lone"))
    return run(engine, device, "lone")


@pytest.mark.parametrize("widths", [(64,), (96,), (64, 96, 128)], ids=["same shape", "another", "many"])
@pytest.mark.parametrize(("row_s", "base_s"), [(1.0, 0.0), (1.0, 2.0), (0.1, 10.0)], ids=["CPU", "between", "GPU"])
def test_a_lone_job_beside_a_flood_takes_at_most_three_times_its_idle_latency(
    checkpoint: Checkpoint, device: Device, widths: Sequence[int], row_s: float, base_s: float
) -> None:
    device.row_s, device.base_s = row_s, base_s
    idle = idle_latency(checkpoint, device)
    engine = Engine(EngineSettings(max_rows=16), stopwatch=device)
    for width in widths:
        flood(engine, checkpoint, 8, width=width)
    for _ in range(10):
        engine.step()
    engine.admit("lone", make_request(num_inference_steps=12), checkpoint, standing=Standing("lone"))
    assert run(engine, device, "lone") <= 3 * idle


def test_a_flood_alone_fills_its_calls(checkpoint: Checkpoint, device: Device) -> None:
    engine = Engine(EngineSettings(max_rows=16), stopwatch=device)
    flood(engine, checkpoint, 8)
    engine.step()
    started = device.now
    engine.step()
    assert device.now - started == 16.0


def test_many_tenants_with_a_job_each_share_full_calls(checkpoint: Checkpoint, device: Device) -> None:
    engine = Engine(EngineSettings(max_rows=16, prepare_at_once=16), stopwatch=device)
    for index in range(8):
        flood(engine, checkpoint, 1, tenant=f"tenant {index}")
    engine.step()
    assert engine.counters["rows:tiny"] == 16


def test_where_rows_cost_nothing_a_flood_fills_the_rest_of_the_calls(checkpoint: Checkpoint, device: Device) -> None:
    device.row_s, device.base_s = 0.1, 10.0
    engine = Engine(EngineSettings(max_rows=16, prepare_at_once=16), stopwatch=device)
    flood(engine, checkpoint, 8)
    for rows in (2, 8):  # what the warm-up finds out
        engine._meter.called("tiny", rows, 10.0 + 0.1 * rows)
    engine.admit("lone", make_request(num_inference_steps=12), checkpoint, standing=Standing("lone"))
    engine.step()
    assert engine.counters["rows:tiny"] == 16


def test_a_high_job_has_twice_the_time_of_another_tenants_and_a_low_one_half(
    checkpoint: Checkpoint, device: Device
) -> None:
    engine = Engine(EngineSettings(max_rows=2), stopwatch=device)
    for index, priority in enumerate((HIGH, NORMAL, LOW)):
        request = make_request(num_inference_steps=400)
        engine.admit(str(index), request, checkpoint, standing=Standing(str(index), priority))
    for _ in range(140):
        engine.step()
    steps = [done for done, _, _ in engine.progress().values()]
    assert steps == pytest.approx([80, 40, 20], abs=2)


def test_among_ones_own_jobs_the_more_urgent_come_first_and_none_starves(
    checkpoint: Checkpoint, device: Device
) -> None:
    engine = Engine(EngineSettings(max_rows=2, prepare_at_once=8), stopwatch=device)
    standings = [Standing("ann", LOW), Standing("ann"), Standing("ann", deadline=10.0), Standing("ann", HIGH)]
    for index, standing in enumerate(standings):
        engine.admit(str(index), make_request(num_inference_steps=500), checkpoint, standing=standing)
    device.row_s = 0.01
    for _ in range(20):
        engine.step()
    assert [done for done, _, _ in engine.progress().values()] == [0, 0, 0, 20]
    device.row_s = 0.5  # a second a step: five seconds without one are a priority
    for _ in range(60):
        engine.step()
    steps = [done for done, _, _ in engine.progress().values()]
    assert min(steps) >= 3
    assert steps[3] == max(steps)


def test_there_is_room_for_another_tenant_however_full_it_is(checkpoint: Checkpoint) -> None:
    engine, request = Engine(EngineSettings(max_rows=8)), make_request()
    for index in range(4):
        assert engine.has_room(request, checkpoint, "ann")
        engine.admit(str(index), request, checkpoint, standing=Standing("ann"))
    assert not engine.has_room(request, checkpoint, "ann")
    for index in range(2):
        assert engine.has_room(request, checkpoint, "bob")
        engine.admit(f"bob {index}", request, checkpoint, standing=Standing("bob"))
    assert not engine.has_room(request, checkpoint, "bob"), "half of a call is his share now"
    assert engine.has_room(request, checkpoint, "eve")
    assert not engine.has_room(request, checkpoint, "eve", [request]), "one is on its way, and a third of eight is 2"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.floats(0.01, 5.0)), max_size=200))
def test_tenants_that_always_have_work_never_drift_apart(turns: list[tuple[str, int, float]]) -> None:
    """Whatever a turn costs, the weighed time of any two differs by one turn at most."""
    shares, had = Shares(), Counter({"a": 0.0, "b": 0.0, "c": 0.0})
    for index, tenant in enumerate("abc"):
        shares.enter(tenant, "abc"[:index])
    longest = 0.0
    for _, priority, seconds in turns:
        standing = Standing(shares.order("abc")[0], priority)
        shares.charge(standing, seconds)
        had[standing.tenant] += seconds / standing.weight
        longest = max(longest, seconds / standing.weight)
        assert max(had.values()) - min(had.values()) <= longest * (1 + 1e-9)


def test_what_a_tenant_had_while_nobody_else_was_there_is_not_held_against_it() -> None:
    shares = Shares()
    shares.enter("ann", ())
    shares.charge(Standing("ann"), 3600.0)
    shares.enter("bob", ())  # the engine was idle in between
    shares.enter("ann", ("bob",))
    shares.charge(Standing("bob"), 1.0)
    assert shares.order(("ann", "bob")) == ["ann", "bob"]


def test_pictures_of_a_flood_that_wait_for_their_decoder_do_not_hold_up_anothers(
    checkpoint: Checkpoint, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Autoencoder.decode

    def timed(autoencoder: Autoencoder, latents: torch.Tensor, whole_up_to: int | None = None) -> Any:
        device.now += 3.0 * len(latents)
        return decode(autoencoder, latents, whole_up_to)

    monkeypatch.setattr(Autoencoder, "decode", timed)
    engine = Engine(EngineSettings(max_rows=16, decode_at_once=1, prepare_at_once=16), stopwatch=device)
    for index in range(8):
        request = make_request(seed=index, num_inference_steps=2)
        engine.admit(f"flood {index}", request, checkpoint, standing=Standing("flood"))
    for _ in range(2):
        engine.step()
    assert not engine.has_room(make_request(num_images=2), checkpoint, "flood"), "what is not decoded takes room"
    engine.admit("lone", make_request(num_inference_steps=1), checkpoint, standing=Standing("lone"))
    events = [event for _ in range(2) for event in engine.step()]
    assert any(isinstance(event, Drawn) and event.job_id == "lone" for event in events)


def test_who_comes_back_has_no_claim_on_the_time_that_it_was_away() -> None:
    shares = Shares()
    shares.enter("ann", ())
    shares.enter("bob", ("ann",))
    for _ in range(100):
        shares.charge(Standing("ann"), 1.0)
    shares.enter("bob", ("ann",))
    shares.charge(Standing("bob"), 0.5)
    assert shares.order(("ann", "bob")) == ["ann", "bob"]


def test_who_goes_and_comes_again_is_not_ahead_of_what_it_had() -> None:
    shares = Shares()
    shares.enter("ann", ())
    shares.enter("bob", ("ann",))
    shares.charge(Standing("bob"), 10.0)
    shares.enter("bob", ("ann",))
    assert shares.order(("ann", "bob")) == ["ann", "bob"]


@pytest.mark.parametrize(("base", "slope"), [(0.0, 1.0), (3.0, 1.0), (10.0, 0.1)])
def test_the_line_of_a_networks_costs_is_found(base: float, slope: float) -> None:
    cost = CallCost()
    assert cost.spare == 0.0
    for rows in (2, 4, 8, 16):
        cost.observe(rows, base + slope * rows)
    assert cost.spare == pytest.approx(base / slope, abs=1e-6)


def test_calls_that_were_all_alike_tell_nothing_of_others() -> None:
    cost = CallCost()
    for _ in range(5):
        cost.observe(4, 1.0)
    assert cost.spare == 0.0
