"""What webhooks say, in the words of each dialect.

Owns the words of our own API; a dialect brings its own (`Dialect.webhook_body`). Knows nothing of how bodies are sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType

from app.documents import job_document, moment
from app.schemas import JobDocument
from workers.contract import JobView, WebhookEvent


def native_body(event: WebhookEvent, at: float, view: JobView, base_url: str) -> bytes:
    """`job.started`, `job.progress` or `job.ended`, and the job's document with absolute addresses. What is known of
    the webhook itself is left out, so the body is the same at every attempt."""
    document = with_absolute_addresses(job_document(view), base_url)
    message = {
        "type": f"job.{event}",
        "timestamp": _written(moment(at)),
        "data": document.model_dump(mode="json", exclude={"webhook"}),
    }
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


Render = Callable[[WebhookEvent, float, JobView, str], bytes]
"""Event, when it happened (Unix seconds), the job as it was then, and what absolute addresses begin with."""


NATIVE = "native"
"""In whose words a webhook of our own API speaks."""


def bodies_of(dialects: Mapping[str, Render | None]) -> Mapping[str, Render]:
    """Dialect -> its words, or ours where it has none; and our own."""
    return MappingProxyType({NATIVE: native_body, **{name: own or native_body for name, own in dialects.items()}})


def with_absolute_addresses(document: JobDocument, base_url: str) -> JobDocument:
    """The document for somebody who does not know which server it came from."""
    root = base_url.rstrip("/")
    images = tuple(image.model_copy(update={"url": root + image.url}) for image in document.images)
    links = {name: root + path for name, path in document.links.model_dump().items()}
    return document.model_copy(update={"images": images, "links": document.links.model_copy(update=links)})


def _written(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
