"""Figures of queues and workers for Prometheus.

Owns their names, units and labels, and how they are read from what the board knows at one moment. docs/operations.md
has the same names in a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from models.counts import by_model, distributions
from workers.board import EndedCounts, QueueDepth
from workers.contract import ModelLoad, Priority, WorkerBeat

_OF_WORKERS = {
    "oom_splits": ("denoised_oom_splits", "Calls that did not fit into memory and were tried again smaller."),
    "jobs_resumed": ("denoised_jobs_resumed", "Jobs that were taken up again where another worker had left them."),
    "jobs_recovered": ("denoised_jobs_recovered", "Jobs of silent workers that were queued again."),
    "previews": ("denoised_previews", "Previews that were shown."),
    "store_refusals": ("denoised_store_refusals", "Reads and writes of files that the store refused."),
}
"""Counts of a worker (`WorkerBeat.counters`) and what they are called here, without `_total`."""
_OF_MODELS = {
    "steps": ("denoised_steps", "Calls of the denoising network."),
    "rows": ("denoised_rows", "Rows of these calls; a guided picture takes two."),
    "rows_allowed": ("denoised_rows_allowed", "Rows that these calls could have had."),
    "slot_steps": ("denoised_picture_steps", "Steps that pictures, or tiles of them, have taken."),
    "decode_seconds": ("denoised_decode_seconds", "Seconds of decoding."),
    "decoded_pictures": ("denoised_decoded_pictures", "Pictures, or tiles of them, that were decoded."),
}
"""The same for counts of one model on a worker."""
_LOADS = {
    "loaded": ("denoised_model_loaded", "1 while in memory."),
    "slots": ("denoised_model_slots", "Pictures, or tiles of them, in the batch."),
    "cost_in_flight": ("denoised_model_cost_in_flight", "Row-steps still to do in the batch."),
    "cost_per_s": ("denoised_model_cost_per_second", "Row-steps a second, a running average."),
}
"""Fields of ModelLoad."""


@dataclass(frozen=True)
class BoardFigures:
    """What the board knew at one moment."""

    queues: Mapping[tuple[str, Priority], QueueDepth] = field(default_factory=dict)
    """By (model, priority)."""
    ended: Mapping[str, EndedCounts] = field(default_factory=dict)
    """By model."""
    beats: Sequence[WorkerBeat] = ()
    is_redis_up: bool = True
    webhooks_pending: int | None = None


class BoardCollector(Collector):
    """The figures of one moment, for one exposition. A family without a value is there with its name all the same."""

    def __init__(self, figures: BoardFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("denoised_redis_up", "1 while Redis answers.", value=float(self._figures.is_redis_up))
        pending = GaugeMetricFamily("denoised_webhooks_pending", "Jobs whose webhook has not told everything yet.")
        if self._figures.webhooks_pending is not None:
            pending.add_metric((), self._figures.webhooks_pending)
        yield pending
        yield from self._queues()
        yield from self._ended()
        yield from self._workers()
        yield from self._counts()
        yield from self._histograms()
        yield from self._models()
        yield from self._ceilings()

    def _queues(self) -> Iterator[Metric]:
        labels = ("model", "priority")
        queued = GaugeMetricFamily("denoised_queued_jobs", "Jobs that wait.", labels=labels)
        oldest = GaugeMetricFamily(
            "denoised_oldest_wait_seconds", "Age of the job that has waited longest.", labels=labels
        )
        for names, depth in self._figures.queues.items():
            queued.add_metric(names, depth.queued)
            oldest.add_metric(names, depth.oldest_wait_s)
        yield from (queued, oldest)

    def _ended(self) -> Iterator[Metric]:
        """Counted in Redis where a job gets its outcome, whoever ends it: exact, and outliving workers."""
        ended = CounterMetricFamily("denoised_jobs_ended", "Jobs that have ended.", labels=("model", "status"))
        failed = CounterMetricFamily("denoised_jobs_failed", "Failed jobs by error code.", labels=("model", "code"))
        for model, counts in self._figures.ended.items():
            for status, count in counts.by_status.items():
                ended.add_metric((model, status), count)
            for code, count in counts.by_code.items():
                failed.add_metric((model, code), count)
        yield from (ended, failed)

    def _workers(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("denoised_worker_up", "1 for each living worker.", labels=("worker", "state"))
        seen = GaugeMetricFamily("denoised_worker_beat_timestamp_seconds", "Last heartbeat.", labels=("worker",))
        for beat in self._figures.beats:
            up.add_metric((beat.name, beat.state), 1)
            seen.add_metric((beat.name,), beat.beat_at)
        yield from (up, seen)

    def _counts(self) -> Iterator[Metric]:
        for count, (name, help_text) in _OF_WORKERS.items():
            family = CounterMetricFamily(name, help_text, labels=("worker",))
            for beat in self._figures.beats:
                family.add_metric((beat.name,), beat.counters.get(count, 0))
            yield family
        for count, (name, help_text) in _OF_MODELS.items():
            family = CounterMetricFamily(name, help_text, labels=("worker", "model"))
            for beat in self._figures.beats:
                for model, value in by_model(beat.counters, count).items():
                    family.add_metric((beat.name, model), value)
            yield family

    def _histograms(self) -> Iterator[Metric]:
        steps = HistogramMetricFamily(
            "denoised_step_seconds", "Seconds of a call of the denoising network.", labels=("worker", "model")
        )
        ratios = HistogramMetricFamily(
            "denoised_eta_ratio",
            "Seconds that a job took over those it was said to take, when it was queued or began to run; 1 is right.",
            labels=("worker", "model", "told"),
        )
        for beat in self._figures.beats:
            _add(steps, beat, "step_seconds")
            _add(ratios, beat, "eta_ratio_queued", "queued")
            _add(ratios, beat, "eta_ratio_running", "running")
        yield from (steps, ratios)

    def _models(self) -> Iterator[Metric]:
        for field_name, (name, help_text) in _LOADS.items():
            assert field_name in ModelLoad.model_fields, f"A load has no {field_name}. This is a bug."
            family = GaugeMetricFamily(name, help_text, labels=("worker", "model"))
            for beat in self._figures.beats:
                for model, load in beat.models.items():
                    value = getattr(load, field_name)
                    if value is not None:
                        family.add_metric((beat.name, model), float(value))
            yield family
        faults = GaugeMetricFamily(
            "denoised_model_fault", "1 for each model that could not be loaded.", labels=("worker", "model", "code")
        )
        for beat in self._figures.beats:
            for model, fault in beat.faults.items():
                faults.add_metric((beat.name, model, fault.code), 1)
        yield faults

    def _ceilings(self) -> Iterator[Metric]:
        """Below its limit a ceiling was lowered by out-of-memory and is on its way back."""
        labels = ("worker", "model", "shape", "tokens", "strict")
        rows = GaugeMetricFamily("denoised_row_ceiling", "Rows that a network call may have now.", labels=labels)
        limits = GaugeMetricFamily("denoised_row_ceiling_limit", "What the ceiling may grow back to.", labels=labels)
        for beat in self._figures.beats:
            for ceiling in beat.ceilings:
                shape = "x".join(map(str, ceiling.shape))
                names = (beat.name, ceiling.model, shape, str(ceiling.context_length), str(int(ceiling.is_strict)))
                rows.add_metric(names, ceiling.rows)
                limits.add_metric(names, ceiling.limit)
        yield from (rows, limits)


def _add(family: HistogramMetricFamily, beat: WorkerBeat, count: str, *labels: str) -> None:
    for model, found in distributions(beat.counters, count).items():
        buckets = [(floatToGoString(bound), value) for bound, value in found.buckets]
        family.add_metric((beat.name, model, *labels), buckets, found.total)
