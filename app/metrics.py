"""Figures of the HTTP side for Prometheus, and the exposition of all figures.

HTTP figures are counted here, in a registry that one application owns; those of queues and workers (`app.figures`) are
read from the board when they are asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from app.figures import BoardCollector, BoardFigures

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class HttpMetrics:
    """Requests of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "denoised_http_requests", "Answers by route.", ("route", "method", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "denoised_http_request_seconds",
            "Seconds from request to the end of the answer.",
            ("route", "method"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._webhooks = Counter(
            "denoised_webhook_deliveries",
            "Attempts to tell a webhook something, by how they ended.",
            ("outcome",),
            registry=self.registry,
        )
        self._streams: dict[str, int] = {}
        gauge = Gauge("denoised_event_streams", "Event streams that are open now.", registry=self.registry)
        gauge.set_function(lambda: self.open_streams)

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts one answer. Unknown methods share one label, so that clients cannot make new ones."""
        known = method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "OTHER"
        self._requests.labels(route, known, str(status)).inc()
        self._seconds.labels(route, known).observe(seconds)

    def count_webhook(self, outcome: str) -> None:
        """Counts one attempt."""
        self._webhooks.labels(outcome).inc()

    @contextlib.contextmanager
    def count_stream(self, tenant: str) -> Iterator[None]:
        """One more open event stream of this tenant while the context lasts."""
        self._streams[tenant] = self.streams_of(tenant) + 1
        try:
            yield
        finally:
            self._streams[tenant] -= 1

    @property
    def open_streams(self) -> int:
        """Of all tenants."""
        return sum(self._streams.values())

    def streams_of(self, tenant: str) -> int:
        """Open event streams of one tenant."""
        return self._streams.get(tenant, 0)


def render(metrics: HttpMetrics, figures: BoardFigures) -> bytes:
    """The exposition text of both."""
    board = CollectorRegistry()
    board.register(BoardCollector(figures))
    return generate_latest(metrics.registry) + generate_latest(board)
