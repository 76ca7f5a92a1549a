"""The C library's heap: what it keeps of what was freed.

Owns one call. glibc keeps freed blocks for the next allocation, and the blocks of a large batch lie between small ones
that live on; a process would look as large as its largest moment for ever.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any


def load_trim() -> Any:
    """glibc's `malloc_trim`, or None where there is none (macOS, musl)."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


class Heap:
    """Gives freed memory back to the system when its owner has been idle for a while; the loop's thread owns it."""

    def __init__(self, after_s: float = 10.0) -> None:
        """`after_s`: back-to-back jobs need the same memory again, and taking it anew costs them milliseconds."""
        self._trim = load_trim()
        self._after_s = after_s
        self._idle_since: float | None = None
        self._is_trimmed = False

    def busy(self) -> None:
        """There is work."""
        self._idle_since, self._is_trimmed = None, False

    def idle(self, now: float) -> None:
        """There is none. Call it again and again; `now` is monotonic. Takes some milliseconds, once."""
        if self._idle_since is None:
            self._idle_since = now
        if not self._is_trimmed and now - self._idle_since >= self._after_s:
            self._is_trimmed = True
            if self._trim is not None:
                self._trim(0)
