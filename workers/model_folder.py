"""What lies in a directory of models.

Owns what in it is a model, under which name, and how a change of one is noticed. Loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INDEX = "model_index.json"
_WEIGHTS = ".safetensors"
_SUFFIXES_OF_WEIGHTS = (_WEIGHTS, ".bin", ".ckpt", ".pt", ".pth")
_LONGEST_NAME = 200

_State = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class FoundModel:
    """A model on disk. state: relative path, bytes and nanoseconds of the last change of every file of it."""

    source: str
    state: _State


def found_models(folder: Path) -> dict[str, FoundModel]:
    """Models by the names of their folders, or of their files without the ending; where both are there, the file.

    A folder without any weights is no model but the configuration of files, so a change of one is a change of every
    file. A directory that is not there holds nothing. Raises OSError when it cannot be read; what vanishes meanwhile is
    left out.
    """
    if not folder.exists():
        return {}
    entries = sorted(own for own in folder.iterdir() if own.name.isprintable() and len(own.name) <= _LONGEST_NAME)
    files = {own.stem: own for own in entries if own.suffix == _WEIGHTS and own.is_file()}
    states = {own: _state_of(own) for own in entries if (own / INDEX).is_file()}
    shared = tuple(line for state in states.values() if not _has_weights(state) for line in state)
    found = {
        own.name: FoundModel(str(own), state)
        for own, state in states.items()
        if _has_weights(state) and own.name not in files
    }
    for name, file in files.items():
        beside = states.get(folder / name, ())
        found[name] = FoundModel(str(file), (*_state_of(file), *beside, *shared))
    return found


def _has_weights(state: _State) -> bool:
    return any(path.endswith(_SUFFIXES_OF_WEIGHTS) for path, _, _ in state)


def _state_of(path: Path) -> _State:
    """Of a file, or of every file in a folder; paths from the folder in which it lies."""
    return tuple(sorted(_states(path)))


def _states(path: Path) -> Iterator[tuple[str, int, int]]:
    for own in (path, *path.rglob("*")):
        try:
            status = own.stat()
        except FileNotFoundError:
            continue
        if own.is_file():
            yield own.relative_to(path.parent).as_posix(), status.st_size, status.st_mtime_ns
