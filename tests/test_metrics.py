"""Figures for Prometheus: what is counted, under which name it is told, and that the documentation has every name."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from rq.suspension import resume, suspend

from app.figures import BoardFigures
from app.metrics import HttpMetrics, render
from models.counts import STEP_SECONDS, Counts, by_model, distributions, observe, of_model
from tests.board_values import make_submission
from tests.fleet import Fleet
from workers.board import EndedCounts, QueueDepth
from workers.contract import JobError, ModelLoad, RowCeiling, WorkerBeat, key
from workers.reporting import ETA_RATIOS

ROOT = Path(__file__).resolve().parent.parent


def everything() -> str:
    """An exposition in which no figure is without a value."""
    http = HttpMetrics()
    http.observe("/jobs", "GET", 200, 0.1)
    http.count_webhook("delivered")
    counters: dict[str, float] = {"oom_splits": 2, "jobs_resumed": 3, "previews": 4}
    for name in ("steps", "rows", "rows_allowed", "slot_steps", "decode_seconds", "decoded_pictures"):
        counters[of_model(name, "house/style:v2")] = 5
    observe(counters, "step_seconds", "house/style:v2", 0.1, STEP_SECONDS)
    for told in ("queued", "running"):
        observe(counters, f"eta_ratio_{told}", "house/style:v2", 1.2, ETA_RATIOS)
    beat = WorkerBeat(
        name="fake",
        beat_at=1.0,
        started_at=1.0,
        pid=1,
        host="here",
        state="running",
        models={"house/style:v2": ModelLoad(loaded=True, warmed=True, cost_per_s=8.0)},
        faults={"broken": JobError(code="checkpoint_missing", detail="It is not there.")},
        ceilings=(RowCeiling(model="house/style:v2", shape=(4, 64, 64), context_length=77, rows=4, limit=16),),
        counters=counters,
    )
    figures = BoardFigures(
        queues={("house/style:v2", "normal"): QueueDepth(3, 1.5)},
        ended={"house/style:v2": EndedCounts({"failed": 1}, {"not_finite": 1})},
        beats=[beat],
        webhooks_pending=2,
    )
    return render(http, figures).decode()


def offered() -> dict[str, set[str]]:
    """Name of every sample that the exposition offers -> names of its labels."""
    samples: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(everything()):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return {name: labels for name, labels in samples.items() if not name.endswith("_created")}


def families() -> dict[str, set[str]]:
    """The same with the three samples of a histogram under one name, as people write of it."""
    found: dict[str, set[str]] = {}
    for name, labels in offered().items():
        stem = re.sub(r"_(bucket|sum|count)$", "", name)
        found.setdefault(stem if f"{stem}_bucket" in offered() else name, set()).update(labels - {"le"})
    return found


def test_the_table_in_the_documentation_and_the_exposition_have_the_same_names_and_labels() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    rows = re.findall(r"^\| `(denoised_\w+)` \| ([^|]*) \| ([^|]+) \|$", page, flags=re.MULTILINE)
    written = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels, _ in rows}
    assert len(rows) == len(written) > 20, "a name is there twice, or the table is not read"
    assert written == families()


def test_names_follow_the_conventions() -> None:
    for family in text_string_to_metric_families(everything()):
        assert family.documentation.endswith(".") or ";" in family.documentation, family.name
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples), family.name
        assert not re.search(r"_(s|ms|pct|percent)(_|$)", family.name), family.name


def test_a_figure_without_a_value_is_named_all_the_same() -> None:
    def names(text: str) -> set[str]:
        return set(re.findall(r"^# TYPE (\S+)", text, flags=re.MULTILINE))

    empty = render(HttpMetrics(), BoardFigures()).decode()
    assert {name for name in names(everything()) if not name.endswith("_created")} == names(empty)


def test_a_models_name_may_have_any_characters() -> None:
    lines = everything().splitlines()
    labels = 'model="house/style:v2",worker="fake"'
    for line in (
        f"denoised_rows_total{{{labels}}} 5.0",
        f'denoised_step_seconds_bucket{{le="0.05",{labels}}} 0.0',
        f'denoised_step_seconds_bucket{{le="0.1",{labels}}} 1.0',
        f'denoised_step_seconds_bucket{{le="+Inf",{labels}}} 1.0',
        'denoised_eta_ratio_sum{model="house/style:v2",told="running",worker="fake"} 1.2',
        'denoised_jobs_failed_total{code="not_finite",model="house/style:v2"} 1.0',
        'denoised_model_fault{code="checkpoint_missing",model="broken",worker="fake"} 1.0',
        'denoised_jobs_resumed_total{worker="fake"} 3.0',
        'denoised_store_refusals_total{worker="fake"} 0.0',
    ):
        assert line in lines, line


def test_a_histogram_comes_back_as_it_was_counted() -> None:
    counts: dict[str, float] = {}
    for value in (0.5, 1.0, 1.5, 9.0):
        observe(counts, "seconds", "a", value, (1.0, 2.0))
    observe(counts, "seconds", "b<=1:c", 0.5, (1.0, 2.0))
    observe(counts, "seconds_of_others", "a", 0.5, (1.0,))
    found = distributions(counts, "seconds")
    assert set(found) == {"a", "b<=1:c"}
    assert found["a"].buckets == ((1.0, 2), (2.0, 3), (float("inf"), 4))
    assert found["a"].total == 12.0


# --- what is counted, by real processes ------------------------------------------------------------------------------


def total(counts: Counts, name: str) -> tuple[float, float]:
    """How many values were counted, and their sum."""
    found = distributions(counts, name)["fake"]
    return found.buckets[-1][1], found.total


def test_ended_jobs_are_counted_once_whoever_ends_them(fleet: Fleet) -> None:
    fleet.client.hset(key("catalogue"), "fake", fleet.entry.model_dump_json())
    never = fleet.submit(make_submission())[0]
    fleet.board.cancel(never)
    fleet.board.cancel(never)
    first = fleet.start(FAKE_STEP_S="0.02")
    ids = fleet.submit(make_submission(), make_submission(prompt="fault"), make_submission(steps=1000))
    fleet.wait_running(ids[2:])
    fleet.board.cancel(ids[2])
    fleet.wait_ended(ids)
    first.kill()
    counts = fleet.board.ended_counts()["fake"]
    assert counts.by_status == {"succeeded": 1, "failed": 1, "canceled": 2}
    assert counts.by_code == {"not_finite": 1}


def test_what_was_promised_is_compared_with_what_came(fleet: Fleet) -> None:
    worker = fleet.start(FAKE_STEP_S="0.02")
    suspend(fleet.client)
    ids = fleet.submit(*(make_submission(steps=20) for _ in range(3)))
    resume(fleet.client)
    assert fleet.client.exists(*(key("promise", job_id) for job_id in ids)) == 3
    fleet.wait_ended(ids)
    fleet.wait_for(lambda: fleet.beat_of(worker).counters.get("jobs_succeeded") == 3)
    counters = fleet.beat_of(worker).counters
    for told in ("queued", "running"):
        count, ratios = total(counters, f"eta_ratio_{told}")
        assert count == 3
        assert ratios > 0
    assert fleet.client.exists(*(key("promise", job_id) for job_id in ids)) == 0


def test_jobs_that_do_not_succeed_say_nothing_of_promises(fleet: Fleet) -> None:
    worker = fleet.start()
    fleet.wait_ended(fleet.submit(make_submission(prompt="fault")))
    fleet.wait_for(lambda: fleet.beat_of(worker).counters.get("jobs_failed") == 1)
    assert by_model(fleet.beat_of(worker).counters, "eta_ratio_running_sum") == {}


def test_previews_and_recovered_jobs_are_counted(fleet: Fleet) -> None:
    first = fleet.start(FAKE_STEP_S="0.02")
    ids = fleet.submit(make_submission(steps=100, previews=True))
    fleet.wait_running(ids)
    first.kill()
    second = fleet.start(FAKE_STEP_S="0.02")
    fleet.wait_ended(ids)
    fleet.wait_for(lambda: fleet.beat_of(second).counters.get("jobs_succeeded") == 1)
    assert fleet.beat_of(second).counters["jobs_recovered"] == 1
    assert fleet.beat_of(second).counters["previews"] >= 1
