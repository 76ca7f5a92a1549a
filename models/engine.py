"""One running batch: admit, step, settle.

Owns which slots exist, whose turn it is, and what happens when a step, a row or a decode fails. Everything about one
picture is in its `Slot`; everything about weights is in its `Checkpoint`; sampler arithmetic is a table. Knows nothing
of queues, files or HTTP. One thread owns an Engine.

A tick is: prepare newcomers, one UNet call for one group of slots, a bounded piece of decoding. Tenants share the time
(`shares`): the call is one in which the tenant has a picture who has had least, and in it each tenant gets as many
pictures as the others; the rest of its rows is for whoever has more, as far as that hardly makes the call longer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog
import torch

from models.batch import step_together
from models.capacity import Capacity, measure_rows, time_call
from models.ceiling import PROBE_AFTER_S, Ceiling, RowLimit
from models.checkpoint import Checkpoint
from models.conditioning import PromptOptions
from models.decode_queue import DecodeQueue
from models.device import is_out_of_memory, is_sticky, release_cached_memory
from models.errors import GenerationError, InternalError, NotFinite, OutOfMemory
from models.meter import LoadFigures, Meter
from models.prepare import (
    Inputs,
    Preparation,
    group_key,
    prepare,
    prompt_options,
    prompts_of,
    rows_of,
    step_table_of,
    warnings_of,
)
from models.request import PictureRequest, UpscaleRequest
from models.shares import NOBODY, Shares, Standing
from models.slot import GroupKey, Slot
from models.snapshot import Snapshot, SnapshotRefused, fingerprint_of, read_snapshot, resume
from models.tiles import Mosaic

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class EngineSettings:
    """Limits of one engine.

    max_rows: UNet rows of one call at a model's own size; a guided picture takes two. `warm_up` finds out how many of
    them are worth it: more than the device needs to be busy only makes each step longer. decode_at_once: pictures
    decoded together when nothing waits for the UNet. prepare_at_once: jobs prepared in one tick, the longest pause
    newcomers may cause. probe_after_s: clean seconds before a ceiling that out-of-memory lowered rises by a row.
    strict_rows: rows of every UNet call for strict pictures, and 2 where more would mostly be filled up; another number
    is another contract.
    """

    max_rows: int = 64
    decode_at_once: int = 8
    prepare_at_once: int = 4
    probe_after_s: float = PROBE_AFTER_S
    strict_rows: int = 4


@dataclass(frozen=True)
class Prepared:
    """The job is in the batch. steps: UNet evaluations of each of its pictures. step: those that a snapshot spared."""

    job_id: str
    steps: int
    warnings: tuple[str, ...]
    step: int = 0


@dataclass(frozen=True)
class Drawn:
    """All pictures of a job, uint8 (H, W, 3) each, in order of their seeds; seconds per phase. is_exact: it was strict,
    and memory sufficed for that."""

    job_id: str
    pictures: tuple[np.ndarray, ...]
    seeds: tuple[int, ...]
    prepare_s: float
    denoise_s: float
    decode_s: float
    is_exact: bool = False


@dataclass(frozen=True)
class Broken:
    """The job cannot be finished; all of it has left the batch."""

    job_id: str
    error: GenerationError


Event = Prepared | Drawn | Broken


@dataclass(eq=False)
class _Job:
    """What the pictures of one request share."""

    id: str
    request: PictureRequest
    checkpoint: Checkpoint
    inputs: Inputs
    standing: Standing
    snapshot: bytes | None = None
    """To go on from."""
    fingerprint: str = ""
    slots: tuple[Slot, ...] = ()
    pictures: dict[int, np.ndarray] = field(default_factory=dict)
    mosaics: dict[int, Mosaic] = field(default_factory=dict)
    """Pictures that are enlarged in tiles and not complete yet."""
    warnings: tuple[str, ...] = ()
    is_exact: bool = False
    """All of it that is drawn by now."""
    admitted_at: float = field(default_factory=time.monotonic)
    prepared_at: float = 0.0
    denoised_at: float = 0.0


class Engine:
    """The running batch of one process. See the module's docstring for the order of things."""

    def __init__(
        self,
        settings: EngineSettings | None = None,
        clock: Callable[[], float] = time.time,
        stopwatch: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: unix seconds, for ceilings that are shared. `stopwatch`: for everything else."""
        self._settings = settings or EngineSettings()
        self._capacity = Capacity(self._settings.max_rows, self._settings.probe_after_s, clock)
        self._meter = Meter()
        self._shares = Shares()
        self._stopwatch = stopwatch
        self._jobs: dict[str, _Job] = {}
        self._newcomers: deque[_Job] = deque()
        self._groups: dict[GroupKey, deque[Slot]] = {}
        """Live slots; the slot at the left end has waited longest. The first group has waited longest, too."""
        self._undecoded = DecodeQueue(self._settings.decode_at_once, self._meter)
        self._busy_since: float | None = None
        """End of the last tick, unless the batch was empty then."""

    # --- what the worker asks -------------------------------------------------------------------------------------

    @property
    def job_ids(self) -> tuple[str, ...]:
        return tuple(self._jobs)

    @property
    def is_idle(self) -> bool:
        return not self._jobs

    @property
    def counters(self) -> dict[str, float]:
        """Monotonic counts since the start, for metrics."""
        return self._meter.counters

    def models_in_use(self) -> frozenset[str]:
        return frozenset(job.checkpoint.name for job in self._jobs.values())

    def has_room(
        self,
        request: PictureRequest,
        checkpoint: Checkpoint,
        tenant: str = "",
        before: Sequence[PictureRequest] = (),
    ) -> bool:
        """True when the rows of one more job of this kind fit into this tenant's share of a call, or it has none of
        this kind here. So a lone tenant fills calls, and another finds room at once. before: requests of this tenant to
        this checkpoint that are on their way into the batch."""
        key = group_key(request, checkpoint)
        slots = (*self._groups.get(key, ()), *self._undecoded.slots)
        rows = sum(slot.rows for slot in slots if slot.key == key and self._tenant_of(slot) == tenant)
        coming = [(job.request, job.checkpoint) for job in self._newcomers if job.standing.tenant == tenant]
        coming += [(other, checkpoint) for other in before]
        rows += sum(rows_of(other, network) for other, network in coming if group_key(other, network) == key)
        share = self._capacity.rows(key) // len(self._tenants() | {tenant})
        return rows == 0 or rows + rows_of(request, checkpoint) <= share

    def _tenants(self) -> set[str]:
        return {job.standing.tenant for job in self._jobs.values()}

    def _tenant_of(self, slot: Slot) -> str:
        return self._jobs[slot.job_id].standing.tenant

    def progress(self) -> dict[str, tuple[int, int, float | None]]:
        """Job id -> (UNet evaluations done, of how many, seconds still to go), for jobs in the batch."""
        return {job.id: self._progress_of(job) for job in self._jobs.values() if job.slots}

    def preview(self, job_id: str) -> np.ndarray | None:
        """The first picture as the network sees it now (predicted x0): uint8 (H, W, 3); None before its first step,
        and when it cannot be decoded, which harms nobody. Takes a decode of one picture."""
        job = self._jobs.get(job_id)
        if job is None or not job.slots or job.slots[0].predicted_x0 is None:
            return None
        if isinstance(job.request, UpscaleRequest):
            return None  # the upload is the better preview, and a tile is none
        try:
            return job.checkpoint.autoencoder.decode(job.slots[0].predicted_x0[None])[0]
        except RuntimeError as error:
            if is_sticky(error):
                raise
            release_cached_memory(job.checkpoint.denoiser.device)
            log.warning("no preview", job=job_id, error=repr(error))
            return None

    def snapshot(self, job_id: str) -> Snapshot | None:
        """What a job in the batch has come to by now; None before it is prepared and once nothing of it is in flight.

        Safe from any thread, and waits for no call: it holds the last step that was committed. Cheap but for pictures
        that are enlarged in tiles, whose sums are copied.
        """
        job = self._jobs.get(job_id)
        if job is None:
            return None
        pictures = job.pictures.copy()
        mosaics = {index: mosaic.state() for index, mosaic in job.mosaics.copy().items() if index not in pictures}
        mosaics = {index: state for index, state in mosaics.items() if state.missing}
        # What is on its way between two of these places is in flight still: the state of its slot stays to the end.
        states = {
            (slot.index, slot.tile): slot.state
            for slot in job.slots
            if slot.index not in pictures and (slot.index not in mosaics or slot.tile in mosaics[slot.index].missing)
        }
        return Snapshot(job.fingerprint, states, pictures, mosaics, job.is_exact) if states else None

    def loads(self) -> dict[str, LoadFigures]:
        """Measured speed and load per model."""
        live = [slot for group in self._groups.values() for slot in group]
        return self._meter.loads({name: [s for s in live if s.key.network == name] for name in self._meter.models()})

    def full_rows(self, model: str) -> int:
        """Rows of a full call of a model at its own size."""
        return self._capacity.full_rows(model)

    def next_room_s(self, model: str) -> float | None:
        """Seconds until the first of a model's jobs is decoded; None while nothing is known."""
        ends: list[float] = []
        for job in self._jobs.values():
            if job.slots and job.checkpoint.name == model:
                slowest = max(job.slots, key=lambda slot: slot.steps_left)
                last_step_s = 0.0 if slowest.is_done else self._last_step_s(slowest)
                if last_step_s is not None:
                    ends.append(last_step_s + (self._meter.decode_s(slowest.key, len(job.slots)) or 0.0))
        return min(ends, default=None)

    def learnt(self) -> tuple[Ceiling, ...]:
        """What memory did not suffice for, here or where it was taken over from."""
        return self._capacity.learnt()

    def row_limits(self) -> tuple[RowLimit, ...]:
        """Rows that calls may have, of the groups in the batch and of those that memory was too small for."""
        return self._capacity.limits(tuple(self._groups))

    # --- what the worker does -------------------------------------------------------------------------------------

    def admit(
        self,
        job_id: str,
        request: PictureRequest,
        checkpoint: Checkpoint,
        inputs: Inputs | None = None,
        snapshot: bytes | None = None,
        standing: Standing = NOBODY,
    ) -> None:
        """Let a job join. Cheap: the work is done at the start of a later `step`, which answers Prepared or Broken.

        snapshot: of this request, taken in any engine; it goes on from there, or begins anew where it is of no use.
        What is drawn for inpainting is not pasted into its canvas here.
        """
        assert job_id not in self._jobs, f"{job_id} is in the batch already. This is a bug."
        inputs = inputs or Inputs()
        job = _Job(job_id, request, checkpoint, inputs, standing, snapshot, is_exact=request.is_strict)
        present = self._tenants()
        if standing.tenant not in present:
            self._shares.enter(standing.tenant, present)
        self._jobs[job_id] = job
        self._newcomers.append(job)

    def cancel(self, job_id: str) -> bool:
        """Drop a job and all its slots at once; no event follows. False when it is not here."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return False
        if job in self._newcomers:
            self._newcomers.remove(job)
        for key in list(self._groups):
            self._set_group(key, (slot for slot in self._groups[key] if slot.job_id != job_id))
        self._undecoded.drop(job_id)
        return True

    def step(self) -> list[Event]:
        """One tick. Returns what happened to jobs; raises only what ends the process (a lost device)."""
        started = time.monotonic() if self._busy_since is None else self._busy_since
        events = self._prepare_newcomers()
        if self._groups:
            events += self._step_group(self._next_group())
        events += self._decode_some()
        ended = time.monotonic()
        self._meter.ticked(ended - started)
        self._busy_since = None if self.is_idle else ended
        return events

    def learn(self, ceilings: Iterable[Ceiling]) -> None:
        """Take over what others learnt about memory, from the next call on."""
        self._capacity.learn(ceilings)

    def warm_up(self, checkpoint: Checkpoint, max_step_s: float = 1.0) -> int:
        """Run every network once and measure the rows beyond which no call is worth growing; returns that ceiling."""

        def timed(checkpoint: Checkpoint, rows: int) -> float:
            seconds = time_call(checkpoint, rows)
            self._meter.called(checkpoint.name, rows, seconds, is_lasting=True)
            return seconds

        rows = measure_rows(checkpoint, self._settings.max_rows, max_step_s, timed)
        side = checkpoint.denoiser.sample_size
        shape = (1, checkpoint.denoiser.latent_channels, side, side)
        checkpoint.autoencoder.decode(torch.zeros(shape, device=checkpoint.denoiser.device))
        self._capacity.know(checkpoint)
        self._capacity.set_measured(checkpoint.name, side * side, rows)
        return rows

    # --- prepare --------------------------------------------------------------------------------------------------

    def _prepare_newcomers(self) -> list[Event]:
        """Make slots of the next newcomers; at most one of them brings an upload, which costs an encoder call."""
        taken: list[_Job] = []
        while self._newcomers and len(taken) < self._settings.prepare_at_once:
            taken.append(self._newcomers.popleft())
            if taken[-1].inputs.has_uploads:
                break
        self._encode_prompts_together(taken)
        return [self._prepare_or_break(job) for job in taken]

    def _encode_prompts_together(self, jobs: Sequence[_Job]) -> None:
        """Fill the embedding caches with one encoder call a model; a failure shows when the job itself is prepared."""
        alike: dict[tuple[str, PromptOptions], list[_Job]] = {}
        for job in jobs:
            alike.setdefault((job.checkpoint.name, prompt_options(job.request, job.inputs)), []).append(job)
        for (name, options), same in alike.items():
            prompts = [prompt for job in same for prompt in prompts_of(job.request, job.checkpoint)]
            try:
                same[0].checkpoint.conditioner.encode(prompts, options)
            except Exception as error:  # noqa: BLE001 (shows again, and where it belongs, when its job is prepared)
                if is_sticky(error):
                    raise
                log.warning("prompts could not be encoded together", model=name, error=repr(error))

    def _prepare(self, job: _Job) -> Event:
        table = step_table_of(job.request, job.checkpoint)
        job.warnings = warnings_of(job.request, job.checkpoint)
        prepared = prepare(job.id, job.request, job.checkpoint, job.inputs, table)
        job.fingerprint = fingerprint_of(job.request, job.checkpoint, table)
        slots = self._resume(job, prepared) or prepared.slots
        job.inputs, job.snapshot = Inputs(), None
        job.mosaics, job.slots = prepared.mosaics, slots
        job.prepared_at = time.monotonic()
        for slot in slots:
            slot.stepped_at = self._stopwatch()
            self._groups.setdefault(slot.key, deque()).append(slot)
        for key in {slot.key for slot in slots}:
            self._settle_done(key)
        self._meter.know(job.checkpoint)
        self._capacity.know(job.checkpoint)
        return Prepared(job.id, len(table), job.warnings, min(slot.step for slot in slots))

    def _resume(self, job: _Job, prepared: Preparation) -> tuple[Slot, ...]:
        """Take over what the job's snapshot holds; returns the slots that are left, none without a usable snapshot."""
        if job.snapshot is None:
            return ()
        try:
            snapshot = read_snapshot(job.snapshot, job.checkpoint.denoiser.device)
            if snapshot.fingerprint != job.fingerprint:
                raise SnapshotRefused("it is of another request, model or version")
            slots = resume(prepared, snapshot)
        except SnapshotRefused as error:
            log.warning("a snapshot is of no use; the job begins anew", job=job.id, reason=str(error))
            return ()
        for index in snapshot.pictures:
            prepared.mosaics.pop(index, None)
        job.pictures, job.is_exact = dict(snapshot.pictures), job.is_exact and snapshot.is_exact
        self._meter.counters["resumed"] += 1
        return slots

    # --- step -----------------------------------------------------------------------------------------------------

    def _step_group(self, key: GroupKey) -> list[Event]:
        """One call for the slots of a group whose turn it is; they go behind their neighbours, the group behind the
        other groups, whatever came of it."""
        slots, rows_at_once = self._take_turn(key), self._capacity.rows(key)
        started = self._stopwatch()
        try:
            checkpoint = self._jobs[slots[0].job_id].checkpoint
            broken = step_together(checkpoint.denoiser, slots, rows_at_once, self._rows_exactly(key, checkpoint))
        except Exception as error:  # noqa: BLE001 (the boundary of a call: what fails alone fails, the rest goes on)
            if is_sticky(error):
                raise
            events = self._step_failed(key, slots, error)
        else:
            self._count_call(key, slots, rows_at_once, self._stopwatch() - started)
            job_ids = dict.fromkeys(slot.job_id for slot in broken)
            events = [self._break(job_id, NotFinite(_NOT_FINITE)) for job_id in job_ids]
        self._settle_done(key)
        self._yield_turn(key, slots)
        return events

    def _count_call(self, key: GroupKey, slots: Sequence[Slot], rows_allowed: int, seconds: float) -> None:
        rows, now = sum(slot.rows for slot in slots), self._stopwatch()
        self._meter.stepped(key, slots, rows_allowed, seconds)
        for slot in slots:
            self._shares.charge(self._jobs[slot.job_id].standing, seconds * slot.rows / rows)
            slot.stepped_at = now

    def _next_group(self) -> GroupKey:
        """That which has waited longest of those with the most urgent picture of the tenant who has had least."""
        now = self._stopwatch()
        slots = [slot for group in self._groups.values() for slot in group]
        leader = self._shares.order({self._tenant_of(slot) for slot in slots})[0]
        own = (slot for slot in slots if self._tenant_of(slot) == leader)
        return min(own, key=lambda slot: self._urgency(slot, now)).key

    def _urgency(self, slot: Slot, now: float) -> tuple[int, float]:
        return self._jobs[slot.job_id].standing.urgency(now - slot.stepped_at)

    def _rows_exactly(self, key: GroupKey, checkpoint: Checkpoint) -> int | None:
        """Rows of a strict call; None for other calls, and while memory does not suffice for it."""
        if not key.is_strict:
            return None
        is_large = key.shape[1] * key.shape[2] > checkpoint.denoiser.sample_size**2
        rows = 2 if is_large or not checkpoint.guides_by_rows else self._settings.strict_rows
        return rows if self._capacity.has_memory_for(key, rows) else None

    def _take_turn(self, key: GroupKey) -> list[Slot]:
        """One slot of each tenant, and again, while each has one and the ceiling allows it; at least one in all. Then
        those of whoever has more, as long as the call hardly gets longer by them. Of a tenant's slots the most urgent
        come first, then those that have waited longest."""
        now, room = self._stopwatch(), self._capacity.rows(key)
        waiting: dict[str, deque[Slot]] = {}
        for slot in sorted(self._groups[key], key=lambda slot: self._urgency(slot, now)):
            waiting.setdefault(self._tenant_of(slot), deque()).append(slot)
        chosen: list[Slot] = []
        order = self._shares.order(waiting)
        while waiting:
            for tenant in [tenant for tenant in order if tenant in waiting]:
                slot = waiting[tenant].popleft()
                if chosen and slot.rows > room:
                    return chosen
                chosen.append(slot)
                room -= slot.rows
                if not waiting[tenant]:
                    del waiting[tenant]
            if len(waiting) < len(order):
                room = min(room, self._meter.spare_rows(key))
                order = list(waiting)
        return chosen

    def _step_failed(self, key: GroupKey, slots: Sequence[Slot], error: Exception) -> list[Event]:
        """Nothing was committed. Memory: the next turn tries half, down to row by row. Anything else: whose fault?"""
        exactly = self._rows_exactly(key, self._jobs[slots[0].job_id].checkpoint)
        rows = exactly or sum(slot.rows for slot in slots)
        if is_out_of_memory(error):
            release_cached_memory(slots[0].latents.device)
            self._meter.counters["oom_splits"] += 1
            if min(rows, self._capacity.rows(key)) > 1:
                log.warning("out of memory", group=key, rows=rows, ceiling=self._capacity.lower(key, rows))
                return []
        if len(slots) > 1:
            log.warning("a step failed; its slots are tried one by one", group=key, error=repr(error))
        events: list[Event] = []
        for slot in slots:
            if slot.job_id in self._jobs:
                events += self._step_alone(slot)
        return events

    def _step_alone(self, slot: Slot) -> list[Event]:
        """Step one slot by itself, row by row; when that fails too, its job is broken."""
        try:
            checkpoint = self._jobs[slot.job_id].checkpoint
            exactly = self._rows_exactly(slot.key, checkpoint)
            broken = step_together(checkpoint.denoiser, [slot], rows_at_once=1, rows_exactly=exactly)
        except Exception as error:  # noqa: BLE001 (see _step_group)
            if is_sticky(error):
                raise
            return [self._fault(slot.job_id, error)]
        return [self._break(slot.job_id, NotFinite(_NOT_FINITE))] if broken else []

    def _settle_done(self, key: GroupKey) -> None:
        """Move finished slots from the group to the decode queue."""
        group = self._groups.get(key, deque())
        for slot in group:
            if slot.is_done:
                job = self._jobs[slot.job_id]
                job.denoised_at = time.monotonic()
                self._undecoded.add(slot, job.checkpoint.autoencoder)
        self._set_group(key, (slot for slot in group if not slot.is_done))

    def _yield_turn(self, key: GroupKey, stepped: Sequence[Slot]) -> None:
        group = self._groups.pop(key, None)
        if group is None:
            return
        gone = set(stepped)
        waiting = [slot for slot in group if slot not in gone]
        self._groups[key] = deque(waiting + [slot for slot in group if slot in gone])

    def _set_group(self, key: GroupKey, slots: object) -> None:
        remaining: deque[Slot] = deque(slots)  # type: ignore[call-overload]
        if remaining:
            self._groups[key] = remaining
        else:
            self._groups.pop(key, None)

    # --- decode ---------------------------------------------------------------------------------------------------

    def _decode_some(self) -> list[Event]:
        events: list[Event | None] = []
        started = self._stopwatch()
        owners = {slot.job_id: self._tenant_of(slot) for slot in self._undecoded.slots}
        order = self._shares.order(set(owners.values()))
        decoded = self._undecoded.decode_some(bool(self._groups), lambda slot: order.index(owners[slot.job_id]))
        seconds = (self._stopwatch() - started) / max(1, len(decoded))
        for slot, _ in decoded:
            self._shares.charge(self._jobs[slot.job_id].standing, seconds)
        for slot, picture in decoded:
            if slot.job_id not in self._jobs:
                continue  # broken by a picture before it
            if isinstance(picture, Exception):
                events.append(self._fault(slot.job_id, picture))
            else:
                events.append(self._keep(slot, picture))
        return [event for event in events if event is not None]

    def _keep(self, slot: Slot, picture: np.ndarray | None) -> Event | None:
        """Put a picture to its job; the last one ends it."""
        job = self._jobs[slot.job_id]
        job.is_exact &= slot.is_exact
        if picture is None:
            return self._break(job.id, NotFinite("The decoded picture is not finite; try another seed or sampler."))
        if isinstance(job.request, UpscaleRequest):
            mosaic = job.mosaics[slot.index]
            mosaic.add(slot.tile, picture)
            if not mosaic.is_complete:
                return None
            del job.mosaics[slot.index]
            picture = mosaic.picture((job.request.width, job.request.height))
        job.pictures[slot.index] = picture
        if len(job.pictures) < job.request.num_images:
            return None
        del self._jobs[job.id]
        self._meter.counters["pictures"] += len(job.pictures)
        indices = range(job.request.num_images)
        return Drawn(
            job.id,
            pictures=tuple(job.pictures[index] for index in indices),
            seeds=tuple(job.request.seed_of(index) for index in indices),
            prepare_s=job.prepared_at - job.admitted_at,
            denoise_s=job.denoised_at - job.prepared_at,
            decode_s=time.monotonic() - job.denoised_at,
            is_exact=job.is_exact,
        )

    # --- faults ---------------------------------------------------------------------------------------------------

    def _prepare_or_break(self, job: _Job) -> Event:
        """The per-job boundary of preparation: whatever it raises is this job's own fault; memory gets a second try."""
        try:
            try:
                return self._prepare(job)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                release_cached_memory(job.checkpoint.denoiser.device)
                return self._prepare(job)
        except Exception as error:  # noqa: BLE001 (see above)
            if is_sticky(error):
                raise
            return self._fault(job.id, error)

    def _fault(self, job_id: str, error: Exception) -> Broken:
        if isinstance(error, GenerationError):
            return self._break(job_id, error)
        if is_out_of_memory(error):
            return self._break(job_id, OutOfMemory(_TOO_LARGE))
        return self._break(job_id, InternalError.of(error))

    def _break(self, job_id: str, error: GenerationError) -> Broken:
        self._meter.counters[f"broken_{error.code}"] += 1
        self.cancel(job_id)
        return Broken(job_id, error)

    def _progress_of(self, job: _Job) -> tuple[int, int, float | None]:
        slowest = max(job.slots, key=lambda slot: slot.steps_left)
        steps = len(slowest.table)
        if slowest.is_done:
            return steps, steps, self._meter.decode_s(slowest.key, len(self._undecoded))
        last_step_s = self._last_step_s(slowest)
        eta_s = None if last_step_s is None else last_step_s + (self._meter.decode_s(slowest.key, 1) or 0.0)
        return slowest.step, steps, eta_s

    def _last_step_s(self, slot: Slot) -> float | None:
        """Seconds until a slot has taken its last step."""
        group = self._groups.get(slot.key, ())
        turns = -(-sum(slot.rows for slot in group) // self._capacity.rows(slot.key))
        return self._meter.eta_s(slot, max(1, turns), tuple(self._groups))


_NOT_FINITE = "The latents turned NaN or infinite; try another seed, more steps, less guidance or another sampler."
_TOO_LARGE = "The picture does not fit into the device's memory even alone; ask for a smaller one."
