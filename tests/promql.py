"""Reads PromQL just well enough to say which figures and labels an expression is about.

Owns no semantics: what it does not know (a function, a character, a bracket that is not closed) is a ValueError, so
that a misspelt expression is not taken for a figure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""\s*(?: (?P<string>"(?:[^"\\]|\\.)*") | (?P<range>\[(?:\$__rate_interval|\d+[smhdw])\])
    | (?P<number>\d+(?:\.\d+)?) | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    | (?P<operator>=~|!~|!=|==|>=|<=|[-+*/%^<>=]) | (?P<mark>[(){},]) )""",
    re.VERBOSE,
)
GROUPING = frozenset({"by", "without", "on", "ignoring"})
OPERATORS = frozenset({"and", "or", "unless", "bool"})
FUNCTIONS = frozenset({"sum", "min", "max", "avg", "count", "rate", "increase", "absent", "histogram_quantile", "time"})
PAIRS = {")": "(", "}": "{"}


@dataclass
class Uses:
    """What an expression names."""

    figures: dict[str, set[str]] = field(default_factory=dict)
    """Figure -> labels that its matchers name."""
    grouping: set[str] = field(default_factory=set)
    """Labels in by(...), without(...), on(...)."""


def read(expression: str) -> Uses:
    """Raises ValueError."""
    tokens = _tokens(expression)
    _check_brackets(tokens)
    uses, at = Uses(), 0
    while at < len(tokens):
        kind, text = tokens[at]
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if kind != "name" or text in OPERATORS:
            at += 1
        elif text in GROUPING:
            labels, at = _until(tokens, at + 2, ")")
            uses.grouping |= {label for kind, label in labels if kind == "name"}
        elif following == "(" or text in FUNCTIONS:
            if text not in FUNCTIONS:
                raise ValueError(f"{text} is no function")
            at += 1
        else:
            labels, at = _until(tokens, at + 2, "}") if following == "{" else ([], at + 1)
            uses.figures.setdefault(text, set()).update(label for kind, label in labels if kind == "name")
    if not uses.figures:
        raise ValueError("it names no figure")
    return uses


def _tokens(expression: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    while expression[at:].strip():
        match = TOKEN.match(expression, at)
        if match is None:
            raise ValueError(f"cannot be read from here: {expression[at:]!r}")
        assert match.lastgroup is not None
        tokens.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return tokens


def _check_brackets(tokens: list[tuple[str, str]]) -> None:
    opened: list[str] = []
    for _, text in tokens:
        if text in PAIRS.values():
            opened.append(text)
        elif text in PAIRS and (not opened or opened.pop() != PAIRS[text]):
            raise ValueError(f"{text} closes nothing")
    if opened:
        raise ValueError(f"{opened[-1]} is not closed")


def _until(tokens: list[tuple[str, str]], at: int, end: str) -> tuple[list[tuple[str, str]], int]:
    """Tokens from `at` up to `end`, and the place after it."""
    close = next(place for place in range(at, len(tokens)) if tokens[place][1] == end)
    return tokens[at:close], close + 1
