"""Tiles of a picture and how they are put together."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models.region import Box
from models.tiles import Mosaic, tile


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 60), [Box(0, 0, 104, 64)]),
        ((128, 128), [Box(0, 0, 128, 128)]),
        ((136, 64), [Box(0, 0, 128, 64), Box(8, 0, 136, 64)]),
        ((240, 100), [Box(0, 0, 128, 104), Box(112, 0, 240, 104)]),
    ],
)
def test_a_picture_is_covered_by_tiles_of_one_size(size: tuple[int, int], expected: list[Box]) -> None:
    assert list(tile(size, 128, 16, 8).boxes) == expected


def test_every_pixel_is_covered_and_neighbours_share_the_overlap() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        size = int(random.integers(1, 900)), int(random.integers(1, 900))
        tiling = tile(size, 128, 16, 8)
        assert len({(box.width, box.height) for box in tiling.boxes}) == 1
        assert tiling.size[0] % 8 == tiling.size[1] % 8 == 0
        seen = np.zeros((tiling.size[1], tiling.size[0]), np.int64)
        for box in tiling.boxes:
            seen[box.top : box.bottom, box.left : box.right] += 1
        assert seen.min() >= 1
        for spans in (tiling.columns, tiling.rows):
            assert all(one[1] - other[0] >= 16 for one, other in zip(spans, spans[1:], strict=False))


@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_tiles_of_one_picture_give_it_back_in_any_order(order: str) -> None:
    whole = np.asarray(Image.effect_noise((700, 500), 60).convert("RGB"))
    tiling = tile((350, 250), 128, 16, 2)
    mosaic = Mosaic(tiling, 2)
    numbers = list(range(len(tiling.boxes)))
    if order != "forwards":
        numbers = numbers[::-1] if order == "backwards" else list(np.random.default_rng(1).permutation(numbers))
    for number in numbers:
        assert not mosaic.is_complete
        box = tiling.boxes[number]
        mosaic.add(number, whole[2 * box.top : 2 * box.bottom, 2 * box.left : 2 * box.right])
    assert np.array_equal(mosaic.picture((700, 500)), whole)
    assert mosaic.picture((690, 480)).shape == (480, 690, 3)


def test_tiles_that_differ_leave_no_seam() -> None:
    """Two shades of grey, 40 levels apart: no step between neighbouring pixels is larger than the fade's own."""
    tiling = tile((400, 400), 128, 16, 8)
    mosaic = Mosaic(tiling, 4)
    for number, box in enumerate(tiling.boxes):
        shade = 100 + 40 * (number % 2)
        mosaic.add(number, np.full((4 * box.height, 4 * box.width, 3), shade, np.uint8))
    picture = mosaic.picture((1600, 1600)).astype(int)
    assert np.abs(np.diff(picture, axis=0)).max() <= 2
    assert np.abs(np.diff(picture, axis=1)).max() <= 2
    assert picture.min() >= 100
    assert picture.max() <= 140
