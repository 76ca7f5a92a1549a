"""Trains the KL autoencoder of the bundled model (f = 8, 4 channels).

    python -m training.autoencoder train --corpus CORPUS --run RUN [--minutes M] [--start-from FOLDER]
    python -m training.autoencoder export --run RUN --out FOLDER --corpus CORPUS

Reconstruction and a light KL term as in the LDM paper (arXiv:2112.10752, section 3.1); no adversary: flat drawings with
clean edges need none at this size. Part of the batch decodes shrunken latents to shrunken pictures, which keeps the
latent space smooth for the denoiser (arXiv:2502.09509). With `frozen_encoder` only the decoder learns: latents, and so
every denoiser trained on them, stay valid.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from training.hardware import Hardware
from training.loop import LoopSettings, Run
from training.pictures import (
    Corpus,
    Pixels,
    Random,
    grid,
    on_background,
    psnr,
    random_background,
    shrunk,
    to_pixels,
    to_tensor,
)
from training.settings import FOLDER, load

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class AutoencoderSettings:
    """Architecture and loss. `crop` is the side of the training crops in pixels, at most 128."""

    channels: tuple[int, ...] = (16, 32, 64, 128)
    crop: int = 64
    kl_weight: float = 3e-4
    shrunken_share: float = 0.25
    frozen_encoder: bool = False


def new_autoencoder(channels: tuple[int, ...]) -> AutoencoderKL:
    """One halving per level but the last; no attention: any size is served at the same cost a pixel."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
    )


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """The exported autoencoder in `folder`, float32.

    `from_pretrained` would remember the folder and write it into the configuration of whatever is saved later.
    """
    autoencoder = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    autoencoder.load_state_dict(load_file(folder / WEIGHTS))
    return autoencoder


class AutoencoderTask:
    """Crops of pictures on random backgrounds; judged on whole held-out pictures on white."""

    def __init__(self, corpus: Corpus, settings: AutoencoderSettings, batch_size: int) -> None:
        self.corpus, self.settings, self.batch_size = corpus, settings, batch_size
        self.model = new_autoencoder(settings.channels)
        if settings.frozen_encoder:
            self.model.encoder.requires_grad_(False)
            self.model.quant_conv.requires_grad_(False)
        self.rows = corpus.rows("train")
        self.held_out = to_tensor(on_background(corpus.rgba[corpus.rows("val")], 255))

    def compiled_parts(self) -> list[nn.Module]:
        return [self.model.encoder, self.model.decoder]

    def loss(self, step: int, random: Random) -> tuple[Tensor, dict[str, float]]:
        pictures = to_tensor(np.stack([self.crop(random) for _ in range(self.batch_size)]))
        pictures = pictures.to(next(self.model.parameters()).device)
        mean, log_variance = self.moments(pictures)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        shrunken = round(self.batch_size * self.settings.shrunken_share)
        loss = self.reconstruction(latents[shrunken:], pictures[shrunken:]) + self.settings.kl_weight * kl
        if shrunken:
            small = self.reconstruction(F.avg_pool2d(latents[:shrunken], 2), F.avg_pool2d(pictures[:shrunken], 2))
            loss = loss + self.settings.shrunken_share * small
        return loss, {"kl": round(kl.item(), 3), "latent_std": round(mean.std().item(), 3)}

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, each [n, 4, h / f, w / f]."""
        with torch.set_grad_enabled(not self.settings.frozen_encoder):
            mean, log_variance = self.model.quant_conv(self.model.encoder(pictures)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def reconstruction(self, latents: Tensor, pictures: Tensor) -> Tensor:
        """Absolute and squared error of pixels, absolute error of 4 x 4 means: large areas get their colour right."""
        error = self.model.decoder(self.model.post_quant_conv(latents)) - pictures
        return error.abs().mean() + 2 * error.square().mean() + 0.5 * F.avg_pool2d(error, 4).abs().mean()

    def crop(self, random: Random) -> Pixels:
        """One training crop uint8 [crop, crop, 3], most often around something drawn."""
        rgba, size = self.corpus.rgba[random.choice(self.rows)], self.settings.crop
        whole = rgba.shape[0]
        if random.random() < 0.5:
            rgba = rgba[:, ::-1]
        if random.random() < 0.3:
            rgba = _made_smaller(rgba, random)
        y, x = random.integers(0, whole - size + 1, 2)
        drawn = np.flatnonzero(rgba[..., 3])
        if random.random() < 0.8 and len(drawn):
            centre = divmod(int(random.choice(drawn)), whole)
            y, x = (int(np.clip(c - size // 2, 0, whole - size)) for c in centre)
        square = np.s_[y : y + size, x : x + size]
        return on_background(rgba[square], random_background(random, whole)[square])

    def measure(self, averaged: nn.Module) -> dict[str, float]:
        assert isinstance(averaged, AutoencoderKL), "This is a bug."
        found = torch.cat([decoded(averaged, some) for some in self.held_out.split(16)])
        return {"val_psnr_db": psnr(found, self.held_out)}

    def sheet(self, averaged: nn.Module) -> Image.Image:
        """Held-out pictures, and below each row what became of them."""
        assert isinstance(averaged, AutoencoderKL), "This is a bug."
        shown = self.held_out[:: max(1, len(self.held_out) // 32)][:32]
        pairs = [p for some in shown.split(8) for p in (some, decoded(averaged, some))]
        return grid(to_pixels(torch.cat(pairs)), 8)


def _made_smaller(rgba: Pixels, random: Random) -> Pixels:
    """The picture at 3/8 to all of its size, anywhere on an empty canvas."""
    whole = rgba.shape[0]
    side = int(random.integers(whole * 3 // 8, whole))
    canvas = np.zeros_like(rgba)
    y, x = random.integers(0, whole - side + 1, 2)
    canvas[y : y + side, x : x + side] = shrunk(rgba, side)
    return canvas


def latent_means(autoencoder: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures [n, 3, h, w] in -1..1 to the unscaled means of their latents [n, 4, h / f, w / f]."""
    means: Tensor = autoencoder.quant_conv(autoencoder.encoder(pictures)).chunk(2, dim=1)[0]
    return means


def decoded(autoencoder: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures [n, 3, h, w] in -1..1 through the mean of their latents and back, clipped to -1..1."""
    place = next(autoencoder.parameters()).device
    means = latent_means(autoencoder, pictures.to(place))
    found: Tensor = autoencoder.decoder(autoencoder.post_quant_conv(means)).clamp(-1, 1)
    return found.to(pictures.device)


@torch.no_grad()
def standardise(autoencoder: AutoencoderKL, pictures: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1 over `pictures` [n, 3, h, w], so that the scaling factor is 1.

    The 1 x 1 convolutions on both sides of the latents take up the change: what is decoded stays the same.
    """
    means = torch.cat([latent_means(autoencoder, some) for some in pictures.split(32)])
    latents = means.transpose(0, 1).flatten(1)  # [4, n * h * w]
    mean, deviation = latents.mean(1), latents.std(1)
    into, out = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = len(mean)
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation[None, :, None, None]
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()
    autoencoder.register_to_config(scaling_factor=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "export"])
    parser.add_argument("--corpus", type=Path, required=True, help="folder of `python -m training.corpus build`")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run: checkpoint, log, sample sheets")
    parser.add_argument("--settings", type=Path, default=FOLDER / "autoencoder.toml")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long, to be resumed")
    parser.add_argument("--start-from", type=Path, help="exported weights to start a new run with")
    parser.add_argument("--out", type=Path, help="folder for `export`")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    corpus = Corpus.open(arguments.corpus)
    hardware = load(arguments.settings, "hardware", Hardware)
    run = autoencoder_run(corpus, arguments.run, arguments.settings, arguments.start_from, hardware)
    if arguments.command == "train":
        run.train(until=lambda: time.monotonic() > end)
        run.report()
    elif arguments.out is None:
        parser.error("export needs --out FOLDER")
    else:
        export(run, corpus, load(arguments.settings, "autoencoder", AutoencoderSettings), arguments.out)


def autoencoder_run(
    corpus: Corpus, folder: Path, settings: Path, start_from: Path | None = None, hardware: Hardware | None = None
) -> Run:
    """The run in `folder`, gone on with where it stopped; a new one starts from `start_from` or from random weights."""
    loop = load(settings, "loop", LoopSettings)
    torch.manual_seed(loop.seed)
    task = AutoencoderTask(corpus, load(settings, "autoencoder", AutoencoderSettings), loop.batch_size)
    if start_from is not None:
        task.model.load_state_dict(load_autoencoder(start_from).state_dict())
    run = Run(folder, task, loop, hardware or Hardware("cpu"))
    run.resume()
    return run


def export(run: Run, corpus: Corpus, settings: AutoencoderSettings, folder: Path) -> None:
    """The averaged weights in diffusers layout, float16. Latents get unit variance over 2,000 training pictures, unless
    the encoder was frozen: then they stay what the denoiser learned.
    """
    autoencoder = run.averaged.cpu()
    assert isinstance(autoencoder, AutoencoderKL), "An autoencoder run holds an autoencoder. This is a bug."
    if not settings.frozen_encoder:
        rows = np.random.default_rng(0).choice(corpus.rows("train"), 2000)
        standardise(autoencoder, to_tensor(on_background(corpus.rgba[np.sort(rows)], 255)))
    autoencoder.half().save_pretrained(folder)


if __name__ == "__main__":
    main()
