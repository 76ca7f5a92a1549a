"""Reading jobs: many records in one round trip, and a tenant's index page by page.

Owns how a job's status is told from what lies in Redis. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import redis
from rq.job import Job

from workers.contract import JobView, Status, created_at_of, key
from workers.jobkeys import read_progress, read_record, text
from workers.webhooks import read_states


def read_views(client: redis.Redis, job_ids: Sequence[str]) -> list[JobView | None]:
    """Views without place and ETA of queued jobs; None for an unknown id. One transaction, three commands a job."""
    with client.pipeline() as pipe:
        for job_id in job_ids:
            pipe.hgetall(key("job", job_id))
            pipe.hgetall(key("progress", job_id))
            pipe.hget(Job.key_for(job_id), "status")
        answers = pipe.execute()
    views: list[JobView | None] = []
    for fields, progress_fields, rq_status in zip(answers[::3], answers[1::3], answers[2::3], strict=True):
        record = read_record(fields)
        if record is None:
            views.append(None)
            continue
        status: Status = "running" if rq_status == b"started" else "queued"
        if record.outcome:
            status = record.outcome.status
        progress = None if status == "queued" else read_progress(progress_fields)
        eta_s = progress.eta_s if progress and status == "running" else None
        views.append(JobView(record=record, status=status, progress=progress, eta_s=eta_s))
    return _with_webhooks(client, views)


def _with_webhooks(client: redis.Redis, views: list[JobView | None]) -> list[JobView | None]:
    """A second round trip, if any of them has one."""
    telling = [view.record.id for view in views if view is not None and view.record.submission.webhook is not None]
    states = dict(zip(telling, read_states(client, telling), strict=True))
    return [
        view.model_copy(update={"webhook": states[view.record.id]}) if view and view.record.id in states else view
        for view in views
    ]


def older_ids(client: redis.Redis, index: str, cursor: str | None, count: int) -> list[str]:
    """Up to `count` ids of an index that come after `cursor`, newest first.

    Ids sort by their time, so those of one millisecond have an order too. Raises ValueError when the cursor is no id.
    """
    if cursor is None:
        return [text(raw) for raw in client.zrevrange(index, 0, count - 1)]
    newest = created_at_of(cursor)
    if newest is None:
        raise ValueError("the cursor is not one of ours")
    older: list[str] = []
    offset = 0
    while len(older) < count:
        ids = [text(raw) for raw in client.zrevrangebyscore(index, newest, "-inf", start=offset, num=count)]
        older += [job_id for job_id in ids if job_id < cursor]
        if len(ids) < count:
            break
        offset += count
    return older[:count]
