"""Memory that was freed goes back to the system when a worker is idle, once, and not between two jobs."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from workers.heap import Heap, load_trim

MIB = 2**20


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


@pytest.mark.skipif(sys.platform != "linux" or load_trim() is None, reason="needs glibc")
def test_an_idle_heap_is_given_back() -> None:
    blocks = [bytearray(100_000) for _ in range(1000)]  # too small to be mapped one by one
    small = [bytes(1000) for _ in range(1000)]  # on top of them, and they live on
    heap = Heap(after_s=5.0)
    heap.busy()
    del blocks
    gc.collect()
    before = resident_bytes()
    heap.idle(100.0)
    heap.idle(104.0)
    assert resident_bytes() > before - 5 * MIB  # another job may come at once
    heap.idle(105.0)
    assert resident_bytes() < before - 50 * MIB
    assert len(small) == 1000


def test_it_is_trimmed_once_for_each_rest() -> None:
    heap, calls = Heap(after_s=1.0), []
    heap._trim = calls.append
    for now in (0.0, 0.5, 1.0, 1.5, 9.0):
        heap.idle(now)
    assert calls == [0]
    heap.busy()
    for now in (10.0, 10.9, 11.0, 12.0):
        heap.idle(now)
    assert calls == [0, 0]
