"""What the two networks of the x4 upscaler learn, and how they are judged.

Owns losses, measures and sample sheets. Knows nothing of checkpoints, files or devices.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from training.autoencoder import decoded
from training.pictures import Pixels, Random, grid, psnr, to_pixels, to_tensor
from training.upscaler_data import FACTOR, Batches
from training.upscaler_model import (
    SCHEDULE,
    AutoencoderSettings,
    DenoiserSettings,
    low_res_scheduler,
    new_upscaler_autoencoder,
    new_upscaler_unet,
    upscale_pipeline,
    upscaled,
)

AT_ONCE = 4
"""Pictures that are judged in one call of the networks."""


class AutoencoderTask:
    """Reconstruction with a light KL term (arXiv:2112.10752, section 3.1); no adversary, as drawings need none."""

    def __init__(self, batches: Batches, settings: AutoencoderSettings, report_side: int = 256) -> None:
        self.batches, self.settings = batches, settings
        self.model = new_upscaler_autoencoder(settings)
        self.held_out = _to_tensors([high for high, _, _ in batches.pairs.middles("val", report_side)])

    def compiled_parts(self) -> list[nn.Module]:
        return [self.model.encoder, self.model.decoder]

    def loss(self, step: int, random: Random) -> tuple[Tensor, dict[str, float]]:
        pictures = to_tensor(self.batches.draw(random)[0]).to(_place(self.model))
        mean, log_variance = self.model.quant_conv(self.model.encoder(pictures)).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        latents = mean + _normal(mean, random) * (0.5 * log_variance).exp()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        error = self.model.decoder(self.model.post_quant_conv(latents)).float() - pictures
        loss = error.abs().mean() + 2 * error.square().mean() + self.settings.edge_weight * _edges(error)
        return loss + self.settings.kl_weight * kl, {
            "kl": round(kl.item(), 3),
            "latent_std": round(mean.std().item(), 3),
        }

    def measure(self, averaged: nn.Module) -> dict[str, float]:
        found = torch.cat([decoded(averaged, some) for some in self.held_out.split(AT_ONCE)])
        return {"val_psnr_db": psnr(found, self.held_out)}

    def sheet(self, averaged: nn.Module) -> Image.Image:
        """Held-out squares, and below each what became of it."""
        shown = self.held_out[:8]
        return grid(to_pixels(torch.cat([p for s in shown.split(4) for p in (s, decoded(averaged, s))])), 4)


class DenoiserTask:
    """v-prediction (arXiv:2202.00512) of the latents, given a noisy small picture (arXiv:2112.10752, section 4.4).

    `autoencoder` is frozen, and its latents times its scaling factor have deviation 1.
    """

    def __init__(self, batches: Batches, autoencoder: AutoencoderKL, settings: DenoiserSettings) -> None:
        self.batches, self.settings = batches, settings
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        # A sixth faster on CPUs than planes one after the other, and what tensor cores want.
        self.model = new_upscaler_unet(settings).to(memory_format=torch.channels_last)
        self.noising, self.low_noising = DDPMScheduler(**SCHEDULE), low_res_scheduler()
        middles = list(batches.pairs.middles("val", settings.report_side))
        self.held_out = _to_tensors([high for high, _, _ in middles])
        self.small = {"clean": _to_tensors([low for _, low, _ in middles])}
        if batches.pairs.soft is not None:
            self.small["soft"] = _to_tensors([soft for _, _, soft in middles if soft is not None])

    def compiled_parts(self) -> list[nn.Module]:
        return [self.model]

    def loss(self, step: int, random: Random) -> tuple[Tensor, dict[str, float]]:
        high, low = (to_tensor(pixels).to(_place(self.model)) for pixels in self.batches.draw(random))
        latents = self._encoded(high)
        noise, timesteps = _normal(latents, random), _timesteps(len(latents), random).to(latents.device)
        levels = self._levels(len(low), random).to(low.device)
        small = self.low_noising.add_noise(low, _normal(low, random), levels)
        noisy = torch.cat([self.noising.add_noise(latents, noise, timesteps), small], 1)  # [n, 7, h, w]
        predicted = self.model(noisy, timesteps, None, class_labels=levels).sample
        error = predicted.float() - self.noising.get_velocity(latents, noise, timesteps)
        # Weighted to be the error of the latents themselves (arXiv:2202.00512, section 4). Unweighted it is mostly that
        # of telling the last traces of noise from them, and the steps that decide where an edge lies learn less.
        noise_share = 1 - self.noising.alphas_cumprod.to(latents.device)[timesteps]  # [n]
        return (noise_share * error.square().mean((1, 2, 3))).mean(), {}

    @torch.no_grad()
    def _encoded(self, pictures: Tensor) -> Tensor:
        """Scaled means of the latents, [n, 4, h / 4, w / 4], always in float32."""
        autoencoder = self.autoencoder.to(pictures.device)
        with torch.autocast(pictures.device.type, enabled=False):
            means: Tensor = autoencoder.encode(pictures).latent_dist.mode()
        return means * autoencoder.config.scaling_factor

    def _levels(self, count: int, random: Random) -> Tensor:
        """Noise levels of the small pictures, int64 [count]; light ones are the more frequent."""
        return torch.from_numpy((random.random(count) ** 2 * (self.settings.max_noise_level + 1)).astype(np.int64))

    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """PSNR of ours, of bicubic, and of the true latents decoded: the ceiling."""
        autoencoder = self.autoencoder.to(_place(averaged))
        ceiling = torch.cat([decoded(autoencoder, some) for some in self.held_out.split(AT_ONCE)])
        figures = {"ceiling_psnr_db": psnr(ceiling, self.held_out)}
        for name, small in self.small.items():
            figures[f"{name}_psnr_db"] = psnr(self._drawn(averaged, small), self.held_out)
            figures[f"{name}_bicubic_psnr_db"] = psnr(bicubic(small), self.held_out)
        return figures

    def sheet(self, averaged: nn.Module) -> Image.Image:
        """Rows of small, bicubic, ours, true; from soft small pictures where there are any."""
        small, true = list(self.small.values())[-1][:AT_ONCE], self.held_out[:AT_ONCE]
        columns = [F.interpolate(small, scale_factor=FACTOR), bicubic(small), self._drawn(averaged, small), true]
        return grid(to_pixels(torch.stack(columns, 1).flatten(0, 1)), 4)

    def _drawn(self, averaged: nn.Module, small: Tensor) -> Tensor:
        settings, place = self.settings, _place(averaged)
        pipeline = upscale_pipeline(averaged, self.autoencoder.to(place))
        steps, level = settings.default_steps, settings.default_noise_level
        parts = [upscaled(pipeline, some.to(place), steps, level).cpu() for some in small.split(AT_ONCE)]
        return torch.cat(parts)


def bicubic(small: Tensor) -> Tensor:
    """Pictures [n, 3, h, w] in -1..1 enlarged four times, what a program without a model would show."""
    return F.interpolate(small, scale_factor=FACTOR, mode="bicubic").clamp(-1, 1)


def _to_tensors(pixels: list[Pixels]) -> Tensor:
    return to_tensor(np.stack(pixels))


def _place(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _normal(like: Tensor, random: Random) -> Tensor:
    """Standard normal numbers of the shape and device of `like`; the same on every device."""
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    return torch.randn(like.shape, generator=generator).to(like.device)


def _timesteps(count: int, random: Random) -> Tensor:
    """Uniform timesteps int64 [count], one from each of `count` equal parts of the schedule (less noisy gradients)."""
    parts = (np.arange(count) + random.random()) / count
    return torch.from_numpy((parts * SCHEDULE["num_train_timesteps"]).astype(np.int64))


def _edges(error: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels' errors: keeps edges sharp and flat areas flat."""
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
