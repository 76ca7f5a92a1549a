"""The board against a real server: what the API can do with jobs while no worker is there."""

from __future__ import annotations

import threading
import time

import pytest
import redis
from rq import Queue
from rq.job import Job

from tests.board_values import make_entry, make_submission
from workers.board import Idempotency, IdempotencyConflict, JobBoard
from workers.contract import (
    ModelLoad,
    Outcome,
    WorkerBeat,
    created_at_of,
    key,
    new_job_id,
    predict_cost,
    queue_name,
)
from workers.jobkeys import idempotency_key, job_keys, queue_key

ENTRY = make_entry()


@pytest.fixture
def board(redis_client: redis.Redis) -> JobBoard:
    redis_client.hset(key("catalogue"), ENTRY.name, ENTRY.model_dump_json())
    return JobBoard(redis_client, retention_s=1000)


def commit(client: redis.Redis, board: JobBoard, job_id: str, outcome: Outcome) -> None:
    """Ends a job without a worker, through the same script."""
    view = board.get(job_id)
    assert view is not None
    board._end_from_outside(view.record, outcome, "")


def test_a_submitted_job_is_queued_and_has_everything_it_was_given(board: JobBoard, redis_client: redis.Redis) -> None:
    view, is_new = board.submit(make_submission(steps=10), ENTRY)
    assert is_new
    assert view.status == "queued"
    assert view.queue_position == 0
    assert view.record.cost == 10
    assert view.record.submission == make_submission(steps=10)
    assert board.get(view.record.id) == view
    job = Job.fetch(view.record.id, connection=redis_client, serializer="json")
    assert job.kwargs == {"job": view.record.id}
    assert job.origin == queue_name("fake", "normal", "ann")
    assert redis_client.llen(key("doorbell", "fake")) == 1
    assert redis_client.xlen(key("events")) == 1
    assert redis_client.ttl(key("job", view.record.id)) == -1


def test_an_unknown_id_and_something_that_is_no_id_are_none(board: JobBoard) -> None:
    assert board.get(new_job_id()) is None
    assert board.get("../../etc/passwd") is None
    assert board.cancel(new_job_id()) is None
    assert board.gone_tenant(new_job_id()) is None


def test_the_same_idempotency_key_and_body_give_the_same_job(board: JobBoard) -> None:
    idempotency = Idempotency("once", "digest")
    first, first_is_new = board.submit(make_submission(), ENTRY, idempotency=idempotency)
    second, second_is_new = board.submit(make_submission(), ENTRY, idempotency=idempotency)
    assert (first_is_new, second_is_new) == (True, False)
    assert first.record.id == second.record.id
    assert board.queued_count("ann") == 1
    found = board.find_idempotent("ann", idempotency)
    assert found is not None
    assert found.record.id == first.record.id


def test_the_same_idempotency_key_with_another_body_is_a_conflict(board: JobBoard) -> None:
    board.submit(make_submission(), ENTRY, idempotency=Idempotency("once", "digest"))
    with pytest.raises(IdempotencyConflict):
        board.submit(make_submission(seed=2), ENTRY, idempotency=Idempotency("once", "other"))
    with pytest.raises(IdempotencyConflict):
        board.find_idempotent("ann", Idempotency("once", "other"))
    assert board.queued_count("ann") == 1


def test_idempotency_keys_of_two_tenants_do_not_meet(board: JobBoard) -> None:
    idempotency = Idempotency("once", "digest")
    first, _ = board.submit(make_submission("ann"), ENTRY, idempotency=idempotency)
    second, is_new = board.submit(make_submission("bob"), ENTRY, idempotency=idempotency)
    assert is_new
    assert first.record.id != second.record.id


def test_concurrent_posts_with_one_key_give_one_job(board: JobBoard) -> None:
    barrier = threading.Barrier(8)
    ids: list[str] = []
    news: list[bool] = []

    def post() -> None:
        barrier.wait()
        view, is_new = board.submit(make_submission(), ENTRY, idempotency=Idempotency("once", "digest"))
        ids.append(view.record.id)
        news.append(is_new)

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1
    assert sum(news) == 1
    assert board.queued_count("ann") == 1


def test_the_key_of_an_erased_job_is_free_again(board: JobBoard) -> None:
    idempotency = Idempotency("once", "digest")
    first, _ = board.submit(make_submission(), ENTRY, idempotency=idempotency)
    board.cancel(first.record.id)
    board.erase(first.record.id)
    assert board.find_idempotent("ann", idempotency) is None
    second, is_new = board.submit(make_submission(), ENTRY, idempotency=idempotency)
    assert is_new
    assert second.record.id != first.record.id


def test_an_idempotency_key_and_an_upload_live_as_long_as_their_job(board: JobBoard, redis_client: redis.Redis) -> None:
    idempotency, digest = Idempotency("once", "digest"), "ab" * 32
    first, _ = board.submit(make_submission(), ENTRY, idempotency=idempotency, uploads=(digest,))
    kept = [idempotency_key("ann", "once"), key("upload", "ann", digest)]
    assert [redis_client.ttl(name) for name in kept] == [-1, -1]  # however long it waits
    second, _ = board.submit(make_submission(), ENTRY, uploads=(digest,))
    board.cancel(first.record.id)
    assert 0 < redis_client.ttl(kept[0]) <= 1000
    assert redis_client.ttl(kept[1]) == -1  # the second job's now
    board.cancel(second.record.id)
    assert 0 < redis_client.ttl(kept[1]) <= 1000


def test_a_canceled_jobs_timings_are_known(board: JobBoard, redis_client: redis.Redis) -> None:
    view, _ = board.submit(make_submission(), ENTRY)
    redis_client.hset(key("job", view.record.id), "started_at", view.record.created_at + 2)
    timings = board.cancel(view.record.id).record.outcome.timings  # type: ignore[union-attr]
    assert timings.queued_s == pytest.approx(2)
    assert timings.total_s >= timings.queued_s


def test_a_record_of_another_version_stays_in_the_index(board: JobBoard, redis_client: redis.Redis) -> None:
    strange, good = (board.submit(make_submission(), ENTRY)[0].record.id for _ in range(2))
    redis_client.hset(key("job", strange), "submission", "{}")
    assert [view.record.id for view in board.list_jobs("ann", limit=10)[0]] == [good]
    assert redis_client.zscore(key("jobs", "ann"), strange) is not None


def make_beat(name: str, *models: str, state: str = "running", **load: float) -> WorkerBeat:
    loads = {model: ModelLoad.model_validate({"loaded": True, "warmed": True, **load}) for model in models}
    now = time.time()
    return WorkerBeat.model_validate(
        {"name": name, "beat_at": now, "started_at": now, "pid": 1, "host": "h", "state": state, "models": loads}
    )


def test_models_that_no_live_worker_serves_are_not_offered_while_others_are(
    board: JobBoard, redis_client: redis.Redis
) -> None:
    for name in ("first", "second"):
        redis_client.hset(key("catalogue"), name, make_entry(name).model_dump_json())
    assert list(board.catalogue()) == ["fake", "first", "second"]  # jobs wait for the next worker
    redis_client.hset(key("workers"), "w", make_beat("w", "second", "third").model_dump_json())
    assert list(board.catalogue()) == ["second"]


def test_a_worker_that_drains_promises_no_speed(board: JobBoard, redis_client: redis.Redis) -> None:
    view, _ = board.submit(make_submission(steps=10), ENTRY)
    for name, state in (("w1", "running"), ("w2", "draining")):
        beat = make_beat(name, "fake", state=state, cost_per_s=5.0)
        redis_client.hset(key("workers"), name, beat.model_dump_json())
    assert board.get(view.record.id).eta_s == pytest.approx(10 / 5)  # type: ignore[union-attr]


def test_a_sampler_with_two_calls_a_step_costs_twice(board: JobBoard) -> None:
    (sampler,) = ENTRY.samplers
    twice = ENTRY.model_copy(update={"samplers": (sampler.model_copy(update={"order": 2}),)})
    request = make_submission().request
    assert predict_cost(request, twice) == 2 * predict_cost(request, ENTRY)


def test_nothing_half_made_remains_when_the_server_refuses_the_transaction(
    board: JobBoard, redis_client: redis.Redis
) -> None:
    board.submit(make_submission(), ENTRY)
    before = sorted(redis_client.keys())
    memory = redis_client.config_get("maxmemory")["maxmemory"]
    redis_client.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.ResponseError):
            board.submit(make_submission(), ENTRY)
    finally:
        redis_client.config_set("maxmemory", memory)
    assert sorted(redis_client.keys()) == before


def test_a_queued_job_that_is_canceled_leaves_the_queue_and_stays_readable(
    board: JobBoard, redis_client: redis.Redis
) -> None:
    view, _ = board.submit(make_submission(), ENTRY)
    canceled = board.cancel(view.record.id)
    assert canceled is not None
    assert canceled.status == "canceled"
    assert board.queued_count("ann") == 0
    assert Job.fetch(view.record.id, connection=redis_client, serializer="json").get_status() == "canceled"
    assert 0 < redis_client.ttl(key("job", view.record.id)) <= 1000
    assert redis_client.hlen(key("costs", "fake")) == 0
    assert board.cancel(view.record.id) == canceled  # an ended job stays as it is


def test_a_running_job_that_is_canceled_ends_at_once_and_its_worker_is_told(
    board: JobBoard, redis_client: redis.Redis
) -> None:
    view, _ = board.submit(make_submission(), ENTRY)
    redis_client.hset(Job.key_for(view.record.id), mapping={"status": "started", "worker_name": "w1"})
    channel = redis_client.pubsub()
    channel.subscribe("rq:pubsub:w1")
    assert channel.get_message(timeout=1)["type"] == "subscribe"
    canceled = board.cancel(view.record.id)
    assert canceled is not None
    assert canceled.status == "canceled"
    message = channel.get_message(timeout=1)
    assert view.record.id.encode() in message["data"]
    channel.close()


def test_an_erased_job_is_gone_and_its_tenant_is_remembered(board: JobBoard, redis_client: redis.Redis) -> None:
    view, _ = board.submit(make_submission(), ENTRY)
    with pytest.raises(ValueError, match="cancel it first"):
        board.erase(view.record.id)
    board.cancel(view.record.id)
    board.erase(view.record.id)
    assert board.get(view.record.id) is None
    assert board.gone_tenant(view.record.id) == "ann"
    assert board.list_jobs("ann", limit=10)[0] == []
    assert not Job.exists(view.record.id, redis_client)
    board.erase(view.record.id)  # again is no fault


def test_an_expired_job_is_gone_and_its_tenant_is_remembered(board: JobBoard, redis_client: redis.Redis) -> None:
    view, _ = board.submit(make_submission(), ENTRY)
    board.cancel(view.record.id)
    redis_client.delete(key("job", view.record.id))  # what its expiry does
    assert board.get(view.record.id) is None
    assert board.gone_tenant(view.record.id) == "ann"
    assert board.list_jobs("ann", limit=10) == ([], None)
    assert redis_client.zcard(key("jobs", "ann")) == 0


def test_the_index_does_not_outgrow_the_records(board: JobBoard, redis_client: redis.Redis) -> None:
    for _ in range(6):
        view, _ = board.submit(make_submission(), ENTRY)
        board.cancel(view.record.id)
        redis_client.delete(key("job", view.record.id))
    assert redis_client.zcard(key("jobs", "ann")) == 1


def test_jobs_are_listed_newest_first_page_by_page(board: JobBoard) -> None:
    made_at = int(time.time() * 1000)
    # Three of one millisecond among them: a cursor between those must not skip or repeat.
    ids = [f"{made_at + offset:012x}{n:032x}" for n, offset in enumerate((0, 1, 1, 1, 2, 3, 4))]
    for job_id in ids:
        board.submit(make_submission(), ENTRY, job_id=job_id)
    board.submit(make_submission("bob"), ENTRY)
    seen: list[str] = []
    cursor = None
    while True:
        page, cursor = board.list_jobs("ann", limit=2, cursor=cursor)
        seen += [view.record.id for view in page]
        assert len(page) <= 2
        if cursor is None:
            break
    assert seen == ids[::-1]
    with pytest.raises(ValueError, match="cursor"):
        board.list_jobs("ann", limit=2, cursor="nonsense")


def test_jobs_are_listed_by_status(board: JobBoard) -> None:
    views = [board.submit(make_submission(), ENTRY)[0] for _ in range(7)]
    canceled = [views[1].record.id, views[4].record.id, views[5].record.id]
    for job_id in canceled:
        board.cancel(job_id)
    page, cursor = board.list_jobs("ann", limit=2, status="canceled")
    assert [view.record.id for view in page] == canceled[:0:-1]
    rest, last = board.list_jobs("ann", limit=2, status="canceled", cursor=cursor)
    assert [view.record.id for view in rest] == canceled[:1]
    assert last is None
    assert len(board.list_jobs("ann", limit=10, status="queued")[0]) == 4


def test_the_unended_jobs_of_a_tenant_are_told_oldest_first(board: JobBoard) -> None:
    old, middle, young = (f"{millisecond:012x}{'0' * 32}" for millisecond in (3, 4, 5))
    for job_id in (young, old, middle):
        board.submit(make_submission("ann"), ENTRY, job_id)
    board.submit(make_submission("bob"), ENTRY)
    board.cancel(middle)
    assert [view.record.id for view in board.unended("ann")] == [old, young]
    assert board.unended("cid") == []


def test_places_follow_turns_of_tenants_then_priority(board: JobBoard) -> None:
    ann = [board.submit(make_submission("ann"), ENTRY)[0].record.id for _ in range(3)]
    bob = [board.submit(make_submission("bob"), ENTRY)[0].record.id for _ in range(2)]
    low = board.submit(make_submission("ann", priority="low"), ENTRY)[0].record.id
    high = board.submit(make_submission("bob", priority="high"), ENTRY)[0].record.id
    expected = [ann[0], high, ann[1], bob[0], ann[2], bob[1], low]
    places = {job_id: board.get(job_id).queue_position for job_id in expected}  # type: ignore[union-attr]
    assert places == {job_id: place for place, job_id in enumerate(expected)}


def test_etas_come_from_measured_speed_and_are_unknown_without_it(board: JobBoard, redis_client: redis.Redis) -> None:
    first, _ = board.submit(make_submission(steps=10), ENTRY)
    second, _ = board.submit(make_submission(steps=30), ENTRY)
    assert first.eta_s is None
    assert board.retry_after_s("ann", "fake") == 10
    for name in ("w1", "w2"):
        load = ModelLoad(loaded=True, warmed=True, cost_per_s=5.0, cost_in_flight=20.0, slots=1)
        beat = WorkerBeat(
            name=name,
            beat_at=time.time(),
            started_at=time.time(),
            pid=1,
            host="h",
            state="running",
            models={"fake": load},
        )
        redis_client.hset(key("workers"), name, beat.model_dump_json())
    stale = beat.model_copy(update={"name": "dead", "beat_at": time.time() - 100})
    redis_client.hset(key("workers"), "dead", stale.model_dump_json())
    assert [beat.name for beat in board.beats()] == ["w1", "w2"]
    assert board.get(first.record.id).eta_s == pytest.approx((40 + 10) / 10)  # type: ignore[union-attr]
    assert board.get(second.record.id).eta_s == pytest.approx((40 + 10 + 30) / 10)  # type: ignore[union-attr]
    assert board.retry_after_s("ann", "fake") == 4  # when the first one starts
    assert board.retry_after_s("nobody", "fake") == 10


def test_depths_are_counted_per_model_and_priority(board: JobBoard) -> None:
    board.submit(make_submission(), ENTRY, job_id=f"{int(time.time() * 1000) - 60_000:012x}{7:032x}")
    board.submit(make_submission(priority="high"), ENTRY)
    depths = board.queue_depths()
    assert depths["fake", "normal"].queued == 1
    assert depths["fake", "normal"].oldest_wait_s >= 60
    assert depths["fake", "high"].queued == 1
    assert depths["fake", "low"].queued == 0


def test_uploads_are_found_by_their_digest_while_a_job_holds_them(board: JobBoard) -> None:
    digest = "ab" * 32
    assert board.upload_holder("ann", digest) is None
    view, _ = board.submit(make_submission(), ENTRY, uploads=(digest,))
    assert board.upload_holder("ann", digest) == view.record.id
    assert board.upload_holder("bob", digest) is None
    board.cancel(view.record.id)
    board.erase(view.record.id)
    assert board.upload_holder("ann", digest) is None


@pytest.mark.parametrize(
    ("rq_ending", "status"),
    [("deleted", "canceled"), ("canceled", "canceled"), ("stopped", "canceled"), ("failed", "failed")],
)
def test_a_job_that_an_operator_ended_with_rq_tools_gets_its_outcome(
    board: JobBoard, redis_client: redis.Redis, rq_ending: str, status: str
) -> None:
    view, _ = board.submit(make_submission(), ENTRY)
    job = Job.fetch(view.record.id, connection=redis_client, serializer="json")
    if rq_ending == "deleted":
        job.delete()
    elif rq_ending == "canceled":
        job.cancel()
    else:
        redis_client.hset(job.key, "status", rq_ending)
    found = board.get(view.record.id)
    assert found is not None
    assert found.status == status
    assert (found.record.outcome.error is not None) == (status == "failed")  # type: ignore[union-attr]
    assert board.queued_count("ann") == 0


def test_an_emptied_queue_gives_its_jobs_an_outcome(board: JobBoard, redis_client: redis.Redis) -> None:
    view, _ = board.submit(make_submission(), ENTRY)
    Queue(view.record.queue, connection=redis_client, serializer="json").empty()
    assert board.get(view.record.id).status == "canceled"  # type: ignore[union-attr]


def test_an_outcome_is_written_once(board: JobBoard, redis_client: redis.Redis) -> None:
    view, _ = board.submit(make_submission(), ENTRY)
    commit(redis_client, board, view.record.id, Outcome(status="succeeded", ended_at=1.0))
    assert board.cancel(view.record.id).status == "succeeded"  # type: ignore[union-attr]
    events = [fields[b"kind"] for _, fields in redis_client.xrange(key("events"))]
    assert events == [b"status", b"end"]


def test_names_with_strange_letters_keep_their_queues_apart(board: JobBoard) -> None:
    first, _ = board.submit(make_submission("a.b"), ENTRY)
    second, _ = board.submit(make_submission("a_b"), ENTRY)
    assert first.record.queue != second.record.queue
    assert board.queued_count("a.b") == 1
    assert created_at_of(first.record.id) is not None
    assert job_keys(first.record).queue == queue_key(first.record.queue)
