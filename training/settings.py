"""Settings of a trainer: one TOML file per model, one table per frozen dataclass, unknown keys refused."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")

FOLDER = Path(__file__).parent / "settings"


def load(path: Path, table: str, kind: type[T]) -> T:
    """Table `[table]` of the TOML file `path` as `kind`; ValueError names what does not belong there."""
    with path.open("rb") as file:
        content = tomllib.load(file)
    values: dict[str, Any] = content.get(table, {})
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{path.name} [{table}]: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return TypeAdapter(kind).validate_python(values)
