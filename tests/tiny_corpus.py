"""A corpus of painted shapes, so that trainers and judges can be tested in seconds. Real layout, real records."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from training.pictures import COLOURS

SHAPES = ("disc", "square", "triangle", "ring")
STYLES = ("flat icon", "clip art", "3d render")


def write_tiny_corpus(folder: Path, size: int = 128) -> Path:
    """4 shapes x 3 styles x 4 colours, every eighth picture in val and every ninth in test_combo; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, records = [], []
    for shape in SHAPES:
        for style in STYLES:
            for colour in ("red", "green", "blue", "yellow"):
                number = len(records)
                split = "val" if number % 8 == 3 else "test_combo" if number % 9 == 5 else "train"
                pictures.append(_paint(shape, COLOURS[colour], STYLES.index(style), size))
                records.append(_record(number, shape, style, colour, split))
    np.save(folder / "rgba.npy", np.stack(pictures))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "index.jsonl").write_text(lines, encoding="utf-8")
    return folder


def _paint(shape: str, colour: tuple[int, int, int], style: int, size: int) -> Any:
    picture = Image.new("RGBA", (size, size), (255, 255, 255, 0))
    draw = ImageDraw.Draw(picture)
    near, far = size // 8 + style, size - size // 8
    ink = (*colour, 255)
    if shape == "disc":
        draw.ellipse((near, near, far, far), fill=ink)
    elif shape == "square":
        draw.rectangle((near, near, far, far), fill=ink)
    elif shape == "triangle":
        draw.polygon([(near, far), (far, far), (size // 2, near)], fill=ink)
    else:
        draw.ellipse((near, near, far, far), outline=ink, width=size // 6)
    return np.asarray(picture)


def _record(number: int, shape: str, style: str, colour: str, split: str) -> dict[str, Any]:
    return {
        "row": number,
        "id": f"tiny/{shape}-{style}-{colour}".replace(" ", "-"),
        "src": "tiny",
        "license": "CC0-1.0",
        "lic": "pd",
        "split": split,
        "name": shape,
        "caption": f"a {colour} {shape}",
        "alt_names": [],
        "tags": ["shape"],
        "style": style,
        "style_text": style,
        "category": "sport" if shape in ("disc", "ring") else "household",
        "sub": None,
        "concept": shape,
        "skin_tone": 0,
        "caption_q": 3,
        "colors": [[colour, 1.0]],
        "coverage": 0.5,
        "mono": False,
        "bbox": [16, 16, 112, 112],
        "form": "vector",
        "pixel": False,
        "crop": None,
    }
