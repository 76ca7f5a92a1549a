"""Trains the denoiser of the bundled model: text encoder and UNet together, as in the LDM paper.

    python -m training.denoiser latents --corpus CORPUS --autoencoder FOLDER --latents LATENTS [--processes N]
    python -m training.denoiser train --corpus CORPUS --latents LATENTS --autoencoder FOLDER --run RUN [--minutes M]

One UNet of nine input channels: noisy latents 4, mask 1, latents of the masked picture 4. For text-to-image the last
five are zero. v-prediction (arXiv:2202.00512) on the scaled-linear schedule, captions dropped for classifier-free
guidance (arXiv:2207.12598), timesteps logit-normal (arXiv:2403.03206, section 3.1) and stratified over the batch.
"""

import argparse
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from training.autoencoder import load_autoencoder
from training.corpus.captions import caption_of
from training.hardware import Hardware
from training.latents import Bank, BankSettings, build_bank_side_by_side
from training.loop import LoopSettings, Run
from training.pictures import Corpus, Random, grid, to_pixels
from training.sampling import weights
from training.settings import FOLDER, load
from training.tokenizer import load_tokenizer, train_tokenizer

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes of tokenizer, text encoder and UNet. `attention` has one letter per level: a(ttention) or c(onvolution)."""

    channels: tuple[int, ...] = (96, 160, 224)
    attention: str = "cac"
    head_channels: int = 32
    text_width: int = 256
    text_layers: int = 3
    text_heads: int = 4
    pieces: int = 6144
    context_length: int = 32


@dataclass(frozen=True)
class ConditionSettings:
    """What the network is shown: shares of the batch, how noisy latents are, and prompts of the sample sheet.

    `timestep_shift` is added to the normal number whose sigmoid is the timestep: above 0 the network learns more of
    what a picture shows, which is decided at timesteps above 600, and less of its finest detail.
    """

    dropped_captions: float = 0.1
    scene_share: float = 0.15
    inpainting_share: float = 0.0
    timestep_shift: float = 0.0
    sheet_guidance: float = 4.0
    sheet_prompts: tuple[str, ...] = ("a red heart", "a fox, 3d render")


class TextToLatents(nn.Module):
    """Text encoder and UNet as one trainable network."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.text_encoder = new_text_encoder(settings)
        self.unet = new_unet(settings)

    def forward(self, inputs: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """inputs [n, 9, h, w], timesteps int [n], tokens int [n, context] to v [n, 4, h, w]."""
        context = self.text_encoder(tokens).last_hidden_state  # [n, context, text_width]
        predicted: Tensor = self.unet(inputs, timesteps, context).sample
        return predicted

    def load_weights(self, checkpoint: Path) -> None:
        """Take the weights of a checkpoint in diffusers layout; ValueError when its networks are of another shape."""
        text_encoder = CLIPTextModel.from_pretrained(checkpoint / "text_encoder").float()
        unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", low_cpu_mem_usage=False).float()
        try:
            self.text_encoder.load_state_dict(text_encoder.state_dict())
            self.unet.load_state_dict(unet.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{checkpoint} does not fit these settings: {error}") from error


def new_text_encoder(settings: NetworkSettings) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=settings.pieces,
            hidden_size=settings.text_width,
            intermediate_size=4 * settings.text_width,
            num_hidden_layers=settings.text_layers,
            num_attention_heads=settings.text_heads,
            max_position_embeddings=settings.context_length,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def new_unet(settings: NetworkSettings) -> UNet2DConditionModel:
    down = {"c": "DownBlock2D", "a": "CrossAttnDownBlock2D"}
    up = {"c": "UpBlock2D", "a": "CrossAttnUpBlock2D"}
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=9,
        out_channels=4,
        block_out_channels=settings.channels,
        down_block_types=tuple(down[kind] for kind in settings.attention),
        up_block_types=tuple(up[kind] for kind in reversed(settings.attention)),
        layers_per_block=1,
        cross_attention_dim=settings.text_width,
        # diffusers calls the number of heads `attention_head_dim` in this class
        attention_head_dim=tuple(channels // settings.head_channels for channels in settings.channels),
        norm_num_groups=16,
        # The pooled text joins the timestep's embedding: it reaches the levels that have no cross-attention, too.
        addition_embed_type="text",
        addition_embed_type_num_heads=settings.text_heads,
    )
    with torch.no_grad():
        unet.conv_in.weight[:, 4:].zero_()
        unet.add_embedding.norm2.weight.zero_()
    return unet


class DenoiserTask:
    """Batches of latents, captions and noise; samples of the averaged weights as sheets."""

    def __init__(
        self,
        corpus: Corpus,
        bank: Bank,
        tokenizer: PreTrainedTokenizerFast,
        autoencoder: AutoencoderKL,
        settings: tuple[NetworkSettings, ConditionSettings, int],
    ) -> None:
        network, self.condition, self.batch_size = settings
        self.corpus, self.bank, self.tokenizer, self.autoencoder = corpus, bank, tokenizer, autoencoder
        self.context_length = network.context_length
        self.model = TextToLatents(network)
        self.alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod
        self.rows_of, self.weights_of = self._shares()
        self.val = np.array([i for i, entry in enumerate(bank.entries) if entry["kind"] == "val"])

    def _shares(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Rows of the bank by part (pictures, scenes, masked), and how likely each is within its part."""
        of_record = weights(self.corpus.records)
        kinds = np.array([entry["kind"] for entry in self.bank.entries])
        weight = np.array([of_record[e["row"]] if "row" in e else 1.0 for e in self.bank.entries])
        weight[kinds == "val"] = 0
        is_masked = np.arange(len(kinds)) < len(self.bank.masks)
        parts = {"scene": kinds == "scene", "picture": kinds != "scene", "masked": is_masked & (weight > 0)}
        rows = {name: np.flatnonzero(mask & (weight > 0)) for name, mask in parts.items()}
        return rows, {name: weight[row] / weight[row].sum() for name, row in rows.items() if len(row)}

    def compiled_parts(self) -> list[nn.Module]:
        return [self.model]

    def loss(self, step: int, random: Random) -> tuple[Tensor, dict[str, float]]:
        parts = self._parts(random)
        rows = np.concatenate([random.choice(self.rows_of[p], n, p=self.weights_of[p]) for p, n in parts if n])
        texts = ["" if random.random() < self.condition.dropped_captions else self.caption(row, random) for row in rows]
        masked = len(rows) - dict(parts)["masked"]
        extra = torch.zeros(len(rows), 5, *self.bank.latents.shape[2:])
        for place in range(masked, len(rows)):
            extra[place] = self._masked(int(rows[place]))
        uniform = (torch.arange(len(rows)) + torch.rand(len(rows))) / len(rows)
        logits = torch.special.ndtri(uniform[torch.randperm(len(rows))]) + self.condition.timestep_shift
        timesteps = (torch.sigmoid(logits) * 1000).long().clamp(0, 999)
        return self._error(self.model, rows, extra, timesteps, texts), {}

    def _parts(self, random: Random) -> list[tuple[str, int]]:
        scenes = random.binomial(self.batch_size, self.condition.scene_share) if len(self.rows_of["scene"]) else 0
        masked = round(self.batch_size * self.condition.inpainting_share) if len(self.rows_of["masked"]) else 0
        scenes = min(scenes, self.batch_size - masked)
        return [("picture", self.batch_size - masked - scenes), ("scene", scenes), ("masked", masked)]

    def _masked(self, row: int) -> Tensor:
        """Mask and masked latents of one entry: [5, h, w]."""
        mask = torch.from_numpy(self.bank.masks[row]).float()
        return torch.cat([mask, torch.from_numpy(self.bank.masked_latents[row]).float()])

    def _error(
        self, model: nn.Module, rows: np.ndarray, extra: Tensor, timesteps: Tensor, captions: list[str]
    ) -> Tensor:
        """Mean squared error of v over the batch."""
        place = next(model.parameters()).device
        latents = torch.from_numpy(self.bank.latents[rows]).float()
        noise = torch.randn_like(latents)
        alpha = self.alphas[timesteps].sqrt()[:, None, None, None]
        sigma = (1 - self.alphas[timesteps]).sqrt()[:, None, None, None]
        inputs = torch.cat([alpha * latents + sigma * noise, extra], 1)  # [n, 9, h, w]
        predicted = model(inputs.to(place), timesteps.to(place), self.tokens(captions).to(place))
        return F.mse_loss(predicted.float(), (alpha * noise - sigma * latents).to(place))

    def caption(self, row: int, random: Random) -> str:
        entry = self.bank.entries[row]
        if "caption" in entry:
            return str(entry["caption"])
        text = caption_of(self.corpus.records[entry["row"]], random)
        return f"{text} {entry['on']}" if "on" in entry else text

    def tokens(self, captions: list[str]) -> Tensor:
        """int64 [n, context]."""
        found = self.tokenizer(
            captions, padding="max_length", max_length=self.context_length, truncation=True, return_tensors="pt"
        )
        return found.input_ids

    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Loss on the val split with fixed noise, timesteps and plain captions."""
        texts = [self.corpus.records[self.bank.entries[row]["row"]]["caption"] for row in self.val]
        timesteps = torch.linspace(0, 999, len(self.val)).long()
        extra = torch.zeros(len(self.val), 5, *self.bank.latents.shape[2:])
        errors = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for part in np.array_split(np.arange(len(self.val)), max(1, len(self.val) // 64)):
                some = [texts[i] for i in part]
                errors.append(self._error(averaged, self.val[part], extra[part], timesteps[part], some).item())
        return {"val_loss": round(float(np.mean(errors)), 5)}

    def sheet(self, averaged: nn.Module) -> Image.Image:
        prompts = list(self.condition.sheet_prompts)
        latents = self.sample(averaged, prompts, steps=20).to(self.autoencoder.device)
        pictures = self.autoencoder.decode(latents / self.autoencoder.config.scaling_factor).sample
        return grid(to_pixels(pictures), 8)

    def sample(self, model: nn.Module, prompts: list[str], steps: int) -> Tensor:
        """Latents [n, 4, h, w] of `prompts`, seed 0, classifier-free guidance, DPM-Solver++(2M)."""
        place = next(model.parameters()).device
        scheduler = DPMSolverMultistepScheduler(**SCHEDULE)
        scheduler.set_timesteps(steps)
        tokens = self.tokens([""] * len(prompts) + prompts).to(place)
        latents = torch.randn(len(prompts), *self.bank.latents.shape[1:], generator=torch.Generator().manual_seed(0))
        latents = latents.to(place)
        zeros = latents.new_zeros(2 * len(prompts), 5, *latents.shape[2:])
        for timestep in scheduler.timesteps:
            inputs = torch.cat([torch.cat([latents, latents]), zeros], 1)
            without, given = model(inputs, timestep.expand(len(inputs)).to(place), tokens).chunk(2)
            guided = without + self.condition.sheet_guidance * (given - without)
            latents = scheduler.step(guided, timestep, latents).prev_sample
        return latents


def prompts_for_tokenizer(corpus: Corpus, random: Random) -> list[str]:
    """Captions in several forms, so that the tokenizer knows the words that training and users use."""
    train = [record for record in corpus.records if record["split"] == "train"]
    return [caption_of(record, random) for record in train for _ in range(3)] + [
        ", ".join([record["name"], *record["alt_names"], *record["tags"]]) for record in train
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["latents", "train"])
    parser.add_argument("--corpus", type=Path, required=True, help="folder of `python -m training.corpus build`")
    parser.add_argument("--autoencoder", type=Path, required=True, help="an exported autoencoder (diffusers layout)")
    parser.add_argument("--latents", type=Path, required=True, help="the bank: written by `latents`, read by `train`")
    parser.add_argument("--run", type=Path, help="folder of the run: checkpoint, log and sample sheets")
    parser.add_argument("--settings", type=Path, default=FOLDER / "denoiser.toml")
    parser.add_argument("--start-from", type=Path, help="a checkpoint (diffusers layout) whose weights a new run takes")
    parser.add_argument("--processes", type=int, default=1, help="that share the work of `latents` (default: 1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long, to be resumed")
    arguments = parser.parse_args()
    if arguments.command == "latents":
        settings = load(arguments.settings, "bank", BankSettings)
        hardware = load(arguments.settings, "hardware", Hardware)
        build_bank_side_by_side(
            arguments.corpus, arguments.autoencoder, settings, arguments.latents, hardware, arguments.processes
        )
        return
    corpus = Corpus.open(arguments.corpus)
    autoencoder = load_autoencoder(arguments.autoencoder).eval().requires_grad_(False)
    if arguments.run is None:
        parser.error("train needs --run FOLDER")
    end = time.monotonic() + 60 * arguments.minutes
    bank = Bank.open(arguments.latents)
    run = denoiser_run(corpus, bank, autoencoder, arguments.run, arguments.settings, arguments.start_from)
    run.train(until=lambda: time.monotonic() > end)
    run.report()


def denoiser_run(
    corpus: Corpus,
    bank: Bank,
    autoencoder: AutoencoderKL,
    folder: Path,
    settings: Path,
    start_from: Path | None = None,
) -> Run:
    """The run in `folder`, gone on with where it stopped; a new one begins with the weights and the tokenizer of the
    checkpoint `start_from`, or with random weights and a tokenizer learned from the captions.
    """
    network = load(settings, "network", NetworkSettings)
    loop = load(settings, "loop", LoopSettings)
    words = folder / "tokenizer"
    if not words.exists() and start_from is not None:
        shutil.copytree(start_from / "tokenizer", words)
    elif not words.exists():
        texts = prompts_for_tokenizer(corpus, np.random.default_rng(loop.seed))
        texts += [entry["caption"] for entry in bank.entries if "caption" in entry]
        train_tokenizer(texts, network.pieces, network.context_length, words)
    tokenizer = load_tokenizer(words)
    torch.manual_seed(loop.seed)
    condition = load(settings, "condition", ConditionSettings)
    task = DenoiserTask(corpus, bank, tokenizer, autoencoder, (network, condition, loop.batch_size))
    if start_from is not None:
        task.model.load_weights(start_from)
    run = Run(folder, task, loop, load(settings, "hardware", Hardware))
    run.resume()
    return run


if __name__ == "__main__":
    main()
