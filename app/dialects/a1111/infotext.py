"""The lines in which this API's tools say how a picture was drawn, read.

Owns their grammar: the prompt, the negative prompt, and a last line of `name: value` pairs. `workers.pictures`
writes them.
"""

from __future__ import annotations

import json
import re

_PAIR = re.compile(r'\s{0,8}([\w][\w ./()-]{0,79}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")
_NEGATIVE = "Negative prompt:"
_LEAST_PAIRS = 3
"""A last line with fewer is part of the prompt."""


def values_of(infotext: str) -> dict[str, str]:
    """The prompts and the pairs of the last line."""
    *lines, last = infotext.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < _LEAST_PAIRS:
        lines, pairs = [*lines, last], []
    start = next((number for number, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(_NEGATIVE).strip()
    values = {"Prompt": "\n".join(lines[:start]).strip(), "Negative prompt": negative}
    for name, value in pairs:
        values[name] = _unquoted(value)
        if size := _SIZE.fullmatch(values[name]):
            values[f"{name}-1"], values[f"{name}-2"] = size.groups()
    return values if infotext.strip() else {}


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value
