"""The prompt syntax of the AUTOMATIC1111 web UI, by its published examples and by what it does at the edges."""

from __future__ import annotations

import time

import pytest

from models.prompt_weights import Passage, plain, read_weights


def read(prompt: str) -> list[tuple[str, float]]:
    return [(passage.text, round(passage.weight, 10)) for passage in read_weights(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("unbalanced)", [("unbalanced)", 1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        (r"a \\ backslash", [("a \\ backslash", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        ("((much)) (more)", [("much", 1.21), (" ", 1), ("more", 1.1)]),
        ("[less] [[least]]", [("less", round(1 / 1.1, 10)), (" ", 1), ("least", round(1 / 1.21, 10))]),
        ("(zero:0) (minus:-1) (point:.5)", [("zero", 0), (" ", 1), ("minus", -1), (" ", 1), ("point", 0.5)]),
        ("(spaces: 1.2 )", [("spaces", 1.2)]),
        ("time 12:30", [("time 12:30", 1)]),
        ("(ratio 16:9)", [("ratio 16", 9)]),
        ("a :) smile", [("a :) smile", 1)]),
        ("crossed (a [b) c]", [("crossed ", 1), ("a ", 1.1), ("b", round(1.1 / 1.1, 10)), (" c", round(1 / 1.1, 10))]),
        ("[number:1.2]", [("number:1.2", round(1 / 1.1, 10))]),
        ("", [("", 1)]),
        ("()", [("", 1)]),
    ],
)
def test_brackets_weigh_what_they_enclose(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert read(prompt) == expected


def test_break_begins_a_window() -> None:
    assert read_weights("a cat BREAK a dog") == (Passage("a cat"), Passage("a dog", begins_window=True))
    assert read_weights("(a BREAK b:2)") == (Passage("a", 2.0), Passage("b", 2.0, begins_window=True))
    assert read_weights("BREAK") == (Passage("", begins_window=True),)
    assert read_weights("BREAKFAST and outBREAK") == (Passage("BREAKFAST and outBREAK"),)


def test_plain_prompts_keep_their_brackets() -> None:
    assert plain("a (red) cat BREAK [x:1.2]") == (Passage("a (red) cat BREAK [x:1.2]"),)


def test_brackets_beyond_any_use_are_text() -> None:
    (passage,) = read_weights("(" * 60 + "x")
    assert passage.text == "(" * 10 + "x"
    assert passage.weight == 100
    assert len(read_weights("(a" * 5000)) <= 50


def test_no_prompt_takes_long_or_overflows() -> None:
    started = time.perf_counter()
    for prompt in ("a" + 9998 * " " + "b", "(a:" + 9990 * "9", "(a:" + 9990 * "9" + ")", 3000 * "BREAK ", 5000 * ":("):
        assert all(abs(passage.weight) <= 100 for passage in read_weights(prompt))
    assert time.perf_counter() - started < 2, "a quadratic expression took seconds for each"
    assert read("((((a:99):99):99):99)")[0][1] == 100
