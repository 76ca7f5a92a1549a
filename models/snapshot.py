"""A job of the batch in mid-flight, as bytes: what another worker needs, beside the request, to go on from there.

Owns what belongs to a snapshot and how it is written (safetensors; nothing of it is ever unpickled). Knows nothing of
files, queues or turns.

A snapshot goes on where it stood: with strict pictures to the same bytes, with standard ones to within 1/255. What can
be made again from the request (prompts and uploads as the network sees them, the step table) is not in it. Nor is the
noise of a step that had begun: the state of the generator before that draw is, and it is drawn again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.packed import Arrays, pack, unpack
from models.prepare import Preparation
from models.request import PictureRequest
from models.slot import Slot, SlotState
from models.step_table import StepTable
from models.tiles import MosaicState

_FORMAT = "1"


class SnapshotRefused(ValueError):
    """The bytes are no snapshot of this request on this checkpoint; the message says why. The job begins anew."""


@dataclass(frozen=True)
class Snapshot:
    """One moment of one job. Nothing in it changes any more; `to_bytes` may run in any thread.

    fingerprint: of what it belongs to. states: (picture, tile) -> how far it has come, for all that are not pixels yet.
    pictures: uint8 (H, W, 3) by number, those that are done. mosaics: pictures of which some tiles are done.
    """

    fingerprint: str
    states: Mapping[tuple[int, int], SlotState]
    pictures: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)
    mosaics: Mapping[int, MosaicState] = field(default_factory=dict)
    is_exact: bool = False

    @property
    def step(self) -> int:
        """UNet evaluations done of the picture that is furthest behind."""
        return min(state.step for state in self.states.values())

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        arrays: Arrays = {}
        for (index, tile), state in self.states.items():
            for name in ("latents", "registers", "generator"):
                arrays[f"{index}.{tile}.{name}"] = np.ascontiguousarray(getattr(state, name).cpu().numpy())
        arrays |= {f"{index}.picture": np.ascontiguousarray(pixels) for index, pixels in self.pictures.items()}
        arrays |= {f"{index}.sum": mosaic.sum for index, mosaic in self.mosaics.items()}
        about = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "is_exact": self.is_exact,
            "states": [[*place, state.step, state.is_exact] for place, state in self.states.items()],
            "pictures": list(self.pictures),
            "mosaics": [[index, sorted(mosaic.missing)] for index, mosaic in self.mosaics.items()],
        }
        return pack(arrays, about)


def fingerprint_of(request: PictureRequest, checkpoint: Checkpoint, table: StepTable) -> str:
    """Equal where a snapshot can be taken up: the same request, weights and step table (which changes with the version
    of the library that it was compiled from)."""
    digest = hashlib.sha256(request.model_dump_json().encode())
    digest.update(checkpoint.digest.encode())
    for tensor in (table.timesteps, table.input_scale, table.coefficients, table.signal_scale, table.noise_scale):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def resume(prepared: Preparation, snapshot: Snapshot) -> tuple[Slot, ...]:
    """Let what was prepared for a request go on from its snapshot; returns the slots that are not pixels yet.

    Raises SnapshotRefused; then nothing has changed.
    """
    slots = {(slot.index, slot.tile): slot for slot in prepared.slots}
    begun = {place for place in slots if place[0] in snapshot.pictures}
    for index, mosaic in snapshot.mosaics.items():
        begun |= {place for place in slots if place[0] == index and place[1] not in mosaic.missing}
    if not snapshot.states or snapshot.states.keys() != slots.keys() - begun:
        raise SnapshotRefused("it holds other pictures than the request asks for")
    for place, state in snapshot.states.items():
        _require_alike(slots[place], state)
    try:
        for index, mosaic in snapshot.mosaics.items():
            prepared.mosaics[index].resume(mosaic)
    except (KeyError, ValueError) as error:
        raise SnapshotRefused(f"its tiles are others: {error}") from error
    for place, state in snapshot.states.items():
        slots[place].resume(state)
    return tuple(slots[place] for place in snapshot.states)


def _require_alike(slot: Slot, state: SlotState) -> None:
    for name in ("latents", "registers", "generator"):
        own, given = getattr(slot.state, name), getattr(state, name)
        if (own.shape, own.dtype) != (given.shape, given.dtype):
            raise SnapshotRefused(f"its {name} are {given.dtype} {tuple(given.shape)}, not {own.dtype} {own.shape}")
    if not 0 <= state.step <= len(slot.table):
        raise SnapshotRefused(f"step {state.step} is none of {len(slot.table)}")


def read_snapshot(data: bytes, device: torch.device) -> Snapshot:
    """What `to_bytes` wrote; the states on `device`. Raises SnapshotRefused."""
    try:
        arrays, about = unpack(data)
        if about["format"] != _FORMAT:
            raise SnapshotRefused(f"it is of format {about['format']}, not {_FORMAT}")
        states = {
            (index, tile): SlotState(
                latents=torch.from_numpy(arrays[f"{index}.{tile}.latents"]).to(device),
                registers=torch.from_numpy(arrays[f"{index}.{tile}.registers"]).to(device),
                generator=torch.from_numpy(arrays[f"{index}.{tile}.generator"]),
                step=step,
                is_exact=is_exact,
            )
            for index, tile, step, is_exact in about["states"]
        }
        return Snapshot(
            fingerprint=about["fingerprint"],
            states=states,
            pictures={index: arrays[f"{index}.picture"] for index in about["pictures"]},
            mosaics={
                index: MosaicState(frozenset(missing), arrays[f"{index}.sum"]) for index, missing in about["mosaics"]
            },
            is_exact=about["is_exact"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SnapshotRefused(f"it cannot be read: {error}") from error
