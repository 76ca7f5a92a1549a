"""The fixed prompts of `prompts.toml`: 100 to be named by a person, 64 for the contact sheet, 52 with a colour."""

import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

from training.evaluate.colours import NAMES
from training.evaluate.held_out import Caption
from training.pictures import Corpus

PROMPTS = Path(__file__).parent / "prompts.toml"
LEAST_STYLES = 3
_NOUNS_A_COLOUR, _STRIDE = 4, 3


def naming_prompts() -> list[Caption]:
    """100 subjects, some with a style; `text` is the prompt without its style. They have no category."""
    return [
        Caption(f"naming/{group}/{concept}", prompt, prompt.split(", ")[0], concept, "", prompt.partition(", ")[2])
        for group, entries in _read()["naming"].items()
        for prompt, concept in entries
    ]


def sheet_prompts() -> list[str]:
    """64 prompts for the contact sheet, failures expected."""
    return [prompt for prompts in _read()["sheet"].values() for prompt in prompts]


def colour_prompts() -> list[str]:
    """Every named colour with four nouns, each noun as often as the others: "a red car"."""
    nouns = _read()["colour"]["nouns"]
    return [
        f"{_article(colour)} {colour} {nouns[(place + turn * _STRIDE) % len(nouns)]}"
        for place, colour in enumerate(NAMES)
        for turn in range(_NOUNS_A_COLOUR)
    ]


def rare_concepts(corpus: Corpus) -> dict[str, int]:
    """Concepts of the naming prompts with fewer than LEAST_STYLES styles in the train split, with their number."""
    styles: dict[str, set[str]] = defaultdict(set)
    for record in corpus.records:
        if record["split"] == "train":
            styles[record["concept"]].add(record["style"])
    found = {caption.concept: len(styles[caption.concept]) for caption in naming_prompts()}
    return {concept: count for concept, count in found.items() if count < LEAST_STYLES}


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _read() -> dict[str, Any]:
    with PROMPTS.open("rb") as file:
        return tomllib.load(file)
