"""The ControlNets of one directory, loaded when they are asked for.

Owns the directory, what fits a checkpoint, and which networks are in memory. Safe to share between threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.checkpoint import Checkpoint
from models.checkpoint_files import read_json, weight_files_in
from models.control import ControlNet
from models.device import is_out_of_memory
from models.errors import CheckpointError, ControlRefused, OutOfMemory
from models.recently_used import RecentlyUsed
from models.request import PictureRequest
from models.weights import digest_of_files, load_network

CONFIG = "config.json"
_SAME = ("cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type")
"""What of a ControlNet's configuration has to be the UNet's."""


class ControlFiles:
    """Names are those of folders in diffusers layout; nothing outside the directory has one.

    The `keep` most recently used stay in memory, for the checkpoint they were loaded for.
    """

    def __init__(self, folder: Path, keep: int = 4) -> None:
        self._folder = folder
        self._loaded: RecentlyUsed[tuple[str, str, int], ControlNet] = RecentlyUsed(lambda nets: len(nets) <= keep)

    def of(self, request: PictureRequest, checkpoint: Checkpoint) -> tuple[ControlNet, ...]:
        """What the request asks for. Raises ControlRefused where one is not there or does not fit."""
        return tuple(self._get(control.name, checkpoint) for control in request.controls)

    def _get(self, name: str, checkpoint: Checkpoint) -> ControlNet:
        folder = self._find(name)
        stamp = max(file.lstat().st_mtime_ns for file in folder.iterdir())
        key = checkpoint.digest, name, stamp
        return self._loaded.get(key, lambda: _load(folder, name, checkpoint))

    def _find(self, name: str) -> Path:
        """The folder of that name in the directory itself: the listing decides, so no name leads elsewhere."""
        found = [file.parent for file in self._folder.glob(f"*/{CONFIG}") if file.parent.name == name]
        if not found:
            raise ControlRefused(f"There is no ControlNet {name!r} any more; GET /models lists what there is.")
        return found[0]


def _load(folder: Path, name: str, checkpoint: Checkpoint) -> ControlNet:
    try:
        config = read_json(folder / CONFIG)
    except CheckpointError as error:
        raise ControlRefused(f"The ControlNet {name!r} cannot be loaded: {error}") from error
    _refuse_unfit(config, checkpoint.denoiser.network.config, name)
    try:
        network = load_network("ControlNetModel", folder, checkpoint.placement)
        return ControlNet(name, network, digest_of_files(folder, [folder / CONFIG, *weight_files_in(folder)]))
    except CheckpointError as error:
        raise ControlRefused(f"The ControlNet {name!r} cannot be loaded: {error}") from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"There is no memory left for the ControlNet {name!r}.") from error
        raise ControlRefused(f"The ControlNet {name!r} cannot be loaded: {error}") from error


def _refuse_unfit(config: dict[str, Any], unet: Any, name: str) -> None:
    if config.get("_class_name") != "ControlNetModel" or config.get("in_channels", 4) != unet.out_channels:
        raise ControlRefused(f"{name!r} is a {config.get('_class_name')}, which does not fit this model.")
    if config.get("global_pool_conditions"):
        raise ControlRefused(f"The ControlNet {name!r} steers by the whole picture at once, which is not served.")
    if config.get("conditioning_channels", 3) != 3:
        raise ControlRefused(f"The ControlNet {name!r} reads no RGB pictures, so none can be sent for it.")
    for setting in _SAME:
        own, theirs = config.get(setting), getattr(unet, setting, None)
        if own is not None and _plain(own) != _plain(theirs):
            raise ControlRefused(
                f"The ControlNet {name!r} is made for another network: its {setting} is {own}, not {_plain(theirs)}."
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
