"""From fetched packages and the catalogue to arrays: `rgba.npy`, `index.jsonl`, `summary.json`, `ATTRIBUTION.md`.

Owns the order of the work and what happens when it is cut short: each source is finished as a part of its own, a second
run goes on after the last finished part, and the four files appear under their names only when they are whole.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from training.corpus.attribution import attribution
from training.corpus.catalogue import Record
from training.corpus.extract import Original, SourceUnreadable, fingerprint, originals
from training.corpus.render import Pixels, drawn_bounds, picture_of_bitmap, picture_of_svg
from training.corpus.sources import source_of

log = logging.getLogger(__name__)

Rendered = tuple[Record, bool, Pixels | None]
"""A record, whether its drawing is another than it was, and its pixels: None when there are none."""

Apply = Callable[[Callable[..., Rendered], Iterable[tuple[Record, Original | None]]], Iterable[Rendered]]

_NOT_IN_THE_INDEX = ("path", "paint", "sha")
"""What is needed to find a picture in its package, and not for training."""


class NothingBuilt(Exception):
    """No picture could be made; the message says why."""


@dataclass(frozen=True)
class Built:
    """What became of the records: their numbers, and the ids of those that are not as the catalogue has them."""

    pictures: int
    by_licence: dict[str, int]
    by_source: dict[str, int]
    missing: tuple[str, ...]
    """Not in the package, or not to be drawn: not in the arrays."""
    changed: tuple[str, ...]
    """In the arrays, but the package holds another drawing than the one that was looked at."""
    unreadable: dict[str, str]
    """Sources that were left out as a whole, and why."""


def build(folder: Path, out: Path, records: list[Record], size: int = 128, processes: int = 1) -> Built:
    """Render `records`, which are grouped by source, from the packages in `folder` into `out`.

    `out/rgba.npy` is uint8 [pictures, size, size, 4], straight alpha, white under alpha 0; line n of `out/index.jsonl`
    is the record of its row n. NothingBuilt when not a single picture could be made.
    """
    parts = out / f".parts-{size}-{_digest(records)}"
    parts.mkdir(parents=True, exist_ok=True)
    finished: list[Path] = []
    unreadable: dict[str, str] = {}
    with _rows_of_workers(processes) as apply:
        for name, of_source in groupby(records, key=lambda record: str(record["src"])):
            part = parts / name
            try:
                if not part.exists():
                    pictures = originals(folder, source_of(name), list(of_source))
                    _write_part(part, apply(partial(_render_one, size=size), pictures))
                finished.append(part)
            except SourceUnreadable as reason:
                log.warning("%s is left out: %s", name, reason)
                unreadable[name] = str(reason)
    built = _join(finished, out, size, unreadable)
    if not unreadable:
        shutil.rmtree(parts)
    return built


@contextmanager
def _rows_of_workers(processes: int) -> Iterator[Apply]:
    """`map`, in this process or in several; in order either way."""
    if processes <= 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield partial(pool.imap, chunksize=16)


def _digest(records: list[Record]) -> str:
    """Eight digits that change with the records, so that parts of another selection are never taken for these."""
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()[:8]


def _write_part(part: Path, rendered: Iterable[Rendered]) -> None:
    """One source as a folder `rgba.raw`, `index.jsonl`, `notes.json`, moved into place when it is whole."""
    unfinished = part.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    notes: dict[str, list[str]] = {"missing": [], "changed": []}
    count = 0
    with (unfinished / "rgba.raw").open("wb") as raw, (unfinished / "index.jsonl").open("w", encoding="utf-8") as index:
        for record, is_changed, pixels in rendered:
            if pixels is None:
                notes["missing"].append(record["id"])
                continue
            if is_changed:
                notes["changed"].append(record["id"])
            raw.write(pixels.tobytes())
            index.write(json.dumps(_index_record(record, pixels), ensure_ascii=False) + "\n")
            count += 1
    (unfinished / "notes.json").write_text(json.dumps(notes))
    unfinished.rename(part)
    log.info("%s: %d pictures, %d missing", part.name, count, len(notes["missing"]))


def _render_one(picture: tuple[Record, Original | None], size: int) -> Rendered:
    record, original = picture
    if original is None:
        return record, False, None
    try:
        if isinstance(original, str):
            pixels = picture_of_svg(original, size)
        else:
            pixels = picture_of_bitmap(original, size, record["crop"], record["pixel"])
    except ValueError as error:
        log.warning("%s cannot be drawn: %s", record["id"], error)
        pixels = None
    return record, fingerprint(original) != record["sha"], pixels


def _index_record(record: Record, pixels: Pixels) -> dict[str, Any]:
    """What the index says of one picture: the catalogue's fields, the package's version, and what the pixels tell."""
    kept = {key: value for key, value in record.items() if key not in _NOT_IN_THE_INDEX}
    package = next(package for package in source_of(record["src"]).packages if package.name == record["pkg"])
    coverage = round(float(pixels[..., 3].mean()) / 255, 4)
    return kept | {"pkg": str(package), "coverage": coverage, "bbox": drawn_bounds(pixels)}


def _join(parts: list[Path], out: Path, size: int, unreadable: dict[str, str]) -> Built:
    """All parts as one array and one index. The index goes last: where it is, the rest is whole."""
    records = list(_numbered(parts))
    if not records:
        raise NothingBuilt("Not a single picture was made. " + " ".join(dict.fromkeys(unreadable.values())))
    notes = [json.loads((part / "notes.json").read_text()) for part in parts]
    built = Built(
        pictures=len(records),
        by_licence=_counts(records, "lic"),
        by_source=_counts(records, "src"),
        missing=tuple(identity for note in notes for identity in note["missing"]),
        changed=tuple(identity for note in notes for identity in note["changed"]),
        unreadable=unreadable,
    )
    for name in ("index.jsonl", "rgba.npy", "summary.json", "ATTRIBUTION.md"):
        (out / name).unlink(missing_ok=True)
    _write_array(out / "rgba.npy", [part / "rgba.raw" for part in parts], (len(records), size, size, 4))
    _write_text(out / "ATTRIBUTION.md", attribution(records))
    _write_text(out / "summary.json", json.dumps(vars(built), indent=2) + "\n")
    _write_text(out / "index.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    return built


def _numbered(parts: list[Path]) -> Iterator[dict[str, Any]]:
    row = 0
    for part in parts:
        with (part / "index.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                yield {"row": row} | json.loads(line)
                row += 1


def _counts(records: list[dict[str, Any]], key: str) -> dict[str, int]:
    values = [record[key] for record in records]
    return {value: values.count(value) for value in dict.fromkeys(values)}


def _write_array(path: Path, raw_files: list[Path], shape: tuple[int, ...]) -> None:
    """An .npy file of bytes that already lie on disk in the right order."""
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as array:
        np.lib.format.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for raw in raw_files:
            with raw.open("rb") as pixels:
                shutil.copyfileobj(pixels, array, 1 << 20)
    os.replace(unfinished, path)


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
