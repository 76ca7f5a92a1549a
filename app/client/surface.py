"""The calls of a client.

Owns their names, arguments and order of steps, once for both clients. How a step is carried out is the driver's.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from pydantic import TypeAdapter

from app.client.conversation import Conversation
from app.client.drivers import AsyncDriver, SyncDriver, call, feed
from app.client.errors import JobFailed, PictureDamaged, Refused, WaitTimeout
from app.client.following import JOB, Follower, job_path
from app.client.request import Picture, Replay, Request, body_of, replay_body_of
from app.client.steps import Do, Feed, Send, Steps
from app.client.values import Image, Job, Model, ModelFault, Preview

_WAIT = {"Prefer": "wait=50"}
_ATTEMPTS = 3
"""Times that a picture is fetched before its damage counts as the server's."""
PAGE_JOBS = 100
_MODEL, _MODEL_FAULT = TypeAdapter(Model), TypeAdapter(ModelFault)


class _Calls:
    """Everything that can be asked of a server. Where a job is meant, its id will do."""

    _conversation: Conversation

    # --- jobs ---

    @call
    def submit(self, request: Request | str, *, idempotency_key: str | None = None) -> Steps[Job]:
        """Queues a job: the body of POST /generate, or a prompt alone. Repeats carry the same Idempotency-Key, so
        there is never a second job; give one of your own if this program may die and ask again."""
        return self._submit(request, idempotency_key)

    @call
    def wait(
        self, job: Job | str, *, progress: Callable[[Job], None] | None = None, timeout_s: float | None = None
    ) -> Steps[Job]:
        """The job when it has ended, however it did. `progress` is told how it stands now, and each change. Raises
        WaitTimeout; the job then goes on."""
        return self._wait(job, progress, timeout_s)

    @call
    def generate(
        self,
        request: Request | str,
        *,
        progress: Callable[[Job], None] | None = None,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Steps[Job]:
        """`submit` and `wait`: the job with its pictures. Raises JobFailed when it ended without."""
        job = yield from self._submit(request, idempotency_key)
        job = yield from self._wait(job, progress, timeout_s)
        if job.status != "succeeded":
            raise JobFailed(job)
        return job

    @call
    def submit_replay(self, replay: Replay | Picture, *, idempotency_key: str | None = None) -> Steps[Job]:
        """Queues the drawing again of a picture, or of a recipe; the job's `replay` is the verdict. As `submit`."""
        return self._post("/replay", functools.partial(replay_body_of, replay), idempotency_key)

    @feed
    def events(self, job: Job | str) -> Feed[Job | Preview]:
        """The job as it is now, then after each change until it has ended, and previews between, if it asked for
        them."""
        return Follower(self._conversation, job)

    @call
    def job(self, job: Job | str) -> Steps[Job]:
        """The job as it is now."""
        return self._job(job)

    @feed
    def jobs(self, *, status: str | None = None) -> Feed[Job]:
        """Your own jobs, newest first; pages are fetched as they are needed."""
        return _Pages(self._conversation, {"status": status} if status else {})

    @call
    def cancel(self, job: Job | str) -> Steps[Job]:
        """Cancels a job that is queued or running; one that has ended is left as it is. Returns how it ended."""
        return self._cancel(job)

    @call
    def erase(self, job: Job | str) -> Steps[None]:
        """Removes a job with its pictures and uploads, canceling it first if need be."""
        try:
            yield from self._cancel(job)
            yield from self._conversation.answer(Send("DELETE", job_path(job)))
        except Refused as refused:
            if refused.code != "job_gone":  # the answer to an attempt that got through was lost
                raise

    # --- pictures ---

    @call
    def download(self, image: Image) -> Steps[bytes]:
        """The file of a picture. Its SHA-256 is that of the job's document; raises PictureDamaged otherwise."""
        return self._download(image)

    @call
    def save(self, image: Image, path: str | os.PathLike[str]) -> Steps[Path]:
        """The file of a picture, written to `path`: the whole of it or nothing. Raises OSError."""
        data = yield from self._download(image)
        yield Do(lambda: _write(Path(path), data))
        return Path(path)

    # --- the server ---

    @call
    def is_ready(self) -> Steps[bool]:
        """The server can draw. Is asked once: raises Unreachable when nobody answers."""
        try:
            yield from self._conversation.with_patience(0.0).document(Send("GET", "/readyz"))
        except Refused as refused:
            if refused.status != 503:
                raise
            return False
        return True

    @call
    def models(self) -> Steps[tuple[Model, ...]]:
        """What the server can draw with."""
        answer = yield from self._ask("GET", "/models")
        return tuple(self._conversation.read(_MODEL, each) for each in answer.get("models", ()))

    @call
    def model_faults(self) -> Steps[tuple[ModelFault, ...]]:
        """For operators: models that a worker could not load, and why."""
        answer = yield from self._ask("GET", "/models")
        return tuple(self._conversation.read(_MODEL_FAULT, each) for each in answer.get("faults", ()))

    @call
    def load_model(self, name: str) -> Steps[dict[str, Any]]:
        """For operators: where a model is in memory once every worker of it has loaded it, or after a minute."""
        return self._ask("POST", f"/models/{quote(name, safe='')}/load", _WAIT)

    @call
    def unload_model(self, name: str) -> Steps[dict[str, Any]]:
        """For operators: where a model is in memory once every worker of it has forgotten it, or after a minute."""
        return self._ask("POST", f"/models/{quote(name, safe='')}/unload", _WAIT)

    @call
    def queues(self) -> Steps[dict[str, Any]]:
        """For operators: `suspended`, and every queue that has jobs."""
        return self._ask("GET", "/admin/queues")

    @call
    def workers(self) -> Steps[dict[str, Any]]:
        """For operators: every worker with the jobs in its hands."""
        return self._ask("GET", "/admin/workers")

    # --- what calls are made of ---

    def _ask(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Steps[dict[str, Any]]:
        """The document at a path. A POST must be one that does no harm when it is done twice."""
        return self._conversation.document(Send(method, path, headers or {}))

    def _submit(self, request: Request | str, idempotency_key: str | None) -> Steps[Job]:
        return self._post("/generate", functools.partial(body_of, request), idempotency_key)

    def _post(self, path: str, read: Callable[[], bytes], idempotency_key: str | None) -> Steps[Job]:
        body: bytes = yield Do(read)
        key = idempotency_key or str(uuid.uuid4())
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        document = yield from self._conversation.document(Send("POST", path, headers, body))
        return self._conversation.read(JOB, document)

    def _job(self, job: Job | str) -> Steps[Job]:
        document = yield from self._ask("GET", job_path(job))
        return self._conversation.read(JOB, document)

    def _wait(self, job: Job | str, progress: Callable[[Job], None] | None, timeout_s: float | None) -> Steps[Job]:
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        follower = Follower(self._conversation, job, until)
        while (news := (yield from follower.next())) is not None:
            if progress and isinstance(news, Job):
                progress(news)
        assert follower.job is not None, "a follower ended before it knew the job. This is a bug."
        if not follower.job.is_ended:
            raise WaitTimeout(follower.job)
        return follower.job

    def _cancel(self, job: Job | str) -> Steps[Job]:
        document = yield from self._ask("POST", f"{job_path(job)}/cancel")
        return self._conversation.read(JOB, document)

    def _download(self, image: Image) -> Steps[bytes]:
        for _ in range(_ATTEMPTS):
            answer = yield from self._conversation.answer(Send("GET", image.url))
            if (yield Do(functools.partial(_sha256, answer.body))) == image.sha256:
                return answer.body
        raise PictureDamaged(f"{image.url} came {_ATTEMPTS} times with another SHA-256 than the job's document says.")


class Client(_Calls, SyncDriver):
    """A client whose calls block."""


class AsyncClient(_Calls, AsyncDriver):
    """The same client with coroutines and asynchronous iterators."""


class _Pages:
    """The jobs of GET /jobs, one after the other."""

    def __init__(self, conversation: Conversation, query: Mapping[str, str]) -> None:
        self._conversation = conversation
        self._query: dict[str, str] | None = {"limit": str(PAGE_JOBS), **query}
        self._jobs: deque[Job] = deque()

    def next(self) -> Steps[Job | None]:
        while not self._jobs and self._query:
            page = yield from self._conversation.document(Send("GET", f"/jobs?{urlencode(self._query)}"))
            self._jobs.extend(self._conversation.read(JOB, each) for each in page.get("jobs", ()))
            cursor = page.get("next_cursor")
            self._query = {**self._query, "cursor": cursor} if cursor else None
        return self._jobs.popleft() if self._jobs else None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Whoever reads `path` meanwhile sees what was there before, or all of it."""
    path = path.resolve()  # where a link leads to
    part = path.with_name(f".{uuid.uuid4().hex}.part")  # whatever the length of its name
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        error.filename = str(path)  # whoever reads this has never heard of the other
        raise
    finally:
        part.unlink(missing_ok=True)
