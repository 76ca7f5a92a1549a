"""Puts the trained parts together as a checkpoint in diffusers layout, ready to be served and shipped.

    python -m training.bundle --denoiser RUN --autoencoder FOLDER --out FOLDER

The folder loads in diffusers' inpainting pipeline as it is; its 4-channel view is for text-to-image there. All weights
are float16 safetensors. `files.json` lists every file with its SHA-256, size and licence; `ATTRIBUTION.md` is the
corpus's: whose pictures the weights learned from.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler

from training.autoencoder import load_autoencoder
from training.corpus.attribution import attribution
from training.corpus.catalogue import read_catalogue
from training.denoiser import SCHEDULE, NetworkSettings, TextToLatents
from training.settings import FOLDER, load

DEFAULTS = {
    "num_inference_steps": 25,
    "guidance_scale": 6.5,
    "guidance_rescale": 0.5,
    "sampler": "dpmpp_2m",
    "text_to_image": "zero-channels",
    "prompt_windows": 1,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionInpaintPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
LICENCE = "Apache-2.0"


def write_bundle(run: Path, autoencoder: Path, folder: Path, network: NetworkSettings) -> None:
    """The averaged weights of the denoiser run in `run`, and the autoencoder, as one checkpoint in `folder`."""
    model = TextToLatents(network)
    state = torch.load(run / "state.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["averaged"])
    model.half()
    model.text_encoder.save_pretrained(folder / "text_encoder")
    model.unet.save_pretrained(folder / "unet")
    load_autoencoder(autoencoder).half().save_pretrained(folder / "vae")
    DPMSolverMultistepScheduler(**SCHEDULE, steps_offset=1).save_pretrained(folder / "scheduler")
    shutil.copytree(run / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    _write_json(folder / "model_index.json", MODEL_INDEX)
    _write_json(folder / "denoised.json", DEFAULTS)
    (folder / "ATTRIBUTION.md").write_text(attribution(read_catalogue()), encoding="utf-8")
    list_files(folder)


def list_files(folder: Path) -> None:
    """Write `files.json`: path, SHA-256, bytes and licence of every other file in `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "files.json")
    files = [
        {
            "path": path.relative_to(folder).as_posix(),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
            "licence": LICENCE,
        }
        for path in paths
    ]
    total = sum(path.stat().st_size for path in paths)
    _write_json(folder / "files.json", {"total_bytes": total, "files": files})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--denoiser", type=Path, required=True, help="folder of a denoiser run")
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder of `training.autoencoder export`")
    parser.add_argument("--settings", type=Path, default=FOLDER / "denoiser.toml")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    network = load(arguments.settings, "network", NetworkSettings)
    write_bundle(arguments.denoiser, arguments.autoencoder, arguments.out, network)


if __name__ == "__main__":
    main()
