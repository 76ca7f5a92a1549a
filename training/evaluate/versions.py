"""Figures of several versions of the same pictures (filled, with a white hole, whole), as a table and as JSON."""

import json
from pathlib import Path
from typing import Any

from training.evaluate.metrics import Figure, as_json

Figures = dict[str, dict[str, Figure]]
"""version -> measure -> figure; all are shares but `psnr`, which is in dB."""


def as_markdown(figures: Figures) -> str:
    """One row a version; ± is one standard error."""
    measures = list(dict.fromkeys(measure for found in figures.values() for measure in found))
    lines = ["| picture | " + " | ".join(measures) + " |", "| --- |" + " --- |" * len(measures)]
    for version, found in figures.items():
        cells = [_cell(measure, found[measure]) if measure in found else "" for measure in measures]
        lines.append(f"| {version} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(measure: str, figure: Figure) -> str:
    if measure == "psnr":
        return f"{figure.value:.1f} ± {figure.error:.1f} dB"
    return f"{100 * figure.value:.0f} ± {100 * figure.error:.0f} %"


def write_figures(figures: Figures, folder: Path, name: str) -> dict[str, Any]:
    """Write `name`.md and `name`.json to `folder`; returns what the JSON holds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(as_markdown(figures), encoding="utf-8")
    found = {version: {measure: as_json(figure) for measure, figure in of.items()} for version, of in figures.items()}
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found
