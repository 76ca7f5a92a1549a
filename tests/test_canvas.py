"""The canvas of inpainting: its geometry, and the promise that outside the mask nothing changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.canvas import COVERS_ALL, Canvas, feather, make_canvas
from models.region import Box, box_after_outpainting, canvas_for, is_copied, region_of
from models.request import InpaintingRequest

OWN, MAX_PIXELS, MIN_SIZE, MAX_SIZE = (128, 128), 1024 * 1024, 64, 2048


def canvas_size(region: tuple[int, int], own: tuple[int, int] = OWN) -> tuple[int, int]:
    return canvas_for(region, own, MAX_PIXELS, MIN_SIZE, MAX_SIZE, 8)


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def request_of(canvas: tuple[int, int], **changes: Any) -> InpaintingRequest:
    fields: dict[str, Any] = {
        "model": "tiny",
        "prompt": "a cat",
        "width": canvas[0],
        "height": canvas[1],
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "sampler": "ddim",
        "noise_schedule": "default",
        "seed": 0,
        "num_images": 1,
        "image": f"sha256:{'0' * 64}",
        "strength": 1.0,
        "mask_blur": 0,
    } | changes
    return InpaintingRequest(**fields)


def canvas_of(picture: np.ndarray, mask: np.ndarray | None, canvas: tuple[int, int], **changes: Any) -> Canvas:
    image = None if mask is None else Image.fromarray(mask.astype(np.uint8) * 255)
    return make_canvas(request_of(canvas, **changes), Image.fromarray(picture), image)


def blob(width: int, height: int, random: np.random.Generator) -> np.ndarray:
    """A box somewhere in (height, width)."""
    mask = np.zeros((height, width), np.bool_)
    top, left = random.integers(0, height), random.integers(0, width)
    mask[top : top + random.integers(1, height), left : left + random.integers(1, width)] = True
    return mask


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "own", "expected"),
    [
        ((128, 128), (128, 128), (128, 128)),
        ((100, 130), (128, 128), (104, 136)),  # its own size, rounded up
        ((1000, 700), (512, 512), (1000, 704)),
        ((40, 40), (128, 128), (128, 128)),  # far smaller than the model's own: enlarged
        ((64, 32), (512, 512), (728, 360)),
        ((4000, 3000), (512, 512), (1176, 888)),  # more than the model can draw at once
        ((5000, 40), (128, 128), (2048, 64)),  # a strip longer than the longest side
    ],
)
def test_a_region_is_drawn_pixel_for_pixel_where_the_model_can(
    region: tuple[int, int], own: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert canvas_size(region, own) == expected


def test_every_canvas_is_one_that_the_model_can_draw() -> None:
    random = np.random.default_rng(0)
    for _ in range(2000):
        region = tuple(int(side) for side in np.exp(random.uniform(0, np.log(9000), 2)).astype(int))
        width, height = canvas_size((region[0], region[1]))
        assert width % 8 == height % 8 == 0
        assert min(width, height) >= MIN_SIZE
        assert max(width, height) <= MAX_SIZE
        assert width * height <= MAX_PIXELS


def test_a_region_holds_the_box_stays_inside_and_has_the_canvas_aspect_where_there_is_room() -> None:
    random = np.random.default_rng(1)
    for _ in range(2000):
        picture = int(random.integers(8, 600)), int(random.integers(8, 600))
        left, top = int(random.integers(0, picture[0])), int(random.integers(0, picture[1]))
        right, bottom = int(random.integers(left, picture[0])) + 1, int(random.integers(top, picture[1])) + 1
        box = Box(left, top, right, bottom)
        canvas = canvas_size((box.width, box.height))
        region = region_of(box, picture, canvas)
        assert 0 <= region.left <= box.left < box.right <= region.right <= picture[0]
        assert 0 <= region.top <= box.top < box.bottom <= region.bottom <= picture[1]
        if is_copied(box, canvas):
            assert is_copied(region, canvas)
        if region.width < picture[0] and region.height < picture[1]:
            assert abs(region.width * canvas[1] - region.height * canvas[0]) <= max(canvas), "it is distorted"


def test_outpainting_draws_the_strips_and_the_mask() -> None:
    assert box_after_outpainting(None, (50, 40), (0, 0, 0, 0)) is None
    assert box_after_outpainting(None, (50, 40), (10, 0, 0, 0)) == Box(0, 0, 10, 40)
    assert box_after_outpainting(None, (50, 40), (0, 0, 0, 10)) == Box(0, 40, 50, 50)
    assert box_after_outpainting(None, (50, 40), (0, 5, 7, 0)) == Box(0, 0, 57, 45)
    assert box_after_outpainting(Box(20, 20, 30, 25), (50, 40), (10, 0, 0, 0)) == Box(0, 0, 40, 40)
    assert box_after_outpainting(Box(20, 20, 30, 25), (50, 40), (0, 0, 0, 0)) == Box(20, 20, 30, 25)


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blur", [0, 1, 4, 30])
@pytest.mark.parametrize("crop", [None, 0, 20])
def test_outside_the_mask_the_answer_is_the_upload_byte_for_byte(crop: int | None, blur: int) -> None:
    random = np.random.default_rng(2)
    for case in range(25):
        width, height = (int(side) for side in random.integers(9, 260, 2))
        picture, mask = noise(width, height, case), blob(width, height, random)
        size = canvas_size((width, height)) if crop is None else (128, 96)
        canvas = canvas_of(picture, mask, size, padding_mask_crop=crop, mask_blur=blur)
        assert canvas.picture.size == size
        assert canvas.canvas_mask.shape == (size[1], size[0])
        answer = canvas.paste(noise(*size, seed=99))
        assert answer.shape == picture.shape
        assert np.array_equal(answer[~mask], picture[~mask])
        assert not np.array_equal(answer[mask], picture[mask])
        assert np.array_equal(canvas.reference, picture), "pasting must not write into the upload"


def test_without_blur_and_resampling_the_drawn_pixels_are_taken_as_they_are() -> None:
    picture, mask = noise(100, 75), np.zeros((75, 100), np.bool_)
    mask[10:30, 50:] = True
    canvas = canvas_of(picture, mask, (104, 80))
    drawn = noise(104, 80, seed=1)
    assert np.array_equal(canvas.paste(drawn), np.where(mask[..., None], drawn[:75, :100], picture))
    shown = np.asarray(canvas.picture)
    assert np.array_equal(shown[:75, :100], picture)
    assert (shown[75:, :100] == picture[-1]).all(), "the last row is not repeated"
    assert (shown[:75, 100:] == picture[:, -1:]).all(), "the last column is not repeated"


def test_what_the_network_gives_back_unchanged_leaves_the_picture_as_it_was() -> None:
    smooth = np.asarray(Image.fromarray(noise(12, 9)).resize((300, 220), Image.Resampling.BICUBIC))
    mask = np.zeros((220, 300), np.bool_)
    mask[100:140, 90:160] = True
    for size, crop in (((304, 224), None), ((152, 112), None), ((256, 256), 16)):
        canvas = canvas_of(smooth, mask, size, padding_mask_crop=crop, mask_blur=4)
        same = canvas.paste(np.asarray(canvas.picture))
        assert np.abs(same.astype(int) - smooth).max() <= (0 if crop is None and size[0] == 304 else 12)


def test_a_small_mask_is_shown_at_the_size_of_the_canvas() -> None:
    picture, mask = noise(400, 300), np.zeros((300, 400), np.bool_)
    mask[140:160, 200:220] = True
    canvas = canvas_of(picture, mask, (128, 128), padding_mask_crop=12)
    assert canvas.region == Box(188, 128, 232, 172)
    drawn = np.full((128, 128, 3), 7, np.uint8)
    answer = canvas.paste(drawn)
    assert (answer[mask] == 7).all()
    assert np.array_equal(answer[~mask], picture[~mask])


def test_outpainting_enlarges_the_picture_and_keeps_all_of_it() -> None:
    picture = noise(60, 50)
    canvas = canvas_of(picture, None, (104, 72), outpaint_left=10, outpaint_right=30, outpaint_bottom=20, mask_blur=3)
    answer = canvas.paste(np.full((72, 104, 3), 7, np.uint8))
    assert answer.shape == (70, 100, 3)
    assert np.array_equal(answer[:50, 10:70], picture)
    assert (answer[:, :7] == 7).all()
    assert (answer[53:] == 7).all()
    assert (answer[10:40, 9] != 7).any(), "no seam is hidden"


def test_outpainting_and_a_mask_go_together() -> None:
    picture, mask = noise(60, 50), np.zeros((50, 60), np.bool_)
    mask[:10, :10] = True
    canvas = canvas_of(picture, mask, (64, 72), outpaint_top=20)
    assert canvas.mask.sum() == 20 * 60 + 100
    answer = canvas.paste(np.full((72, 64, 3), 7, np.uint8))
    assert (answer[:20] == 7).all()
    assert (answer[20:30, :10] == 7).all()
    assert np.array_equal(answer[20:][~mask], picture[~mask])


# --- masks ------------------------------------------------------------------------------------------------------------


def test_feathering_rises_inside_the_mask_and_never_leaves_it() -> None:
    mask = np.zeros((40, 40), np.bool_)
    mask[5:35, 5:35] = True
    weights = feather(mask, 5)
    assert (weights[~mask] == 0).all()
    np.testing.assert_allclose(weights[20, 5:11], [0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert np.array_equal(feather(mask, 0), mask)


def test_the_middle_of_a_thin_line_is_drawn_beside_a_large_part() -> None:
    mask = np.zeros((60, 60), np.bool_)
    mask[5:8, 2:50] = True
    mask[20:58, 20:58] = True
    weights = feather(mask, 8)
    assert weights[6, 25] == 1
    assert 0 < weights[5, 25] < 1
    assert weights[40, 40] == 1


def test_a_mask_that_reaches_the_edge_of_the_picture_is_not_faded_there() -> None:
    mask = np.zeros((30, 30), np.bool_)
    mask[:, :15] = True
    weights = feather(mask, 6)
    assert (weights[:, 0] == 1).all()
    assert (weights[0, :9] == 1).all()


def test_a_thin_line_survives_a_smaller_canvas() -> None:
    for box in (np.s_[401, 100:700], np.s_[401, 401]):
        mask = np.zeros((4000, 4000), np.bool_)
        mask[box] = True
        canvas = canvas_of(np.zeros((4000, 4000, 3), np.uint8), mask, (128, 128))
        assert canvas.canvas_mask.any()


def test_grey_counts_from_the_middle_on() -> None:
    grey = np.full((16, 16), 127, np.uint8)
    grey[4:8, 4:8] = 128
    canvas = make_canvas(request_of((16, 16)), Image.fromarray(noise(16, 16)), Image.fromarray(grey))
    assert canvas.mask.sum() == 16


def test_a_mask_over_everything_is_told() -> None:
    assert canvas_of(noise(16, 16), np.ones((16, 16), np.bool_), (16, 16)).warnings == (COVERS_ALL,)
    assert canvas_of(noise(16, 16), np.eye(16, dtype=np.bool_), (16, 16)).warnings == ()


def test_a_mask_of_another_size_or_of_nothing_is_no_canvas() -> None:
    with pytest.raises(ValueError, match=r"\(8, 16\) pixels and the picture \(16, 16\)"):
        canvas_of(noise(16, 16), np.ones((16, 8), np.bool_), (16, 16))
    with pytest.raises(ValueError, match="selects nothing"):
        canvas_of(noise(16, 16), np.zeros((16, 16), np.bool_), (16, 16))
    with pytest.raises(ValueError, match="selects nothing"):
        canvas_of(noise(16, 16), None, (16, 16))
