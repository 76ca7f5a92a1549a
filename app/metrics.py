"""Figures for Prometheus.

Owns their names. HTTP figures are counted here, in a registry that one application owns; queue and worker figures are
read from the board when they are asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.contract import WorkerBeat

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
        self._streams: dict[str, int] = {}
        gauge = Gauge("denoised_event_streams", "Event streams that are open now.", registry=self.registry)
        gauge.set_function(lambda: self.open_streams)

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts one answer. Unknown methods share one label, so that clients cannot make new ones."""
        known = method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "OTHER"
        self._requests.labels(route, known, str(status)).inc()
        self._seconds.labels(route, known).observe(seconds)

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


@dataclass(frozen=True)
class BoardFigures:
    """What the board knew at one moment."""

    queued: dict[tuple[str, str], int] = field(default_factory=dict)
    """(model, priority) -> queued jobs."""
    oldest_wait_s: dict[tuple[str, str], float] = field(default_factory=dict)
    beats: Sequence[WorkerBeat] = ()
    is_redis_up: bool = True


def render(metrics: HttpMetrics, figures: BoardFigures) -> bytes:
    """The exposition text of both."""
    board = CollectorRegistry()
    board.register(_BoardCollector(figures))
    return generate_latest(metrics.registry) + generate_latest(board)


class _BoardCollector(Collector):
    def __init__(self, figures: BoardFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("denoised_redis_up", "1 while Redis answers.", value=float(self._figures.is_redis_up))
        yield from self._queues()
        yield from self._workers()

    def _queues(self) -> Iterator[Metric]:
        labels = ("model", "priority")
        queued = GaugeMetricFamily("denoised_queued_jobs", "Jobs that wait.", labels=labels)
        for names, count in self._figures.queued.items():
            queued.add_metric(names, count)
        oldest = GaugeMetricFamily(
            "denoised_oldest_wait_seconds", "Age of the job that has waited longest.", labels=labels
        )
        for names, seconds in self._figures.oldest_wait_s.items():
            oldest.add_metric(names, seconds)
        yield from (queued, oldest)

    def _workers(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("denoised_worker_up", "1 for each living worker.", labels=("worker", "state"))
        seen = GaugeMetricFamily("denoised_worker_beat_timestamp_seconds", "Last heartbeat.", labels=("worker",))
        totals = CounterMetricFamily(
            "denoised_worker_events", "What a worker has counted since it started.", labels=("worker", "event")
        )
        labels = ("worker", "model")
        loads = {
            "loaded": GaugeMetricFamily("denoised_model_loaded", "1 while in memory.", labels=labels),
            "slots": GaugeMetricFamily("denoised_model_slots", "Pictures in the batch.", labels=labels),
            "rows_per_step": GaugeMetricFamily(
                "denoised_model_rows_per_step", "Rows of a network call.", labels=labels
            ),
            "step_s": GaugeMetricFamily("denoised_model_step_seconds", "Seconds of a step.", labels=labels),
            "cost_in_flight": GaugeMetricFamily(
                "denoised_model_cost_in_flight", "Row-steps still to do in the batch.", labels=labels
            ),
            "cost_per_s": GaugeMetricFamily("denoised_model_cost_per_second", "Row-steps a second.", labels=labels),
        }
        for beat in self._figures.beats:
            up.add_metric((beat.name, beat.state), 1)
            seen.add_metric((beat.name,), beat.beat_at)
            for event, count in beat.counters.items():
                totals.add_metric((beat.name, event), count)
            for model, load in beat.models.items():
                for name, family in loads.items():
                    value = getattr(load, name)
                    if value is not None:
                        family.add_metric((beat.name, model), float(value))
        yield from (up, seen, totals, *loads.values())
        yield from _ceilings(self._figures.beats)


def _ceilings(beats: Sequence[WorkerBeat]) -> Iterator[Metric]:
    """What memory allows: below its limit a ceiling was lowered by out-of-memory and is on its way back."""
    labels = ("worker", "model", "shape", "tokens", "strict")
    rows = GaugeMetricFamily("denoised_row_ceiling", "Rows that a network call may have now.", labels=labels)
    limits = GaugeMetricFamily("denoised_row_ceiling_limit", "What the ceiling may grow back to.", labels=labels)
    for beat in beats:
        for ceiling in beat.ceilings:
            shape = "x".join(map(str, ceiling.shape))
            names = (beat.name, ceiling.model, shape, str(ceiling.context_length), str(int(ceiling.is_strict)))
            rows.add_metric(names, ceiling.rows)
            limits.add_metric(names, ceiling.limit)
    yield from (rows, limits)
