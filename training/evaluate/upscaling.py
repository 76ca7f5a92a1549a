"""What the x4 upscaler makes of held-out drawings of `test_combo`, beside bicubic enlargement.

Two sizes. From 128 to 512 pixels, what it is for: PSNR against vector drawings rendered at 512. From 32 to 128, since
the judges look at 64 pixels: what they say of the enlarged picture, and how often it is what they say of the true one.
All pictures are on white, and reduced by averaging. Knows nothing of training.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionUpscalePipeline
from PIL import Image

from training.autoencoder import decoded
from training.corpus.catalogue import read_catalogue
from training.corpus.render import picture_of_svg
from training.evaluate.evaluate import HIGHEST_PSNR, judge_set, rates
from training.evaluate.held_out import Caption, choose_captions
from training.evaluate.judges import Judges
from training.evaluate.metrics import Figure, mean, psnr, rate
from training.evaluate.sheets import contact_sheet
from training.evaluate.versions import Figures, write_figures
from training.pictures import Corpus, Pixels, on_background, to_pixels, to_tensor
from training.upscaler_data import FACTOR, SIDE, reduced
from training.upscaler_model import upscaled
from training.upscaler_pictures import read_drawings
from training.upscaler_tasks import bicubic

log = logging.getLogger(__name__)

SET = "test_combo"
_AT_ONCE = 4
_SHOWN = 6

Enlarge = Callable[[Pixels], Pixels]
"""uint8 [n, h, w, 3] to [n, 4h, 4w, 3]."""


def open_pipeline(folder: Path) -> StableDiffusionUpscalePipeline:
    """The upscaler in `folder`, float32, without the text encoder it does not need."""
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(
        folder, text_encoder=None, tokenizer=None, low_cpu_mem_usage=False
    ).to(torch.float32)
    pipeline.vae.requires_grad_(False)  # it is called by itself, too
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def own_defaults(folder: Path) -> tuple[int, int]:
    """Number of steps, and noise level of the small picture, that the checkpoint in `folder` names as its defaults."""
    defaults = json.loads((folder / "denoised.json").read_text(encoding="utf-8"))
    return int(defaults["num_inference_steps"]), int(defaults["noise_level"])


def ways_to_enlarge(
    pipeline: StableDiffusionUpscalePipeline, steps: int, noise_level: int, seed: int
) -> dict[str, Enlarge]:
    def with_model(small: Pixels) -> Pixels:
        parts = to_tensor(small).split(_AT_ONCE)
        return to_pixels(torch.cat([upscaled(pipeline, part, steps, noise_level, seed) for part in parts]))

    return {"upscaled": with_model, "bicubic": lambda small: to_pixels(bicubic(to_tensor(small)))}


def judge_enlarged(judges: Judges, corpus: Corpus, captions: list[Caption], ways: dict[str, Enlarge]) -> Figures:
    """Figures of pictures of 128 pixels, enlarged from 32 and true.

    `agreement` is how often the classifier names the category that it names for the true picture.
    """
    true = np.stack([on_background(corpus.rgba[caption.row], 255) for caption in captions])
    small = reduced_all(true)
    versions = {name: enlarge(small) for name, enlarge in ways.items()} | {"true": true}
    named = {name: judges.look(pictures).categories.argmax(1) for name, pictures in versions.items()}
    candidates = choose_captions(corpus, SET)
    figures: Figures = {}
    for name, pictures in versions.items():
        figures[name] = rates(judge_set(judges, captions, candidates, pictures[:, None]).hits)
        if name != "true":
            figures[name]["agreement"] = rate((named[name] == named["true"]).double().numpy())
            figures[name]["psnr"] = mean_psnr(pictures, true)
    return figures


def held_out_drawings(packages: Path, corpus: Corpus, captions: list[Caption]) -> Pixels:
    """The vector drawings among `captions`: uint8 [n, 512, 512, 3]. ValueError when the packages hold none."""
    wanted = {corpus.records[caption.row]["id"] for caption in captions}
    found = read_drawings(packages, [record for record in read_catalogue() if record["id"] in wanted])
    rendered = [picture_of_svg(drawing.svg, SIDE) for drawing in found]
    pictures = [on_background(picture, 255) for picture in rendered if picture is not None]
    if not pictures:
        raise ValueError(f"No vector drawing of the held-out captions in {packages}.")
    return np.stack(pictures)


def through_autoencoder(pipeline: StableDiffusionUpscalePipeline, pictures: Pixels) -> Pixels:
    """What the f = 4 autoencoder gives back of `pictures`: no upscaler on its latents can do better."""
    return to_pixels(torch.cat([decoded(pipeline.vae, some) for some in to_tensor(pictures).split(_AT_ONCE)]))


def reduced_all(pictures: Pixels) -> Pixels:
    """uint8 [n, h, w, 3] to [n, h / 4, w / 4, 3]."""
    return np.stack([reduced(picture) for picture in pictures])


def mean_psnr(found: Pixels, true: Pixels) -> Figure:
    return mean([min(HIGHEST_PSNR, psnr(*pair)) for pair in zip(found, true, strict=True)])


def sheet(small: Pixels, enlarged: dict[str, Pixels], true: Pixels) -> Image.Image:
    """The first pictures, unselected: small, enlarged each way, true; the middle of each, pixel for pixel."""
    columns = {"small": small.repeat(FACTOR, 1).repeat(FACTOR, 2), **enlarged, "true": true}
    middle = slice(SIDE // 4, SIDE // 4 * 3)
    shown = min(_SHOWN, len(true))
    cells = [pictures[row, middle, middle] for row in range(shown) for pictures in columns.values()]
    return contact_sheet(cells, list(columns) * shown, columns=len(columns), side=SIDE // 2)


@dataclass(frozen=True)
class UpscalingSettings:
    """Seed and steps (None: the checkpoint's own) of every picture, and how many captions count (None: all)."""

    seed: int = 3
    steps: int | None = None
    limit: int | None = None


def evaluate_upscaling(
    model: Path, corpus: Corpus, packages: Path, judges: Judges, out: Path, settings: UpscalingSettings
) -> dict[str, Any]:
    """Enlarge, judge, write `upscaling.json`, `upscaling.md` and `upscaling.png` to `out`; returns the figures."""
    pipeline = open_pipeline(model)
    steps, noise_level = own_defaults(model)
    ways = ways_to_enlarge(pipeline, settings.steps or steps, noise_level, settings.seed)
    captions = choose_captions(corpus, SET)[: settings.limit]
    log.info("32 to 128 pixels: %d pictures", len(captions))
    figures = {f"{name}, 128": found for name, found in judge_enlarged(judges, corpus, captions, ways).items()}
    true = held_out_drawings(packages, corpus, captions)
    small = reduced_all(true)
    log.info("128 to 512 pixels: %d pictures", len(true))
    enlarged = {name: enlarge(small) for name, enlarge in ways.items()}
    versions = enlarged | {"autoencoder": through_autoencoder(pipeline, true)}
    figures |= {f"{name}, 512": {"psnr": mean_psnr(found, true)} for name, found in versions.items()}
    described = write_figures(figures, out, "upscaling")
    sheet(small, enlarged, true).save(out / "upscaling.png", optimize=True)
    return described
