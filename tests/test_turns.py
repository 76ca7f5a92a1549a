"""Whose job is next: pure choices, and one look at a real server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import redis
from rq.suspension import suspend

from tests.board_values import make_entry, make_submission
from workers.board import JobBoard
from workers.contract import queue_name
from workers.turns import Lookout, Turns, Waiting

NOW = 1_700_000_000.0


def waiting(queue: str, *, length: int = 1, waited_s: float = 0.0) -> Waiting:
    return Waiting(queue, queue.split(".")[0], length, f"{int((NOW - waited_s) * 1000):012x}{0:032x}")


def serve(turns: Turns, queues: Sequence[Waiting], loaded: Sequence[str] = ("sd",)) -> str:
    """Let one job start; returns its queue."""
    chosen = turns.choose(queues, loaded)
    assert chosen is not None
    turns.took(chosen)
    return chosen.queue


def make_turns(patience_s: float = 30.0) -> Turns:
    return Turns(patience_s, clock=lambda: NOW)


def test_tenants_take_turns_however_long_their_queues_are() -> None:
    turns = make_turns()
    queues = [waiting("sd.normal.ann", length=60), waiting("sd.normal.bob", length=2), waiting("sd.normal.eve")]
    assert {serve(turns, queues) for _ in range(3)} == {queue.queue for queue in queues}
    assert {serve(turns, queues) for _ in range(3)} == {queue.queue for queue in queues}


def test_a_tenant_that_sends_one_job_at_a_time_does_not_come_first_every_time() -> None:
    turns = make_turns()
    long, single = waiting("sd.normal.ann", length=60), waiting("sd.normal.bob")
    served = []
    for _ in range(6):
        served.append(serve(turns, [long, single]))
        served.append(serve(turns, [long, single] if served[-1] == long.queue else [long]))
    assert served.count(long.queue) == served.count(single.queue)


def test_a_new_tenant_comes_before_those_that_were_served() -> None:
    turns = make_turns()
    serve(turns, [waiting("sd.normal.ann")])
    assert serve(turns, [waiting("sd.normal.ann"), waiting("sd.normal.new")]) == "sd.normal.new"


def test_a_tenants_higher_priorities_come_first() -> None:
    turns = make_turns()
    queues = [waiting("sd.low.ann"), waiting("sd.normal.ann"), waiting("sd.high.ann")]
    assert [serve(turns, queues[: 3 - served]) for served in range(3)] == ["sd.high.ann", "sd.normal.ann", "sd.low.ann"]


def test_a_tenant_gets_no_more_turns_by_high_priority() -> None:
    turns = make_turns()
    queues = [waiting("sd.high.ann", length=60), waiting("sd.low.ann"), waiting("sd.normal.bob"), waiting("sd.low.eve")]
    for _ in range(3):
        assert {serve(turns, queues) for _ in range(3)} == {"sd.high.ann", "sd.normal.bob", "sd.low.eve"}


def test_loaded_models_take_turns() -> None:
    turns = make_turns()
    queues = [waiting("sd.normal.ann", length=9), waiting("xl.normal.ann", length=9)]
    served = [serve(turns, queues, loaded=("sd", "xl")) for _ in range(4)]
    assert served.count("sd.normal.ann") == 2


def test_a_model_that_is_not_loaded_waits_until_the_loaded_ones_are_done_or_patience_ends() -> None:
    turns = make_turns(patience_s=30)
    loaded, absent = waiting("sd.normal.ann"), waiting("xl.high.ann", waited_s=10)
    assert serve(turns, [loaded, absent]) == "sd.normal.ann"
    assert serve(turns, [absent]) == "xl.high.ann"
    assert serve(turns, [loaded, replace(absent, first=waiting("xl.high.ann", waited_s=31).first)]) == "xl.high.ann"


def test_where_nobody_waits_nobody_is_chosen() -> None:
    assert make_turns().choose([], ("sd",)) is None


def test_a_low_job_is_not_left_behind_by_a_stream_of_high_ones() -> None:
    turns = make_turns()
    high = waiting("sd.high.ann", length=1000, waited_s=1)
    assert serve(turns, [high, waiting("sd.low.ann", waited_s=50)]) == "sd.high.ann"
    assert serve(turns, [high, waiting("sd.low.ann", waited_s=70)]) == "sd.low.ann"


def test_a_look_finds_queues_with_jobs_of_our_models_and_a_suspension(redis_client: redis.Redis) -> None:
    board = JobBoard(redis_client)
    first = board.submit(make_submission("ann"), make_entry())[0].record
    board.submit(make_submission("ann"), make_entry())
    board.submit(make_submission("ann", model="other"), make_entry("other"))
    emptied = board.submit(make_submission("bob"), make_entry())[0].record
    board.cancel(emptied.id)
    lookout, models = Lookout(redis_client), ["fake", "unused"]
    assert lookout.look(models) == (False, [Waiting(queue_name("fake", "normal", "ann"), "fake", 2, first.id)])
    suspend(redis_client)
    assert lookout.look(models)[0] is True
