"""What is said of a picture that was drawn again, for each thing that can be different."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from workers.contract import FileKind, Making, Original, Provenance, Verdict
from workers.judging import judge
from workers.pictures import as_jpeg_shows, digest_of_pixels

A, B = "a" * 64, "b" * 64
MAKING = Making(
    contract="strict",
    hardware="cpu x86_64 AVX512, 1 thread",
    dtype="float32",
    software={"torch": "2.13.0"},
    loras={"ink": A},
    controls={"edges": A},
    upscaler=A,
)
CHANGES = {
    "lora_changed": {"loras": {"ink": B}},
    "control_changed": {"controls": {"edges": B}},
    "upscaler_changed": {"upscaler": B},
    "hardware_changed": {"hardware": "NVIDIA H100"},
    "precision_changed": {"dtype": "bfloat16"},
    "software_changed": {"software": {"torch": "2.14.0"}},
}


def drawn(seed: int = 0, width: int = 40, height: int = 24) -> np.ndarray:
    """Smooth, so that a JPEG of it is near; (height, width, 3) uint8."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def off_by(pixels: np.ndarray, levels: int) -> np.ndarray:
    return np.clip(pixels.astype(int) + levels, 0, 255).astype(np.uint8)


def provenance(pixels: np.ndarray | None, making: Making | None = MAKING, model_digest: str = A) -> Provenance:
    digest = None if pixels is None else digest_of_pixels(pixels)
    return Provenance(model_digest=model_digest, pixels_sha256=digest, made_with=making)


def verdict_on(
    first: np.ndarray,
    now: np.ndarray,
    picture: np.ndarray | None = None,
    kind: FileKind = "lossless",
    making: Making = MAKING,
) -> Verdict:
    """`first` was drawn with MAKING and `now` with `making`; its file shows `picture`, nobody's if that is None."""
    original = Original(provenance=provenance(first), picture=f"sha256:{A}", file_kind=kind)
    return judge(original, provenance(now, making), now, picture)


def standard(making: Making = MAKING) -> Making:
    return making.model_copy(update={"contract": "standard"})


def codes(verdict: Verdict) -> list[str]:
    return [reason.code for reason in verdict.reasons]


@pytest.mark.parametrize("has_picture", [True, False])
def test_the_same_pixels_agree_to_the_last_bit(has_picture: bool) -> None:
    verdict = verdict_on(drawn(), drawn(), drawn() if has_picture else None)
    assert (verdict.agrees, verdict.exact, verdict.contract, verdict.reasons) == (True, True, "strict", ())
    assert verdict.max_difference == (0 if has_picture else None)


def test_a_difference_of_one_level_agrees_within_the_standard_contract() -> None:
    first, now = drawn(), off_by(drawn(), 1)
    verdict = verdict_on(first, now, first, making=standard())
    assert (verdict.agrees, verdict.exact, verdict.contract) == (True, False, "standard")
    assert (verdict.max_difference, codes(verdict)) == (1, ["within_standard"])
    assert verdict.differing_pixels == np.count_nonzero((first != now).any(axis=2))


@pytest.mark.parametrize(("levels", "making"), [(1, MAKING), (2, standard())])
def test_more_than_the_contract_allows_does_not_agree_and_is_unexplained(levels: int, making: Making) -> None:
    verdict = verdict_on(drawn(), off_by(drawn(), levels), drawn(), making=making)
    assert (verdict.agrees, verdict.contract, codes(verdict)) == (False, making.contract, ["unexplained"])
    assert verdict.max_difference == levels


@pytest.mark.parametrize(("code", "change"), CHANGES.items())
@pytest.mark.parametrize("levels", [0, 1, 9])
def test_what_it_was_made_with_explains_a_difference_and_takes_the_promise_away(
    code: str, change: dict[str, object], levels: int
) -> None:
    making = MAKING.model_copy(update=change)
    verdict = verdict_on(drawn(), off_by(drawn(), levels), drawn(), making=making)
    assert (verdict.contract, verdict.agrees, verdict.exact) == (None, levels < 2, levels == 0)
    assert codes(verdict) == [code, *(["within_standard"] if levels == 1 else [])]


def test_other_weights_are_told() -> None:
    original = Original(provenance=provenance(drawn(), model_digest=B), picture=f"sha256:{A}")
    verdict = judge(original, provenance(drawn(1)), drawn(1), drawn())
    assert (verdict.agrees, verdict.contract, codes(verdict)) == (False, None, ["model_changed"])
    assert f"{A[:10]}, not {B[:10]}" in verdict.reasons[0].detail


def test_a_lora_that_was_not_there_then_is_told() -> None:
    verdict = verdict_on(drawn(), drawn(), drawn(), making=MAKING.model_copy(update={"loras": {"ink": A, "gold": B}}))
    assert codes(verdict) == ["lora_changed"]
    assert "not unknown" in verdict.reasons[0].detail


@pytest.mark.parametrize("is_drawn_again", [True, False])
def test_an_edited_file_agrees_with_nothing_and_it_is_told_whether_its_recipe_was_drawn_again(
    is_drawn_again: bool,
) -> None:
    edited = drawn().copy()
    edited[3, 4, 0] ^= 1
    now = drawn() if is_drawn_again else off_by(drawn(), 1)
    verdict = verdict_on(drawn(), now, edited, making=standard())
    assert (verdict.agrees, codes(verdict)) == (False, ["picture_changed"])
    assert ("to the last bit" in verdict.reasons[0].detail) == is_drawn_again
    assert not is_drawn_again or (verdict.max_difference, verdict.differing_pixels) == (1, 1)


def test_a_file_of_another_size_is_told() -> None:
    verdict = verdict_on(drawn(), drawn(), drawn(width=48))
    assert (verdict.agrees, verdict.max_difference, codes(verdict)) == (False, None, ["size_differs"])
    assert "48 x 24" in verdict.reasons[0].detail


def test_a_jpeg_of_ours_agrees_by_the_digest_of_what_was_drawn() -> None:
    verdict = verdict_on(drawn(), drawn(), as_jpeg_shows(drawn()), "jpeg")
    assert (verdict.agrees, verdict.exact, verdict.max_difference, verdict.reasons) == (True, True, 0, ())


def test_a_jpeg_that_was_painted_on_does_not_agree() -> None:
    painted = as_jpeg_shows(drawn()).copy()
    painted[4:12, 4:12] = 255
    verdict = verdict_on(drawn(), drawn(), painted, "jpeg")
    assert (verdict.agrees, codes(verdict)) == (False, ["picture_changed"])
    verdict = verdict_on(drawn(), off_by(drawn(), 1), painted, "jpeg", standard())
    assert verdict.agrees is False


def test_a_jpeg_does_not_tell_whether_a_standard_picture_agrees() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    flipped = noise ^ np.random.default_rng(2).integers(0, 2, noise.shape, dtype=np.uint8)
    assert int(np.abs(noise.astype(int) - flipped).max()) == 1
    flat = np.full((24, 40, 3), 100, np.uint8)
    for first, now in ((noise, flipped), (flat, off_by(flat, 1)), (flat, off_by(flat, 3))):
        verdict = verdict_on(first, now, as_jpeg_shows(first), "jpeg", standard())
        assert (verdict.agrees, verdict.exact, codes(verdict)) == (None, False, ["lossy_picture"])
        assert verdict_on(first, now, as_jpeg_shows(first), "jpeg").agrees is False, "strict promises the digest"


def test_a_file_saved_again_with_loss_was_changed() -> None:
    buffer = io.BytesIO()
    Image.fromarray(drawn()).save(buffer, "WEBP", quality=60)
    shown = np.asarray(Image.open(buffer).convert("RGB"))
    assert codes(verdict_on(drawn(), drawn(), shown, "lossy")) == ["picture_changed"]


def test_a_bare_recipe_is_judged_by_its_digest_as_far_as_that_goes() -> None:
    other = off_by(drawn(), 1)
    assert verdict_on(drawn(), other).agrees is False
    verdict = verdict_on(drawn(), other, making=standard())
    assert (verdict.agrees, codes(verdict)) == (None, ["picture_missing"])
    verdict = verdict_on(drawn(), other, making=MAKING.model_copy(update={"hardware": "NVIDIA H100"}))
    assert (verdict.agrees, codes(verdict)) == (None, ["hardware_changed", "picture_missing"]), "it is 1 of 255 off"


@pytest.mark.parametrize(("has_picture", "agrees"), [(True, True), (False, None)])
def test_an_older_recipe_promises_nothing_and_its_picture_can_agree_all_the_same(
    has_picture: bool, agrees: bool | None
) -> None:
    original = Original(provenance=provenance(None, None))
    verdict = judge(original, provenance(drawn()), drawn(), drawn() if has_picture else None)
    assert (verdict.agrees, verdict.contract) == (agrees, None)
    assert codes(verdict) == ["recipe_older", *([] if has_picture else ["picture_missing"])]
