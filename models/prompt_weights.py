"""Prompts as users of the AUTOMATIC1111 web UI write them, taken apart.

Owns the syntax. Knows nothing of tokens.

    (word)      1.1 times as strong; ((word)) is 1.21      [word]   1.1 times weaker
    (word:1.3)  1.3 times                                  BREAK    what follows begins a new window
    \\( \\[       the brackets themselves

Brackets that are not closed reach to the end; those that were never opened, or nest deeper than 50, are text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STEP = 1.1
"""What one pair of brackets is worth."""
_DEEPEST = 50
_LARGEST = 100.0
"""Weights beyond it mean nothing any more, and could overflow."""
_NUMBER = r"[+-]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})"
_TOKEN = re.compile(rf"\\[()\[\]\\]|\\|\(|\[|:\s{{0,20}}({_NUMBER})\s{{0,20}}\)|\)|\]|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True)
class Passage:
    """A piece of a prompt and how strongly it counts; `begins_window` after a BREAK."""

    text: str
    weight: float = 1.0
    begins_window: bool = False


@dataclass
class _Piece:
    text: str
    weight: float = 1.0
    begins_window: bool = False


def read_weights(prompt: str) -> tuple[Passage, ...]:
    """`prompt` as passages of one weight each; neighbours of the same weight are one passage."""
    pieces: list[_Piece] = []
    opened: list[tuple[str, int]] = []
    """Bracket, and number of the first piece behind it."""
    for match in _TOKEN.finditer(prompt):
        token, weight = match[0], match[1]
        if token in ("(", "[") and len(opened) < _DEEPEST:
            opened.append((token, len(pieces)))
        elif weight is not None and _is_open(opened, "("):
            _close(opened, "(", pieces, float(weight))
        elif token == ")" and _is_open(opened, "("):
            _close(opened, "(", pieces, STEP)
        elif token == "]" and _is_open(opened, "["):
            _close(opened, "[", pieces, 1 / STEP)
        else:
            pieces += _plain(token[1:] if len(token) == 2 and token[0] == "\\" else token)
    for bracket, first in opened:
        _weigh(pieces, first, STEP if bracket == "(" else 1 / STEP)
    return _joined(pieces)


def plain(prompt: str) -> tuple[Passage, ...]:
    """`prompt` as it is: brackets are text."""
    return (Passage(prompt),)


def _is_open(opened: list[tuple[str, int]], bracket: str) -> bool:
    return any(kind == bracket for kind, _ in opened)


def _close(opened: list[tuple[str, int]], bracket: str, pieces: list[_Piece], weight: float) -> None:
    """Close the innermost bracket of this kind."""
    place = max(place for place, (kind, _) in enumerate(opened) if kind == bracket)
    _, first = opened.pop(place)
    _weigh(pieces, first, weight)


def _weigh(pieces: list[_Piece], first: int, weight: float) -> None:
    for piece in pieces[first:]:
        piece.weight = min(max(piece.weight * weight, -_LARGEST), _LARGEST)


def _plain(text: str) -> list[_Piece]:
    parts = _BREAK.split(text)
    if len(parts) == 1:
        return [_Piece(text)]
    last = len(parts) - 1
    kept = [part.lstrip() if number == last else part.strip() for number, part in enumerate(parts)]
    kept[0] = parts[0].rstrip()
    return [_Piece(part, begins_window=number > 0) for number, part in enumerate(kept)]


def _joined(pieces: list[_Piece]) -> tuple[Passage, ...]:
    passages: list[Passage] = []
    for piece in pieces:
        if passages and not piece.begins_window and piece.weight == passages[-1].weight:
            last = passages.pop()
            passages.append(Passage(last.text + piece.text, last.weight, last.begins_window))
        elif piece.text or piece.begins_window:
            passages.append(Passage(piece.text, piece.weight, piece.begins_window))
    return tuple(passages) or (Passage(""),)
