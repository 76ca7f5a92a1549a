"""Trains the judges on the train split of the corpus. No drawn picture is ever shown to them.

    python -m training.evaluate judges --corpus CORPUS --run FOLDER [--minutes M]

One batch serves all heads: cross-entropy of category, frequent concept and style, and CLIP's symmetric contrastive loss
(arXiv:2103.00020, figure 3) in which all pictures of a batch with the same concept count as right for its captions.
"""

import argparse
import copy
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from training.evaluate.augmentation import augmented, small_cutouts
from training.evaluate.held_out import choose_captions
from training.evaluate.judges import (
    SIDE,
    JudgeNetwork,
    Judges,
    JudgeSettings,
    Labels,
    encode,
    word_numbers,
    words_of,
)
from training.evaluate.metrics import is_in_top
from training.evaluate.sheets import contact_sheet
from training.hardware import Hardware
from training.loop import LoopSettings, Run
from training.pictures import Corpus, Pixels, Random, on_background
from training.sampling import weights
from training.settings import load

SETTINGS = Path(__file__).parent / "judges.toml"
_HIGHEST_SCALE = 100.0
_SMOOTHING = 0.1
_STYLE_WEIGHT = 0.5
_MANY = 600
_HAS_SIDES = ("letter", "clock", "flag")

Record = dict[str, Any]


@dataclass(frozen=True)
class LabelSettings:
    """How often a word, concept or style must occur in the train split to get a label of its own."""

    least_word: int = 2
    least_concept: int = 8
    least_style: int = 8


def labels_of(records: Iterable[Record], settings: LabelSettings) -> Labels:
    """Labels from the records of the train split; nothing that only held-out records have can get in."""
    train = [record for record in records if record["split"] == "train"]
    words = Counter(word for record in train for word in set(words_of(_everything_said(record))))
    return Labels(
        words=_frequent(words, settings.least_word),
        categories=tuple(sorted({record["category"] for record in train})),
        concepts=_frequent(Counter(record["concept"] for record in train), settings.least_concept),
        styles=_frequent(Counter(record["style_text"] for record in train), settings.least_style),
    )


def _frequent(counts: Counter[str], least: int) -> tuple[str, ...]:
    return tuple(sorted(name for name, count in counts.items() if count >= least))


def _everything_said(record: Record) -> str:
    return " ".join([record["caption"], record["name"], *record["alt_names"], *record["tags"], record["style_text"]])


def caption_for_judge(record: Record, random: Random) -> str:
    """A caption of `record`: its own or another name of it, sometimes with the style or a keyword behind it."""
    names = [record["caption"], record["caption"], record["name"], *record["alt_names"][:2]]
    caption: str = names[random.integers(len(names))]
    if random.random() < 0.3:
        caption += f", {record['style_text']}"
    if record["tags"] and random.random() < 0.2:
        caption += f", {record['tags'][random.integers(len(record['tags']))]}"
    return caption


class JudgeTask:
    """What the training loop needs: batches of moved cut-outs with captions and labels, measures on held-out ones."""

    def __init__(self, corpus: Corpus, labels: Labels, settings: JudgeSettings, batch_size: int) -> None:
        self.corpus, self.labels, self.settings, self.batch_size = corpus, labels, settings, batch_size
        self.network = JudgeNetwork(labels, settings)
        self.rows = corpus.rows("train")
        chances = np.sqrt(weights([corpus.records[row] for row in self.rows]))
        self.chances = chances / chances.sum()
        self.records = [corpus.records[row] for row in self.rows]
        self.cutouts = np.empty((len(self.rows), SIDE, SIDE, 4), np.uint8)
        for place, row in enumerate(self.rows):
            self.cutouts[place] = small_cutouts(corpus.rgba[row], SIDE)
        self.may_flip = np.array([_may_flip(record) for record in self.records])
        self.numbers = word_numbers(labels.words)
        self.concepts = _indices((r["concept"] for r in self.records), sorted({r["concept"] for r in self.records}))
        self.targets = {
            "categories": _indices((r["category"] for r in self.records), labels.categories),
            "concepts": _indices((r["concept"] for r in self.records), labels.concepts),
            "styles": _indices((r["style_text"] for r in self.records), labels.styles),
        }

    @property
    def model(self) -> nn.Module:
        return self.network

    def compiled_parts(self) -> list[nn.Module]:
        return [self.network.pictures]

    def loss(self, step: int, random: Random) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch; the fewer labels a head has, the easier it is, so the heads are not weighted further."""
        chosen = random.choice(len(self.rows), self.batch_size, p=self.chances)
        captions = encode([caption_for_judge(self.records[i], random) for i in chosen], self.numbers)
        place = self.network.temperature.device
        pictures = augmented(self.cutouts[chosen], self.may_flip[chosen], random).to(place)
        seen = self.network(pictures)
        scale = self.network.temperature.exp().clamp(max=_HIGHEST_SCALE)
        logits = scale * seen.embeddings @ self.network.captions(captions.to(place)).T  # [pictures, captions]
        pairs = contrastive_loss(logits, torch.from_numpy(self.concepts[chosen]).to(place))
        category = self._head_loss(seen.categories, "categories", chosen)
        concept = self._head_loss(seen.concepts, "concepts", chosen)
        style = self._head_loss(seen.styles, "styles", chosen)
        parts = {"pairs": pairs, "category": category, "concept": concept}
        shown = {name: round(part.item(), 3) for name, part in parts.items()}
        return pairs + category + concept + _STYLE_WEIGHT * style, shown

    def _head_loss(self, logits: Tensor, head: str, chosen: NDArray[np.int64]) -> Tensor:
        """Cross-entropy over the pictures of the batch that have a label; 0 when none has."""
        targets = torch.from_numpy(self.targets[head][chosen]).to(logits.device)
        total = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum", label_smoothing=_SMOOTHING)
        return total / (targets >= 0).sum().clamp(min=1)

    def judges(self, network: nn.Module) -> Judges:
        """`network`, a trained copy of the model, with its labels."""
        assert isinstance(network, JudgeNetwork), "A judge run holds a judge network. This is a bug."
        return Judges(copy.deepcopy(network).cpu().eval(), self.labels, self.settings)

    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Held-out real pictures on white: top-1 and top-5 among 100 captions, and accuracy of each head."""
        judges, captions = self.judges(averaged), choose_captions(self.corpus, "test_combo")
        impression = judges.look(self._on_white([caption.row for caption in captions]))
        similarity = judges.similarity(impression, [caption.text for caption in captions])
        truth = np.arange(len(captions))
        figures = {f"top_{k}": round(float(is_in_top(similarity, truth, k).mean()), 4) for k in (1, 5)}
        rows = [int(row) for row in self.corpus.rows("val", "test_combo")[:_MANY]]
        seen, records = judges.look(self._on_white(rows)), [self.corpus.records[row] for row in rows]
        for name, key in (("categories", "category"), ("concepts", "concept"), ("styles", "style_text")):
            known = _indices((record[key] for record in records), getattr(self.labels, name))
            is_right = getattr(seen, name).argmax(1).numpy() == known
            figures[name] = round(float(is_right[known >= 0].mean()), 4) if (known >= 0).any() else 0.0
        return figures

    def sheet(self, averaged: nn.Module) -> Image.Image:
        """Held-out pictures with the caption that the judge picks for each among all of them."""
        judges, captions = self.judges(averaged), choose_captions(self.corpus, "test_combo")[:64]
        pictures = self._on_white([caption.row for caption in captions])
        texts = [caption.text for caption in captions]
        picks = judges.similarity(judges.look(pictures), texts).argmax(1)
        return contact_sheet(pictures, [texts[pick] for pick in picks])

    def _on_white(self, rows: Sequence[int]) -> list[Pixels]:
        return [on_background(self.corpus.rgba[row], 255) for row in rows]


def contrastive_loss(logits: Tensor, concepts: Tensor) -> Tensor:
    """Symmetric cross-entropy of `logits` [n, n]; all pairs of equal `concepts` [n] share the probability."""
    same = (concepts[:, None] == concepts[None, :]).float()
    targets = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def _may_flip(record: Record) -> bool:
    """Whether a mirrored picture still fits its caption."""
    says_side = {"left", "right", "leftward", "rightward"} & set(words_of(record["caption"]))
    return record["category"] not in _HAS_SIDES and not says_side


def _indices(names: Iterable[str], known: Sequence[str]) -> NDArray[np.int64]:
    """Position of each name in `known`, -1 for others: int64 [n]."""
    places = {name: place for place, name in enumerate(known)}
    return np.array([places.get(name, -1) for name in names], dtype=np.int64)


def judge_run(corpus: Corpus, folder: Path, settings: Path = SETTINGS, hardware: Hardware | None = None) -> Run:
    """The run in `folder`, gone on with where it stopped."""
    loop = load(settings, "loop", LoopSettings)
    labels = labels_of(corpus.records, load(settings, "labels", LabelSettings))
    torch.manual_seed(loop.seed)
    task = JudgeTask(corpus, labels, load(settings, "network", JudgeSettings), loop.batch_size)
    run = Run(folder, task, loop, hardware or Hardware("cpu"))
    run.resume()
    return run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", type=Path, required=True, help="folder of `python -m training.corpus build`")
    parser.add_argument("--run", type=Path, required=True, help="checkpoint, log and sheets; the judges end up here")
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long, to be resumed")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")


def command(arguments: argparse.Namespace) -> None:
    """Train, write `judges.safetensors` and `judges.json` to the run's folder, print one JSON line."""
    end = time.monotonic() + 60 * arguments.minutes
    run = judge_run(Corpus.open(arguments.corpus), arguments.run, arguments.settings, Hardware(arguments.device))
    run.train(until=lambda: time.monotonic() > end)
    run.report()
    task = run.task
    assert isinstance(task, JudgeTask), "A judge run has a judge task. This is a bug."
    judges = task.judges(run.averaged)
    judges.save(arguments.run)
    size = sum(path.stat().st_size for path in arguments.run.glob("judges.*"))
    facts = {"step": run.step, "steps": run.settings.steps, "folder": str(arguments.run), "size_bytes": size}
    print(json.dumps(facts | task.measure(judges.network)), flush=True)  # noqa: T201 the result of a command
