"""How well holes are filled: the middle of held-out drawings is cut out, drawn anew, and judged.

Each picture of `test_combo` loses a box in the middle of what is drawn. diffusers' inpainting pipeline fills it, told
caption and style; outside the hole the picture stays as it was. The judges then see three versions: filled, with a
white hole (the floor: what they can tell from the rest alone), and whole (the ceiling). Knows nothing of training.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.corpus.render import drawn_bounds
from training.evaluate.drawing import DrawingSettings
from training.evaluate.evaluate import HIGHEST_PSNR, judge_set, rates
from training.evaluate.held_out import Caption, choose_captions
from training.evaluate.judges import Judges
from training.evaluate.metrics import mean, psnr
from training.evaluate.sheets import contact_sheet
from training.evaluate.versions import Figures, write_figures
from training.pictures import Corpus, Pixels, on_background

SET = "test_combo"
VERSIONS = ("filled", "white hole", "whole")
_HOLE_SHARE = 0.6
"""Side of the hole as a share of the box around the drawing, both ways: about a third of what is drawn is lost."""
_AT_ONCE = 8
_SHOWN = 16


@dataclass(frozen=True)
class Holes:
    """Held-out pictures uint8 [n, h, w, 3] on white, the holes in them bool [n, h, w], and their captions."""

    captions: list[Caption]
    whole: Pixels
    masks: NDArray[np.bool_]

    @property
    def emptied(self) -> Pixels:
        """The pictures with white holes."""
        return np.where(self.masks[..., None], np.uint8(255), self.whole)


def cut_holes(corpus: Corpus, limit: int | None = None) -> Holes:
    """The holes of the first `limit` captions, the same for every model."""
    captions = choose_captions(corpus, SET)[:limit]
    drawings = [corpus.rgba[caption.row] for caption in captions]
    whole = np.stack([on_background(drawing, 255) for drawing in drawings])
    return Holes(captions, whole, np.stack([middle_of(drawing) for drawing in drawings]))


def middle_of(rgba: Pixels) -> NDArray[np.bool_]:
    """bool [h, w]: the box in the middle of what `rgba` [h, w, 4] draws, in whole blocks of 8 pixels."""
    left, top, right, bottom = drawn_bounds(rgba)
    mask = np.zeros(rgba.shape[:2], np.bool_)
    spans = []
    for near, far in ((top, bottom), (left, right)):
        margin = (far - near) * (1 - _HOLE_SHARE) / 2
        first, last = round((near + margin) / 8) * 8, round((far - margin) / 8) * 8
        spans.append(slice(first, max(last, first + 8)))
    mask[tuple(spans)] = True
    return mask


def fill(folder: str, holes: Holes, settings: DrawingSettings) -> Pixels:
    """Filled pictures uint8 [n, h, w, 3] by diffusers' pipeline from the checkpoint in `folder`, rest as it was."""
    import torch
    from diffusers import StableDiffusionInpaintPipeline

    pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder, low_cpu_mem_usage=False).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    guidance = settings.guidance
    if guidance is None:
        guidance = json.loads((Path(folder) / "denoised.json").read_text(encoding="utf-8")).get("guidance_scale", 7.5)
    height, width = holes.masks.shape[1:]
    filled = []
    for start in range(0, len(holes.captions), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        found = pipeline(
            prompt=[caption.prompt for caption in holes.captions[part]],
            image=[Image.fromarray(picture) for picture in holes.whole[part]],
            mask_image=[Image.fromarray(mask) for mask in holes.masks[part]],
            height=height,
            width=width,
            num_inference_steps=settings.steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(settings.seed) for _ in holes.captions[part]],
            output_type="np",
        ).images
        filled.append((found * 255).round().astype(np.uint8))
    return np.where(holes.masks[..., None], np.concatenate(filled), holes.whole)


def judge_holes(judges: Judges, corpus: Corpus, holes: Holes, filled: Pixels) -> Figures:
    """version -> measure -> figure; `psnr` (dB) is that of the hole against what was cut out."""
    candidates = choose_captions(corpus, SET)
    versions = dict(zip(VERSIONS, (filled, holes.emptied, holes.whole), strict=True))
    figures: Figures = {}
    for name, pictures in versions.items():
        figures[name] = rates(judge_set(judges, holes.captions, candidates, pictures[:, None]).hits)
        if name != "whole":
            pairs = zip(pictures, holes.whole, holes.masks, strict=True)
            figures[name]["psnr"] = mean([min(HIGHEST_PSNR, psnr(p[mask], true[mask])) for p, true, mask in pairs])
    return figures


def sheet(holes: Holes, filled: Pixels) -> Image.Image:
    """The first pictures, unselected: with its hole, and filled, side by side."""
    pairs = [picture for pair in zip(holes.emptied, filled, strict=True) for picture in pair][: 2 * _SHOWN]
    texts = [text for caption in holes.captions for text in (caption.prompt, "filled")][: 2 * _SHOWN]
    return contact_sheet(pairs, texts)


def evaluate_inpainting(
    model: str, corpus: Corpus, judges: Judges, settings: DrawingSettings, out: Path, limit: int | None = None
) -> dict[str, Any]:
    """Fill, judge, write `inpainting.md`, `inpainting.json` and `inpainting.png` to `out`; returns the figures."""
    holes = cut_holes(corpus, limit)
    filled = fill(model, holes, settings)
    figures = judge_holes(judges, corpus, holes, filled)
    found = write_figures(figures, out, "inpainting")
    sheet(holes, filled).save(out / "inpainting.png", optimize=True)
    return found


def given_back(figures: dict[str, dict[str, Any]], measure: str) -> float:
    """How much of what the hole took from `measure` the filling gave back: 0 nothing, 1 all; NaN if it took nothing."""
    filled, emptied, whole = (figures[version][measure]["value"] for version in VERSIONS)
    return (filled - emptied) / (whole - emptied) if whole > emptied else float("nan")
