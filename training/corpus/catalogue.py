"""The curated catalogue: which picture of which package, with its name, caption, licence and split.

Owns reading `catalogue.jsonl.xz` (README.md says what each field means). Knows nothing of packages on disk or pixels.
"""

import json
import lzma
from collections.abc import Collection
from pathlib import Path
from typing import Any

from training.corpus.sources import source_of

Record = dict[str, Any]

CATALOGUE = Path(__file__).parent / "catalogue.jsonl.xz"

SPLITS = ("train", "val", "test_concept", "test_combo")

_HELD_OUT = """
abacus alembic boar burrito carrot chipmunk cockroach cookie croissant cucumber custard dagger dolphin duck dumpling
flute fox hamburger handbag joystick kimono lipstick lobster microscope minibus monorail moose mosque peacock penguin
pill popcorn sailboat screwdriver seedling sheep shovel shrimp socks spaghetti syringe taxi tomato trolleybus tulip
unicorn wastebasket whale
"""
HELD_OUT_WORDS = tuple(_HELD_OUT.split())
"""Nouns that no picture outside `test_concept` is named after or has as a keyword."""


def read_catalogue(path: Path = CATALOGUE) -> list[Record]:
    """Every record, in the order of the built array: grouped by source."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def of_sources(records: list[Record], names: Collection[str]) -> list[Record]:
    """The records of the named sources in their order, all when none is named; ValueError for an unknown name."""
    wanted = {source_of(name).name for name in names}
    return [record for record in records if not wanted or record["src"] in wanted]
