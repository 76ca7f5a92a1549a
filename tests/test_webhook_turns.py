"""Webhooks in Redis: whose turn it is, what a lease is worth, and that nothing stays behind."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import pytest
import redis

from app.webhooks.sender import next_message
from tests.board_values import make_entry, make_submission
from tests.http_kit import FakeWorker
from workers import scripts
from workers.contract import JobRecord, JobView, Outcome, Progress, Webhook, WebhookEvent, WebhookState, key
from workers.jobkeys import new_record
from workers.store import LocalStore
from workers.webhooks import LOOK_S, Shares, Turn, Webhooks

URL = "https://hooks.example.org/hook"
ALL: tuple[WebhookEvent, ...] = ("started", "progress", "ended")


class Line:
    """Jobs with webhooks, and API processes that take turns."""

    def __init__(self, client: redis.Redis, store: LocalStore) -> None:
        self.client = client
        self.worker = FakeWorker(client, store)
        self.webhooks = Webhooks(client, lease_s=60.0)

    def submit(self, events: tuple[WebhookEvent, ...] = ("ended",), url: str = URL, tenant: str = "ann") -> str:
        webhook = Webhook(url=url, host=urlsplit(url).hostname or "", events=events)
        submission = make_submission(tenant).model_copy(update={"webhook": webhook})
        return self.worker.board.submit(submission, make_entry())[0].record.id

    def take(self, shares: Shares | None = None, under_way: tuple[Turn, ...] = ()) -> list[Turn]:
        return self.webhooks.take(shares or Shares(), under_way)[0]

    def taken(self) -> list[str]:
        return [turn.job_id for turn in self.take()]

    def pass_time(self, seconds: float) -> None:
        for job_id, due in self.client.zrange(key("webhooks"), 0, -1, withscores=True):
            self.client.zadd(key("webhooks"), {job_id: due - seconds})

    def state(self, job_id: str) -> WebhookState:
        view = self.worker.board.get(job_id)
        assert view is not None
        assert view.webhook is not None
        return view.webhook

    def due_in_s(self, job_id: str) -> float | None:
        due = self.client.zscore(key("webhooks"), job_id)
        return None if due is None else float(due) - time.time()


@pytest.fixture
def line(redis_client: redis.Redis, store: LocalStore) -> Line:
    return Line(redis_client, store)


# --- when it is somebody's turn --------------------------------------------------------------------------------------


def test_a_webhook_is_due_when_its_job_has_changed(line: Line) -> None:
    quiet, job_id = line.submit(), line.submit(ALL)
    assert line.taken() == [], "nothing has happened"
    line.worker.claim(quiet)
    assert line.taken() == [], "it does not want to know"
    line.worker.claim(job_id)
    (turn,) = line.take()
    assert (turn.job_id, turn.host, turn.tenant, turn.state) == (job_id, "hooks.example.org", "ann", WebhookState())
    assert line.webhooks.put_off(turn) == "kept"
    line.worker.progress(job_id, 1, 10)
    line.webhooks.put_off(line.take()[0])
    line.worker.draw(job_id)
    line.worker.draw(quiet)
    assert sorted(line.taken()) == sorted([quiet, job_id])


@pytest.mark.parametrize("ending", ["draw", "fail", "cancel", "deleted with rq"])
def test_every_end_is_announced(line: Line, ending: str) -> None:
    job_id = line.submit()
    if ending == "cancel":
        line.worker.board.cancel(job_id)
    elif ending == "deleted with rq":
        line.client.delete(f"rq:job:{job_id}")
        line.worker.board.get(job_id)
    else:
        getattr(line.worker, ending)(job_id)
    assert line.taken() == [job_id]


def test_the_next_look_is_told(line: Line) -> None:
    assert line.webhooks.take(Shares(), ()) == ([], None)
    line.submit()
    turns, next_in_s = line.webhooks.take(Shares(), ())
    assert turns == []
    assert next_in_s is not None
    assert 0 < next_in_s <= LOOK_S


def test_what_a_worker_of_an_older_version_does_is_found_at_the_next_look(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = scripts.COMMIT.replace("announce(k, job, 'ended')", "").replace("redis.call('EXPIRE', k.webhook, ttl)", "")
    assert "k.webhook," not in older.partition("local k = {}")[2]
    monkeypatch.setattr(scripts, "COMMIT", older)
    line.worker = FakeWorker(line.client, line.worker.store)
    job_id = line.submit()
    line.worker.draw(job_id)
    assert line.taken() == []
    line.pass_time(LOOK_S)
    (turn,) = line.take()
    assert turn.job_id == job_id
    assert line.client.ttl(key("webhook", job_id)) == -1
    line.webhooks.end(turn, "told")
    assert 0 < line.client.ttl(key("webhook", job_id)) <= 3600


def test_a_receiver_has_its_rest_but_hears_of_the_end_at_once(line: Line) -> None:
    job_id = line.submit(ALL)
    line.worker.claim(job_id)
    (turn,) = line.take()
    line.webhooks.note_failure(turn, "started", 500, "no", 100.0)
    line.worker.progress(job_id, 1, 10)
    assert line.taken() == []
    assert (line.due_in_s(job_id) or 0) > 90
    line.worker.draw(job_id)
    assert line.taken() == [job_id]


def test_what_comes_while_a_receiver_is_told_is_looked_at_afterwards(line: Line) -> None:
    job_id = line.submit(ALL)
    line.worker.claim(job_id)
    (turn,) = line.take()
    line.worker.progress(job_id, 1, 10)
    assert line.taken() == [], "one at a time"
    line.webhooks.put_off(turn)
    (turn,) = line.take()
    line.worker.draw(job_id)
    line.webhooks.note_told(turn, "progress", "1_1", 204, 100.0)
    assert line.taken() == [job_id], "the end does not wait for the rest"


# --- shares ----------------------------------------------------------------------------------------------------------


def test_a_host_and_a_tenant_get_no_more_than_their_share(line: Line) -> None:
    hosts = [("a", "ann"), ("a", "ann"), ("a", "bob"), ("b", "ann"), ("c", "ann"), ("d", "bob"), ("e", "bob")]
    ids = [line.submit(url=f"https://{host}.test/", tenant=tenant) for host, tenant in hosts]
    for job_id in ids:
        line.worker.draw(job_id)
    shares = Shares(in_all=4, to_host=1, of_tenant=2)
    first = line.take(shares)
    assert [turn.host for turn in first] == ["a.test", "b.test", "d.test", "e.test"]
    assert line.take(shares, tuple(first)) == [], "none is left"
    assert line.take(shares, tuple(first[:2])) == [], "a is busy, and so is ann"
    (second,) = line.take(shares, tuple(first[1:]))
    assert (second.host, second.tenant) == ("a.test", "ann")
    assert [(turn.host, turn.tenant) for turn in line.take(shares, (second,))] == [("c.test", "ann")]
    assert [(turn.host, turn.tenant) for turn in line.take(shares)] == [("a.test", "bob")]


def test_a_long_line_before_one_receiver_hides_nobody(line: Line) -> None:
    for number in range(600):
        line.client.hset(key("webhook", f"{number}"), mapping={"events": "ended", "host": "dead.test"})
        line.client.hset(key("job", f"{number}"), "tenant", f"{number}")
        line.client.zadd(key("webhooks"), {f"{number}": 1.0})
    job_id = line.submit()
    line.worker.draw(job_id)
    busy = tuple(Turn(f"{number}", "t", "dead.test", "", WebhookState()) for number in range(4))
    turns, next_in_s = line.webhooks.take(Shares(), busy)
    assert (turns, next_in_s) == ([], 0), "there are more behind them"
    turns, next_in_s = line.webhooks.take(Shares(), busy)
    assert [turn.job_id for turn in turns] == [job_id]
    assert next_in_s is not None
    assert next_in_s > 0


# --- leases ----------------------------------------------------------------------------------------------------------


def test_who_dies_with_a_webhook_in_hand_is_followed_by_another_and_comes_too_late(line: Line) -> None:
    job_id = line.submit()
    line.worker.draw(job_id)
    (dead,) = line.take()
    assert line.taken() == []
    line.pass_time(60.0)
    (alive,) = line.take()
    assert (alive.job_id, alive.state) == (job_id, WebhookState())
    assert line.webhooks.note_told(dead, "ended", "", 200, 0.0) == "lost"
    assert line.state(job_id).end is None
    assert line.webhooks.note_told(alive, "ended", "", 200, 0.0) == "over"
    assert (line.state(job_id).end, line.state(job_id).told) == ("told", ("ended",))
    assert line.webhooks.pending() == 0


# --- the end of it ---------------------------------------------------------------------------------------------------


def test_an_erased_job_leaves_nothing_and_nobody_brings_it_back(line: Line) -> None:
    waiting, under_way = line.submit(), line.submit()
    line.worker.draw(under_way)
    (turn,) = line.take()
    line.worker.draw(waiting)
    for job_id in (waiting, under_way):
        line.worker.board.erase(job_id)
    assert line.client.keys(key("webhook*")) == []
    assert line.webhooks.note_failure(turn, "ended", 500, "no", 1.0) == "lost"
    assert line.client.keys(key("webhook*")) == []
    assert line.taken() == []


def test_when_the_time_of_a_job_is_over_so_is_that_of_its_webhook(line: Line) -> None:
    job_id = line.submit()
    line.worker.draw(job_id)
    assert 3500 < line.client.ttl(key("webhook", job_id)) <= 3600
    line.client.delete(key("job", job_id), key("webhook", job_id))  # as if they had expired
    assert line.taken() == []
    assert line.client.keys(key("webhook*")) == []


def test_an_attempt_that_would_come_too_late_is_not_waited_for(line: Line) -> None:
    job_id = line.submit()
    line.worker.draw(job_id)
    assert line.webhooks.note_failure(line.take()[0], "ended", 500, "no", 4000.0) == "over"
    state = line.state(job_id)
    assert (state.end, state.last_status, state.last_error, state.next_at) == ("given_up", 500, "no", None)
    assert line.webhooks.pending() == 0


def test_who_wants_no_more_while_the_job_is_drawn_leaves_nothing_for_ever(line: Line) -> None:
    job_id = line.submit(ALL)
    line.worker.claim(job_id)
    assert line.webhooks.end(line.take()[0], "gone", 410) == "over"
    assert line.client.ttl(key("webhook", job_id)) > 0
    line.worker.draw(job_id)
    assert line.client.ttl(key("webhook", job_id)) <= 3600
    assert line.taken() == []


def test_a_server_without_memory_lets_webhooks_come_to_their_end(line: Line) -> None:
    job_id = line.submit(ALL)
    line.worker.claim(job_id)
    line.client.config_set("maxmemory", 1)
    try:
        line.worker.draw(job_id)
        (turn,) = line.take()
        assert line.webhooks.note_failure(turn, "ended", 500, "no", 0.0) == "kept"
        (turn,) = line.take()
        assert line.webhooks.note_told(turn, "ended", "", 200, 0.0) == "over"
    finally:
        line.client.config_set("maxmemory", 0)
    assert line.state(job_id).end == "told"


def test_the_secret_is_made_once(line: Line) -> None:
    first = line.webhooks.secret()
    assert first == Webhooks(line.client, 1.0).secret()
    assert len(first) == 64


# --- what there is to tell -------------------------------------------------------------------------------------------


def view_of(
    *, started: bool = False, step: int | None = None, ended: bool = False, claims: int = 1, tenant: str = "ann"
) -> JobView:
    record: JobRecord = new_record("0" * 44, make_submission(tenant), 1.0, 1.0)
    outcome = Outcome(status="succeeded", ended_at=9.0) if ended else None
    record = record.model_copy(
        update={"started_at": 2.0 if started else None, "claims": claims, "outcome": outcome, "warnings": ("cut",)}
    )
    progress = None if step is None else Progress(step=step, steps=10)
    status = "succeeded" if ended else "running" if started else "queued"
    return JobView(record=record, status=status, progress=progress)  # type: ignore[arg-type]


def told(view: JobView, events: tuple[WebhookEvent, ...] = ALL, **state: object) -> tuple[str, str] | None:
    message = next_message(
        view, Webhook(url=URL, host="hooks.example.org", events=events), WebhookState.model_validate(state)
    )
    return message and (message.event, message.id.removeprefix("0" * 44))


def test_events_come_in_order_and_each_has_an_id_of_its_own() -> None:
    assert told(view_of()) is None
    assert told(view_of(started=True, step=3)) == ("started", "_started")
    begun = {"told": ("started",)}
    assert told(view_of(started=True, step=3), **begun) == ("progress", "_progress_1_3")
    assert told(view_of(started=True, step=3), **begun, mark="1_3") is None
    assert told(view_of(started=True, step=3, claims=2), **begun, mark="1_3") == ("progress", "_progress_2_3")
    assert told(view_of(started=True, step=10, ended=True), **begun) == ("ended", "_ended")
    assert told(view_of(started=True, step=10, ended=True), told=("started", "ended")) is None
    assert told(view_of(ended=True)) == ("ended", "_ended"), "canceled in the queue"


def test_only_what_is_wanted_is_told() -> None:
    assert told(view_of(started=True, step=3), ("ended",)) is None
    assert told(view_of(started=True, step=10, ended=True), ("started",), told=("started",)) is None
    assert told(view_of(started=True, step=3), ("progress",)) == ("progress", "_progress_1_3")


def test_a_job_that_has_ended_meanwhile_is_told_as_it_was_when_it_began() -> None:
    message = next_message(
        view_of(started=True, step=10, ended=True),
        Webhook(url=URL, host="hooks.example.org", events=ALL),
        WebhookState(),
    )
    assert message is not None
    assert (message.event, message.at, message.view.status, message.view.record.outcome) == (
        *("started", 2.0, "running"),
        None,
    )
    assert message.view.record.warnings == ()


def test_a_start_that_could_not_be_told_gives_way_to_the_end() -> None:
    failed = {"trying": "started", "failures": 1}
    assert told(view_of(started=True), **failed) == ("started", "_started")
    assert told(view_of(started=True, ended=True), **failed) == ("ended", "_ended")
    assert told(view_of(started=True, ended=True), ("started",), **failed) == ("started", "_started")
