"""The models that a worker serves, as they are configured, found in a directory, changed, taken away and asked for.

Owns which models the shelf may load, what the catalogue tells of them, why others are not served, and when weights are
loaded or forgotten beside what jobs need. Admits and draws nothing: the loop asks which models shall take no job now.

    configured ─┐                  ┌─> served ──(directory changed)──> reloaded
    found ──────┴─> loaded, warm ──┤      └────(directory gone)──────> leaving: draws what waits, then forgotten
                                   └─> at fault: told, tried again when it changes or an operator asks
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import redis
import structlog

from models.errors import CheckpointError, CheckpointRefused
from workers.board import JobBoard
from workers.catalogue import controlnet_names, describe_model, entry_version, lora_names
from workers.contract import JobError, ModelEntry, ModelLoad, is_newer, key
from workers.model_folder import FoundModel, found_models
from workers.protocols import Checkpoint, Engine, Shelf
from workers.settings import WorkerSettings

log = structlog.get_logger(__name__)

LOOK_S = 2.0
"""Between two looks into the directory of models. What looks the same twice has been copied to its end."""
_FAREWELL_BEATS = 3
"""A model that leaves is left out of so many beats before it is gone: a request that is being read at the moment may
still ask for it."""


@dataclass(frozen=True)
class _Change:
    """What is still to do about a model. wish: id of an operator's wish that this fulfils."""

    kind: Literal["load", "unload", "reload", "withdraw"]
    wish: str | None = None
    since: float = field(default_factory=time.monotonic)


class Repertoire:
    """The models of one loop, touched by its thread only."""

    def __init__(
        self, client: redis.Redis, board: JobBoard, settings: WorkerSettings, engine: Engine, shelf: Shelf
    ) -> None:
        self._redis = client
        self._board = board
        self._settings = settings
        self._engine = engine
        self._shelf = shelf
        self._entries: dict[str, ModelEntry] = {}
        """What was loaded, without what is beside it."""
        self._published: dict[str, ModelEntry] = {}
        """What is in the catalogue by us."""
        self._warmed: set[str] = set()
        self.faults: dict[str, JobError] = {}
        """Why a model could not be loaded when that was last tried."""
        self.wishes: dict[str, str] = {}
        """Model -> id of the last wish that was fulfilled, or found impossible."""
        self._changes: dict[str, _Change] = {}
        self._seen: dict[str, FoundModel] = {}
        """At the last look."""
        self._tried: dict[str, FoundModel] = {}
        """As they were when they were loaded, or refused."""
        self._look_at = 0.0

    # --- what the loop and others ask ---------------------------------------------------------------------------------

    @property
    def serves_any(self) -> bool:
        return bool(self._warmed)

    @property
    def paused(self) -> frozenset[str]:
        """Models that take no job until a change that waits for them is done."""
        loaded = {name for name in self._shelf.names() if self._shelf.is_loaded(name)}
        paused: set[str] = set()
        for name, change in self._changes.items():
            if change.kind in ("unload", "reload"):
                paused.add(name)
            elif change.kind == "load":  # it found no room: some of the others must leave
                paused |= loaded - {name}
        return frozenset(paused)

    def loads(self) -> dict[str, ModelLoad]:
        """Measured speed and load of each model that takes jobs."""
        measured = self._engine.loads()
        told: dict[str, ModelLoad] = {}
        for name in self._shelf.names():
            if self._is_at_fault(name) or self._is_leaving(name):
                continue
            load = measured.get(name)
            told[name] = ModelLoad(
                loaded=self._shelf.is_loaded(name),
                warmed=name in self._warmed,
                cost_per_s=load.cost_per_s if load else None,
                cost_in_flight=load.cost_in_flight if load else 0.0,
                slots=load.slots if load else 0,
                rows_in_flight=load.rows_in_flight if load else 0.0,
                max_rows=self._engine.full_rows(name),
                call_base_s=load.call_base_s if load else None,
                call_row_s=load.call_row_s if load else None,
                next_room_s=self._engine.next_room_s(name),
                rows_per_step=load.rows_per_step if load else None,
                step_s=load.step_s if load else None,
            )
        return told

    def _is_at_fault(self, name: str) -> bool:
        """It never was fine; one that was stays offered, and is loaded at its next job."""
        return name in self.faults and name not in self._warmed

    def _is_leaving(self, name: str) -> bool:
        change = self._changes.get(name)
        return change is not None and change.kind == "withdraw"

    # --- at the start -------------------------------------------------------------------------------------------------

    def open(self) -> tuple[str, ...]:
        """Names of the models to begin with, in the order in which to load them: the first-named last, so that it is
        the one that stays loaded. What operators asked of earlier workers is none of our business."""
        self.wishes = {name: wish.id for name, wish in self._board.wishes().items()}
        self._seen = self._look() or {}
        for name, found in self._seen.items():
            self._shelf.offer(name, found.source)
        self._tried = dict(self._seen)
        return tuple(reversed(self._shelf.names()))

    def load(self, name: str, in_use: Collection[str] = ()) -> bool:
        """Load and warm up a model, or note why it cannot be served. False: there is no room for it yet."""
        if self._shelf.is_loaded(name) and name in self._warmed:
            return True
        try:
            checkpoint: Checkpoint | None = self._shelf.get(name, in_use)
            if checkpoint is None:
                return False
            log.info("warmed up", model=name, rows_of_a_step=self._engine.warm_up(checkpoint))
            self._entries[name] = describe_model(checkpoint)
        except CheckpointError as error:
            self._note_fault(name, JobError(code=error.code, detail=error.detail))
        except Exception as error:  # noqa: BLE001 (the boundary of a model: what is wrong with one harms no other)
            self._note_fault(name, _fault_of(name, error))
        else:
            self.faults.pop(name, None)
            self._warmed.add(name)
            log.info("serving", model=name, device=checkpoint.device, dtype=checkpoint.dtype)
        return True

    def _note_fault(self, name: str, fault: JobError) -> None:
        log.error("a model is not served", model=name, code=fault.code, detail=fault.detail)
        self.faults[name] = fault
        if name not in self._warmed:
            self._entries.pop(name, None)
        if self._shelf.is_loaded(name):
            self._shelf.evict(name)

    # --- while it works -----------------------------------------------------------------------------------------------

    def keep_up(self, in_use: Collection[str]) -> bool:
        """Note what has changed, do what can be done now, and tell the catalogue; True when a change was done.

        Models in `in_use` are left alone. Raises what Redis raises; may be repeated. Loading takes its time, and the
        batch waits for it.
        """
        self._note_wishes()
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            self._note_news()
        is_anything_done = False
        for name in list(self._changes):
            if self._carry_out(name, self._changes[name], in_use):
                is_anything_done = True
                wish = self._changes.pop(name).wish
                if wish:
                    self.wishes[name] = wish
        self.publish()
        return is_anything_done

    def publish(self) -> None:
        """Write the catalogue's entries that are not there as they should be. What requests may name beside a model
        (LoRA files, ControlNets, upscalers) comes and goes while the worker runs; an upscaler has nothing beside it."""
        beside = {
            "upscalers": tuple(sorted(self._upscalers())),
            "loras": lora_names(self._settings.lora_folder),
            "controlnets": controlnet_names(self._settings.controlnet_folder),
        }
        for name, entry in self._entries.items():
            renewed = entry if entry.upscale_factor else entry.model_copy(update=beside)
            if renewed != self._published.get(name) and not self._is_told_better(name):
                self._redis.hset(key("catalogue"), name, renewed.model_dump_json())
                self._published[name] = renewed
        gone = self._published.keys() - self._entries.keys()
        if gone:
            served = {name for beat in self._board.beats() for name in beat.models}
            for name in gone - served:  # another worker may serve it still; until our next beat we seem to
                self._redis.hdel(key("catalogue"), name)
                del self._published[name]

    def _is_told_better(self, name: str) -> bool:
        """A living worker of a newer version tells of this model: its entry may have what ours does not know."""
        version = entry_version(self._redis.hget(key("catalogue"), name))
        if not is_newer(version):
            return False
        return any(name in beat.models and beat.contract_version >= version for beat in self._board.beats())

    def _upscalers(self) -> set[str]:
        """Those that are loaded here, and those that will be and that others serve already: a worker that starts must
        not take them away from requests meanwhile."""
        own = {name for name, entry in self._entries.items() if entry.upscale_factor}
        to_come = set(self._shelf.names()) - self._warmed - self.faults.keys()
        if not to_come:
            return own
        known = self._board.catalogue()
        return own | {name for name in to_come if name in known and known[name].upscale_factor}

    def _note_wishes(self) -> None:
        for name, wish in self._board.wishes().items():
            if name not in self._shelf.names() or self._is_leaving(name) or self.wishes.get(name) == wish.id:
                continue
            change = self._changes.get(name)
            is_new = change is not None and change.kind != "unload" and name not in self._warmed
            if change is None or not (is_new or change.kind == "reload"):  # those come first, and then the wish
                self._changes[name] = _Change(wish.action, wish.id)

    def _note_news(self) -> None:
        """What is new or different in the directory of models, and the same as at the last look; and what is gone."""
        seen = self._look()
        if seen is None:
            return
        for name, found in seen.items():
            if found == self._seen.get(name) and self._is_news(name, found):
                self._changes[name] = _Change("reload")
        for name in self._tried.keys() - seen.keys():
            self._changes[name] = _Change("withdraw")
            del self._tried[name]
        self._seen = seen

    def _is_news(self, name: str, found: FoundModel) -> bool:
        """What lies beside a model may be what it lacked, but is no reason to load one anew that is fine."""
        tried = self._tried.get(name)
        return found != tried if tried is None or self._is_at_fault(name) else found.own != tried.own

    def _look(self) -> dict[str, FoundModel] | None:
        """The models in the directory, without those whose name is configured; None while it cannot be read."""
        try:
            found = found_models(self._settings.models_folder)
        except OSError as error:
            log.warning("the directory of models cannot be read", error=str(error))
            return None
        return {name: model for name, model in found.items() if name not in self._settings.models}

    def _carry_out(self, name: str, change: _Change, in_use: Collection[str]) -> bool:
        """True when it is done; False to try again."""
        if change.kind == "load":
            return self.load(name, in_use)
        if name in in_use:
            return False
        if change.kind == "withdraw":
            return self._withdraw(name, change.since)
        if self._shelf.is_loaded(name):
            self._shelf.evict(name)
            log.info("forgot the weights", model=name)
        if change.kind == "unload":
            return True
        return self._begin_anew(name, in_use)

    def _begin_anew(self, name: str, in_use: Collection[str]) -> bool:
        """What lies in its folder is another model than before, or the first."""
        self._tried[name] = self._seen[name]
        self._shelf.offer(name, self._seen[name].source)
        self._warmed.discard(name)
        self._changes[name] = _Change("load", self._changes[name].wish)
        return self.load(name, in_use)

    def _withdraw(self, name: str, since: float) -> bool:
        """Once everybody has heard that it leaves and nothing that was accepted for it is left; until then it stays."""
        heard_after_s = _FAREWELL_BEATS * self._settings.beat_s
        if time.monotonic() - since < heard_after_s or self._board.has_unended(name):
            return False
        wish = self._board.wishes().get(name)  # was for the one that leaves, not for the next of its name
        if wish:
            self.wishes[name] = wish.id
        if self._shelf.is_loaded(name):
            self._shelf.evict(name)
        self._shelf.withdraw(name)
        for known in (self._entries, self.faults):
            known.pop(name, None)
        self._warmed.discard(name)
        log.info("not served any more", model=name)
        return True


def _fault_of(name: str, error: Exception) -> JobError:
    """Of what no loader foresaw. Raises it when the device is lost, which only a new process heals."""
    from models.device import is_out_of_memory, is_sticky  # torch is loaded by now, and only where something was loaded

    if is_sticky(error):
        raise error
    if is_out_of_memory(error):
        return JobError(code="out_of_memory", detail=f"It does not fit into memory: {error}")
    log.error("a model cannot be loaded", model=name, exc_info=error)
    return JobError(
        code=CheckpointRefused.code,
        detail=f"It cannot be loaded: {type(error).__name__}: {error}. See the worker's log.",
    )
