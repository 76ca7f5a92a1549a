"""Writes docs/settings.md from the settings classes: `python docs/generate.py`. A test compares the two."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.settings import ApiSettings  # noqa: E402
from workers.settings import WorkerSettings  # noqa: E402

INTRODUCTION = """# Settings

<!-- Written by docs/generate.py from app/settings.py and workers/settings.py. Change the descriptions there. -->

Everything is set by environment variables, read once when a process starts. `denoised serve` hands its environment to
the API and to the workers, and its options (`denoised serve --help`) are short forms of some of them. A value that
cannot be used is named and nothing starts. Set the variables that API and workers share to the same values for both.
"""

SECTIONS = (
    ("API and workers", "Needed by both, with the same value."),
    ("API", "Read by `denoised api`."),
    ("Workers", "Read by `denoised worker`."),
)

OTHERS = """
## Command line

### `DENOISED_SERVER`

The server that `denoised generate` and `denoised models` use when `--server` is not given. Default:
`http://127.0.0.1:8000`.

### `DENOISED_API_KEY`

The key that they send when `--key` is not given. Prefer it to the option: other users see the options of a program.

## Embedded server

### `DENOISED_VALKEY`

Path of another `valkey-server` or `redis-server` program to embed. Default: the packaged one, then what is on `PATH`.
"""


def settings_page() -> str:
    """The whole text of docs/settings.md."""
    api, worker = ApiSettings.model_fields, WorkerSettings.model_fields
    shared = [name for name in api if name in worker]
    groups: tuple[list[tuple[type[BaseSettings], str]], ...] = (
        [(ApiSettings, name) for name in shared],
        [(ApiSettings, name) for name in api if name not in shared],
        [(WorkerSettings, name) for name in worker if name not in shared],
    )
    text = INTRODUCTION
    for (title, words), group in zip(SECTIONS, groups, strict=True):
        text += f"\n## {title}\n\n{words}\n"
        for settings, name in group:
            text += _entry(settings, name)
    return text + OTHERS


def variable(name: str) -> str:
    """The environment variable of a field."""
    return "REDIS_URL" if name == "redis_url" else f"DENOISED_{name.upper()}"


def _entry(settings: type[BaseSettings], name: str) -> str:
    field = settings.model_fields[name]
    return (
        f"\n### `{variable(name)}`\n\n{field.description}\n\n{_default(field.get_default(call_default_factory=True))}\n"
    )


def _default(value: Any) -> str:
    match value:
        case _ if value is PydanticUndefined:
            return "It must be set."
        case None | "" | ():
            return "Default: not set."
        case SecretStr():
            return "Default: not set."
        case dict():
            return f"Default: the bundled models, {' and '.join(f'`{name}`' for name in value)}."
        case _:
            return f"Default: `{value}`"


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(settings_page(), "utf-8")
