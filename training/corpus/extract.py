"""Finds the pictures of the catalogue in fetched packages: SVG texts and bitmap files, as their makers published them.

Owns where a package lies in a folder and how its pictures are packed. Knows nothing of pixels.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from training.corpus.catalogue import Record
from training.corpus.paints import painted
from training.corpus.rcc import ResourceArchive
from training.corpus.sources import Package, Source

Original = str | bytes
"""An SVG text, or a bitmap file."""

_AVATARS = Path(__file__).parent / "avatars.mjs"
_INSIDE = ".rcc!"


class SourceUnreadable(Exception):
    """A source as a whole cannot be read; the message says what to do."""


def package_root(folder: Path, package: Package) -> Path:
    """Where the files of a fetched package lie. npm's in `node_modules`, so that they find each other."""
    parent = {"npm": "node_modules", "apt": "apt", "pip": "pip"}[package.client]
    return folder / parent / package.name


def originals(folder: Path, source: Source, records: list[Record]) -> Iterator[tuple[Record, Original | None]]:
    """Each record of one source with its picture, None where the package holds no such picture.

    SourceUnreadable when a package is not there, or when Node.js is needed and missing.
    """
    for package in source.packages:
        if not package_root(folder, package).is_dir():
            raise SourceUnreadable(
                f"{package} is not in {folder}: run `python -m training.corpus fetch {folder}` first."
            )
    read: Callable[[Path, Source, list[Record]], Iterator[Original | None]]
    read = {"icons": _icons, "avatars": _avatars, "files": _files}[source.reader]
    return zip(records, read(folder, source, records), strict=True)


def fingerprint(original: Original) -> str:
    """Twelve hexadecimal digits by which a picture that its makers changed is noticed."""
    content = original.encode() if isinstance(original, str) else original
    return hashlib.sha256(content).hexdigest()[:12]


def _icons(folder: Path, source: Source, records: list[Record]) -> Iterator[Original | None]:
    (package,) = source.packages
    (file,) = package.files
    icon_set = json.loads((package_root(folder, package) / file).read_text(encoding="utf-8"))
    for record in records:
        svg = icon_svg(icon_set, record["path"])
        yield None if svg is None else painted(svg, source.name, record["paint"])


def icon_svg(icon_set: dict[str, Any], name: str) -> str | None:
    """One icon of a set in Iconify's JSON form as a whole SVG, None when the set has no such icon.

    An alias is followed to its parent; one that turns or mirrors its parent counts as missing.
    """
    size = {key: icon_set[key] for key in ("left", "top", "width", "height") if key in icon_set}
    chain: list[dict[str, Any]] = []
    while name not in icon_set["icons"]:
        alias = icon_set.get("aliases", {}).get(name)
        if alias is None or alias.keys() & {"rotate", "hFlip", "vFlip"} or len(chain) > 5:
            return None
        chain.append(alias)
        name = alias["parent"]
    box = {"left": 0, "top": 0, "width": 16, "height": 16} | size
    for part in (icon_set["icons"][name], *reversed(chain)):
        box |= {key: part[key] for key in box if key in part}
    width, height = box["width"], box["height"]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{box["left"]} {box["top"]} {width} {height}">'
        f"{icon_set['icons'][name]['body']}</svg>"
    )


def _avatars(folder: Path, source: Source, records: list[Record]) -> Iterator[Original | None]:
    """Drawn anew by DiceBear's own code from their seeds."""
    if shutil.which("node") is None:
        raise SourceUnreadable(
            "Avatars are drawn by Node.js, and there is no `node`: install it from https://nodejs.org."
        )
    style = source.name.removeprefix("avatar-")
    command = ["node", str(_AVATARS), str(folder / "node_modules"), style]
    seeds = json.dumps([record["path"] for record in records])
    ran = subprocess.run(command, input=seeds, capture_output=True, text=True, encoding="utf-8")
    if ran.returncode != 0:
        reason = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SourceUnreadable(f"Node.js could not draw the avatars of {style}: {reason}")
    yield from json.loads(ran.stdout)


def _files(folder: Path, source: Source, records: list[Record]) -> Iterator[Original | None]:
    roots = {package.name: package_root(folder, package) for package in source.packages}
    archives: dict[Path, dict[str, bytes]] = {}
    for record in records:
        root, path = roots[record["pkg"]], record["path"]
        if _INSIDE in path:
            content = _archived(root, path, archives)
        else:
            content = (root / path).read_bytes() if (root / path).is_file() else None
        is_text = content is not None and path.endswith(".svg")
        yield svg_text(content) if is_text and content is not None else content


def _archived(root: Path, path: str, archives: dict[Path, dict[str, bytes]]) -> bytes | None:
    """`ARCHIVE.rcc!MEMBER`; each archive is unpacked once, into `archives`."""
    name, _, member = path.partition("!")
    archive = root / name
    if archive not in archives:
        archives[archive] = ResourceArchive(archive.read_bytes()).files() if archive.is_file() else {}
    return archives[archive].get(member)


def svg_text(content: bytes) -> str:
    """An SVG file as text: UTF-8, or Latin-1 as some old ones are."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
