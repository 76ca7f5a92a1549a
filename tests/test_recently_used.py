"""What is slow to make is made once, beside other things, and goes when it is the oldest."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.recently_used import RecentlyUsed


def at_most_two(values: Sequence[str]) -> bool:
    return len(values) <= 2


def test_the_longest_unused_goes() -> None:
    kept: RecentlyUsed[str, str] = RecentlyUsed(at_most_two)
    made: list[str] = []

    def get(key: str) -> str:
        def make() -> str:
            made.append(key)
            return key.upper()

        return kept.get(key, make)

    for key in ("a", "b", "a", "c", "a", "b"):
        assert get(key) == key.upper()
    assert made == ["a", "b", "c", "b"]


def test_the_newest_stays_though_it_does_not_fit() -> None:
    kept: RecentlyUsed[str, str] = RecentlyUsed(lambda values: False)
    first = kept.get("a", lambda: "one")
    assert kept.get("a", lambda: "two") is first
    assert kept.get("b", lambda: "three") == "three"
    assert kept.get("a", lambda: "four") == "four"


def test_nobody_waits_for_another_key_and_all_wait_for_their_own() -> None:
    kept: RecentlyUsed[str, str] = RecentlyUsed(at_most_two)
    go_on, has_begun, made = threading.Event(), threading.Event(), []

    def make_slowly() -> str:
        has_begun.set()
        made.append("slow")
        assert go_on.wait(60)
        return "slow"

    with ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(kept.get, "slow", make_slowly) for _ in range(3)]
        assert has_begun.wait(60)
        assert kept.get("quick", lambda: "quick") == "quick"
        assert not any(each.done() for each in slow)
        go_on.set()
        assert [each.result() for each in slow] == ["slow"] * 3
    assert made == ["slow"]


def test_a_failure_reaches_who_waits_and_is_not_kept() -> None:
    kept: RecentlyUsed[str, str] = RecentlyUsed(at_most_two)

    def fail() -> str:
        raise OSError("the drive is away")

    with pytest.raises(OSError, match="the drive is away"):
        kept.get("a", fail)
    assert kept.get("a", lambda: "there again") == "there again"
