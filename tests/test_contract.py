"""What crosses Redis comes out of it as it went in, names of keys never meet, and no garbage stops a reader."""

from __future__ import annotations

import json
import math
import string
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rq import Queue

from app.documents import job_document
from models.request import MAX_SEED, TextToImageRequest
from workers.contract import (
    PRIORITIES,
    Delivery,
    JobError,
    JobRecord,
    JobView,
    ModelDefaults,
    ModelEntry,
    ModelLoad,
    Outcome,
    Picture,
    SamplerEntry,
    Submission,
    Timings,
    Value,
    Webhook,
    Wish,
    WorkerBeat,
    created_at_of,
    is_queue_of,
    key,
    new_job_id,
    queue_name,
    slug,
)
from workers.jobkeys import job_keys, new_record, read_progress, read_record, record_fields
from workers.views import read_views

FEW = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(FEW, max_examples=300)

TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["", "\0", "\r\n", "a:b", "a.b.c", "../..", "null", "NaN", "a pear \U0001f350", "\u202eright"]),
)
TENANTS = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=64)
NAMES = st.one_of(TEXTS, TENANTS, TEXTS.map(slug), TEXTS.map(slug).map(slug))
TIMES = st.floats(0, 2.0**37, exclude_max=True)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(-(2**80), 2**80)
JOB_IDS = st.builds("{:012x}{:032x}".format, st.integers(0, 2**42), st.integers(0, 2**128 - 1))

REQUESTS = st.builds(
    TextToImageRequest,
    model=NAMES,
    prompt=TEXTS,
    negative_prompt=st.none() | TEXTS,
    width=st.integers(1, 2**60).map(lambda side: 8 * side),
    height=st.integers(1, 2**60).map(lambda side: 8 * side),
    num_inference_steps=st.integers(1, 2**70),
    guidance_scale=st.floats(0, allow_infinity=False),
    guidance_rescale=st.floats(0, 1),
    sampler=TEXTS,
    noise_schedule=TEXTS,
    seed=st.integers(0, MAX_SEED),
    num_images=st.integers(1, 2**70),
)
WEBHOOKS = st.builds(
    Webhook,
    events=st.lists(st.sampled_from(["started", "progress", "ended"]), max_size=3).map(tuple),
    **dict.fromkeys(["url", "host", "dialect", "base_url"], TEXTS),
)
SUBMISSIONS = st.builds(
    Submission,
    tenant=TENANTS,
    request=REQUESTS,
    delivery=st.builds(Delivery, output_format=st.sampled_from(["png", "jpeg", "webp"]), previews=st.booleans()),
    priority=st.sampled_from(PRIORITIES),
    deadline_s=st.none() | NUMBERS,
    traceparent=st.none() | TEXTS,
    request_id=st.none() | TEXTS,
    webhook=st.none() | WEBHOOKS,
)
ERRORS = st.builds(JobError, code=TEXTS, detail=TEXTS)
PICTURES = st.builds(
    Picture,
    file=TEXTS,
    seed=COUNTS,
    width=COUNTS,
    height=COUNTS,
    sha256=TEXTS,
    size_bytes=COUNTS,
    media_type=TEXTS,
)
OUTCOMES = st.builds(
    Outcome,
    status=st.sampled_from(["succeeded", "failed", "canceled"]),
    pictures=st.lists(PICTURES, max_size=3).map(tuple),
    error=st.none() | ERRORS,
    reproducibility=st.sampled_from([None, "standard", "strict"]),
    timings=st.builds(Timings, queued_s=st.none() | NUMBERS, total_s=st.none() | NUMBERS),
    ended_at=TIMES,
    execution=st.none() | TEXTS,
    resumed_from_step=st.none() | COUNTS,
)
LOADS = st.builds(
    ModelLoad,
    loaded=st.booleans(),
    warmed=st.booleans(),
    cost_per_s=st.none() | NUMBERS,
    cost_in_flight=NUMBERS,
    slots=COUNTS,
    step_s=st.none() | NUMBERS,
)
BEATS = st.builds(
    WorkerBeat,
    name=TEXTS,
    beat_at=TIMES,
    started_at=TIMES,
    pid=COUNTS,
    host=TEXTS,
    state=st.sampled_from(["loading", "running", "draining"]),
    models=st.dictionaries(NAMES, LOADS, max_size=3),
    faults=st.dictionaries(NAMES, ERRORS, max_size=2),
    wishes=st.dictionaries(NAMES, TEXTS, max_size=2),
    counters=st.dictionaries(TEXTS, NUMBERS, max_size=4),
)
ENTRIES = st.builds(
    ModelEntry,
    name=NAMES,
    tasks=st.lists(TEXTS, max_size=3).map(tuple),
    defaults=st.builds(
        ModelDefaults,
        width=COUNTS,
        height=COUNTS,
        num_inference_steps=COUNTS,
        guidance_scale=NUMBERS,
        sampler=TEXTS,
        noise_schedule=TEXTS,
        noise_level=st.none() | COUNTS,
    ),
    size_multiple=st.integers(1, 2**40),
    **dict.fromkeys(["min_size", "max_size", "max_pixels", "max_images", "token_limit", "window_tokens"], COUNTS),
    loras=st.lists(TEXTS, max_size=3).map(tuple),
    samplers=st.lists(
        st.builds(
            SamplerEntry,
            name=TEXTS,
            description=TEXTS,
            noise_schedules=st.lists(TEXTS, max_size=2).map(tuple),
            max_steps=COUNTS,
        ),
        max_size=2,
    ).map(tuple),
    sampler_aliases=st.dictionaries(TEXTS, st.tuples(TEXTS, TEXTS), max_size=3),
    **dict.fromkeys(["prediction_type", "device", "dtype", "digest"], TEXTS),
)
RECORDS = st.builds(new_record, JOB_IDS, SUBMISSIONS, TIMES, st.floats(0, 1e300))


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [SUBMISSIONS, OUTCOMES, BEATS, ENTRIES, st.builds(Wish, id=TEXTS, action=st.sampled_from(["load", "unload"]))],
    ids=["Submission", "Outcome", "WorkerBeat", "ModelEntry", "Wish"],
)
@FEW
@given(data=st.data())
def test_any_value_comes_out_of_redis_as_it_went_in(
    redis_client: redis.Redis, values: st.SearchStrategy[Value], data: st.DataObject
) -> None:
    value = data.draw(values)
    redis_client.hset("a hash", "a field", value.model_dump_json())
    raw: Any = redis_client.hget("a hash", "a field")
    assert type(value).model_validate_json(raw) == value


@FEW
@given(record=RECORDS, companions=st.lists(TENANTS, max_size=3), outcome=st.none() | OUTCOMES, data=st.data())
def test_any_record_comes_out_of_redis_as_it_went_in(
    redis_client: redis.Redis, record: JobRecord, companions: list[str], outcome: Outcome | None, data: st.DataObject
) -> None:
    whole = record.model_copy(
        update={
            "started_at": data.draw(st.none() | TIMES),
            "warnings": tuple(data.draw(st.lists(TEXTS, max_size=3))),
            "execution": data.draw(st.none() | TEXTS),
            "outcome": outcome,
            **{name: data.draw(COUNTS) for name in ("claims", "deaths", "reached", "best_step")},
        }
    )
    redis_client.delete("a record")
    redis_client.hset("a record", mapping=record_fields(record, companions))
    redis_client.hset("a record", mapping=as_the_scripts_write(whole))
    assert read_record(redis_client.hgetall("a record")) == whole  # type: ignore[arg-type]


def as_the_scripts_write(record: JobRecord) -> dict[str, str]:
    """The fields of a record that come after its first writing."""
    fields: dict[str, Any] = {
        "started_at": record.started_at,
        "warnings": json.dumps(record.warnings) if record.warnings else None,
        "execution": record.execution,
        "outcome": record.outcome and record.outcome.model_dump_json(),
        **{name: getattr(record, name) for name in ("claims", "deaths", "reached", "best_step")},
    }
    return {name: str(value) for name, value in fields.items() if value is not None}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_write_makes_no_value(number: float) -> None:
    with pytest.raises(ValidationError):
        ModelLoad(loaded=True, warmed=True, cost_per_s=number)
    with pytest.raises(ValidationError):
        Outcome(status="failed", ended_at=number)


def test_an_error_that_names_a_file_whose_name_is_not_utf8_can_be_written() -> None:
    name = b"caf\xe9.safetensors".decode(errors="surrogateescape")
    error = JobError(code="checkpoint_missing", detail=f"There is no {name}.")
    assert JobError.model_validate_json(error.model_dump_json()) == error
    assert error.detail == "There is no caf\\udce9.safetensors."


# --- names -----------------------------------------------------------------------------------------------------------


@MANY
@given(one=NAMES, other=NAMES)
@example(one="a b", other=slug("a b"))
@example(one="a b", other="a_b")
@example(one="a b", other="a.b")
@example(one=slug("a b"), other=slug(slug("a b")))
def test_different_names_have_different_queues_that_stay_in_their_place(one: str, other: str) -> None:
    assert set(slug(one)) <= set(string.ascii_letters + string.digits + "_-")
    assert (slug(one) == slug(other)) == (one == other)


@MANY
@given(models=st.tuples(NAMES, NAMES), tenants=st.tuples(TENANTS, TENANTS), data=st.data())
def test_no_two_queues_share_a_name_and_each_is_known_as_its_models(
    models: tuple[str, str], tenants: tuple[str, str], data: st.DataObject
) -> None:
    priorities = data.draw(st.tuples(st.sampled_from(PRIORITIES), st.sampled_from(PRIORITIES)))
    one, other = zip(models, priorities, tenants, strict=True)
    assert (queue_name(*one) == queue_name(*other)) == (one == other)
    assert is_queue_of(queue_name(*one), models[0])
    assert is_queue_of(queue_name(*one), models[1]) == (models[0] == models[1])


@MANY
@given(records=st.tuples(RECORDS, RECORDS))
def test_the_keys_of_two_jobs_meet_only_where_they_share_something(records: tuple[JobRecord, JobRecord]) -> None:
    one, other = records
    keys = job_keys(one)
    assert len(set(keys)) == len(keys)
    shared = {"events", "webhooks"}
    if one.submission.tenant == other.submission.tenant:
        shared |= {"tenant_index"}
    if one.submission.request.model == other.submission.request.model:
        shared |= {"costs", "queues", "doorbell", "suspects", "ended"}
    if one.queue == other.queue:
        shared |= {"queue", "intermediate", "lease", "canceled", "urgent"}
    if one.id == other.id:
        shared |= {"rq_job", "record", "progress", "preview", "gone", "webhook"}
    met = {name for name, mine in keys._asdict().items() if mine in job_keys(other)}
    assert met == shared


@MANY
@given(model=NAMES, tenant=TENANTS)
def test_a_queue_of_any_model_is_one_that_rq_takes(model: str, tenant: str) -> None:
    name = queue_name(model, "normal", tenant)
    assert Queue(name, connection=redis.Redis()).key == f"rq:queue:{name}"
    assert name.count(".") == 2
    assert key("costs", model).startswith("denoised:costs:")


@MANY
@given(text=st.one_of(TEXTS, JOB_IDS, JOB_IDS.map(lambda job_id: job_id + "\n"), JOB_IDS.map(str.upper)))
def test_only_what_we_make_is_an_id(text: str) -> None:
    is_ours = len(text) == 44 and set(text) <= set("0123456789abcdef")
    assert (created_at_of(text) is not None) == is_ours
    assert created_at_of(new_job_id()) is not None


# --- garbage ---------------------------------------------------------------------------------------------------------

FIELDS = st.sampled_from([*JobRecord.model_fields, "tenant", "companions", "eta_s", "step", "steps"])
GARBAGE = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"nan", b"inf", b"1e300", b"-1", b"null", b"[]", b"{}", b"[" * 100_000, b"9" * 5000, b"\xff"]),
    st.sampled_from(
        [b'["a"]', b"[1]", b'{"status": "failed", "ended_at": 1e300}', b'{"status":"failed","ended_at":1}']
    ),
)
HASHES = st.dictionaries(st.one_of(FIELDS.map(str.encode), st.binary(max_size=8)), GARBAGE, max_size=6)


@MANY
@given(garbage=HASHES)
@example(garbage={b"submission": b"x", b"id": b"\xff"})
@example(garbage={b"warnings": b"[" * 100_000})
@example(garbage={b"created_at": b"nan"})
@example(garbage={b"\xff": b""})
def test_garbage_in_a_record_is_no_job_or_one_that_can_be_shown(garbage: dict[bytes, bytes]) -> None:
    read_record(garbage)
    sound = new_record(new_job_id(), Submission(tenant="local", request=A_REQUEST), 1.0, 1.0)
    fields = {name.encode(): value.encode() for name, value in record_fields(sound).items()}
    record = read_record(fields | garbage)
    progress = read_progress(garbage)
    if record is not None:
        job_document(JobView(record=record, status="running", progress=progress)).model_dump_json()


def test_a_page_of_jobs_shows_those_that_can_be_read(redis_client: redis.Redis) -> None:
    records = [new_record(new_job_id(), Submission(tenant="local", request=A_REQUEST), 1.0, 1.0) for _ in range(3)]
    for record in records:
        redis_client.hset(key("job", record.id), mapping=record_fields(record))
    redis_client.hset(key("job", records[1].id), "created_at", "nan")
    redis_client.hset(key("progress", records[2].id), mapping={"step": "many"})
    redis_client.hset(f"rq:job:{records[2].id}", "status", "started")
    first, second, third = read_views(redis_client, [record.id for record in records])
    assert first is not None
    assert second is None
    assert third is not None
    assert third.progress is None


A_REQUEST = TextToImageRequest(
    model="first",
    prompt="a pear",
    width=64,
    height=64,
    num_inference_steps=2,
    guidance_scale=1.0,
    sampler="ddim",
    noise_schedule="default",
    seed=1,
    num_images=1,
)
