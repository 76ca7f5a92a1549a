"""An evaluation as JSON, as a Markdown table for docs/model.md, and as one line."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluate.drawing import DrawingSettings
from training.evaluate.evaluate import RETRIEVAL_SETS, Results
from training.evaluate.judges import WEIGHTS
from training.evaluate.metrics import Figure, as_json, share_of

_SET_NAMES = {
    "test_combo": "held-out combinations",
    "seen": "the same subjects in trained styles",
    "test_concept": "words never seen",
    "naming": "naming prompts",
}
_MEASURE_NAMES = {
    "top_1": "retrieval top-1",
    "top_5": "retrieval top-5",
    "category": "category",
    "concept": "concept",
    "style": "style",
}
_OTHERS = {
    "colour/named": "colour, held-out captions",
    "made_colour/named": "colour, made-up prompts",
    "frechet": "Fréchet distance",
    "autoencoder/psnr_white": "autoencoder PSNR on white (dB)",
    "autoencoder/psnr_coloured": "autoencoder PSNR on colours (dB)",
    "autoencoder/ssim_white": "autoencoder SSIM on white",
    "autoencoder/ssim_coloured": "autoencoder SSIM on colours",
}
_NOTES = (
    "± is one standard error over captions. Real pictures are those of the same captions, on white. The judges learned",
    "from those in trained styles, so that ceiling is too high; they do not know the words never seen: a low ceiling.",
    "The Fréchet distance is that of the held-out sets to other held-out pictures; few pictures raise it, all alike.",
)
MAIN = "test_combo/top_1"


@dataclass(frozen=True)
class Report:
    """All that was found out about one model. `previous` may be figures of another evaluation."""

    model: str
    digest: str
    judges: str
    settings: DrawingSettings
    drawn: Results
    real: Results
    previous: Mapping[str, Figure]
    candidates: Mapping[str, int]
    """How many captions a picture is ranked among, by set."""

    def shares_of_ceiling(self) -> dict[str, Figure]:
        """Retrieval figures as shares of those of the real pictures of the same captions."""
        random = np.random.default_rng(0)
        measures = [f"{name}/top_{k}" for name in RETRIEVAL_SETS for k in (1, 5)]
        both = [measure for measure in measures if measure in self.drawn.hits and measure in self.real.hits]
        return {measure: share_of(self.drawn.hits[measure], self.real.hits[measure], random) for measure in both}

    def chances(self) -> dict[str, float]:
        """Retrieval figures of a picture of nothing."""
        return {f"{name}/top_{k}": min(1.0, k / count) for name, count in self.candidates.items() for k in (1, 5)}

    def seconds_a_picture(self) -> float | None:
        """Of those drawn just now, all prompts of a set in one running batch; None when all were kept ones."""
        fresh = [gallery for gallery in self.drawn.galleries.values() if gallery.seconds]
        count = sum(len(gallery.flat) for gallery in fresh)
        return round(sum(gallery.seconds for gallery in fresh) / count, 3) if count else None

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "digest": self.digest,
            "judges": self.judges,
            "settings": asdict(self.settings),
            "seconds_a_picture": self.seconds_a_picture(),
            "drawn": _figures_as_json(self.drawn.figures),
            "real": _figures_as_json(self.real.figures),
            "previous": _figures_as_json(self.previous),
            "share_of_ceiling": _figures_as_json(self.shares_of_ceiling()),
            "chance": self.chances(),
            "hits": {
                f"{name}/top_{k}": self.drawn.hits[f"{name}/top_{k}"].astype(int).tolist()
                for name in (*RETRIEVAL_SETS, "naming")
                for k in (1, 5)
                if f"{name}/top_{k}" in self.drawn.hits
            },
        }

    def as_markdown(self) -> str:
        """One row a measure: drawn, previous, real pictures, chance; ± is one standard error."""
        lines = [
            "| measure | drawn | previous model | real pictures | chance |",
            "| --- | --- | --- | --- | --- |",
        ]
        chances = self.chances()
        for measure, name in measure_names().items():
            sources = (self.drawn.figures, self.previous, self.real.figures)
            if measure in self.drawn.figures:
                cells = [_cell(measure, source.get(measure)) for source in sources]
                chance = f"{100 * chances[measure]:.0f} %" if measure in chances else ""
                lines.append(f"| {name} | {' | '.join(cells)} | {chance} |")
        return "\n".join([*lines, "", *_NOTES]) + "\n"

    def as_line(self) -> str:
        """The figures to steer by as one JSON line."""
        line: dict[str, Any] = {"model": self.model, "seconds_a_picture": self.seconds_a_picture()}
        shown = (MAIN, "test_combo/top_5", "seen/top_1", "naming/top_1", "colour/named", "made_colour/named", "frechet")
        for measure in (*shown, "autoencoder/psnr_white", "autoencoder/psnr_coloured"):
            if measure in self.drawn.figures:
                line[measure] = as_json(self.drawn.figures[measure])["value"]
        shares = self.shares_of_ceiling()
        if MAIN in shares:
            line["ceiling"] = as_json(self.real.figures[MAIN])["value"]
            line["share_of_ceiling"] = as_json(shares[MAIN])["value"]
        return json.dumps(line)


def measure_names() -> dict[str, str]:
    """Measures in the order of the table, with what they are called there."""
    judged = {
        f"{name}/{measure}": f"{words}, {title}"
        for name, title in _SET_NAMES.items()
        for measure, words in _MEASURE_NAMES.items()
    }
    return judged | _OTHERS


def read_figures(path: Path) -> dict[str, Figure]:
    """Figures of what was drawn in an earlier evaluation, from its `report.json`."""
    found = json.loads(path.read_text(encoding="utf-8"))["drawn"]
    return {measure: Figure(**{k: _number(v) for k, v in figure.items()}) for measure, figure in found.items()}


def _number(value: float | None) -> Any:
    return float("nan") if value is None else value


def judges_fingerprint(folder: Path) -> str:
    """SHA-256 of the judges' weights: figures of different judges cannot be compared."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def _figures_as_json(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {measure: as_json(figure) for measure, figure in figures.items()}


def _cell(measure: str, figure: Figure | None) -> str:
    if figure is None or np.isnan(figure.value):
        return ""
    if measure == "frechet" or measure.startswith("autoencoder"):
        digits = 3 if "ssim" in measure else 2
        return f"{figure.value:.{digits}f} ± {figure.error:.{digits}f}"
    return f"{100 * figure.value:.0f} ± {100 * figure.error:.0f} %"
