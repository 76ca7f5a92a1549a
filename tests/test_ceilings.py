"""What memory suffices for is learnt once: by an engine, by its neighbours through Redis, by whoever comes next."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.metrics import BoardFigures, HttpMetrics, render
from models.capacity import Capacity
from models.ceiling import PROBE_AFTER_S, CallKind, Ceiling, lower_of
from models.checkpoint import Checkpoint, load_checkpoint
from models.device import choose_placement, kind_of
from models.engine import Drawn, Engine, EngineSettings
from models.slot import GroupKey
from tests.fleet import Fleet
from tests.test_engine import drawn, make_request, out_of_memory_above, run_to_end, with_fault
from tests.tiny import save_tiny_checkpoint
from workers.board import JobBoard
from workers.ceilings import Ceilings, ceiling_field, read_ceiling
from workers.contract import CEILING_TTL_S, RowCeiling, Submission, WorkerBeat, key

KIND = CallKind("0" * 64, (4, 8, 8), 77, False, "cpu, 16 GiB", "float32")
NOW = 1_795_926_000.0
SETTINGS = EngineSettings(max_rows=8, prepare_at_once=8)


@dataclasses.dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    return load_checkpoint("tiny", str(folder), choose_placement("cpu"))


def draw_eight(
    engine: Engine, checkpoint: Checkpoint, ceilings: Ceilings, *, room: int, **changes: object
) -> tuple[list[int], dict[str, Drawn]]:
    """Eight pictures, with an exchange between any two ticks as in the worker's loop; rows of each call, pictures."""
    tried: list[int] = []
    short = with_fault(checkpoint, out_of_memory_above(room, tried))
    for index in range(8):
        engine.admit(f"{index}", make_request(seed=index, guidance_scale=1.0, **changes), short)
    events = []
    while not engine.is_idle:
        ceilings.exchange(engine)
        events += engine.step()
    ceilings.exchange(engine)
    return tried, drawn(events)


# --- one engine -------------------------------------------------------------------------------------------------------


def test_a_strict_group_is_strict_again_as_soon_as_its_form_fits(checkpoint: Checkpoint) -> None:
    clock = Clock()
    engine = Engine(EngineSettings(max_rows=16), clock)
    request = make_request(reproducibility="strict", num_inference_steps=2)
    engine.admit("short", request, with_fault(checkpoint, out_of_memory_above(3, [])))
    assert not drawn(run_to_end(engine))["short"].is_exact
    clock.now += PROBE_AFTER_S
    engine.admit("early", request, checkpoint)
    assert not drawn(run_to_end(engine))["early"].is_exact, "three rows are no form of four"
    clock.now += PROBE_AFTER_S
    engine.admit("again", request, checkpoint)
    assert drawn(run_to_end(engine))["again"].is_exact, "four rows after two clean periods, not sixteen after many"


def test_a_model_that_is_another_one_now_begins_anew_and_its_return_does_not(checkpoint: Checkpoint) -> None:
    capacity, group = Capacity(16, clock=Clock()), GroupKey("tiny", (4, 8, 8), 77)
    capacity.know(checkpoint)
    assert capacity.lower(group, 16) == 8
    capacity.know(dataclasses.replace(checkpoint, digest="f" * 64))
    assert capacity.rows(group) == 16
    capacity.know(checkpoint)
    assert capacity.rows(group) == 8


def test_ceilings_of_other_groups_are_their_own(checkpoint: Checkpoint) -> None:
    capacity, group = Capacity(16, clock=Clock()), GroupKey("tiny", (4, 8, 8), 77)
    capacity.know(checkpoint)
    capacity.lower(group, 16)
    others = [{"shape": (4, 8, 16)}, {"context_length": 154}, {"is_strict": True}, {"network": "another"}]
    assert [capacity.rows(dataclasses.replace(group, **other)) for other in others] == [16] * 4
    assert [(limit.shape, limit.rows, limit.limit) for limit in capacity.limits([])] == [((4, 8, 8), 8, 16)]


def test_a_device_is_told_by_its_name_and_memory() -> None:
    assert kind_of(torch.device("cpu")).startswith("cpu, ")
    assert kind_of(torch.device("meta")) == "meta"


# --- which of two counts ----------------------------------------------------------------------------------------------

CEILINGS = st.builds(
    Ceiling, st.just(KIND), st.integers(1, 64), st.integers(0, 20_000).map(lambda tenths: NOW + tenths / 10)
)


@given(st.lists(CEILINGS, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_whoever_hears_the_same_in_any_order_and_any_number_of_times_knows_the_same(
    told: list[Ceiling], chance: random.Random
) -> None:
    heard = told + chance.choices(told, k=3)
    chance.shuffle(heard)
    one, other = Capacity(64), Capacity(64)
    one.learn(told)
    for ceiling in heard:
        other.learn([ceiling])
    assert one._ceilings == other._ceilings


@given(CEILINGS, CEILINGS, st.floats(0, 20_000))
def test_the_one_that_counts_never_allows_more_than_the_other(one: Ceiling, other: Ceiling, later_s: float) -> None:
    now = max(one.since, other.since) + later_s
    counts = lower_of(one, other)
    assert counts.rows_at(now) <= min(one.rows_at(now), other.rows_at(now)) + 1e-9


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 64), st.floats(0, 300), st.booleans()), max_size=30))
def test_workers_agree_after_a_look_whatever_happened_between(
    checkpoint: Checkpoint, history: Sequence[tuple[int, int, float, bool]]
) -> None:
    """Three workers fault, look and let time pass in any order; nobody ever allows more than its own last fault and
    the clean time since do."""
    clock, group, shared = Clock(), GroupKey("tiny", (4, 8, 8), 77), Capacity(64)
    workers = [Capacity(64, clock=clock) for _ in range(3)]
    last: dict[int, Ceiling] = {}
    for worker in workers:
        worker.know(checkpoint)
    for who, rows, later_s, looks in history:
        clock.now += later_s
        failed = min(rows, workers[who].rows(group))
        if failed > 1:
            workers[who].lower(group, failed)
            last[who] = Ceiling(KIND, workers[who].rows(group), clock.now)
            assert last[who].rows <= failed // 2
        if looks:
            workers[who].learn(shared._ceilings.values())
            shared.learn(workers[who].learnt())
        for index, ceiling in last.items():
            assert workers[index].rows(group) <= min(64, ceiling.rows_at(clock.now))
    for worker in workers * 2:
        worker.learn(shared._ceilings.values())
        shared.learn(worker.learnt())
    assert len({worker.rows(group) for worker in workers}) == 1


# --- through Redis ----------------------------------------------------------------------------------------------------


def test_what_one_engine_learnt_another_knows_before_its_first_call(
    checkpoint: Checkpoint, redis_client: redis.Redis
) -> None:
    clock = Clock()
    engines = [Engine(SETTINGS, clock) for _ in range(2)]
    ceilings = [Ceilings(redis_client, clock) for _ in engines]
    first, _ = draw_eight(engines[0], checkpoint, ceilings[0], room=3)
    assert [rows for rows in first if rows > 3] == [8, 4]
    second, pictures = draw_eight(engines[1], checkpoint, ceilings[1], room=3)
    assert max(second) == 2, "it repeats no fault"
    assert len(pictures) == 8


def test_a_fault_is_told_at_once_and_taken_over_in_the_middle_of_a_batch(
    checkpoint: Checkpoint, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.ceilings.LOOK_S", 0.0)
    engines = [Engine(SETTINGS) for _ in range(2)]
    ceilings = [Ceilings(redis_client) for _ in engines]
    tried: list[list[int]] = [[], []]
    for engine, room, calls in zip(engines, (4, 100), tried, strict=True):
        short = with_fault(checkpoint, out_of_memory_above(room, calls))
        for index in range(8):
            engine.admit(f"{index}", make_request(seed=index, guidance_scale=1.0, num_inference_steps=4), short)
    for _ in range(3):
        for engine, own in zip(engines, ceilings, strict=True):
            own.exchange(engine)
            engine.step()
    assert tried == [[8, 4, 4], [8, 4, 4]]


def test_a_restarted_worker_goes_on_where_the_last_one_was_and_time_raises_it_for_all(
    checkpoint: Checkpoint, redis_client: redis.Redis
) -> None:
    clock = Clock()
    first = Engine(SETTINGS, clock)
    draw_eight(first, checkpoint, Ceilings(redis_client, clock), room=5)
    for minutes, expected in ((0, 4), (1.9, 4), (2, 5), (5, 6), (8, 8), (60, 8)):
        clock.now = NOW + 60 * minutes
        tried, _ = draw_eight(Engine(SETTINGS, clock), checkpoint, Ceilings(redis_client, clock), room=99)
        assert max(tried) == expected, minutes
        assert [limit.rows for limit in first.row_limits()] == ([expected] if expected < 8 else []), minutes


def test_a_probe_that_fails_lowers_it_for_all_again(checkpoint: Checkpoint, redis_client: redis.Redis) -> None:
    clock = Clock()
    one, other = Engine(SETTINGS, clock), Engine(SETTINGS, clock)
    draw_eight(one, checkpoint, Ceilings(redis_client, clock), room=4)
    clock.now += PROBE_AFTER_S
    tried, _ = draw_eight(one, checkpoint, Ceilings(redis_client, clock), room=4)
    assert max(tried) == 5
    clock.now += 1
    tried, _ = draw_eight(other, checkpoint, Ceilings(redis_client, clock), room=4)
    assert max(tried) == 2, "half of five"


@pytest.mark.parametrize("field", ["device", "dtype", "model"])
def test_another_device_precision_or_model_is_not_taught(
    checkpoint: Checkpoint, redis_client: redis.Redis, field: str
) -> None:
    clock = Clock()
    engine = Engine(SETTINGS, clock)
    draw_eight(engine, checkpoint, Ceilings(redis_client, clock), room=3)
    (learnt,) = engine.learnt()
    redis_client.delete(key("ceilings"))
    other = dataclasses.replace(learnt, kind=dataclasses.replace(learnt.kind, **{field: "another"}))
    redis_client.hset(key("ceilings"), *ceiling_field(other))
    tried, _ = draw_eight(Engine(SETTINGS, clock), checkpoint, Ceilings(redis_client, clock), room=99)
    assert max(tried) == 8


def test_a_ceiling_that_was_overwritten_or_lost_is_told_again(redis_client: redis.Redis) -> None:
    ceilings = Ceilings(redis_client, Clock())

    class KnowingEngine(Engine):
        def learnt(self) -> tuple[Ceiling, ...]:
            return (Ceiling(KIND, 8, NOW),)

    engine = KnowingEngine()
    for loss in ("nothing", "flush", "overwrite"):
        if loss == "flush":
            redis_client.flushall()
        elif loss == "overwrite":
            redis_client.hset(key("ceilings"), *ceiling_field(Ceiling(KIND, 32, NOW + 1)))
        ceilings._look_at = 0.0
        ceilings.exchange(engine)
        assert read(redis_client) == [Ceiling(KIND, 8, NOW)], loss
    assert 0 < redis_client.ttl(key("ceilings")) <= CEILING_TTL_S


def test_old_ceilings_leave_the_hash_and_what_another_version_wrote_stays(redis_client: redis.Redis) -> None:
    old = Ceiling(KIND, 8, NOW - CEILING_TTL_S - 1)
    redis_client.hset(key("ceilings"), mapping={b"foreign": b"?", **dict([ceiling_field(old)])})
    Ceilings(redis_client, Clock()).exchange(Engine())
    assert redis_client.hkeys(key("ceilings")) == [b"foreign"]


@given(CEILINGS)
def test_a_ceiling_is_read_as_it_was_written(ceiling: Ceiling) -> None:
    field, value = ceiling_field(ceiling)
    assert read_ceiling(field.encode(), value.encode()) == ceiling


@pytest.mark.parametrize("field", ["", "[]", "{}", "null", '["a", 1, 2, 3, 4, 5]', "[1, 2, 3, 4, 5, 6, 7]"])
def test_what_is_no_ceiling_is_passed_over(field: str) -> None:
    assert read_ceiling(field.encode(), b"[1, 2.0]") is None


def read(client: redis.Redis) -> list[Ceiling | None]:
    return [read_ceiling(field, value) for field, value in client.hgetall(key("ceilings")).items()]


# --- for those who watch ----------------------------------------------------------------------------------------------


def test_a_worker_takes_over_what_is_known_and_tells_it_in_its_beat(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """The real process, whose device could hold more: what it does not do shows that it reads what others learnt."""
    folder = save_tiny_checkpoint(tmp_path / "tiny")
    network = load_checkpoint("tiny", str(folder), choose_placement("cpu", "float32"))
    engine = Engine(SETTINGS)
    draw_eight(engine, network, Ceilings(redis_client), room=1, num_inference_steps=1)
    with Fleet(redis_url, redis_client, tmp_path) as fleet:
        worker = fleet.launch_real(
            DENOISED_MODELS=f"tiny={folder}", DENOISED_DEVICE="cpu", DENOISED_DTYPE="float32", OMP_NUM_THREADS="1"
        )
        fleet.wait_ready(worker)
        fleet.wait_for(lambda: fleet.beat_of(worker).ceilings)
        (ceiling,) = fleet.beat_of(worker).ceilings
        assert (ceiling.model, ceiling.shape, ceiling.rows) == ("tiny", (4, 8, 8), 1)
        assert ceiling.limit >= 2
        requests = [make_request(seed=seed, guidance_scale=1.0) for seed in range(4)]
        entry = fleet.board.catalogue()["tiny"]
        board = JobBoard(redis_client)
        ids = [board.submit(Submission(tenant="ann", request=one), entry)[0].record.id for one in requests]  # type: ignore[arg-type]
        assert [view.status for view in fleet.wait_ended(ids)] == ["succeeded"] * 4, fleet.logs()
        fleet.wait_for(lambda: fleet.beat_of(worker).counters.get("pictures") == 4)
        counters = fleet.beat_of(worker).counters
        assert counters["rows:tiny"] == counters["steps:tiny"], "one row a call"
        assert "oom_splits" not in counters


def test_metrics_show_ceilings_and_what_they_may_grow_back_to() -> None:
    ceiling = RowCeiling(model="tiny", shape=(4, 8, 16), context_length=77, rows=3, limit=8)
    beat = WorkerBeat(
        name="w", beat_at=NOW, started_at=NOW, pid=1, host="h", state="running", models={}, ceilings=(ceiling,)
    )
    text = render(HttpMetrics(), BoardFigures(beats=[beat])).decode()
    labels = '{model="tiny",shape="4x8x16",strict="0",tokens="77",worker="w"}'
    assert f"denoised_row_ceiling{labels} 3.0" in text
    assert f"denoised_row_ceiling_limit{labels} 8.0" in text
