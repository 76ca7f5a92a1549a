"""Where the files of a checkpoint lie, and which of them are read.

Owns diffusers' directory layout, the hub's cache and downloads, and the rule that pickles are never read. Knows nothing
of what is in the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from models.errors import CheckpointError, CheckpointMissing, CheckpointRefused

INDEX = "model_index.json"
DEFAULTS = "denoised.json"
SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
COMPONENTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}
"""Networks of the SD 1.x / 2.x class: folder -> class."""

_File = TypeVar("_File", bound=PurePath)


def find_folder(source: str) -> Path:
    """The local directory of `source`: itself, or where the files of a hub id lie after they were fetched.

    A hub id that is complete in the local cache is taken from there, without asking the hub. Raises CheckpointMissing.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            raise CheckpointMissing(
                f"{source!r} has no {INDEX}; give a directory in diffusers layout, as save_pretrained writes it."
            )
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise CheckpointMissing(f"There is no directory {source!r}.")
    return _find_in_cache(source) or _fetch(source)


def _find_in_cache(source: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, local_files_only=True))
        weight_files(folder)
    except (LocalEntryNotFoundError, HFValidationError, CheckpointError, OSError):
        return None
    return folder if (folder / INDEX).is_file() else None


def _fetch(source: str) -> Path:
    """Download what is loaded and nothing else: no pickles, no second precision, no single-file copy."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        names = [PurePosixPath(name) for name in HfApi().list_repo_files(source)]
        return Path(snapshot_download(source, allow_patterns=[str(name) for name in files_to_fetch(names)]))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointMissing(f"The hub has no model {source!r} for us: {error}") from error


def files_to_fetch(names: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Of the files of a repository in diffusers layout, those that `load_checkpoint` reads."""
    folders = (*COMPONENTS, "scheduler", "tokenizer")
    small = [
        name
        for name in names
        if str(name) in (INDEX, DEFAULTS)
        or (str(name.parent) in folders and (name.suffix == ".json" or str(name.parent) == "tokenizer"))
    ]
    parts = ([name for name in names if str(name.parent) == component] for component in COMPONENTS)
    return small + [name for part in parts for name in _one_precision(part)]


def weight_files(folder: Path) -> dict[str, list[Path]]:
    """Safetensors files of each network in a directory in diffusers layout: component -> files.

    Raises CheckpointRefused where there are only pickles, CheckpointMissing where there is nothing.
    """
    return {component: _weights_of(folder / component) for component in COMPONENTS}


def _weights_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CheckpointMissing(f"The component folder {folder.name!r} is missing beside {INDEX}.")
    found = _one_precision(sorted(folder.iterdir()))
    if found:
        return found
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointRefused(
            f"{folder.name}/{pickles[0]} is a pickle, which can run any code when it is read. "
            "Convert the checkpoint to safetensors (save_pretrained does) and give that directory."
        )
    raise CheckpointMissing(f"The component folder {folder.name!r} holds no {SUFFIX} file.")


def _one_precision(files: Sequence[_File]) -> list[_File]:
    """The plain weight files, else those of the fp16 variant. Never a pickle."""
    found = [file for file in files if file.suffix == SUFFIX]
    plain = [file for file in found if ".fp16" not in file.name and ".non_ema" not in file.name]
    return plain or [file for file in found if ".fp16" in file.name]
