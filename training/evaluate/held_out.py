"""Which held-out captions are drawn and judged: chosen from the corpus by hash, so that nobody picks.

Each set has at most 100 captions with 100 different concepts. A picture is drawn for the caption with its style; it is
judged among the captions without style, so that a right style cannot stand in for a right subject.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.evaluate.colours import named_colour
from training.pictures import Corpus

SET_SIZE = 100
SHIPPED = Path(__file__).parent / "held_out.json"
HELD_OUT = ("test_combo", "test_concept", "val")


@dataclass(frozen=True)
class Caption:
    """A caption to draw. `row` is its real picture in the corpus, -1 when there is none; `text` is what it is judged
    by, `prompt` what is drawn."""

    id: str
    prompt: str
    text: str
    concept: str
    category: str
    style: str
    row: int = -1


def choose_captions(corpus: Corpus, name: str) -> list[Caption]:
    """The captions of one set, at most SET_SIZE, with distinct concepts and texts.

    `test_combo`: a known concept in a style it was never seen in. `test_concept`: a word never seen. `seen`: the
    concepts of test_combo, each in a style it was trained in, so that the two differ in nothing else. `colour`:
    held-out captions that give the subject a colour.
    """
    if name == "seen":
        wanted = {caption.concept for caption in choose_captions(corpus, "test_combo")}
        rows = [int(row) for row in corpus.rows("train") if corpus.records[row]["concept"] in wanted]
    elif name == "colour":
        rows = [int(row) for row in corpus.rows(*HELD_OUT) if named_colour(corpus.records[row]["caption"])]
    else:
        rows = [int(row) for row in corpus.rows(name)]
    return _distinct(corpus, rows)


def _distinct(corpus: Corpus, rows: Iterable[int]) -> list[Caption]:
    chosen: list[Caption] = []
    concepts: set[str] = set()
    texts: set[str] = set()
    for row in sorted(rows, key=lambda row: _order(corpus.records[row]["id"])):
        caption = caption_of_row(corpus, row)
        if caption.concept in concepts or caption.text.lower() in texts or len(chosen) == SET_SIZE:
            continue
        concepts.add(caption.concept)
        texts.add(caption.text.lower())
        chosen.append(caption)
    return chosen


def caption_of_row(corpus: Corpus, row: int) -> Caption:
    record: dict[str, Any] = corpus.records[row]
    text, style = record["caption"], record["style_text"]
    prompt = text if style in text else f"{text}, {style}"
    return Caption(record["id"], prompt, text, record["concept"], record["category"], style, row)


def reference_rows(corpus: Corpus, without: Iterable[int]) -> list[int]:
    """Held-out rows that no caption of an evaluation belongs to: the reference of the Fréchet distance."""
    left_out = set(without)
    return [int(row) for row in corpus.rows(*HELD_OUT) if int(row) not in left_out]


def some_rows(corpus: Corpus, count: int) -> list[int]:
    """`count` held-out rows, by hash, for figures that need no captions."""
    rows = [int(row) for row in corpus.rows(*HELD_OUT)]
    return sorted(rows, key=lambda row: _order(corpus.records[row]["id"]))[:count]


def _order(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()


def write_captions(corpus: Corpus, path: Path) -> dict[str, int]:
    """Write the sets to a file, for checks that have no corpus; returns their sizes."""
    sets = {name: choose_captions(corpus, name) for name in ("test_combo", "test_concept", "seen", "colour")}
    lines = [f'"{name}": [\n' + ",\n".join(_line(c) for c in captions) + "\n]" for name, captions in sets.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return {name: len(captions) for name, captions in sets.items()}


def _line(caption: Caption) -> str:
    return json.dumps({key: value for key, value in asdict(caption).items() if key != "row"}, ensure_ascii=False)


def read_captions(name: str, path: Path = SHIPPED) -> list[Caption]:
    """A set as it was written, without rows."""
    sets = json.loads(path.read_text(encoding="utf-8"))
    return [Caption(**entry) for entry in sets[name]]
