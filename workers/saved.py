"""The files in a job's folder that let another worker go on with it.

Owns their names and what is written there of a job's first half. What is in a snapshot of steps is the engine's affair.

    steps.safetensors    how far its pictures have come
    first.safetensors    what was drawn, while it is being enlarged

They are of use and no promise: what cannot be read costs the steps that it would have spared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import structlog

from models.materials import Materials
from models.packed import pack, unpack
from workers.protocols import Drawn, Snapshot
from workers.store import Store

log = structlog.get_logger(__name__)

_STEPS, _FIRST = "steps.safetensors", "first.safetensors"


@dataclass(frozen=True)
class FirstHalf:
    """What was drawn and is to be enlarged, as the engine had answered it; steps: those that it took."""

    job_id: str
    pictures: tuple[np.ndarray, ...]
    seeds: tuple[int, ...]
    steps: int
    prepare_s: float
    denoise_s: float
    decode_s: float
    is_exact: bool
    materials: Materials = Materials()


@dataclass(frozen=True)
class Saved:
    """What an earlier worker left of a job: a snapshot's bytes, and its first half where that was done."""

    steps: bytes | None = None
    first: FirstHalf | None = None


def write_steps(store: Store, job_id: str, snapshot: Snapshot) -> None:
    """Raises OSError."""
    store.put(job_id, _STEPS, snapshot.to_bytes())


def write_first(store: Store, drawn: Drawn, steps: int, model_digest: str, materials: Materials) -> None:
    """Raises OSError."""
    about = {
        "seeds": drawn.seeds,
        "steps": steps,
        "prepare_s": drawn.prepare_s,
        "denoise_s": drawn.denoise_s,
        "decode_s": drawn.decode_s,
        "is_exact": drawn.is_exact,
        "model": model_digest,
        "materials": {"loras": dict(materials.loras), "controls": dict(materials.controls)},
    }
    pictures = {str(index): np.ascontiguousarray(pixels) for index, pixels in enumerate(drawn.pictures)}
    store.put(drawn.job_id, _FIRST, pack(pictures, about))


def read_saved(store: Store, job_id: str, model_digest: str) -> Saved:
    """What there is. Raises OSError when the store refuses."""
    return Saved(_get(store, job_id, _STEPS), _read_first(_get(store, job_id, _FIRST), job_id, model_digest))


def erase_saved(store: Store, job_id: str) -> None:
    """Raises OSError."""
    for name in (_STEPS, _FIRST):
        store.remove(job_id, name)


def _get(store: Store, job_id: str, name: str) -> bytes | None:
    try:
        return store.get(job_id, name)
    except FileNotFoundError:
        return None


def _read_first(data: bytes | None, job_id: str, model_digest: str) -> FirstHalf | None:
    if data is None:
        return None
    try:
        arrays, about = unpack(data)
        if about.pop("model") != model_digest:
            return None
        pictures = tuple(arrays[str(index)] for index in range(len(arrays)))
        materials = Materials(**about.pop("materials", {}))
        return FirstHalf(job_id, pictures, tuple(about.pop("seeds")), **about, materials=materials)
    except (KeyError, TypeError, ValueError) as error:
        log.warning("what was drawn of a job cannot be read; it is drawn again", job=job_id, error=str(error))
        return None
