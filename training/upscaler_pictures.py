"""Draws the pictures that the x4 upscaler learns from: vector drawings at 512 pixels, once, into a cache on disk.

Owns the files of the cache: `high.npy`, `index.jsonl`, and `soft.npy` where the bundled model's autoencoder is known.
Knows nothing of crops, batches or training.
"""

import itertools
import json
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.lib.format import open_memmap

from training.corpus.catalogue import Record
from training.corpus.extract import SourceUnreadable, originals
from training.corpus.render import picture_of_svg
from training.corpus.sources import source_of
from training.pictures import Pixels, on_background, random_background, to_pixels, to_tensor
from training.upscaler_data import FACTOR, SIDE, read_index, reduced

log = logging.getLogger(__name__)

SUBSTITUTES = 3
"""How many drawings are tried for one picture, should some not render."""


@dataclass(frozen=True)
class PictureSettings:
    """What is drawn: `count` pictures to learn from and `held_out` of the val split.

    A share of `smaller_share` is drawn at 3/8 to all of the picture's side, so that fine detail is met as well.
    `latent_noise`: noise on the latents, in deviations, before the bundled model's autoencoder decodes its softer
    version; a sampled latent is never quite one that the encoder would make.
    """

    count: int = 3000
    held_out: int = 16
    smaller_share: float = 0.4
    latent_noise: float = 0.15
    seed: int = 0


@dataclass(frozen=True)
class Drawing:
    """One vector drawing of the corpus."""

    identity: str
    split: str
    svg: str


def read_drawings(packages: Path, records: list[Record]) -> list[Drawing]:
    """The vector drawings among `records`, from the packages in that folder.

    A source that cannot be read is left out, with a warning.
    """
    found: list[Drawing] = []
    for name, of_source in itertools.groupby(records, key=lambda record: str(record["src"])):
        try:
            for record, original in originals(packages, source_of(name), list(of_source)):
                if isinstance(original, str):
                    found.append(Drawing(record["id"], record["split"], original))
        except SourceUnreadable as reason:
            log.warning("%s is left out: %s", name, reason)
    return found


def write_pictures(drawings: Sequence[Drawing], settings: PictureSettings, folder: Path, processes: int = 1) -> None:
    """Draw into `folder`: `high.npy` uint8 [n, 512, 512, 3] and a line of `index.jsonl` each, the held-out first.

    Goes on after the last line when it was interrupted; picture n depends on (seed, n) alone. ValueError when the
    folder holds another number of pictures, or when a split has no drawing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = _jobs(drawings, settings)
    high = _opened(folder / "high.npy", (len(jobs), SIDE, SIDE, 3))
    done = len(read_index(folder))
    with (folder / "index.jsonl").open("a", encoding="utf-8") as index:
        for place, (record, picture) in enumerate(_drawn(jobs[done:], settings, processes), start=done):
            high[place] = picture
            index.write(json.dumps(record, ensure_ascii=False) + "\n")
            index.flush()


Job = tuple[int, list[Drawing]]
"""Number of a picture, and the drawings to try for it."""


def _jobs(drawings: Sequence[Drawing], settings: PictureSettings) -> list[Job]:
    jobs: list[Job] = []
    for split, count in (("val", settings.held_out), ("train", settings.count)):
        of_split = [drawing for drawing in drawings if drawing.split == split]
        if not of_split:
            raise ValueError(f"No vector drawing of split {split!r}.")
        order = np.random.default_rng(settings.seed).permutation(len(of_split))
        for start in range(count):
            tried = [of_split[order[(start + more) % len(order)]] for more in range(SUBSTITUTES)]
            jobs.append((len(jobs), tried))
    return jobs


def _opened(path: Path, shape: tuple[int, ...]) -> Pixels:
    if not path.exists():
        return open_memmap(path, "w+", np.uint8, shape)
    pictures: Pixels = open_memmap(path, "r+")
    if pictures.shape != shape:
        raise ValueError(f"{path} holds {pictures.shape}, not {shape}: give another folder, or delete it.")
    return pictures


def _drawn(jobs: list[Job], settings: PictureSettings, processes: int) -> Iterator[tuple[dict[str, Any], Pixels]]:
    draw = partial(_draw, settings=settings)
    if processes <= 1:
        yield from map(draw, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(draw, jobs, chunksize=4)


def _draw(job: Job, settings: PictureSettings) -> tuple[dict[str, Any], Pixels]:
    """Record and picture uint8 [512, 512, 3]: the first drawing that renders, on a random background."""
    place, drawings = job
    random = np.random.default_rng([settings.seed, place])
    side = int(random.integers(SIDE * 3 // 8, SIDE)) if random.random() < settings.smaller_share else SIDE
    y, x = random.integers(0, SIDE - side + 1, 2)
    background = random_background(random, SIDE)
    for drawing in drawings:
        try:
            rgba = picture_of_svg(drawing.svg, side)
        except ValueError as error:
            log.warning("%s cannot be drawn: %s", drawing.identity, error)
            continue
        if rgba is not None:
            canvas = np.zeros((SIDE, SIDE, 4), np.uint8)
            canvas[y : y + side, x : x + side] = rgba
            return {"id": drawing.identity, "split": drawing.split}, on_background(canvas, background)
    raise ValueError(f"None of {[drawing.identity for drawing in drawings]} can be drawn.")


@torch.inference_mode()
def write_soft(folder: Path, autoencoder: AutoencoderKL, settings: PictureSettings) -> None:
    """Write `soft.npy` uint8 [n, 128, 128, 3]: the small pictures as the bundled model's autoencoder gives them back.

    Its decoder's softness is what the upscaler really meets. Needs all pictures drawn.
    """
    high = np.load(folder / "high.npy", mmap_mode="r")
    unfinished = folder / "soft.npy.part"
    soft = open_memmap(unfinished, "w+", np.uint8, (len(high), SIDE // FACTOR, SIDE // FACTOR, 3))
    generator = torch.Generator().manual_seed(settings.seed)
    for start in range(0, len(high), 16):
        low = to_tensor(np.stack([reduced(picture) for picture in high[start : start + 16]]))
        latents = autoencoder.encode(low).latent_dist.mode()
        deviation = settings.latent_noise * latents.std() * torch.rand(len(low), 1, 1, 1, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        soft[start : start + 16] = to_pixels(autoencoder.decode(latents + deviation * noise).sample)
    soft.flush()
    unfinished.replace(folder / "soft.npy")
