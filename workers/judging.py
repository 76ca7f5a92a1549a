"""Whether a picture that was drawn again is the first one, and if not, why not.

Owns the comparison of pixels and of what the two were made with. Knows no store, no queue and no network; the codes of
its reasons are described in docs/replay.md.

A picture agrees when it is the same to the last bit, or to within 1 of 255 unless strict was promised. A file whose
pixels are not those of which its own recipe has the digest was changed since then, and agrees with nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from models.request import Reproducibility
from workers.contract import Making, Original, Provenance, Reason, Verdict
from workers.pictures import as_jpeg_shows, digest_of_pixels

STANDARD_TOLERANCE = 1
"""Of 255: what the standard contract promises."""
_DECODER_TOLERANCE = 3
"""Of 255: how far two decoders of one JPEG may be apart."""
_JPEG_TOLERANCE = 24
"""Of 255: how far the JPEGs of two pictures may be apart that differ by 1, which turns the rounding of
some coefficients; the coarsest steps at our quality are 12."""

_DETAILS: Mapping[str, str] = MappingProxyType(
    {
        "within_standard": "It is the same picture to within 1 of 255, which is what `standard` promises.",
        "picture_changed": "The file was changed after it had been drawn: its pixels are not those of its own recipe.",
        "lossy_picture": "The file was saved with loss, which hides whether the pixels agree to within 1 of 255. Keep"
        " pictures as PNG or WebP.",
        "picture_missing": "Without the picture only digests can be compared, and they do not tell by how much two"
        " pictures differ. Send the picture itself.",
        "recipe_older": "The recipe is of an earlier version: it does not tell with what its picture was made, so"
        " nothing is promised about it.",
        "unexplained": "Everything that the recipe tells of is the same, and the pixels are not. The recipe itself may"
        " have been changed, or a configuration file of the model.",
    }
)


@dataclass(frozen=True)
class _Finding:
    """What pixels or digests say; exact only with agrees."""

    agrees: bool | None
    exact: bool = False
    reasons: tuple[Reason, ...] = ()


def judge(original: Original, now: Provenance, pixels: np.ndarray, picture: np.ndarray | None) -> Verdict:
    """The verdict on `pixels` (H, W, 3) uint8, drawn now. picture: those of the first one's file, if that was sent."""
    assert now.made_with is not None, "A picture was drawn with nothing. This is a bug."
    recorded = original.provenance
    causes = tuple(_causes(recorded, now))
    contract = None if causes or recorded.made_with is None else _weaker(recorded.made_with, now.made_with)
    largest = count = None
    if picture is None:
        finding = _by_digest(recorded, now, contract)
    elif picture.shape != pixels.shape:
        finding = _Finding(False, reasons=(_other_size(picture, pixels),))
    else:
        distance = _distance(pixels, picture).max(axis=2)
        largest, count = int(distance.max()), int(np.count_nonzero(distance))
        of_file = _of_jpeg if original.file_kind == "jpeg" and largest else _of_pixels
        finding = of_file(recorded, now, contract, (pixels, picture))
        if finding.exact:  # what a JPEG shows is further off than what was drawn
            largest = count = 0
    is_explained = causes or finding.reasons or finding.agrees is not False
    return Verdict(
        agrees=finding.agrees,
        contract=contract,
        exact=finding.exact,
        max_difference=largest,
        differing_pixels=count,
        reasons=(*causes, *finding.reasons) if is_explained else (_reason("unexplained"),),
    )


def _by_digest(recorded: Provenance, now: Provenance, contract: Reproducibility | None) -> _Finding:
    if recorded.pixels_sha256 == now.pixels_sha256:
        return _Finding(True, exact=True)
    if recorded.pixels_sha256 is None or contract != "strict":
        return _Finding(None, reasons=(_reason("picture_missing"),))
    return _Finding(False)


Two = tuple[np.ndarray, np.ndarray]
"""The picture that was drawn now and the one that was sent, (H, W, 3) uint8 each."""


def _of_pixels(recorded: Provenance, now: Provenance, contract: Reproducibility | None, two: Two) -> _Finding:
    pixels, picture = two
    largest = int(_distance(pixels, picture).max())
    if largest == 0:
        return _Finding(True, exact=True)
    if recorded.pixels_sha256 not in (None, digest_of_pixels(picture)):
        return _Finding(False, reasons=(_changed(recorded, now),))
    if largest <= STANDARD_TOLERANCE and contract != "strict":
        return _Finding(True, reasons=(_reason("within_standard"),))
    return _Finding(False)


def _of_jpeg(recorded: Provenance, now: Provenance, contract: Reproducibility | None, two: Two) -> _Finding:
    """Compared with what a JPEG of the new picture shows."""
    pixels, picture = two
    distance = int(_distance(as_jpeg_shows(pixels), picture).max())
    if recorded.pixels_sha256 == now.pixels_sha256:
        is_untouched = distance <= _DECODER_TOLERANCE
        return _Finding(True, exact=True) if is_untouched else _Finding(False, reasons=(_changed(recorded, now),))
    if distance > _JPEG_TOLERANCE or contract == "strict":
        return _Finding(False)
    return _Finding(None, reasons=(_reason("lossy_picture"),))


def _reason(code: str) -> Reason:
    return Reason(code=code, detail=_DETAILS[code])


def _changed(recorded: Provenance, now: Provenance) -> Reason:
    reason = _reason("picture_changed")
    if recorded.pixels_sha256 != now.pixels_sha256:
        return reason
    return Reason(code=reason.code, detail=f"{reason.detail} What its recipe draws was drawn again, to the last bit.")


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, without the memory that signed numbers would take."""
    return np.maximum(one, other) - np.minimum(one, other)


def _other_size(picture: np.ndarray, pixels: np.ndarray) -> Reason:
    sent, drawn = (f"{array.shape[1]} x {array.shape[0]}" for array in (picture, pixels))
    return Reason(code="size_differs", detail=f"The file has {sent} pixels, and its recipe draws {drawn}.")


def _weaker(recorded: Making, now: Making) -> Reproducibility:
    return "strict" if recorded.contract == now.contract == "strict" else "standard"


# --- what the two were made with -------------------------------------------------------------------------------------


def _causes(recorded: Provenance, now: Provenance) -> Iterator[Reason]:
    """Why nothing is promised."""
    if recorded.model_digest != now.model_digest:
        yield Reason(code="model_changed", detail="The weights of the model are others now: "
                     f"{_short(now.model_digest)}, not {_short(recorded.model_digest)}.")  # fmt: skip
    then, here = recorded.made_with, now.made_with
    if then is None or here is None:
        yield _reason("recipe_older")
        return
    for code, what, before, after in (
        ("lora_changed", "LoRA", then.loras, here.loras),
        ("control_changed", "ControlNet", then.controls, here.controls),
    ):
        for name in _different(before, after):
            yield Reason(code=code, detail=f"The {what} {name!r} is another file now: {_change(name, before, after)}.")
    if then.upscaler != here.upscaler:
        was, is_ = ("none" if digest is None else _short(digest) for digest in (then.upscaler, here.upscaler))
        yield Reason(code="upscaler_changed", detail=f"The upscaler is another one now: {is_}, not {was}.")
    if then.hardware != here.hardware:
        yield Reason(code="hardware_changed", detail=f"It was drawn on {then.hardware}, now on {here.hardware}.")
    if then.dtype != here.dtype:
        yield Reason(code="precision_changed", detail=f"It was drawn in {then.dtype}, now in {here.dtype}.")
    for name in _different(then.software, here.software):
        was, is_ = (versions.get(name, "unknown") for versions in (then.software, here.software))
        yield Reason(code="software_changed", detail=f"It was drawn with {name} {was}, now with {is_}.")


def _different(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _change(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> str:
    was, is_ = (_short(digests[name]) if name in digests else "unknown" for digests in (before, after))
    return f"{is_}, not {was}"


def _short(digest: str) -> str:
    return digest[:10]
