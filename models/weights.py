"""Where the networks of a checkpoint come from: a directory in diffusers layout, or a single file beside one.

Owns the choice between the two, and loading from the first. Knows nothing of what the networks are for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from models.checkpoint_files import (
    PICKLE_SUFFIXES,
    SUFFIX,
    components_of,
    find_folder,
    read_header,
    refuse_keys,
    weight_files,
    weight_files_in,
)
from models.device import Placement, is_out_of_memory
from models.errors import CheckpointMissing, CheckpointRefused
from models.single_file import find_single_file


class Weights(Protocol):
    """The networks of one checkpoint on disk."""

    @property
    def folder(self) -> Path:
        """Index, configurations and tokenizers, in diffusers layout."""

    @property
    def components(self) -> Mapping[str, str]:
        """Network -> its class."""

    def load(self, component: str, placement: Placement) -> Any:
        """One network, in memory. Raises CheckpointError, which names it."""

    def count_elements(self) -> int:
        """Of the weights of all networks, from the headers of their files."""

    def digest(self) -> str:
        """SHA-256 over the weights, wherever they lie."""


@dataclass(frozen=True)
class WeightFolder:
    """Networks in diffusers layout, a folder each."""

    folder: Path

    @property
    def components(self) -> Mapping[str, str]:
        return components_of(self.folder)

    def load(self, component: str, placement: Placement) -> Any:
        return load_network(self.components[component], self.folder / component, placement)

    def count_elements(self) -> int:
        files = [file for files in weight_files(self.folder).values() for file in files]
        return sum(math.prod(shape) for file in files for shape in read_header(file).shapes.values())

    def digest(self) -> str:
        return digest_of_files(self.folder, [file for files in weight_files(self.folder).values() for file in files])


def digest_of_files(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 over names and contents of files in `folder`, in the order of their names."""
    total = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as stream:
            total.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def load_network(class_name: str, folder: Path, placement: Placement) -> Any:
    """The network in `folder`, in diffusers layout. Raises CheckpointError; faults of memory come through."""
    import diffusers
    import transformers

    files = weight_files_in(folder)
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    options["variant"] = "fp16" if all(".fp16" in file.name for file in files) else None
    if hasattr(transformers, class_name):
        library, options["dtype"] = transformers, placement.dtype
    else:
        # The other way of loading needs a package of its own; it only lowers the peak of memory.
        library, options["torch_dtype"], options["low_cpu_mem_usage"] = diffusers, placement.dtype, False
    try:
        network, info = getattr(library, class_name).from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointRefused(f"The {folder.name} cannot be loaded: {error}") from error
    refuse_keys(f"The {folder.name} lacks", info["missing_keys"])  # they would be random
    return network.requires_grad_(False).eval().to(placement.device)


def find_weights(source: str) -> Weights:
    """The weights at `source`: a directory in diffusers layout, a single file, or a hub id, fetched if need be.

    Raises CheckpointMissing, and CheckpointRefused for a file of a kind that is not read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix in PICKLE_SUFFIXES:
            raise CheckpointRefused(
                f"{path.name} is a pickle, which can run any code when it is read. Give it as {SUFFIX}."
            )
        return find_single_file(path)
    if path.suffix == SUFFIX and not path.is_dir():
        raise CheckpointMissing(f"There is no file {source!r}.")
    return WeightFolder(find_folder(source))
