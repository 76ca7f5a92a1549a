"""Whatever happens to a running batch, and in whatever order: every job ends once, none is lost, nothing stays behind.

`python -m tests.test_engine_machine 2000` plays so many histories; the test plays a few dozen.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from models.autoencoder import Autoencoder
from models.checkpoint import Checkpoint
from models.conditioning import TextConditioner
from models.denoiser import Denoiser, Rows
from models.engine import Broken, Drawn, Engine, EngineSettings, Prepared
from models.errors import InternalError, NotFinite, OutOfMemory
from models.shares import Standing
from tests.test_strict import NETWORKS, Studio

MAD = 12
MOST = 6
"""Jobs at a time."""
TICKS = 600
"""After which a batch of so many must have ended."""


class Atelier:
    """A tiny network and a dozen requests for it, with the pictures that each draws alone."""

    def __init__(self, folder: Path) -> None:
        self.studio = Studio(NETWORKS["SD"], folder)
        dice = random.Random(11)
        # Several pictures each, so that some are drawn already, or wait to be decoded, when something happens.
        self.requests = [
            self.studio.request(dice, kind).model_copy(update={"num_images": number})
            for kind in ("strict", "standard")
            for number in (1, 2, 3, 3, 4, 4)
        ]
        self.alone = [self.studio.draw_alone(request).pictures for request in self.requests]
        self.requests.append(self.requests[-1].model_copy(update={"guidance_scale": 3e38}))

    @property
    def checkpoint(self) -> Checkpoint:
        return self.studio.checkpoint


@dataclass
class Weather:
    """What the device does: rows and pictures for which its memory suffices, and what befalls the next call."""

    rows: int = 1000
    pictures: int = 1000
    next_call: str = ""
    calls: int = 0

    def over(self, patch: pytest.MonkeyPatch) -> None:
        predict, decode, encode = Denoiser.predict, Autoencoder.decode, TextConditioner.encode

        def predict_in_it(denoiser: Denoiser, rows: Rows) -> torch.Tensor:
            self.calls += 1
            if len(rows) > self.rows:
                raise torch.OutOfMemoryError("no room for so many rows")
            befalls, self.next_call = self.next_call, "bug" if self.next_call == "bug" else ""
            if befalls == "spike":
                raise torch.OutOfMemoryError("a neighbour's spike")
            if befalls == "bug":
                raise ValueError("a bug of a kernel")
            output = predict(denoiser, rows)
            return torch.full_like(output, torch.nan) if befalls == "nan" else output

        def decode_in_it(autoencoder: Autoencoder, latents: torch.Tensor, *limits: Any) -> Any:
            if len(latents) > self.pictures:
                raise torch.OutOfMemoryError("no room for so many pictures")
            return decode(autoencoder, latents, *limits)

        def encode_in_it(conditioner: TextConditioner, *arguments: Any) -> Any:
            if self.next_call == "prompt":
                self.next_call = ""
                raise torch.OutOfMemoryError("no room for prompts")
            return encode(conditioner, *arguments)

        patch.setattr(Denoiser, "predict", predict_in_it)
        patch.setattr(Autoencoder, "decode", decode_in_it)
        patch.setattr(TextConditioner, "encode", encode_in_it)


@dataclass
class Expected:
    """A job that has not ended, as the history knows it."""

    number: int
    """Of its request."""
    may_break: bool = False
    was_disturbed: bool = False
    """Something has befallen a call since it came: its picture may be a standard one."""
    is_prepared: bool = False
    snapshots: list[bytes] = field(default_factory=list)


class EngineMachine(RuleBasedStateMachine):
    """One worker's engines, one after the other, in any weather."""

    atelier: Atelier
    tally: Counter[str]
    """What happened in all histories together. Both are set by whoever plays."""
    jobs: Bundle[str] = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.weather, self.patch = Weather(), pytest.MonkeyPatch()
        self.weather.over(self.patch)
        self.expected: dict[str, Expected] = {}
        self.ended: set[str] = set()
        self.count = 0

    @initialize(rows=st.sampled_from([2, 3, 8, 64]), decode=st.sampled_from([1, 1, 4]), prepare=st.integers(1, 4))
    def begin(self, rows: int, decode: int, prepare: int) -> None:
        self.limits = EngineSettings(max_rows=rows, decode_at_once=decode, prepare_at_once=prepare, probe_after_s=60.0)
        self.engine = Engine(self.limits, clock=lambda: self.now)

    # --- what workers do ----------------------------------------------------------------------------------------------

    @rule(
        target=jobs,
        numbers=st.lists(st.integers(0, 12), min_size=1, max_size=4),
        tenant=st.sampled_from(["alice", "bob", "carol"]),
        priority=st.integers(0, 2),
        deadline=st.sampled_from([0.0, 5.0, float("inf")]),
    )
    def admit(self, numbers: list[int], tenant: str, priority: int, deadline: float) -> Any:
        """Some jobs of one tenant; number 12 is a mad one, whose numbers overflow beside sound ones."""
        admitted = []
        for number in numbers[: MOST - len(self.expected)]:
            self.count += 1
            job_id = f"job {self.count}"
            self.engine.has_room(self.atelier.requests[number], self.atelier.checkpoint, tenant)
            self._admit(self.engine, job_id, number, Standing(tenant, priority, deadline), None)
            self.expected[job_id] = Expected(number, may_break=number == MAD)
            admitted.append(job_id)
        return multiple(*admitted)

    @rule(ticks=st.sampled_from([1, 1, 2, 3, 5, 8]))
    def step(self, ticks: int) -> None:
        for _ in range(ticks):
            self._tick()

    @rule(job=consumes(jobs))
    def cancel(self, job: str) -> None:
        is_there = job in self.expected
        assert self.engine.cancel(job) is is_there
        self.tally["canceled"] += is_there
        self.expected.pop(job, None)

    @rule(how=st.sampled_from(["all", "some", "stale", "spoilt"]), data=st.data())
    def move(self, how: str, data: st.DataObject) -> None:
        """The engine ends; another one has nothing but snapshots: the newest, an older one, a spoilt one, or none."""
        other = Engine(self.limits, clock=lambda: self.now)
        for job_id, expected in self.expected.items():
            snapshot = self.engine.snapshot(job_id)
            if snapshot is not None:
                expected.snapshots.append(snapshot.to_bytes())
            taken = expected.snapshots[-1] if expected.snapshots else None
            if how == "stale" and expected.snapshots:
                taken = data.draw(st.sampled_from(expected.snapshots))
            if how == "spoilt" and taken:
                taken = taken[: data.draw(st.integers(0, len(taken) - 1))]
            if how == "some" and data.draw(st.booleans()):
                taken = None
            self._admit(other, job_id, expected.number, Standing("alice"), taken)
            expected.is_prepared = False
        self.engine = other

    @rule(job=jobs, seconds=st.sampled_from([0.5, 6.0, 61.0, 1000.0]))
    def look(self, job: str, seconds: float) -> None:
        """Time goes by; and what may be asked at any time changes nothing."""
        self.now += seconds
        preview = self.engine.preview(job)
        assert preview is None or preview.dtype == np.uint8
        assert set(self.engine.progress()) <= set(self.expected)
        assert all(0 <= done <= steps for done, steps, _ in self.engine.progress().values())
        self.engine.loads()

    # --- what the device does -----------------------------------------------------------------------------------------

    @rule(
        rows=st.sampled_from([1, 2, 3, 5, 1000, 1000]),
        pictures=st.sampled_from([1, 2, 1000]),
        next_call=st.sampled_from(["", "spike", "prompt"]),
    )
    def let_memory_be(self, rows: int, pictures: int, next_call: str) -> None:
        """Always enough for one row and one picture, but for one call: whoever is drawn then must not be lost."""
        self.weather.rows, self.weather.pictures, self.weather.next_call = rows, pictures, next_call
        self._disturb(may_break=False)

    @precondition(lambda self: self.expected)
    @rule(what=st.sampled_from(["nan", "bug"]))
    def let_a_call_go_wrong(self, what: str) -> None:
        """Those in the batch may be broken by it, those that come afterwards must not."""
        self.weather.next_call = what
        self._disturb(may_break=True)
        called = self.weather.calls
        while self.weather.calls == called and not self.engine.is_idle:
            self._tick()
        self.weather.next_call = ""

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def every_job_that_has_not_ended_is_there_and_no_other(self) -> None:
        if not hasattr(self, "engine"):
            return
        assert set(self.engine.job_ids) == set(self.expected)
        assert self.engine.is_idle == (not self.expected)

    @invariant()
    def nothing_is_held_but_pictures_of_jobs_that_are_there(self) -> None:
        if not hasattr(self, "engine"):
            return
        newcomers = [job.id for job in self.engine._newcomers]
        live = [slot for group in self.engine._groups.values() for slot in group]
        waiting = [slot for slot, _ in self.engine._undecoded._waiting]
        assert len(set(live + waiting)) == len(live) + len(waiting)
        assert all(self.engine._groups.values()), "an empty group stays"
        for job_id, expected in self.expected.items():
            own = [slot.index for slot in live + waiting if slot.job_id == job_id]
            held = sorted([*own, *self.engine._jobs[job_id].pictures])
            pictures = self.atelier.requests[expected.number].num_images
            assert (job_id in newcomers) != expected.is_prepared
            assert held == (list(range(pictures)) if expected.is_prepared else [])
        assert {slot.job_id for slot in live + waiting} <= set(self.expected)
        assert set(newcomers) <= set(self.expected)

    def teardown(self) -> None:
        """The weather clears up, and the batch is drawn to its end."""
        try:
            self.weather.rows = self.weather.pictures = 1000
            self.weather.next_call = ""
            for _ in range(TICKS):
                if not self.expected:
                    break
                self._tick()
            assert not self.expected, "the batch does not end"
            self.every_job_that_has_not_ended_is_there_and_no_other()
            self.nothing_is_held_but_pictures_of_jobs_that_are_there()
        finally:
            self.patch.undo()

    # --- how ----------------------------------------------------------------------------------------------------------

    def _admit(self, engine: Engine, job_id: str, number: int, standing: Standing, snapshot: bytes | None) -> None:
        request = self.atelier.requests[number]
        inputs = self.atelier.studio.inputs_of(request)
        engine.admit(job_id, request, self.atelier.checkpoint, inputs, snapshot, standing)

    def _disturb(self, *, may_break: bool) -> None:
        for expected in self.expected.values():
            expected.was_disturbed = True
            expected.may_break |= may_break

    def _tick(self) -> None:
        is_disturbed = self.weather.rows < 1000 or self.weather.pictures < 1000 or bool(self.weather.next_call)
        for event in self.engine.step():
            expected = self.expected[event.job_id]
            assert event.job_id not in self.ended
            if isinstance(event, Prepared):
                assert not expected.is_prepared
                expected.is_prepared = True
                self.tally["resumed"] += event.step > 0
                continue
            del self.expected[event.job_id]
            self.ended.add(event.job_id)
            self.tally[event.error.code if isinstance(event, Broken) else f"drawn, exact: {event.is_exact}"] += 1
            if isinstance(event, Broken):
                assert expected.may_break, event.error
                assert isinstance(event.error, NotFinite | InternalError | OutOfMemory)
            else:
                self._compare(event, expected, is_disturbed or expected.was_disturbed)
        for expected in self.expected.values():
            expected.was_disturbed |= is_disturbed
        self.now += 0.1

    def _compare(self, event: Drawn, expected: Expected, was_disturbed: bool) -> None:
        assert expected.number != MAD
        request, alone = self.atelier.requests[expected.number], self.atelier.alone[expected.number]
        assert event.seeds == tuple(request.seed_of(index) for index in range(request.num_images))
        assert event.is_exact == request.is_strict or was_disturbed
        assert request.is_strict or not event.is_exact
        for own, picture in zip(event.pictures, alone, strict=True):
            assert own.shape == picture.shape
            allowed = 0 if event.is_exact else 1
            assert int(np.abs(own.astype(int) - picture).max()) <= allowed, (event.job_id, request)


def play(atelier: Atelier, histories: int) -> Counter[str]:
    """What happened. Raises what the shortest history shows that goes wrong."""
    EngineMachine.atelier, EngineMachine.tally = atelier, Counter()
    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=histories,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return EngineMachine.tally


def test_whatever_happens_every_job_ends_once_and_nothing_stays_behind(tmp_path: Path) -> None:
    tally = play(Atelier(tmp_path), 30)
    missed = {"drawn, exact: True", "drawn, exact: False", "not_finite", "internal", "resumed", "canceled"} - set(
        +tally
    )
    assert not missed, "histories without these would prove little"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(dict(play(Atelier(Path(folder)), int(sys.argv[1]) if len(sys.argv) > 1 else 2000)))
