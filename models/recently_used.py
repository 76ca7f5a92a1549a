"""Things that are slow to make and large to keep: the most recently used ones stay.

Owns who makes one when several threads ask for it at once, and which one goes. Knows nothing of what they are.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Kept = TypeVar("Kept")


class RecentlyUsed(Generic[Key, Kept]):
    """Safe to share between threads. Whoever asks first for a key makes its value; others who ask for the same wait for
    it, and nobody waits for the value of another key."""

    def __init__(self, fits: Callable[[Sequence[Kept]], bool]) -> None:
        """`fits`: whether so many may stay; the newest stays in any case."""
        self._fits = fits
        self._futures: OrderedDict[Key, Future[Kept]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, make: Callable[[], Kept]) -> Kept:
        """The value of `key`, made by `make` where it is not there. What `make` raises comes through, to all who wait,
        and is not kept."""
        with self._lock:
            future = self._futures.get(key)
            is_ours = future is None
            if future is None:
                future = self._futures[key] = Future()
            self._futures.move_to_end(key)
        if is_ours:
            self._make(key, future, make)
        return future.result()

    def _make(self, key: Key, future: Future[Kept], make: Callable[[], Kept]) -> None:
        try:
            future.set_result(make())
        except BaseException as error:  # noqa: BLE001 (whatever it is, who waits is told)
            with self._lock:
                del self._futures[key]
            future.set_exception(error)
            return
        with self._lock:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        made = [key for key, future in self._futures.items() if future.done()]
        while len(made) > 1 and not self._fits([self._futures[key].result() for key in made]):
            del self._futures[made.pop(0)]
