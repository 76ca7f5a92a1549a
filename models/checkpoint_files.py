"""Where the files of a checkpoint lie, and which of them are read.

Owns diffusers' directory layout, the hub's cache and downloads, the headers of files, and the rule that pickles are
never read. Knows nothing of what the weights are for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from types import MappingProxyType
from typing import Any, TypeVar

from models.errors import CheckpointError, CheckpointMissing, CheckpointRefused

INDEX = "model_index.json"
DEFAULTS = "denoised.json"
SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_SD = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}
_SDXL = {**_SD, "text_encoder_2": "CLIPTextModelWithProjection"}
PIPELINES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
                *("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
            ),
            _SD,
        ),
        **dict.fromkeys(
            (
                *("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
                "StableDiffusionXLInpaintPipeline",
            ),
            _SDXL,
        ),
        "StableDiffusionUpscalePipeline": _SD,
        "LDMSuperResolutionPipeline": {"unet": "UNet2DModel", "vqvae": "VQModel"},
    }
)
"""Class in `model_index.json` of the checkpoints that are served -> its networks: folder -> class."""
_NETWORKS = tuple(dict.fromkeys(name for networks in PIPELINES.values() for name in networks))
UPSCALER = "StableDiffusionUpscalePipeline"
SUPER_RESOLUTION = "LDMSuperResolutionPipeline"
LOW_RES_SCHEDULER = "low_res_scheduler"
_SHARDS = f"{SUFFIX}.index.json"
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_VOCABULARIES = ("tokenizer.json", "vocab.json")

_File = TypeVar("_File", bound=PurePath)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself before its first tensor. shapes: key -> shape."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


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
    return _find_in_cache(source) or _fetch(source, files_to_fetch)


def find_configuration(repository: str) -> Path:
    """The directory of `repository` with all but its weights: from the local cache, else from the hub.

    Raises CheckpointMissing.
    """
    cached = _find_snapshot(repository)
    if cached is not None and not missing_configuration(cached):
        return cached
    return _fetch(repository, configuration_files)


def missing_configuration(folder: Path) -> list[str]:
    """What a directory in diffusers layout lacks besides weights, by name. Raises CheckpointRefused for a pipeline
    that is not served."""
    if not (folder / INDEX).is_file():
        return [INDEX]
    components = components_of(folder)
    files = ["scheduler/scheduler_config.json", *(f"{component}/config.json" for component in components)]
    if read_json(folder / INDEX)["_class_name"] == UPSCALER:
        files.append(f"{LOW_RES_SCHEDULER}/scheduler_config.json")
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in components if name.startswith("text_encoder")]
    return [file for file in files if not (folder / file).is_file()] + [
        f"{name}/" for name in tokenizers if not any((folder / name / file).is_file() for file in _VOCABULARIES)
    ]


def _find_in_cache(source: str) -> Path | None:
    folder = _find_snapshot(source)
    try:
        if folder is not None:
            weight_files(folder)
    except (CheckpointError, OSError):
        return None
    return folder


def _find_snapshot(repository: str) -> Path | None:
    """Where the local cache has files of `repository`, an index among them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return folder if (folder / INDEX).is_file() else None


def _fetch(source: str, choose: Callable[[Sequence[PurePosixPath]], list[PurePosixPath]]) -> Path:
    """Download what `choose` takes of the names of all files, and nothing else."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        names = [PurePosixPath(name) for name in HfApi().list_repo_files(source)]
        return Path(snapshot_download(source, allow_patterns=[str(name) for name in choose(names)]))
    except Exception as error:
        # The boundary to a client whose transport has errors of its own: whatever it says, there is no such model here.
        raise CheckpointMissing(f"The hub has no model {source!r} for us: {error}") from error


def files_to_fetch(names: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Of the files of a repository in diffusers layout, those that `load_checkpoint` reads: no pickles, no second
    precision, no single-file copy."""
    parts = ([name for name in names if str(name.parent) == component] for component in _NETWORKS)
    return configuration_files(names) + [name for part in parts for name in _one_precision(part)]


def configuration_files(names: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Those of them that are no weights."""
    folders = (*_NETWORKS, "scheduler", LOW_RES_SCHEDULER, *_TOKENIZERS)
    return [
        name
        for name in names
        if str(name) in (INDEX, DEFAULTS)
        or (str(name.parent) in folders and (name.suffix == ".json" or str(name.parent) in _TOKENIZERS))
    ]


def weight_files(folder: Path) -> dict[str, list[Path]]:
    """Safetensors files of each network in a directory in diffusers layout: component -> files.

    Raises CheckpointRefused for a pipeline that is not served and where there are only pickles, CheckpointMissing where
    there is nothing.
    """
    return {component: weight_files_in(folder / component) for component in components_of(folder)}


def components_of(folder: Path) -> Mapping[str, str]:
    """Networks of the checkpoint in `folder`: its folders -> their classes. Raises CheckpointRefused for others."""
    index = read_json(folder / INDEX)
    pipeline = str(index.get("_class_name"))
    if pipeline not in PIPELINES:
        raise CheckpointRefused(
            f"{str(folder)!r} is a {pipeline}; checkpoints of {' and '.join(sorted(PIPELINES))} are served."
        )
    networks = dict(PIPELINES[pipeline])
    if pipeline == UPSCALER and not any(index.get("text_encoder") or ()):
        del networks["text_encoder"]  # it reads no prompt
    for component, expected in networks.items():
        _, class_name = index.get(component) or (None, None)
        if class_name != expected:
            raise CheckpointRefused(f"The {component} of {str(folder)!r} is a {class_name}; a {expected} is needed.")
    return networks


def refuse_keys(sentence: str, keys: Collection[str]) -> None:
    """Raises CheckpointRefused with the first few names, if there are any."""
    if keys:
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise CheckpointRefused(f"{sentence} {', '.join(sorted(keys)[:3])}{more}.")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointMissing without the file, CheckpointRefused for anything else in it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointMissing(f"{file.parent.name}/{file.name} is missing.") from error
    except ValueError as error:
        raise CheckpointRefused(f"{file.parent.name}/{file.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointRefused(f"{file.parent.name}/{file.name} is not a JSON object.")
    return content


def read_header(path: Path) -> Header:
    """Reads no tensor. Raises CheckpointRefused for a file that is no safetensors file, or not the whole of one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118 (no dict)
            return Header(shapes, tensors.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointRefused(f"{path.name} cannot be read as a safetensors file: {error}") from error


def weight_files_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CheckpointMissing(f"The component folder {folder.name!r} is missing beside {INDEX}.")
    files = sorted(folder.iterdir())
    for file in files:
        if file.name.endswith(_SHARDS):
            _refuse_other_shards(file, {other.name for other in files})
    found = _one_precision(files)
    if found:
        return found
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointRefused(
            f"{folder.name}/{pickles[0]} is a pickle, which can run any code when it is read. "
            "Convert the checkpoint to safetensors (save_pretrained does) and give that directory."
        )
    raise CheckpointMissing(f"The component folder {folder.name!r} holds no {SUFFIX} file.")


def _refuse_other_shards(index: Path, names: Collection[str]) -> None:
    """What lists the parts of weights may name safetensors files beside it and nothing else: loaders open whatever it
    names."""
    shards = read_json(index).get("weight_map")
    for shard in set(shards.values()) if isinstance(shards, dict) else {None}:
        if not isinstance(shard, str) or shard not in names or not shard.endswith(SUFFIX):
            raise CheckpointRefused(
                f"{index.parent.name}/{index.name} names {str(shard)[:80]!r}; only {SUFFIX} files beside it are read."
            )


def _one_precision(files: Sequence[_File]) -> list[_File]:
    """The plain weight files, else those of the fp16 variant. Never a pickle."""
    found = [file for file in files if file.suffix == SUFFIX]
    plain = [file for file in found if ".fp16" not in file.name and ".non_ema" not in file.name]
    return plain or [file for file in found if ".fp16" in file.name]
