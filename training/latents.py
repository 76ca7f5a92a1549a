"""The bank of latents the denoiser learns from: every picture goes through the frozen autoencoder once.

An entry is a picture on white, a picture on a named colour, or a composed scene. The entries of the first shards also
have a random mask and the latents of the picture with the masked part greyed out, which is what an inpainting network
of diffusers' convention sees. Files are written one by one, so an interrupted build goes on where it stopped.
"""

import json
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from training.autoencoder import load_autoencoder
from training.corpus.scenes import Composer
from training.hardware import Hardware
from training.masks import random_mask
from training.pictures import COLOURS, Corpus, Pixels, Random, on_background, to_tensor

SHARD = 2048
FACTOR = 8

Entry = dict[str, Any]


@dataclass(frozen=True)
class BankSettings:
    """How many entries of which kind; of every training picture one on white is made."""

    coloured: int = 6000
    scenes: int = 8000
    masked_shards: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Bank:
    """Latents float16 [n, 4, 16, 16] and their entries; of the first m also masks and the masked pictures' latents."""

    latents: NDArray[np.float16]
    entries: list[Entry]
    masked_latents: NDArray[np.float16]
    """[m, 4, 16, 16]"""
    masks: NDArray[np.uint8]
    """[m, 1, 16, 16], 1 where the picture is to be drawn."""

    @classmethod
    def open(cls, folder: Path) -> "Bank":
        shards = [np.load(path) for path in sorted(folder.glob("shard-*.npz"))]
        if not shards:
            raise ValueError(f"No latents in {folder}; make them first with `python -m training.denoiser latents`.")
        masked = [np.load(path) for path in sorted(folder.glob("masked-*.npz"))]
        none = np.zeros((0, *shards[0]["latents"].shape[1:]), np.float16)
        return cls(
            latents=np.concatenate([shard["latents"] for shard in shards]),
            entries=[json.loads(line) for shard in shards for line in str(shard["entries"]).splitlines()],
            masked_latents=np.concatenate([none] + [shard["latents"] for shard in masked]),
            masks=np.concatenate([none[:, :1].astype(np.uint8)] + [shard["masks"] for shard in masked]),
        )


def build_bank(
    corpus: Corpus,
    autoencoder: AutoencoderKL,
    settings: BankSettings,
    folder: Path,
    hardware: Hardware | None = None,
    part: slice = slice(None),
) -> None:
    """Encode the training split (and val, as entries of kind "val") into `folder`; files that are there are kept.

    `part` of the files; each depends on its number and the settings alone.
    """
    hardware = hardware or Hardware("cpu")
    autoencoder.to(hardware.place)
    folder.mkdir(parents=True, exist_ok=True)
    plan = _plan(corpus, settings)
    composer = Composer(corpus)
    for number, start in list(enumerate(range(0, len(plan), SHARD)))[part]:
        plain, masked = folder / f"shard-{number:03d}.npz", folder / f"masked-{number:03d}.npz"
        wants_masked = number < settings.masked_shards and not masked.exists()
        if plain.exists() and not wants_masked:
            continue
        random = np.random.default_rng([settings.seed, number])
        drawn = [_draw(corpus, composer, kind, row, random) for kind, row in plan[start : start + SHARD]]
        pictures = to_tensor(np.stack([picture for picture, _ in drawn]))
        with hardware.precision():
            if not plain.exists():
                entries = "\n".join(json.dumps(entry) for _, entry in drawn)
                _write(plain, {"latents": _encode(autoencoder, pictures), "entries": np.array(entries)})
            if wants_masked:
                _write(masked, _masked(autoencoder, pictures, random))


def build_bank_side_by_side(
    corpus: Path, autoencoder: Path, settings: BankSettings, folder: Path, hardware: Hardware, processes: int
) -> None:
    """`build_bank` in processes that share the cores: on two CPU cores, two are twice as fast as one of two threads."""
    parts = [slice(first, None, processes) for first in range(processes)]
    threads = max(1, torch.get_num_threads() // processes)
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (threads,)) as pool:
        pool.starmap(_build_part, [(corpus, autoencoder, settings, folder, hardware, part) for part in parts])


def _build_part(
    corpus: Path, autoencoder: Path, settings: BankSettings, folder: Path, hardware: Hardware, part: slice
) -> None:
    known = load_autoencoder(autoencoder).eval().requires_grad_(False)
    build_bank(Corpus.open(corpus), known, settings, folder, hardware, part)


def _plan(corpus: Corpus, settings: BankSettings) -> list[tuple[str, int]]:
    """(kind, row) of every entry; shuffled, so that any prefix of the shards is a fair sample."""
    random = np.random.default_rng(settings.seed)
    train = corpus.rows("train")
    plan = [("val", int(row)) for row in corpus.rows("val")] + [("white", int(row)) for row in train]
    plan += [("coloured", int(row)) for row in random.choice(train, settings.coloured)]
    plan += [("scene", -1)] * settings.scenes
    return [plan[i] for i in random.permutation(len(plan))]


def _draw(corpus: Corpus, composer: Composer, kind: str, row: int, random: Random) -> tuple[Pixels, Entry]:
    """One picture uint8 [128, 128, 3] and what to remember of it."""
    if kind == "scene":
        scene = composer.sample(random)
        return scene.image, {"kind": kind, "caption": scene.caption}
    if kind == "coloured":
        name = str(random.choice([name for name in COLOURS if name != "white"]))
        colour = np.clip(np.array(COLOURS[name]) + random.uniform(-12, 12, 3), 0, 255)
        on = f"on {'an' if name[0] == 'o' else 'a'} {name} background"
        return on_background(corpus.rgba[row], colour), {"kind": kind, "row": row, "on": on}
    return on_background(corpus.rgba[row], 255), {"kind": kind, "row": row}


def _masked(autoencoder: AutoencoderKL, pictures: Tensor, random: Random) -> dict[str, NDArray[Any]]:
    masks = np.stack([random_mask(random, pictures.shape[-1]) for _ in pictures])[:, None]
    mask = torch.from_numpy(masks).float()  # [n, 1, 128, 128]
    small = F.interpolate(mask, scale_factor=1 / FACTOR)  # nearest, as diffusers' inpainting pipeline shrinks it
    return {"latents": _encode(autoencoder, pictures * (mask < 0.5)), "masks": small.byte().numpy()}


@torch.inference_mode()
def _encode(autoencoder: AutoencoderKL, pictures: Tensor) -> NDArray[np.float16]:
    """Scaled means of the latents, float16 [n, 4, h / 8, w / 8], of pictures [n, 3, h, w]."""
    place, scale = next(autoencoder.parameters()).device, autoencoder.config.scaling_factor
    means = [autoencoder.encode(some.to(place)).latent_dist.mode() * scale for some in pictures.split(32)]
    latents: NDArray[np.float16] = torch.cat(means).half().cpu().numpy()
    return latents


def _write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(unfinished, path)
