"""A small client of the HTTP API, for the command line.

Owns one connection pool, and the translation of every way an answer can fail into two exceptions. Knows nothing of
terminals or files.

    ClientError
    ├── Refused       the server answered with a problem document
    └── Unreachable   no answer, or none of ours
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2

from workers.contract import ENDED

DEFAULT_SERVER = "http://127.0.0.1:8000"
_POLL_S = 0.5
_WAIT = {"Prefer": "wait=50"}
_PATIENCE_S = 30.0
"""Seconds that a job is followed without any answer before the server counts as gone."""


class ClientError(Exception):
    """The message is a sentence for people."""


class Refused(ClientError):
    """The server refused, and said why."""

    def __init__(self, status: int, code: str, detail: str, retry_after_s: float | None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class Unreachable(ClientError):
    """Nobody answers, or somebody who is not denoised."""


class Client:
    """Talks to one server. Use it in a `with` block."""

    def __init__(self, server: str = DEFAULT_SERVER, key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.server = server.rstrip("/")
        self._http = httpx2.Client(
            base_url=self.server,
            headers=headers,
            timeout=httpx2.Timeout(60.0, connect=2.0),
            trust_env=not _is_loopback(server),  # no proxy stands between this machine and itself
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def is_ready(self) -> bool:
        """The server answers and can draw. Raises ClientError with the reason when it cannot, or is not there."""
        return self._json("GET", "/readyz").get("status") == "ready"

    def submit(self, body: dict[str, Any], idempotency_key: str) -> dict[str, Any]:
        """The job document of a new job; repeating the call with the same key makes no second job."""
        return self._json("POST", "/generate", json=body, headers={"Idempotency-Key": idempotency_key})

    def replay(self, body: dict[str, Any], idempotency_key: str) -> dict[str, Any]:
        """The job document of a picture drawn again; its `replay` is the verdict once it has succeeded."""
        return self._json("POST", "/replay", json=body, headers={"Idempotency-Key": idempotency_key})

    def job(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", f"/jobs/{job_id}")

    def cancel(self, job_id: str) -> None:
        self._request("DELETE", f"/jobs/{job_id}")

    def models(self) -> dict[str, Any]:
        """`models`, and for operators `faults`: those that a worker could not load."""
        return self._json("GET", "/models")

    def load_model(self, name: str) -> dict[str, Any]:
        """Where a model is in memory once every worker of it has loaded it, or after a minute."""
        return self._json("POST", f"/models/{quote(name)}/load", headers=_WAIT)

    def unload_model(self, name: str) -> dict[str, Any]:
        """Where a model is in memory once every worker of it has forgotten it, or after a minute."""
        return self._json("POST", f"/models/{quote(name)}/unload", headers=_WAIT)

    def queues(self) -> dict[str, Any]:
        """For operators: `suspended`, and every queue that has jobs."""
        return self._json("GET", "/admin/queues")

    def workers(self) -> dict[str, Any]:
        """For operators: every worker with the jobs in its hands."""
        return self._json("GET", "/admin/workers")

    def image(self, path: str) -> bytes:
        """The bytes of one finished picture; `path` is the `url` of the job document."""
        return self._request("GET", path).content

    def follow(self, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The job document each time it changed, the final one last: by its event stream, else by asking."""
        job_id, news = document["id"], document
        yield news
        try:
            for news in self._stream(document):
                yield news
        except (ClientError, httpx2.HTTPError, ValueError):
            pass  # whatever is wrong with the stream, asking for the document tells how the job stands
        while news["status"] not in ENDED:
            news = self._ask_patiently(job_id)
            yield news
            if news["status"] not in ENDED:
                time.sleep(_POLL_S)

    def _stream(self, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with self._http.stream("GET", document["links"]["events"], headers={"Accept": "text/event-stream"}) as response:
            if response.status_code != 200:
                return
            for name, data in parse_events(response.iter_lines()):
                if name == "progress":
                    document = merge_progress(document, data)
                elif "status" in data:
                    document = data
                else:
                    continue
                yield document

    def _ask_patiently(self, job_id: str) -> dict[str, Any]:
        end = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self.job(job_id)
            except Unreachable:
                if time.monotonic() > end:
                    raise
            except Refused as error:
                if error.status != 503 or time.monotonic() > end:
                    raise
            time.sleep(_POLL_S)

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = self._request(method, path, **options)
        try:
            value = answer.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Unreachable(f"{self.server} answers, but not as a denoised server. Check the address.")
        return value

    def _request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx2.InvalidURL as error:
            raise Unreachable(f"{self.server!r} is no URL: {error}.") from error
        except httpx2.HTTPError as error:
            raise Unreachable(f"No answer from {self.server}: {str(error) or type(error).__name__}.") from error
        if response.is_success:
            return response
        raise self._refusal(response)

    def _refusal(self, response: httpx2.Response) -> ClientError:
        try:
            problem = response.json()
            detail, code = str(problem["detail"]), str(problem["code"])
        except (ValueError, KeyError, TypeError):
            return Unreachable(
                f"{self.server} answers {response.status_code}, but not as a denoised server. Check the address."
            )
        for field in problem.get("errors") or ():
            if field["detail"] not in detail:
                detail += f" [{field['pointer'].lstrip('/')}: {field['detail']}]"
        wait = response.headers.get("Retry-After", "")
        return Refused(response.status_code, code, detail, float(wait) if wait.isdigit() else None)


def parse_events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(event name, JSON data) of a server-sent event stream; comments and events without an object are left out."""
    name = "message"
    data: list[str] = []
    for line in lines:
        if not line:
            value = json.loads("\n".join(data)) if data else None
            if isinstance(value, dict):
                yield name, value
            name, data = "message", []
            continue
        field, _, text = line.partition(":")
        text = text.removeprefix(" ")
        if field == "event":
            name = text
        elif field == "data":
            data.append(text)


def merge_progress(document: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """The document with a `progress` event's news in it."""
    news: dict[str, Any] = {key: data[key] for key in ("eta_s", "queue_position") if key in data}
    if data.get("steps"):
        news["progress"] = {"step": data["step"], "steps": data["steps"]}
    return {**document, **news}


def _is_loopback(server: str) -> bool:
    try:
        host = httpx2.URL(server).host
    except httpx2.InvalidURL:
        return False
    return host in ("localhost", "::1") or host.startswith("127.")
