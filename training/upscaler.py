"""Trains the x4 upscaler of the bundled model: 128 to 512 pixels.

    python -m training.upscaler pictures --packages PACKAGES --out PICTURES [--processes N] [--autoencoder FOLDER]
    python -m training.upscaler autoencoder --pictures PICTURES --run RUN [--minutes M]
    python -m training.upscaler denoiser --pictures PICTURES --run RUN [--minutes M]
    python -m training.upscaler export RUN OUT --pictures PICTURES

Vector drawings give true pictures of 512 pixels; `pictures` draws some thousands of them once (0.8 MB each). With the
bundled model's own autoencoder it also notes what that makes of the small pictures, which is what the upscaler will
meet. The first stage of RUN is its f = 4 autoencoder, kept in RUN/vae; the second is the denoiser on its latents.
"""

import argparse
import copy
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from training.autoencoder import load_autoencoder
from training.bundle import list_files
from training.corpus.attribution import attribution
from training.corpus.catalogue import read_catalogue
from training.hardware import Hardware
from training.loop import LoopSettings, Run
from training.pictures import to_tensor
from training.settings import FOLDER, load
from training.upscaler_data import Batches, Pairs, ViewSettings, read_index
from training.upscaler_model import (
    AutoencoderSettings,
    DenoiserSettings,
    fit_to_pipeline,
    new_upscaler_unet,
    save_upscaler,
)
from training.upscaler_pictures import PictureSettings, read_drawings, write_pictures, write_soft
from training.upscaler_tasks import AutoencoderTask, DenoiserTask

STATISTICS = 64
"""Training pictures over which the latents are brought to unit variance."""


def autoencoder_run(pictures: Path, folder: Path, settings: Path, start_from: Path | None = None) -> Run:
    """The first stage in `folder`/autoencoder, gone on with where it stopped.

    A new one starts from the vae of the checkpoint `start_from`, or from random weights. ValueError when a denoiser
    has begun on the latents of this folder.
    """
    if (folder / "denoiser" / "state.pt").exists():
        raise ValueError(f"{folder}/denoiser has learnt the latents of {folder}/vae: train in another folder.")
    loop = load(settings, "autoencoder_loop", LoopSettings)
    torch.manual_seed(loop.seed)
    task = AutoencoderTask(
        _batches(pictures, settings, loop.batch_size), load(settings, "autoencoder", AutoencoderSettings)
    )
    if start_from is not None:
        task.model.load_state_dict(load_autoencoder(start_from / "vae").state_dict())
    run = Run(folder / "autoencoder", task, loop, load(settings, "hardware", Hardware))
    run.resume()
    return run


def write_autoencoder(averaged: AutoencoderKL, pictures: Path, folder: Path) -> None:
    """`averaged` in `folder`/vae, float32, its latents brought to the scale that the pipeline expects."""
    autoencoder = copy.deepcopy(averaged).cpu()
    middles = itertools.islice(Pairs.open(pictures).middles("train", 256), STATISTICS)
    fit_to_pipeline(autoencoder, to_tensor(np.stack([high for high, _, _ in middles])))
    autoencoder.save_pretrained(folder / "vae")


def denoiser_run(pictures: Path, folder: Path, settings: Path, start_from: Path | None = None) -> Run:
    """The second stage in `folder`/denoiser, gone on with where it stopped.

    A new one starts from the checkpoint `start_from`, autoencoder included, or from random weights on the latents of
    `folder`/vae. ValueError when there is no such autoencoder, or two.
    """
    if start_from is not None and (folder / "autoencoder").exists():
        raise ValueError(f"{folder} has an autoencoder of its own: start from a checkpoint in another folder.")
    if start_from is not None and not (folder / "vae").exists():
        load_autoencoder(start_from / "vae").save_pretrained(folder / "vae")
    if not (folder / "vae").exists():
        raise ValueError(f"No autoencoder in {folder}/vae: run `autoencoder` first.")
    loop = load(settings, "denoiser_loop", LoopSettings)
    torch.manual_seed(loop.seed)
    batches = _batches(pictures, settings, loop.batch_size)
    task = DenoiserTask(batches, load_autoencoder(folder / "vae"), load(settings, "denoiser", DenoiserSettings))
    if start_from is not None:
        known = UNet2DConditionModel.from_pretrained(start_from / "unet", low_cpu_mem_usage=False)
        task.model.load_state_dict(known.float().state_dict())
    run = Run(folder / "denoiser", task, loop, load(settings, "hardware", Hardware))
    run.resume()
    return run


def export(folder: Path, pictures: Path, out: Path, settings: Path) -> None:
    """Both stages of the run in `folder`, which learnt from `pictures`, as a checkpoint in diffusers layout in `out`,
    float16, with the credits of its pictures and `files.json`."""
    denoiser = load(settings, "denoiser", DenoiserSettings)
    unet = new_upscaler_unet(denoiser)
    state = torch.load(folder / "denoiser" / "state.pt", map_location="cpu", weights_only=True)
    unet.load_state_dict(state["averaged"])
    save_upscaler(unet, load_autoencoder(folder / "vae"), out, denoiser)
    learnt = {record["id"] for record in read_index(pictures) if record["split"] == "train"}
    credits_due = attribution(record for record in read_catalogue() if record["id"] in learnt)
    (out / "ATTRIBUTION.md").write_text(credits_due, encoding="utf-8")
    list_files(out)


def _batches(pictures: Path, settings: Path, size: int) -> Batches:
    return Batches(Pairs.open(pictures), load(settings, "views", ViewSettings), size)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = _parser().parse_args()
    arguments.command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    pictures = commands.add_parser("pictures", help="draw the pictures to learn from, or go on drawing them")
    pictures.add_argument("--packages", type=Path, required=True, help="folder of `python -m training.corpus fetch`")
    pictures.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    pictures.add_argument("--count", type=int, help="pictures to learn from, instead of the settings' number")
    pictures.add_argument("--processes", type=int, default=1, help="how many render (default: 1)")
    pictures.add_argument("--autoencoder", type=Path, help="the bundled model's autoencoder (diffusers layout)")
    pictures.set_defaults(command=_draw)
    stages: dict[str, Callable[[argparse.Namespace], None]] = {"autoencoder": _first_stage, "denoiser": _second_stage}
    for name, command in stages.items():
        stage = commands.add_parser(name, help=f"train the {name}, or go on training it")
        stage.add_argument("--pictures", type=Path, required=True, help="folder of `pictures`")
        stage.add_argument("--run", type=Path, required=True, help="folder of the run, the same for both stages")
        stage.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long, to be resumed")
        stage.add_argument("--start-from", type=Path, help="exported upscaler to start a new run with")
        stage.set_defaults(command=command)
    exported = commands.add_parser("export", help="write both stages as a checkpoint in diffusers layout")
    exported.add_argument("run", type=Path)
    exported.add_argument("out", type=Path)
    exported.add_argument("--pictures", type=Path, required=True, help="folder of `pictures`")
    exported.set_defaults(command=lambda given: export(given.run, given.pictures, given.out, given.settings))
    for each in commands.choices.values():
        each.add_argument("--settings", type=Path, default=FOLDER / "upscaler.toml")
    return parser


def _draw(arguments: argparse.Namespace) -> None:
    settings = load(arguments.settings, "pictures", PictureSettings)
    if arguments.count is not None:
        settings = dataclasses.replace(settings, count=arguments.count)
    records = [record for record in read_catalogue() if record["split"] in ("train", "val")]
    drawings = read_drawings(arguments.packages, records)
    write_pictures(drawings, settings, arguments.out, arguments.processes)
    if arguments.autoencoder is not None:
        write_soft(arguments.out, load_autoencoder(arguments.autoencoder).eval(), settings)


def _first_stage(arguments: argparse.Namespace) -> None:
    end = time.monotonic() + 60 * arguments.minutes
    run = autoencoder_run(arguments.pictures, arguments.run, arguments.settings, arguments.start_from)
    run.train(until=lambda: time.monotonic() > end)
    run.report()
    write_autoencoder(run.averaged, arguments.pictures, arguments.run)


def _second_stage(arguments: argparse.Namespace) -> None:
    end = time.monotonic() + 60 * arguments.minutes
    run = denoiser_run(arguments.pictures, arguments.run, arguments.settings, arguments.start_from)
    run.train(until=lambda: time.monotonic() > end)
    run.report()


if __name__ == "__main__":
    main()
