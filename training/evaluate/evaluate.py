"""Draws the evaluation's prompts with a checkpoint and lets the judges look, beside real held-out pictures.

Nothing here is trained and no picture is selected: every prompt is drawn once (or `pictures_per_caption` times) and all
of them count. A picture is ranked among all captions of its set even when only some of them are drawn, so that a short
evaluation is no easier than a long one.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.autoencoder import Autoencoder
from models.checkpoint import Checkpoint
from training.evaluate.colours import dominant_colours, named_colour
from training.evaluate.drawing import DrawingSettings, Gallery, draw
from training.evaluate.held_out import Caption, choose_captions, reference_rows, some_rows
from training.evaluate.judges import Judges
from training.evaluate.metrics import Figure, frechet, is_in_top, mean, psnr, rate, ssim
from training.evaluate.prompts import colour_prompts, naming_prompts, sheet_prompts
from training.pictures import Corpus, Pixels, on_background, random_background

log = logging.getLogger(__name__)

RETRIEVAL_SETS = ("test_combo", "seen", "test_concept")
"""Sets with real pictures; the first is the number to steer by."""
SETS = (*RETRIEVAL_SETS, "naming", "colour", "made_colour", "sheet")
_FRECHET_SETS = ("test_combo", "test_concept")
_AUTOENCODER_PICTURES = 300
HIGHEST_PSNR = 99.0
"""dB that an exact copy counts as, so that a mean exists."""

Hits = NDArray[np.float64]


@dataclass(frozen=True)
class Extent:
    """How much is evaluated: the first `limit` captions of each set in `sets` (None: all of them)."""

    limit: int | None = None
    sets: tuple[str, ...] = SETS


@dataclass(frozen=True)
class Results:
    """Figures by measure ("test_combo/top_1"), hits [captions, pictures a caption] behind the rates (NaN: not judged),
    and, for a checkpoint, what was drawn."""

    figures: dict[str, Figure] = field(default_factory=dict)
    hits: dict[str, Hits] = field(default_factory=dict)
    galleries: dict[str, Gallery] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What every model is measured with."""

    corpus: Corpus
    judges: Judges
    extent: Extent = Extent()

    def captions(self, name: str) -> list[Caption]:
        """All captions of a retrieval or colour set."""
        return naming_prompts() if name == "naming" else choose_captions(self.corpus, name)

    def taken(self, name: str) -> list[Caption]:
        """The captions of a set that are drawn."""
        return self.captions(name)[: self.extent.limit]

    def prompts(self, name: str) -> list[str]:
        """The prompts of any set that are drawn."""
        fixed = {"sheet": sheet_prompts, "made_colour": colour_prompts}
        if name in fixed:
            return fixed[name]()[: self.extent.limit]
        return [caption.prompt for caption in self.taken(name)]

    def of_checkpoint(self, checkpoint: Checkpoint, settings: DrawingSettings, folder: Path) -> Results:
        """Draw and judge every set of the extent. `folder` keeps what was drawn. Raises DrawingFailed."""
        galleries = {}
        for name in self.extent.sets:
            if prompts := self.prompts(name):
                log.info("%s: %s, %d prompts", checkpoint.name, name, len(prompts))
                galleries[name] = draw(checkpoint, prompts, settings, folder)
        judged = self.judged({name: gallery.pictures for name, gallery in galleries.items()})
        log.info("%s: autoencoder", checkpoint.name)
        return Results(judged.figures | self._autoencoder(checkpoint.autoencoder), judged.hits, galleries)

    def of_real(self) -> Results:
        """The same figures for the real pictures of the captions, on white: the ceiling.

        The real pictures of `seen` are pictures the judges learned from, so that ceiling is too high.
        """
        pictures = {}
        for name in self.extent.sets:
            rows = [caption.row for caption in self.taken(name)] if name in (*RETRIEVAL_SETS, "colour") else []
            if rows:
                pictures[name] = np.stack(self._on_white(rows))[:, None]
        return self.judged(pictures)

    def judged(self, pictures: dict[str, Pixels]) -> Results:
        """All figures that can be had from `pictures`: set -> uint8 [captions, pictures a caption, h, w, 3]."""
        hits: dict[str, Hits] = {}
        features: dict[str, Hits] = {}
        for name in (*RETRIEVAL_SETS, "naming"):
            if name in pictures:
                judged = judge_set(self.judges, self.taken(name), self.captions(name), pictures[name])
                hits |= {f"{name}/{measure}": found for measure, found in judged.hits.items()}
                features[name] = judged.first_features
        for name in ("colour", "made_colour"):
            if name in pictures:
                hits[f"{name}/named"] = colour_hits(self.prompts(name), pictures[name])
        figures = rates(hits)
        if all(name in features for name in _FRECHET_SETS):
            seen = np.concatenate([features[name] for name in _FRECHET_SETS])
            figures["frechet"] = frechet(seen, self._reference_features())
        return Results(figures, hits)

    def _reference_features(self) -> Hits:
        """Features of the held-out pictures that belong to none of the captions: float64 [n, f]."""
        left_out = [caption.row for name in _FRECHET_SETS for caption in self.captions(name)]
        rows = reference_rows(self.corpus, left_out)
        return self.judges.look(self._on_white(rows)).features.double().numpy() if rows else np.empty((0, 0))

    def _on_white(self, rows: Sequence[int]) -> list[Pixels]:
        return [on_background(self.corpus.rgba[row], 255) for row in rows]

    def _autoencoder(self, autoencoder: Autoencoder) -> dict[str, Figure]:
        rows = some_rows(self.corpus, min(_AUTOENCODER_PICTURES, self.extent.limit or _AUTOENCODER_PICTURES))
        random = np.random.default_rng(0)
        whites = self._on_white(rows)
        coloured = [on_background(self.corpus.rgba[row], _not_white(random, self.corpus.rgba.shape[1])) for row in rows]
        return reconstruction(autoencoder, whites, "white") | reconstruction(autoencoder, coloured, "coloured")


@dataclass(frozen=True)
class SetJudgement:
    """hits by measure, [captions, pictures a caption]; features [captions, f] of the first picture of each caption."""

    hits: dict[str, Hits]
    first_features: Hits


def judge_set(
    judges: Judges, captions: Sequence[Caption], candidates: Sequence[Caption], pictures: Pixels
) -> SetJudgement:
    """Rank each picture's own caption among the candidates' texts, and compare the classifier's labels.

    `captions` are the first ones of `candidates`; `pictures` is uint8 [captions, pictures a caption, h, w, 3]. A label
    that the classifier does not know gives NaN.
    """
    count, each = pictures.shape[:2]
    assert [c.text for c in captions] == [c.text for c in candidates[:count]], "Captions out of order. This is a bug."
    impression = judges.look(pictures.reshape(-1, *pictures.shape[2:]))
    similarity = judges.similarity(impression, [caption.text for caption in candidates])
    truth = np.repeat(np.arange(count), each)
    hits = {f"top_{k}": is_in_top(similarity, truth, k).astype(np.float64).reshape(count, each) for k in (1, 5)}
    labels = judges.labels
    for measure, logits, known, wanted in (
        ("category", impression.categories, labels.categories, [caption.category for caption in captions]),
        ("concept", impression.concepts, labels.concepts, [caption.concept for caption in captions]),
        ("style", impression.styles, labels.styles, [caption.style for caption in captions]),
    ):
        if any(name in known for name in wanted):
            right = np.array([known.index(name) if name in known else -1 for name in wanted], np.float64)
            right[right < 0] = np.nan
            answers = logits.argmax(1).numpy().reshape(count, each)
            hits[measure] = np.where(np.isnan(right)[:, None], np.nan, answers == right[:, None])
    features = impression.features.double().numpy().reshape(count, each, -1)[:, 0]
    return SetJudgement(hits, features)


def rates(hits: Mapping[str, Hits]) -> dict[str, Figure]:
    """Share of hits by measure; captions that could not be judged (NaN) do not count."""
    return {measure: rate(found[~np.isnan(found).any(1)]) for measure, found in hits.items()}


def colour_hits(prompts: Sequence[str], pictures: Pixels) -> Hits:
    """Whether the colour that each prompt names is a dominant one of its pictures: [prompts, pictures a prompt]."""
    return np.array(
        [
            [named_colour(prompt) in dominant_colours(picture) for picture in drawn]
            for prompt, drawn in zip(prompts, pictures, strict=True)
        ],
        dtype=np.float64,
    )


def reconstruction(autoencoder: Autoencoder, pictures: Sequence[Pixels], name: str) -> dict[str, Figure]:
    """PSNR (dB) and SSIM of `pictures` against themselves after the mean of their latents was decoded to 8 bits."""
    decoded = [_through(autoencoder, picture) for picture in pictures]
    pairs = list(zip(decoded, pictures, strict=True))
    return {
        f"autoencoder/psnr_{name}": mean([min(HIGHEST_PSNR, psnr(*pair)) for pair in pairs]),
        f"autoencoder/ssim_{name}": mean([ssim(*pair) for pair in pairs]),
    }


def _through(autoencoder: Autoencoder, picture: Pixels) -> Pixels:
    height, width = picture.shape[:2]
    posterior = autoencoder.encode(Image.fromarray(picture), width, height)
    (decoded,) = autoencoder.decode(posterior.mean[None] * posterior.scaling_factor)
    # A decoder that overflows has reconstructed nothing: count it as black instead of leaving it out.
    return np.zeros_like(picture) if decoded is None else decoded


def _not_white(random: np.random.Generator, size: int) -> NDArray[np.float32]:
    """A plain background or a gradient, never white, as `random_background` makes them."""
    while True:
        background = random_background(random, size)
        if background.min() < 255:
            return background
