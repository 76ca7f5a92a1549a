"""Promise 3 with real processes and a real server: every accepted job ends exactly once, whatever dies in between."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import redis
from rq.command import send_shutdown_command, send_stop_execution_command, send_stop_job_command
from rq.job import Job
from rq.suspension import resume, suspend
from rq.worker import Worker as StockWorker

from models.request import InpaintingRequest
from tests.board_values import make_submission
from tests.fleet import LEASE_S, Fleet, freeze, thaw
from workers.connection import connect
from workers.contract import key
from workers.embedded import ensure_server
from workers.worker import EXIT_FATAL, EXIT_FORCED

SLOW = {"FAKE_STEP_S": "0.02"}
MANY = 1000
"""Steps of a job that runs until something happens to it."""


def test_jobs_are_drawn_together_and_each_gets_its_own_pictures(fleet: Fleet) -> None:
    ids = fleet.submit(*(make_submission(seed=seed, num_images=1 + seed % 2) for seed in range(12)))
    worker = fleet.start()
    views = fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)
    for view in views:
        timings = view.record.outcome.timings  # type: ignore[union-attr]
        assert timings.queued_s is not None
        assert timings.save_s is not None
        assert timings.total_s is not None
        assert view.progress is not None
        assert (view.progress.step, view.progress.steps) == (10, 10)
    fleet.wait_for(lambda: fleet.beat_of(worker).counters.get("jobs_succeeded") == 12)
    assert fleet.client.scard(key("queues", "fake")) <= 1


def test_a_killed_workers_jobs_are_finished_once_by_another(fleet: Fleet) -> None:
    first = fleet.start(**SLOW)
    ids = fleet.submit(*(make_submission(seed=seed, steps=60) for seed in range(6)))
    fleet.wait_running(ids, step=32)  # an interval is 10 of them
    first.kill()
    fleet.start()
    views = fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)
    assert all(fleet.view(job_id).record.deaths == 0 for job_id in ids)  # they got further than nothing
    assert all(view.record.outcome.resumed_from_step >= 20 for view in views)  # type: ignore[union-attr]
    fleet.wait_for(lambda: not fleet.saved_files())


def test_a_frozen_worker_is_fenced_and_drops_its_jobs_when_it_wakes(fleet: Fleet) -> None:
    first = fleet.start(**SLOW)
    ids = fleet.submit(*(make_submission(seed=seed, steps=60) for seed in range(3)))
    fleet.wait_running(ids)
    freeze(first)
    second = fleet.start()
    fleet.wait_ended(ids)
    thaw(first)
    fleet.wait_for(lambda: "dropped" in fleet.logs())
    fleet.assert_each_succeeded_once(ids)
    assert {fleet.rq_job(job_id).worker_name for job_id in ids} == {fleet.name_of(second)}
    more = fleet.submit(*(make_submission(seed=seed) for seed in range(4)))  # both go on
    fleet.wait_ended(more)
    fleet.assert_each_succeeded_once(more)


def test_a_worker_that_wakes_after_its_jobs_were_taken_cannot_end_them(fleet: Fleet) -> None:
    """The frozen one is far ahead and would be done first if it were let (the commit alone: tests/test_lease.py)."""
    first = fleet.start(**SLOW)
    (job_id,) = fleet.submit(make_submission(steps=100))
    fleet.wait_running([job_id], step=60)
    freeze(first)
    second = fleet.start(FAKE_STEP_S="0.03")
    fleet.wait_for(lambda: fleet.rq_job(job_id).worker_name == fleet.name_of(second))
    thaw(first)
    fleet.wait_ended([job_id])
    fleet.assert_each_succeeded_once([job_id])
    assert fleet.rq_job(job_id).worker_name == fleet.name_of(second)


@pytest.mark.parametrize("place", ["popped", "claimed", "committed"])
def test_a_worker_that_dies_between_two_commands_loses_nothing(fleet: Fleet, place: str) -> None:
    ids = fleet.submit(*(make_submission(seed=seed) for seed in range(3)))
    doomed = fleet.launch(FAKE_KILL_AT=place)
    assert doomed.wait(20) == -signal.SIGKILL
    fleet.start()
    fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)


def test_jobs_outlive_a_killed_server(tmp_path: Path) -> None:
    server = ensure_server(tmp_path)
    client = connect(server.url)
    with Fleet(server.url, client, tmp_path) as fleet:
        fleet.start(**SLOW)
        ids = fleet.submit(*(make_submission(seed=seed, steps=60) for seed in range(12)))
        fleet.wait_running(ids[:4])
        assert server.process is not None
        server.process.kill()
        server.process.wait(10)
        server = ensure_server(tmp_path)
        fleet.wait_ended(ids)
        fleet.assert_each_succeeded_once(ids)
    client.close()
    server.stop()


def test_a_server_that_takes_no_writes_is_waited_for_at_the_start_and_in_the_middle(fleet: Fleet) -> None:
    """What a full disk looks like: everything is answered, and every write is refused."""
    worker = fleet.start(**SLOW)
    ids = fleet.submit(make_submission(steps=MANY // 2), make_submission(seed=2, steps=MANY // 2))
    fleet.wait_running(ids)
    try:
        fleet.client.config_set("min-replicas-to-write", 1)
        second = fleet.launch()
        fleet.wait_for(lambda: fleet.logs().count("Redis does not answer; steps go on without it") >= 2)
    finally:
        fleet.client.config_set("min-replicas-to-write", 0)
    fleet.wait_ready(second)
    fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)
    assert (worker.poll(), second.poll()) == (None, None)


def test_jobs_are_taken_drawn_committed_canceled_and_erased_while_redis_has_no_memory_left(fleet: Fleet) -> None:
    """Only jobs that end give memory back, so that their way to the end must be open."""
    fleet.start(FAKE_STEP_S="0.02", FAKE_ROOM="2")
    steps = round(2 * LEASE_S / 0.02)  # long enough to lose a lease that is not renewed
    drawn, beside, queued, canceled, erased = fleet.submit(
        *(make_submission(seed=seed, steps=steps, previews=True) for seed in range(2)),
        *(make_submission(seed=seed) for seed in range(2, 5)),
    )
    fleet.wait_running([drawn, beside])
    fleet.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            fleet.submit(make_submission())
        fleet.board.cancel(canceled)
        fleet.wait_ended([drawn, beside, queued, canceled, erased])
        fleet.board.erase(erased)
        assert fleet.board.beats()
    finally:
        fleet.client.config_set("maxmemory", 0)
    assert fleet.board.get(erased) is None
    assert fleet.view(canceled).status == "canceled"
    fleet.assert_each_succeeded_once([drawn, beside, queued])
    assert [fleet.view(job_id).record.deaths for job_id in (drawn, beside, queued)] == [0, 0, 0]


def test_a_job_is_committed_after_the_server_came_back(tmp_path: Path) -> None:
    """It is drawn to its end while nobody can be told."""
    server = ensure_server(tmp_path)
    client = connect(server.url)
    with Fleet(server.url, client, tmp_path) as fleet:
        fleet.start()
        (job_id,) = fleet.submit(make_submission(steps=100))
        fleet.wait_running([job_id])
        execution = fleet.view(job_id).record.execution
        assert server.process is not None
        server.process.kill()
        server.process.wait(10)
        folder = fleet.store.root
        while not list(folder.glob(f"??????/??/{job_id}/*.png")):
            pass  # the picture is written without Redis
        server = ensure_server(tmp_path)
        fleet.wait_ended([job_id])
        fleet.assert_each_succeeded_once([job_id])
        assert fleet.view(job_id).record.outcome.execution == execution  # type: ignore[union-attr]
    client.close()
    server.stop()


def test_a_running_job_is_canceled_within_a_step_and_its_neighbour_goes_on(fleet: Fleet) -> None:
    fleet.start(**SLOW)
    doomed, neighbour = fleet.submit(make_submission(steps=MANY), make_submission(steps=60))
    fleet.wait_running([doomed, neighbour])
    assert fleet.board.cancel(doomed).status == "canceled"  # type: ignore[union-attr]
    fleet.wait_for(lambda: fleet.board.beats()[0].models["fake"].slots <= 1)
    fleet.wait_ended([neighbour])
    fleet.assert_each_succeeded_once([neighbour])
    fleet.assert_rq_is_at_rest([doomed])
    assert fleet.count_ends()[doomed] == 1


def test_an_operators_stop_cancels_the_job(fleet: Fleet) -> None:
    fleet.start(**SLOW)
    by_job, by_execution = fleet.submit(make_submission(steps=MANY), make_submission(steps=MANY))
    fleet.wait_running([by_job, by_execution])
    send_stop_job_command(fleet.client, by_job, serializer="json")
    execution = fleet.view(by_execution).record.execution
    assert execution is not None
    send_stop_execution_command(fleet.client, by_execution, execution)
    views = fleet.wait_ended([by_job, by_execution])
    assert [view.status for view in views] == ["canceled", "canceled"]
    fleet.assert_rq_is_at_rest([by_job, by_execution])
    assert fleet.rq_job(by_job).get_status() == "stopped"


@pytest.mark.parametrize("ending", ["cancel", "delete"])
def test_a_job_that_a_dashboard_ends_while_it_runs_is_dropped(fleet: Fleet, ending: str) -> None:
    fleet.start(**SLOW)
    (job_id,) = fleet.submit(make_submission(steps=MANY))
    fleet.wait_running([job_id])
    getattr(fleet.rq_job(job_id), ending)()
    fleet.wait_for(lambda: "dropped" in fleet.logs())
    assert fleet.view(job_id).status == "canceled"
    assert fleet.count_ends()[job_id] == 1
    if ending == "delete":
        assert not Job.exists(job_id, fleet.client)


def test_rq_shows_the_worker_and_its_executions(fleet: Fleet) -> None:
    worker = fleet.start(**SLOW)
    ids = fleet.submit(*(make_submission(steps=MANY) for _ in range(3)))
    fleet.wait_running(ids)
    (seen,) = StockWorker.all(connection=fleet.client, serializer="json")
    assert seen.name == fleet.name_of(worker)
    assert seen.get_state() == "busy"
    assert {execution.job_id for execution in seen.get_current_executions()} == set(ids)


def test_a_poison_job_fails_after_three_deaths_and_its_neighbours_finish(fleet: Fleet) -> None:
    poison, *neighbours = fleet.submit(
        make_submission(prompt="poison"), *(make_submission(seed=seed, steps=40) for seed in range(3))
    )
    deaths = 0
    worker = fleet.launch()
    while fleet.view(poison).record.outcome is None:
        fleet.wait_for(lambda: worker.poll() is not None or fleet.view(poison).status == "failed")  # noqa: B023
        if worker.poll() is not None:
            assert worker.returncode == -signal.SIGKILL
            deaths += 1
            worker = fleet.launch()
    assert 3 <= deaths <= 4  # the first may have got further than nothing
    error = fleet.view(poison).record.outcome.error  # type: ignore[union-attr]
    assert error is not None
    assert error.code == "abandoned"
    fleet.wait_ended(neighbours)
    fleet.assert_each_succeeded_once(neighbours)
    fleet.assert_rq_is_at_rest([poison])


def test_sigterm_hands_everything_over_without_waiting_for_the_call_that_runs(fleet: Fleet) -> None:
    worker = fleet.start(**SLOW)
    ids = fleet.submit(
        *(make_submission(seed=seed, steps=60, prompt="hang" if seed == 2 else "a") for seed in range(4))
    )
    fleet.wait_running(ids, step=18)
    time.sleep(0.5)  # now it is in the step that takes a minute
    started = time.monotonic()
    worker.terminate()
    assert worker.wait(20) == 0
    assert time.monotonic() - started < 20  # the call takes 60 s; docs/reliability.md has the seconds
    assert [fleet.view(job_id).queue_position for job_id in ids] == [0, 1, 2, 3]
    assert fleet.board.beats() == []
    assert StockWorker.all(connection=fleet.client, serializer="json") == []
    fleet.start()
    views = fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)
    assert views[2].record.outcome.resumed_from_step == 30  # type: ignore[union-attr]
    assert all(view.record.outcome.resumed_from_step >= 20 for view in views)  # type: ignore[union-attr]
    assert [view.record.deaths for view in views] == [0, 0, 0, 0]
    fleet.wait_for(lambda: not fleet.saved_files())


def test_what_is_all_but_written_when_sigterm_comes_is_committed(fleet: Fleet) -> None:
    worker = fleet.start(**SLOW)
    ids = fleet.submit(*(make_submission(seed=seed, steps=10) for seed in range(8)))
    fleet.wait_for(lambda: any(fleet.view(job_id).status == "succeeded" for job_id in ids))
    worker.terminate()
    assert worker.wait(20) == 0
    assert all(fleet.view(job_id).status in ("succeeded", "queued") for job_id in ids)
    fleet.start()
    fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)


def test_a_second_sigterm_ends_the_worker_where_it_stands(fleet: Fleet) -> None:
    worker = fleet.start(**SLOW)
    ids = fleet.submit(*(make_submission(seed=seed, steps=100) for seed in range(3)))
    fleet.wait_running(ids)
    for _ in range(2):
        worker.terminate()
    assert worker.wait(20) in (0, EXIT_FORCED)  # two signals at once may arrive as one
    fleet.start()
    fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)


def test_a_worker_that_is_told_to_end_while_the_server_is_away_saves_what_it_has(tmp_path: Path) -> None:
    server = ensure_server(tmp_path)
    client = connect(server.url)
    with Fleet(server.url, client, tmp_path) as fleet:
        worker = fleet.start(DENOISED_SNAPSHOT_INTERVAL_S="1000", **SLOW)
        ids = fleet.submit(*(make_submission(seed=seed, steps=200) for seed in range(2)))
        fleet.wait_running(ids, step=20)
        assert fleet.saved_files() == []
        assert server.process is not None
        server.process.kill()
        server.process.wait(10)
        worker.terminate()
        assert worker.wait(30) == 0
        assert len(fleet.saved_files()) == 2
        server = ensure_server(tmp_path)
        fleet.start()
        views = fleet.wait_ended(ids)
        fleet.assert_each_succeeded_once(ids)
        assert all(view.record.outcome.resumed_from_step >= 20 for view in views)  # type: ignore[union-attr]
    client.close()
    server.stop()


def test_a_flood_of_one_tenant_leaves_room_for_another(fleet: Fleet) -> None:
    fleet.start(FAKE_ROOM="4", DENOISED_MAX_JOBS="8", **SLOW)
    flood = fleet.submit(*(make_submission("flood", steps=200) for _ in range(100)))
    fleet.wait_running(flood[:4])
    (lone,) = fleet.submit(make_submission("lone", steps=10))
    fleet.wait_ended([lone])
    assert [fleet.view(job_id).status for job_id in flood[:4]] == ["running"] * 4
    fleet.assert_each_succeeded_once([lone])


def test_the_nearest_deadline_comes_first_and_what_is_too_late_fails(fleet: Fleet) -> None:
    waiting, never, late, near, canceled = fleet.submit(
        make_submission(steps=20),
        make_submission(deadline_s=0.01),
        make_submission(deadline_s=500),
        make_submission(deadline_s=400),
        make_submission(deadline_s=300),
    )
    fleet.board.cancel(canceled)
    (slow,) = fleet.submit(make_submission("bob", steps=MANY, deadline_s=1.5))
    fleet.start(FAKE_ROOM="1", **SLOW)
    fleet.wait_ended([waiting, never, late, near, slow])
    fleet.assert_each_succeeded_once([waiting, late, near])
    for job_id in (never, slow):
        outcome = fleet.view(job_id).record.outcome
        assert outcome is not None
        assert outcome.error is not None
        assert outcome.error.code == "deadline_exceeded"
    fleet.assert_rq_is_at_rest([never, slow])
    ended = [job_id for job_id in claim_order(fleet) if job_id in (waiting, late, near)]
    assert ended == [near, late, waiting]
    assert not fleet.client.exists(key("urgent", fleet.view(waiting).record.queue))


def test_a_deadline_keeps_its_place_when_its_job_goes_back_to_the_queue(fleet: Fleet) -> None:
    worker = fleet.start(FAKE_ROOM="1", **SLOW)
    (first,) = fleet.submit(make_submission(steps=MANY, deadline_s=500))
    fleet.wait_running([first])
    late, near = fleet.submit(make_submission(deadline_s=450), make_submission(deadline_s=400))
    urgent = key("urgent", fleet.view(first).record.queue)
    time.sleep(0.3)  # it has tried to take one, and put it back
    worker.terminate()
    assert worker.wait(20) == 0
    assert [raw.decode() for raw in fleet.client.zrange(urgent, 0, -1)] == [near, late, first]
    for job_id in (first, late, near):
        fleet.board.cancel(job_id)
    assert not fleet.client.exists(urgent)


def test_a_model_that_found_no_room_and_waits_no_more_drives_nobody_out(fleet: Fleet) -> None:
    fleet.start(DENOISED_MODELS="fake=fake,other=other", FAKE_PLACES="1", DENOISED_PATIENCE_S="0.5", **SLOW)
    (long,) = fleet.submit(make_submission(steps=100))
    fleet.wait_running([long], step=10)
    (other,) = fleet.submit(make_submission(model="other"))
    time.sleep(0.25)  # it has asked for room
    fleet.board.cancel(other)
    (view,) = fleet.wait_ended([long])
    assert view.record.claims == 1, fleet.logs()


def test_what_is_too_late_fails_where_it_waits_though_nobody_has_room_for_it(fleet: Fleet) -> None:
    fleet.start(FAKE_ROOM="1", **SLOW)
    running, late = fleet.submit(make_submission(steps=MANY), make_submission(steps=10))
    fleet.wait_running([running])
    (overdue,) = fleet.submit(make_submission(deadline_s=0.5))
    (view,) = fleet.wait_ended([overdue])
    assert view.record.outcome is not None
    assert view.record.outcome.error is not None
    assert view.record.outcome.error.code == "deadline_exceeded"
    assert (fleet.view(running).status, fleet.view(late).status) == ("running", "queued")


def test_a_worker_takes_no_more_jobs_than_it_has_room_for(fleet: Fleet) -> None:
    """Or they would wait in its hands while another worker has room."""
    fleet.start(FAKE_ROOM="2", **SLOW)
    ids = fleet.submit(*(make_submission(steps=100, seed=seed) for seed in range(8)))
    fleet.wait_running(ids[:2], step=20)
    assert [fleet.view(job_id).status for job_id in ids] == ["running"] * 2 + ["queued"] * 6


def test_a_long_job_is_put_away_for_a_model_that_waits_and_goes_on_afterwards(fleet: Fleet) -> None:
    worker = fleet.start(DENOISED_MODELS="fake=fake,other=other", FAKE_PLACES="1", DENOISED_PATIENCE_S="0.5", **SLOW)
    (long,) = fleet.submit(make_submission(steps=400))
    fleet.wait_running([long], step=20)
    (other,) = fleet.submit(make_submission(model="other"))
    fleet.wait_ended([other])
    assert fleet.view(long).status in ("queued", "running")
    (view,) = fleet.wait_ended([long])
    assert view.record.outcome is not None
    assert view.record.outcome.resumed_from_step is not None
    assert view.record.outcome.resumed_from_step >= 40  # it was put away after two patiences at the earliest
    assert view.record.deaths == 0
    fleet.assert_each_succeeded_once([long])
    assert worker.poll() is None


@pytest.mark.parametrize("ending", ["cancel", "fault"])
def test_nothing_is_kept_of_a_job_that_has_ended(fleet: Fleet, ending: str) -> None:
    fleet.start(**SLOW)
    (job_id,) = fleet.submit(make_submission(steps=MANY, prompt="late fault" if ending == "fault" else "a"))
    fleet.wait_for(fleet.saved_files)
    if ending == "cancel":
        fleet.board.cancel(job_id)
    fleet.wait_ended([job_id])
    fleet.wait_for(lambda: not fleet.saved_files())


def test_a_job_that_two_workers_died_on_begins_anew(fleet: Fleet) -> None:
    """What it had come to may be what they died of."""
    (job_id,) = fleet.submit(make_submission(prompt="poison", steps=60))
    fleet.store.put(job_id, "steps.safetensors", b"1")
    for _ in range(3):
        assert fleet.start().wait(20) == -signal.SIGKILL
    assert fleet.logs().count('"resumed"') == 1  # by the second of them; the first one has no reason to look


def test_rqs_shutdown_command_drains_too(fleet: Fleet) -> None:
    worker = fleet.start(**SLOW)
    running = fleet.submit(make_submission(steps=30))
    fleet.wait_running(running)
    send_shutdown_command(fleet.client, fleet.name_of(worker))
    assert worker.wait(20) == 0
    fleet.assert_each_succeeded_once(running)


def test_a_lost_device_ends_the_process_and_the_jobs_go_on_elsewhere(fleet: Fleet) -> None:
    worker = fleet.start(**SLOW)
    fatal, other = fleet.submit(make_submission(prompt="fatal", steps=2), make_submission(steps=60))
    assert worker.wait(20) == EXIT_FATAL
    assert fleet.view(other).status == "queued"  # handed back: nobody has to wait for a lease
    fleet.board.cancel(fatal)
    fleet.start()
    fleet.wait_ended([other])
    fleet.assert_each_succeeded_once([other])


def test_a_job_at_fault_fails_alone(fleet: Fleet) -> None:
    fleet.start()
    prompts = ("fault", "refused", "a red apple", "a long prompt")
    fault, refused, good, long = fleet.submit(*(make_submission(prompt=prompt, steps=40) for prompt in prompts))
    fleet.wait_ended([fault, refused, good, long])
    codes = [view.record.outcome.error for view in map(fleet.view, (fault, refused))]  # type: ignore[union-attr]
    assert [error.code for error in codes if error] == ["not_finite", "internal"]
    assert "Traceback" in fleet.logs() or "exc_info" in fleet.logs() or "exception" in fleet.logs()
    assert fleet.view(long).record.warnings == ("the prompt was cut",)
    fleet.assert_each_succeeded_once([good, long])
    fleet.assert_rq_is_at_rest([fault, refused])
    assert fleet.rq_job(fault).retries_left == 0


def test_a_job_that_runs_too_long_fails(fleet: Fleet) -> None:
    fleet.board = type(fleet.board)(fleet.client, retention_s=1000, job_timeout_s=1)
    fleet.start(**SLOW)
    (job_id,) = fleet.submit(make_submission(steps=MANY))
    (view,) = fleet.wait_ended([job_id])
    assert view.record.outcome is not None
    assert view.record.outcome.error is not None
    assert view.record.outcome.error.code == "timeout"
    fleet.assert_rq_is_at_rest([job_id])


def test_two_tenants_get_their_turns_and_priority_counts_among_ones_own(fleet: Fleet) -> None:
    ann = fleet.submit(*(make_submission("ann", seed=seed, steps=5) for seed in range(6)))
    bob = fleet.submit(*(make_submission("bob", seed=seed, steps=5) for seed in range(2)))
    low = fleet.submit(make_submission("bob", priority="low"))
    high = fleet.submit(make_submission("ann", priority="high"))
    expected = sorted(high + ann + bob + low, key=lambda job_id: fleet.view(job_id).queue_position or 0)
    assert expected == [bob[0], *high, ann[0], bob[1], ann[1], *low, *ann[2:]]
    fleet.start(FAKE_ROOM="1")
    fleet.wait_ended(expected)
    claims = [job_id for job_id in claim_order(fleet) if job_id in expected]
    assert [set(claims[at : at + 2]) for at in (0, 2, 4)] == [{bob[0], *high}, {ann[0], bob[1]}, {ann[1], *low}]
    fleet.assert_each_succeeded_once(expected)


def test_models_that_do_not_fit_together_take_turns(fleet: Fleet) -> None:
    fleet.start(DENOISED_MODELS="fake=fake,other=other", FAKE_PLACES="1", FAKE_ROOM="2", DENOISED_PATIENCE_S="0.2")
    ids = fleet.submit(
        *(make_submission(seed=seed, steps=20) for seed in range(20)),
        *(make_submission(seed=seed, model="other") for seed in range(2)),
    )
    fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)
    order = claim_order(fleet)
    assert max(order.index(job_id) for job_id in ids[20:]) < order.index(ids[19])  # not only when all others are done


def test_a_model_that_is_not_there_fails_its_jobs_and_no_others(fleet: Fleet) -> None:
    fleet.start(DENOISED_MODELS="fake=fake,missing=missing")
    missing, good = fleet.submit(make_submission(model="missing"), make_submission())
    fleet.wait_ended([missing, good])
    error = fleet.view(missing).record.outcome.error  # type: ignore[union-attr]
    assert error is not None
    assert error.code == "checkpoint_missing"
    fleet.assert_each_succeeded_once([good])
    assert list(fleet.board.catalogue()) == ["fake"]


def test_a_model_that_does_not_fit_into_memory_is_not_served_and_the_others_are(fleet: Fleet) -> None:
    worker = fleet.start(DENOISED_MODELS="fake=fake,huge=huge")
    assert list(fleet.board.catalogue()) == ["fake"]
    assert list(fleet.beat_of(worker).models) == ["fake"]
    ids = fleet.submit(make_submission())
    fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)


def test_a_job_of_another_version_fails_and_the_worker_goes_on(fleet: Fleet) -> None:
    strange, good = fleet.submit(make_submission(), make_submission())
    fleet.client.hset(key("job", strange), "submission", "{}")
    fleet.start()
    fleet.wait_ended([good])
    fleet.assert_each_succeeded_once([good])
    fleet.wait_for(lambda: fleet.count_ends()[strange] == 1)


def test_a_suspended_worker_takes_nothing_until_it_is_resumed(fleet: Fleet) -> None:
    suspend(fleet.client)
    fleet.start()
    (job_id,) = fleet.submit(make_submission())
    fleet.wait_for(lambda: fleet.client.xlen(key("events")) == 1)
    assert fleet.view(job_id).status == "queued"
    resume(fleet.client)
    fleet.wait_ended([job_id])
    fleet.assert_each_succeeded_once([job_id])


def test_a_full_store_delays_a_job_and_does_not_lose_it(fleet: Fleet) -> None:
    fleet.start()
    blocked = fleet.store.root / ".tmp"
    blocked.rmdir()
    blocked.write_bytes(b"")  # nothing can be written beside a file: what a full disk looks like to us
    (job_id,) = fleet.submit(make_submission())
    fleet.wait_for(lambda: "the store refuses" in fleet.logs())
    assert fleet.view(job_id).status == "running"
    blocked.unlink()
    blocked.mkdir(mode=0o700)
    fleet.wait_ended([job_id])
    fleet.assert_each_succeeded_once([job_id])


def test_a_job_that_the_store_refuses_for_too_long_goes_back_and_is_drawn_when_it_can_be_saved(fleet: Fleet) -> None:
    worker = fleet.start(DENOISED_SAVE_PATIENCE_S="0.1")
    blocked = fleet.store.root / ".tmp"
    blocked.rmdir()
    blocked.write_bytes(b"")
    ids = fleet.submit(make_submission(), make_submission(seed=2))
    fleet.wait_for(lambda: fleet.logs().count("handed back") == 2)
    assert [fleet.view(job_id).status for job_id in ids] == ["queued", "queued"]
    fleet.wait_for(lambda: not fleet.client.llen(key("doorbell", "fake")))  # it has heard of them and lets them lie
    assert fleet.logs().count("claimed") == 2
    blocked.unlink()
    blocked.mkdir(mode=0o700)
    fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)
    assert sorted(claim_order(fleet)[-2:]) == sorted(ids)
    assert [fleet.view(job_id).record.deaths for job_id in ids] == [0, 0]
    assert worker.poll() is None


def test_previews_are_shown_to_who_asked_for_them(fleet: Fleet) -> None:
    fleet.start(**SLOW)
    with_previews, without = fleet.submit(make_submission(steps=MANY, previews=True), make_submission(steps=MANY))
    fleet.wait_for(lambda: fleet.board.preview(with_previews))
    preview = fleet.board.preview(with_previews)
    assert preview is not None
    assert preview[:4] == b"RIFF"
    assert fleet.board.preview(without) is None


def test_previews_go_round_however_many_want_one(fleet: Fleet) -> None:
    fleet.start(**SLOW)
    ids = fleet.submit(*(make_submission(seed=seed, steps=MANY, previews=True) for seed in range(6)))
    fleet.wait_for(lambda: all(fleet.board.preview(job_id) for job_id in ids))


@pytest.mark.parametrize("prompt", ["unseen", "empty"])
def test_a_preview_that_cannot_be_made_harms_nobody(fleet: Fleet, prompt: str) -> None:
    worker = fleet.start(FAKE_STEP_S="0.02")
    ids = fleet.submit(
        make_submission(prompt=prompt, steps=60, previews=True), make_submission(steps=60, previews=True)
    )
    fleet.wait_for(lambda: fleet.board.preview(ids[1]))
    fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)
    assert worker.poll() is None
    assert fleet.logs().count("no preview") == 1


def claim_order(fleet: Fleet) -> list[str]:
    """Ids in the order in which they were claimed: the second `status` event of each."""
    seen: list[str] = []
    claimed: list[str] = []
    for _, fields in fleet.client.xrange(key("events")):
        job_id = fields[b"job"].decode()
        if fields[b"kind"] == b"status":
            (claimed if job_id in seen else seen).append(job_id)
    return claimed


def test_lora_files_may_come_and_go_while_a_worker_runs(fleet: Fleet, tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    (folder / "ink.safetensors").write_bytes(b"")
    fleet.start(DENOISED_LORAS=str(folder))
    fleet.wait_for(lambda: fleet.board.catalogue()["fake"].loras == ("ink",))
    (folder / "gold.safetensors").write_bytes(b"")
    (folder / "ink.safetensors").unlink()
    fleet.wait_for(lambda: fleet.board.catalogue()["fake"].loras == ("gold",))


def test_a_job_for_a_task_that_the_model_lost_fails_alone_and_the_worker_goes_on(fleet: Fleet) -> None:
    fine = make_submission(seed=1)
    fields = fine.request.model_dump() | {"image": f"sha256:{'0' * 64}", "strength": 1.0, "mask_blur": 0}
    lost = InpaintingRequest(**fields | {"task": "inpainting"})
    worker = fleet.start()
    (gone,) = fleet.submit(fine.model_copy(update={"request": lost}))
    (view,) = fleet.wait_ended([gone])
    assert view.record.outcome is not None
    assert view.record.outcome.error is not None
    assert view.record.outcome.error.code == "request_refused"
    assert "does not serve inpainting" in view.record.outcome.error.detail
    ids = fleet.submit(fine)
    fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)
    assert worker.poll() is None


def test_what_is_drawn_is_enlarged_by_another_model_in_the_same_job(fleet: Fleet) -> None:
    plain = make_submission(seed=4, num_images=2)
    enlarged = plain.model_copy(update={"request": plain.request.model_copy(update={"upscaler": "x4"})})
    fleet.start(DENOISED_MODELS="fake=fake,x4=x4", FAKE_PLACES="1")
    fleet.wait_for(lambda: fleet.board.catalogue()["fake"].upscalers == ("x4",))
    ids = fleet.submit(enlarged, plain)
    views = fleet.wait_ended(ids)
    outcomes = [view.record.outcome for view in views]
    assert [outcome.status for outcome in outcomes if outcome] == ["succeeded", "succeeded"], fleet.logs()
    sizes = [[(picture.width, picture.height) for picture in outcome.pictures] for outcome in outcomes if outcome]
    assert sizes == [[(256, 256)] * 2, [(64, 64)] * 2]
    assert views[0].progress is not None
    assert (views[0].progress.step, views[0].progress.steps) == (20, 20)
    assert fleet.count_ends()[ids[0]] == 1


def test_a_stream_of_others_does_not_keep_a_job_from_its_upscaler(fleet: Fleet) -> None:
    plain = make_submission(seed=4)
    enlarged = plain.model_copy(update={"request": plain.request.model_copy(update={"upscaler": "x4"})})
    ids = fleet.submit(enlarged, *(make_submission(seed=seed) for seed in range(100)))
    fleet.start(DENOISED_MODELS="fake=fake,x4=x4", FAKE_PLACES="1")
    outcomes = [view.record.outcome for view in fleet.wait_ended(ids)]
    assert all(outcome and outcome.status == "succeeded" for outcome in outcomes), fleet.logs()
    first, *others = [outcome.ended_at for outcome in outcomes if outcome]
    assert sum(ended_at > first for ended_at in others) > 50, "it was not the last"


def test_a_delicate_job_and_one_that_waits_for_its_upscaler_do_not_wait_for_each_other(
    fleet: Fleet, redis_client: redis.Redis
) -> None:
    plain = make_submission(seed=4)
    enlarged = plain.model_copy(update={"request": plain.request.model_copy(update={"upscaler": "x4"})})
    ids = fleet.submit(enlarged, make_submission(seed=5))
    redis_client.hset(key("job", ids[1]), "deaths", 2)
    fleet.start(DENOISED_MODELS="fake=fake,x4=x4", FAKE_PLACES="1")
    outcomes = [view.record.outcome for view in fleet.wait_ended(ids)]
    assert [outcome.status for outcome in outcomes if outcome] == ["succeeded"] * 2, fleet.logs()


def test_a_job_to_be_enlarged_by_what_cannot_fails_with_its_code(fleet: Fleet) -> None:
    plain = make_submission()
    fleet.start(DENOISED_MODELS="fake=fake,other=other")
    requests = [plain.request.model_copy(update={"upscaler": name}) for name in ("other", "missing")]
    ids = fleet.submit(*(plain.model_copy(update={"request": request}) for request in requests))
    outcomes = [view.record.outcome for view in fleet.wait_ended(ids)]
    codes = [outcome.error.code for outcome in outcomes if outcome and outcome.error]
    assert codes == ["request_refused", "checkpoint_missing"]
