"""The LoRA files of one directory, read when they are asked for.

Owns the directory, and which of its files are in memory. Safe to share between threads.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from models.checkpoint import Checkpoint
from models.errors import LoraRefused
from models.lora import Lora, LoraUse, read_lora
from models.recently_used import RecentlyUsed
from models.request import PictureRequest

SUFFIX = ".safetensors"

_Key = tuple[str, str, int, int]
"""Digest of the checkpoint, name, time and size of the file."""


class LoraFiles:
    """Names are those of the files without their ending; nothing outside the directory has one.

    The most recently used stay in memory, for the checkpoint they were read for, up to `keep_bytes` together and at
    least the newest; a changed file is read again.
    """

    def __init__(self, folder: Path, keep_bytes: int = 2**30) -> None:
        self._folder = folder
        self._read: RecentlyUsed[_Key, Lora] = RecentlyUsed(
            lambda loras: sum(lora.size_bytes for lora in loras) <= keep_bytes
        )

    def of(self, request: PictureRequest, checkpoint: Checkpoint) -> tuple[LoraUse, ...]:
        """What the request asks for. Raises LoraRefused where one is not there or does not fit."""
        return tuple(LoraUse(self._get(lora.name, checkpoint), lora.weight) for lora in request.loras)

    def _get(self, name: str, checkpoint: Checkpoint) -> Lora:
        file = self._find(name)
        stat = file.stat()
        key = checkpoint.digest, name, stat.st_mtime_ns, stat.st_size
        return self._read.get(key, lambda: _read(file, name, checkpoint, key))

    def _find(self, name: str) -> Path:
        """The file of that name in the directory itself: the listing decides, so no name leads elsewhere."""
        found = [file for file in self._folder.glob(f"*{SUFFIX}") if file.stem == name]
        if not found:
            raise LoraRefused(f"There is no LoRA {name!r} any more; GET /models lists what there is.")
        return found[0]


def _read(file: Path, name: str, checkpoint: Checkpoint, identity: _Key) -> Lora:
    lora = read_lora(file, name, checkpoint.networks, identity)
    try:
        with file.open("rb") as stream:
            return replace(lora, digest=hashlib.file_digest(stream, "sha256").hexdigest())
    except OSError as error:
        raise LoraRefused(f"The LoRA {name!r} cannot be read: {error}.") from error
