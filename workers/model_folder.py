"""What lies in a directory of models.

Owns what in it is a model, under which name, and how a change of one is noticed. Loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from models.checkpoint_files import INDEX, PICKLE_SUFFIXES, SUFFIX

_LONGEST_NAME = 200

_State = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class FoundModel:
    """A model on disk. state: relative path, bytes and nanoseconds of the last change of every file of it; beside: of
    other models in the directory, which may hold a configuration that it lacks."""

    source: str
    state: _State
    beside: _State = ()

    @property
    def own(self) -> tuple[str, _State]:
        return self.source, self.state


def found_models(folder: Path) -> dict[str, FoundModel]:
    """Models by the names of their folders, or of their files without the ending; where both are there, the file.

    A folder without any weights is no model but the configuration of files, so a change of one is a change of every
    file. A directory that is not there holds nothing. Raises OSError when it cannot be read; what vanishes meanwhile,
    and what in it cannot be read, is left out.
    """
    if not folder.exists():
        return {}
    entries = sorted(own for own in folder.iterdir() if own.name.isprintable() and len(own.name) <= _LONGEST_NAME)
    files = {own.stem: own for own in entries if own.suffix == SUFFIX and _is_file(own)}
    states = {own: state for own in entries if (state := _state_of_folder(own))}
    shared = _lines(state for state in states.values() if not _has_weights(state))
    beside = _lines(state for state in states.values() if _has_weights(state)) if files else ()
    found = {
        own.name: FoundModel(str(own), state)
        for own, state in states.items()
        if _has_weights(state) and own.name not in files
    }
    for name, file in files.items():
        state = (*_state_of(file), *states.get(folder / name, ()), *shared)
        found[name] = FoundModel(str(file), state, beside)
    return found


def _lines(states: Iterable[_State]) -> _State:
    return tuple(line for state in states for line in state)


def _state_of_folder(path: Path) -> _State:
    """Nothing for what is no model, or cannot be read."""
    try:
        return _state_of(path) if (path / INDEX).is_file() else ()
    except OSError:
        return ()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _has_weights(state: _State) -> bool:
    return any(path.endswith((SUFFIX, *PICKLE_SUFFIXES)) for path, _, _ in state)


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
