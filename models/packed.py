"""Arrays with a word about them, as one safetensors file.

Owns where the word stands: as JSON in the file's own metadata. Knows nothing of what is packed, and loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

Arrays = dict[str, NDArray[Any]]


def pack(arrays: Arrays, about: Mapping[str, Any]) -> bytes:
    """arrays: contiguous. about: what JSON can hold."""
    return save(arrays, {"about": json.dumps(about)})


def unpack(data: bytes) -> tuple[Arrays, dict[str, Any]]:
    """What `pack` was given. Raises ValueError for anything else."""
    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")  # of the header, which is JSON
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["about"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"no file of ours: {error}") from error
    return arrays, about
