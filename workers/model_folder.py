"""What lies in a directory of models.

Owns which folders in it are models, under which names, and how a change of one is noticed. Loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INDEX = "model_index.json"
_LONGEST_NAME = 200


@dataclass(frozen=True)
class FoundModel:
    """A model on disk. state: relative path, bytes and nanoseconds of the last change of every file of it."""

    source: str
    state: tuple[tuple[str, int, int], ...]


def found_models(folder: Path) -> dict[str, FoundModel]:
    """Models by the names of their folders; a directory that is not there holds none.

    Raises OSError when it cannot be read. A folder that vanishes meanwhile is left out.
    """
    if not folder.exists():
        return {}
    found: dict[str, FoundModel] = {}
    for own in sorted(folder.iterdir()):
        if (own / INDEX).is_file() and own.name.isprintable() and len(own.name) <= _LONGEST_NAME:
            found[own.name] = FoundModel(str(own), tuple(sorted(_states(own))))
    return found


def _states(folder: Path) -> Iterator[tuple[str, int, int]]:
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if path.is_file():
            yield path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns
