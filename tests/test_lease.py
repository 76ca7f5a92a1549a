"""Claims, leases, commits and recoveries against a real server: the races, one step at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis
from rq import Queue
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.registry import StartedJobRegistry

from tests.board_values import make_entry, make_submission
from workers.board import JobBoard
from workers.contract import Outcome, Submission, key
from workers.held_job import HeldJob, open_held_job
from workers.jobkeys import job_keys
from workers.lease import Leases
from workers.recovery import Recovery
from workers.rq_side import RqSide
from workers.settings import WorkerSettings

LEASE_S = 30.0
DONE = Outcome(status="succeeded", ended_at=1.0, execution="x")


class Bench:
    """One board, and as many workers' hands as a test needs."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.board = JobBoard(client, retention_s=1000)
        self.leases = Leases(client, LEASE_S, 1000)
        self.rq = RqSide(client, 30)
        self.rq.register_birth()
        self.told: list[str] = []

    def submit(self, submission: Submission | None = None) -> str:
        return self.board.submit(submission or make_submission(), make_entry())[0].record.id

    def pop(self, queue: str = "fake.normal.ann") -> HeldJob | None:
        """Take the next job out of its queue; it is not claimed yet."""
        popped = self.rq.pop(queue)
        if popped is None:
            return None
        job, source = popped
        record = self.leases.read(job.id)
        assert record is not None
        return open_held_job(job, source, record, self.rq.new_execution(job))

    def claim(self) -> HeldJob:
        held = self.pop()
        assert held is not None
        assert self.leases.claim(held.lease) == "claimed"
        self.rq.begin(held)
        return held

    def renew(self, held: HeldJob) -> str:
        with self.client.pipeline(transaction=False) as pipe:
            return self.leases.renew([held.lease], pipe)[0]

    def expire(self, held: HeldJob) -> None:
        """Let the lease run out."""
        member = held.execution.composite_key
        assert self.client.zadd(held.lease.keys.lease, {member: time.time() - 1}, xx=True, ch=True) == 1

    def keep_up(self, age_s: float = 30.0) -> int:
        self.client.delete(key("recovery", "fake"))
        return self.recovery("fake", age_s=age_s).run()

    def recovery(self, *models: str, age_s: float = 30.0) -> Recovery:
        settings = WorkerSettings(
            models={name: name for name in models}, recovery_age_s=age_s, maintenance_interval_s=100
        )
        return Recovery(
            self.client, self.board, settings, lambda: list(settings.models), lambda record: self.tell(record.id)
        )

    def tell(self, job_id: str) -> None:
        record = self.leases.read(job_id)
        assert record is not None
        self.told.append(job_id)
        self.rq.tell(record)

    def status(self, job_id: str) -> str:
        return Job.fetch(job_id, connection=self.client, serializer="json").get_status().value

    def record_field(self, job_id: str, name: str) -> bytes | None:
        return self.client.hget(key("job", job_id), name)


@pytest.fixture
def bench(redis_client: redis.Redis) -> Iterator[Bench]:
    return Bench(redis_client)


# --- claim ------------------------------------------------------------------------------------------------------------


def test_a_claim_takes_the_job_out_of_every_list_and_holds_it(bench: Bench) -> None:
    job_id = bench.submit()
    held = bench.claim()
    assert held.id == job_id
    assert bench.board.get(job_id).status == "running"  # type: ignore[union-attr]
    assert bench.client.llen(held.lease.keys.queue) == 0
    assert bench.client.llen(held.lease.keys.intermediate) == 0
    registry = StartedJobRegistry(held.record.queue, connection=bench.client, serializer="json")
    assert registry.get_job_and_execution_ids(cleanup=False) == [(job_id, held.execution.id)]
    assert bench.renew(held) == "held"


def test_a_claim_may_be_repeated_after_its_answer_was_lost(bench: Bench) -> None:
    bench.submit()
    held = bench.claim()
    assert bench.leases.claim(held.lease) == "claimed"
    assert bench.record_field(held.id, "deaths") is None


def test_of_many_entries_of_one_job_a_single_one_is_claimed(bench: Bench) -> None:
    """RQ's own clean-up, called by several tools at once, queues an abandoned job several times."""
    job_id = bench.submit()
    held = bench.pop()
    assert held is not None
    bench.client.rpush(held.lease.keys.queue, job_id, job_id)
    assert bench.leases.claim(held.lease) == "claimed"
    for _ in range(2):
        double = bench.pop()
        assert double is not None
        assert bench.leases.claim(double.lease) == "taken"
    assert bench.client.llen(held.lease.keys.intermediate) == 0
    assert bench.renew(held) == "held"


def test_a_canceled_job_cannot_be_claimed_not_even_once_it_is_popped(bench: Bench) -> None:
    job_id = bench.submit()
    held = bench.pop()
    assert held is not None
    bench.board.cancel(job_id)
    assert bench.leases.claim(held.lease) == "ended"
    assert bench.client.llen(held.lease.keys.intermediate) == 0


def test_an_erased_job_cannot_be_claimed(bench: Bench) -> None:
    job_id = bench.submit()
    held = bench.pop()
    assert held is not None
    bench.board.cancel(job_id)
    bench.board.erase(job_id)
    assert bench.leases.claim(held.lease) == "gone"


def test_a_job_for_which_there_is_no_room_goes_back_to_the_front(bench: Bench) -> None:
    first, second = bench.submit(), bench.submit()
    held = bench.pop()
    assert held is not None
    bench.leases.put_back(held.id, "fake", held.record.queue)
    bench.leases.put_back(held.id, "fake", held.record.queue)  # a repeated call
    assert [raw.decode() for raw in bench.client.lrange(held.lease.keys.queue, 0, -1)] == [first, second]
    assert bench.client.llen(held.lease.keys.intermediate) == 0


# --- the commit point -------------------------------------------------------------------------------------------------


def test_the_holder_commits_once_and_may_repeat_it(bench: Bench) -> None:
    job_id = bench.submit()
    held = bench.claim()
    assert bench.leases.commit(held.lease, DONE, steps=10) == "committed"
    assert bench.leases.commit(held.lease, DONE, steps=10) == "committed"
    assert bench.leases.commit(held.lease, Outcome(status="failed", ended_at=2.0), steps=10) == "ended"
    view = bench.board.get(job_id)
    assert view is not None
    assert view.record.outcome == DONE
    assert view.progress is not None
    assert view.progress.step == 10
    assert 0 < bench.client.ttl(key("job", job_id)) <= 1000
    kinds = [fields[b"kind"] for _, fields in bench.client.xrange(key("events"))]
    assert kinds.count(b"end") == 1


def test_a_worker_whose_lease_was_taken_over_cannot_commit(bench: Bench) -> None:
    job_id = bench.submit()
    frozen = bench.claim()
    bench.expire(frozen)
    assert bench.keep_up() == 1
    assert bench.leases.commit(frozen.lease, DONE, steps=10) == "lost"  # queued again, held by nobody
    second = bench.claim()
    assert bench.leases.commit(frozen.lease, DONE, steps=10) == "lost"
    assert bench.renew(frozen) == "lost"
    assert bench.leases.commit(second.lease, DONE, steps=10) == "committed"
    assert bench.board.get(job_id).status == "succeeded"  # type: ignore[union-attr]


def test_a_lease_that_ran_out_and_that_nobody_took_is_still_ours(bench: Bench) -> None:
    bench.submit()
    held = bench.claim()
    bench.expire(held)
    assert bench.renew(held) == "held"
    assert bench.keep_up() == 0
    bench.expire(held)
    assert bench.leases.commit(held.lease, DONE, steps=10) == "committed"


def test_a_cancel_comes_before_the_commit_or_after_it_and_never_beside_it(bench: Bench) -> None:
    bench.submit()
    held = bench.claim()
    bench.board.cancel(held.id)
    assert bench.renew(held) == "ended"
    assert bench.leases.commit(held.lease, DONE, steps=10) == "ended"
    assert bench.leases.hand_back(held.lease, held.record.queue, is_blamed=False) == "ended"
    assert bench.board.get(held.id).status == "canceled"  # type: ignore[union-attr]
    bench.submit()
    second = bench.claim()
    assert bench.leases.commit(second.lease, DONE, steps=10) == "committed"
    assert bench.board.cancel(second.id).status == "succeeded"  # type: ignore[union-attr]


def test_progress_is_written_by_the_holder_alone_and_not_after_the_end(bench: Bench) -> None:
    job_id = bench.submit()
    frozen = bench.claim()
    bench.expire(frozen)
    bench.keep_up()
    second = bench.claim()

    def write(held: HeldJob, step: int) -> str:
        with bench.client.pipeline(transaction=False) as pipe:
            bench.leases.write_progress(held.lease, step, 20, 1.5, ("cut",), pipe)
            return pipe.execute()[0].decode()

    assert write(second, 3) == "held"
    assert write(frozen, 9) == "lost"
    assert bench.leases.write_preview(frozen.lease, b"old") == "lost"
    view = bench.board.get(job_id)
    assert view is not None
    assert view.progress is not None
    assert (view.progress.step, view.eta_s, view.record.warnings) == (3, 1.5, ("cut",))
    assert bench.leases.write_preview(second.lease, b"new") == "held"
    assert bench.board.preview(job_id) == b"new"
    bench.board.cancel(job_id)
    assert write(second, 4) == "ended"
    assert bench.board.preview(job_id) is None
    bench.board.erase(job_id)
    assert write(second, 4) != "held"
    assert bench.client.exists(key("job", job_id), key("progress", job_id)) == 0


# --- deaths -----------------------------------------------------------------------------------------------------------


def die(bench: Bench, held: HeldJob, step: int) -> None:
    """The holder reaches a step and dies; its lease runs out."""
    if step:
        with bench.client.pipeline(transaction=False) as pipe:
            bench.leases.write_progress(held.lease, step, 20, None, (), pipe)
            pipe.execute()
    bench.expire(held)
    assert bench.keep_up() == 1


def test_a_death_counts_unless_the_job_got_further_than_ever(bench: Bench) -> None:
    job_id = bench.submit()
    for step, deaths, best in ((5, None, b"5"), (5, b"1", b"5"), (0, b"2", b"5"), (7, b"2", b"7"), (3, b"3", b"7")):
        die(bench, bench.claim(), step)
        held = bench.pop()
        assert held is not None
        assert bench.leases.claim(held.lease) == "claimed"
        assert (bench.record_field(job_id, "deaths"), bench.record_field(job_id, "best_step")) == (deaths, best)
        assert bench.leases.hand_back(held.lease, held.record.queue, is_blamed=False) == "queued"


def test_progress_counts_however_long_nobody_could_take_the_job_up(bench: Bench) -> None:
    job_id = bench.submit()
    die(bench, bench.claim(), 5)
    bench.client.delete(key("progress", job_id))  # what its expiry does in a long outage
    bench.claim()
    assert (bench.record_field(job_id, "deaths"), bench.record_field(job_id, "best_step")) == (None, b"5")


def test_a_job_that_was_handed_back_counts_no_death_and_is_next(bench: Bench) -> None:
    job_id, other = bench.submit(), bench.submit()
    held = bench.claim()
    assert bench.leases.hand_back(held.lease, held.record.queue, is_blamed=False) == "queued"
    assert bench.leases.hand_back(held.lease, held.record.queue, is_blamed=False) == "lost"  # a repeated call
    assert bench.board.get(job_id).queue_position == 0  # type: ignore[union-attr]
    assert bench.board.get(other).queue_position == 1  # type: ignore[union-attr]
    assert bench.claim().id == job_id
    assert bench.record_field(job_id, "deaths") is None


def test_a_job_that_was_handed_back_with_blame_counts_a_death(bench: Bench) -> None:
    job_id = bench.submit()
    held = bench.claim()
    assert bench.leases.hand_back(held.lease, held.record.queue, is_blamed=True) == "queued"
    bench.claim()
    assert bench.record_field(job_id, "deaths") == b"1"


# --- recovery ---------------------------------------------------------------------------------------------------------


def test_an_abandoned_job_is_queued_again_at_the_front_and_rings(bench: Bench) -> None:
    job_id, other = bench.submit(), bench.submit()
    held = bench.claim()
    assert bench.keep_up() == 0  # its lease stands
    bench.expire(held)
    bench.client.delete(key("doorbell", "fake"))
    assert bench.keep_up() == 1
    assert bench.keep_up() == 0
    assert [raw.decode() for raw in bench.client.lrange(held.lease.keys.queue, 0, -1)] == [job_id, other]
    assert bench.client.llen(key("doorbell", "fake")) == 1
    assert bench.status(job_id) == "queued"


def test_workers_of_different_models_do_not_wait_for_each_others_rounds(bench: Bench) -> None:
    bench.submit()
    held = bench.claim()
    bench.expire(held)
    assert bench.recovery("other").run() == 0
    assert bench.recovery("other", "fake").run() == 1  # its own model has not been looked after yet
    held = bench.claim()
    bench.expire(held)
    assert bench.recovery("fake").run() == 0  # somebody has just been here


def test_rqs_own_clean_up_does_no_harm(bench: Bench) -> None:
    """A dashboard that lists the running jobs cleans up as well, several at once."""
    job_id = bench.submit()
    held = bench.claim()
    bench.expire(held)
    registry = StartedJobRegistry(held.record.queue, connection=bench.client, serializer="json")
    registry.cleanup()
    bench.client.zadd(held.lease.keys.lease, {held.execution.composite_key: 1})
    bench.client.hset(held.lease.keys.rq_job, "status", "started")
    registry.cleanup()
    assert bench.client.llen(held.lease.keys.queue) == 2
    second = bench.claim()
    assert second.id == job_id
    double = bench.pop()
    assert double is not None
    assert bench.leases.claim(double.lease) == "taken"
    assert bench.renew(second) == "held"
    assert bench.renew(held) == "lost"


def test_a_job_that_was_popped_and_not_claimed_is_queued_again_when_it_is_old_enough(bench: Bench) -> None:
    job_id = bench.submit()
    held = bench.pop()
    assert held is not None
    assert bench.keep_up(age_s=30) == 0
    assert bench.client.hexists(key("suspects", "fake"), job_id)
    assert bench.keep_up(age_s=0.001) == 1
    assert bench.client.llen(held.lease.keys.intermediate) == 0
    assert not bench.client.hexists(key("suspects", "fake"), job_id)
    assert bench.claim().id == job_id
    assert bench.leases.claim(held.lease) == "taken"  # the one that was late


def test_a_job_that_another_tool_popped_is_queued_again(bench: Bench) -> None:
    """RQ's blocking read of several queues keeps nothing of what it pops."""
    job_id = bench.submit()
    assert bench.client.lpop("rq:queue:fake.normal.ann") == job_id.encode()
    assert bench.keep_up(age_s=0.001) == 0  # seen for the first time
    assert bench.keep_up(age_s=0.001) == 1
    assert bench.claim().id == job_id


def test_a_job_that_started_and_has_no_lease_is_queued_again(bench: Bench) -> None:
    job_id = bench.submit()
    held = bench.claim()
    bench.client.delete(held.lease.keys.lease)
    bench.keep_up(age_s=0.001)
    assert bench.keep_up(age_s=0.001) == 1
    assert bench.claim().id == job_id


def test_rq_is_told_what_its_worker_committed_and_did_not_live_to_tell(bench: Bench) -> None:
    job_id = bench.submit()
    held = bench.claim()
    bench.leases.commit(held.lease, DONE, steps=10)
    assert bench.status(job_id) == "started"
    bench.keep_up()
    assert bench.told == []  # its worker may be about to
    bench.expire(held)
    bench.keep_up()
    bench.keep_up()
    assert bench.told == [job_id]
    assert bench.status(job_id) == "finished"
    assert len(Job.fetch(job_id, connection=bench.client, serializer="json").results()) == 1


def test_a_committed_job_that_rq_queued_again_is_finished_and_not_drawn_again(bench: Bench) -> None:
    job_id = bench.submit()
    held = bench.claim()
    bench.leases.commit(held.lease, DONE, steps=10)
    bench.expire(held)
    StartedJobRegistry(held.record.queue, connection=bench.client, serializer="json").cleanup()
    assert bench.status(job_id) == "queued"
    assert bench.board.get(job_id).status == "succeeded"  # type: ignore[union-attr]
    late = bench.pop()
    assert late is not None
    assert bench.leases.claim(late.lease) == "untold"
    bench.tell(job_id)
    assert bench.status(job_id) == "finished"


@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_rq_is_told_of_failed_and_canceled_ends_too(bench: Bench, status: str) -> None:
    job_id = bench.submit()
    held = bench.claim()
    error = {"code": "timeout", "detail": "too long"} if status == "failed" else None
    outcome = Outcome.model_validate({"status": status, "error": error, "ended_at": 1.0})
    bench.leases.commit(held.lease, outcome, steps=0)
    held.outcome = outcome
    bench.rq.finish(held)
    assert bench.status(job_id) == {"failed": "failed", "canceled": "stopped"}[status]
    assert 0 < bench.client.ttl(f"rq:job:{job_id}") <= 1000
    assert bench.client.zcard(held.lease.keys.lease) == 0
    assert bench.rq.executions == {}


def test_a_job_that_was_deleted_in_rq_gets_its_outcome_without_anybody_asking(bench: Bench) -> None:
    job_id = bench.submit()
    Job.fetch(job_id, connection=bench.client, serializer="json").delete()
    bench.keep_up()
    record = bench.leases.read(job_id)
    assert record is not None
    assert record.outcome is not None
    assert record.outcome.status == "canceled"


def test_names_of_empty_queues_are_forgotten_and_filled_ones_are_found_again(bench: Bench) -> None:
    job_id = bench.submit()
    name = b"fake.normal.ann"
    held = bench.claim()
    bench.keep_up()
    assert bench.client.smembers(key("queues", "fake")) == {name}  # a lease is something
    bench.leases.commit(held.lease, DONE, steps=1)
    held.outcome = DONE
    bench.rq.finish(held)
    bench.keep_up()
    assert bench.client.smembers(key("queues", "fake")) == set()
    bench.client.rpush("rq:queue:fake.normal.ann", job_id)  # what `rq requeue` does
    bench.keep_up()
    assert bench.client.smembers(key("queues", "fake")) == {name}


def test_an_entry_without_a_record_leaves_the_intermediate_list(bench: Bench) -> None:
    bench.submit()
    intermediate = IntermediateQueue.get_intermediate_queue_key("rq:queue:fake.normal.ann")
    bench.client.lpush(intermediate, "nobody")
    bench.keep_up()
    assert bench.client.llen(intermediate) == 0


def test_one_worker_at_a_time_looks_after_the_jobs(bench: Bench) -> None:
    flight_id = bench.submit()
    held = bench.claim()
    assert held.id == flight_id
    bench.keep_up()
    bench.expire(held)
    settings = WorkerSettings(models={"fake": "fake"}, maintenance_interval_s=60)
    other = Recovery(bench.client, bench.board, settings, lambda: ("fake",), lambda _: None)
    assert other.run() == 0  # somebody just did
    assert bench.keep_up() == 1


def test_every_key_of_a_job_that_ended_expires(bench: Bench) -> None:
    job_id = bench.submit()
    held = bench.claim()
    bench.leases.write_preview(held.lease, b"picture")
    bench.leases.commit(held.lease, DONE, steps=10)
    held.outcome = DONE
    bench.rq.finish(held)
    bench.keep_up()
    lasting = {raw.decode() for raw in bench.client.scan_iter() if bench.client.ttl(raw) == -1}
    assert not [name for name in lasting if job_id in name]
    own = {
        "denoised:events",
        *(f"denoised:{noun}:fake" for noun in ("costs", "queues", "doorbell", "ended")),
        "rq:queues",
    }
    assert lasting - own == {"rq:workers"}


def test_the_keys_of_a_script_are_those_of_the_record(bench: Bench) -> None:
    record = bench.leases.read(bench.submit())
    assert record is not None
    keys = job_keys(record)
    assert keys.rq_job == Job.key_for(record.id)
    queue = Queue(record.queue, connection=bench.client)
    assert keys.queue == queue.key
    assert keys.intermediate == queue.intermediate_queue_key
    assert keys.lease == queue.started_job_registry.key
    assert keys.canceled == queue.canceled_job_registry.key


# --- other versions ---------------------------------------------------------------------------------------------------


def test_a_record_of_another_version_ends_as_failed_and_harms_nobody(bench: Bench) -> None:
    job_id = bench.submit()
    bench.client.hset(key("job", job_id), "submission", '{"tenant": "ann", "unknown": 1}')
    assert bench.board.get(job_id) is None
    assert bench.board.list_jobs("ann", limit=10) == ([], None)
    bench.client.lpop("rq:queue:fake.normal.ann")
    bench.keep_up()
    outcome = bench.record_field(job_id, "outcome")
    assert outcome is not None
    assert Outcome.model_validate_json(outcome).status == "failed"
    assert bench.client.hlen(key("costs", "fake")) == 0
    assert bench.board.gone_tenant(job_id) == "ann"


def test_words_and_models_of_another_version_are_left_out(bench: Bench) -> None:
    bench.client.hset(key("workers"), "new", '{"name": "new", "mood": "fine"}')
    bench.client.hset(key("catalogue"), "new", '{"name": "new"}')
    assert bench.board.beats() == []
    assert bench.board.catalogue() == {}
    bench.keep_up()
    assert bench.client.hlen(key("workers")) == 0
