"""Several checkpoints under one memory budget.

Owns which models are in memory. Loading and evicting happen only inside `get`, by the engine's thread. Knows nothing
of queues: who is served next is the worker's decision.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Collection, Mapping

from models.checkpoint import Checkpoint, load_weights
from models.device import Placement, release_cached_memory
from models.errors import CheckpointMissing, CheckpointRefused
from models.weights import Weights, find_weights


class Shelf:
    """Models by name, loaded when they are asked for; the longest unused one leaves when the budget is short."""

    def __init__(self, sources: Mapping[str, str], placement: Placement, budget_bytes: int | None = None) -> None:
        """`sources`: name -> directory, file or hub id. `budget_bytes`: of weights together; None is no limit."""
        self._sources = dict(sources)
        self._placement = placement
        self._budget_bytes = budget_bytes
        self._loaded: OrderedDict[str, Checkpoint] = OrderedDict()
        self._found: dict[str, Weights] = {}
        """Where each source was found the first time, so that a model that left comes back as the same one."""

    def names(self) -> tuple[str, ...]:
        return tuple(self._sources)

    def offer(self, name: str, source: str) -> None:
        """Have a model under this name, another one from now on if there was one. None of that name may be loaded."""
        assert name not in self._loaded, f"{name} is offered anew while it is loaded. This is a bug."
        self._sources[name] = source
        self._found.pop(name, None)

    def withdraw(self, name: str) -> None:
        """Have it no more. It may not be loaded."""
        assert name not in self._loaded, f"{name} is withdrawn while it is loaded. This is a bug."
        del self._sources[name]
        self._found.pop(name, None)

    def is_loaded(self, name: str) -> bool:
        return name in self._loaded

    def loaded(self) -> tuple[Checkpoint, ...]:
        return tuple(self._loaded.values())

    def get(self, name: str, in_use: Collection[str] = ()) -> Checkpoint | None:
        """The checkpoint `name`, loaded if it is not; models named in `in_use` stay where they are.

        Returns None when it fits only after a model in use has left: ask again then.
        Raises CheckpointMissing for an unknown name and CheckpointRefused for one that is larger than the budget.
        """
        if name not in self._sources:
            raise CheckpointMissing(f"No model is called {name!r}; there are {', '.join(self._sources)}.")
        if name not in self._loaded:
            if not self._make_room(self._size_of(name), name, in_use):
                return None
            self._loaded[name] = load_weights(name, self._weights(name), self._placement)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def evict(self, name: str) -> None:
        """Forget a loaded model; its memory goes with the last reference."""
        del self._loaded[name]
        gc.collect()  # networks with hooks are in reference cycles
        release_cached_memory(self._placement.device)

    def _make_room(self, size_bytes: int, name: str, in_use: Collection[str]) -> bool:
        if self._budget_bytes is None:
            return True
        if size_bytes > self._budget_bytes:
            raise CheckpointRefused(
                f"The weights of {name!r} need {size_bytes} bytes and the budget is {self._budget_bytes}; raise it."
            )
        idle = [loaded for loaded in self._loaded if loaded not in in_use]
        used = sum(checkpoint.size_bytes for checkpoint in self._loaded.values())
        freeable = sum(self._loaded[loaded].size_bytes for loaded in idle)
        if used - freeable + size_bytes > self._budget_bytes:
            return False
        for loaded in idle:  # oldest use first
            if used + size_bytes <= self._budget_bytes:
                break
            used -= self._loaded[loaded].size_bytes
            self.evict(loaded)
        return True

    def _weights(self, name: str) -> Weights:
        if name not in self._found:
            self._found[name] = find_weights(self._sources[name])
        return self._found[name]

    def _size_of(self, name: str) -> int:
        """Bytes the weights will take in memory: their elements on disk, in the precision they are loaded with."""
        return self._weights(name).count_elements() * self._placement.dtype.itemsize
