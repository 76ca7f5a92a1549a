"""OpenAI's words for a request -> fields of POST /generate.

Owns which of its fields are honoured, passed over and refused, and its conventions for sizes, pictures and masks.
Queues nothing and answers nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.dialect import refuse_unsupported
from app.errors import field_problem
from app.payload import Payload, form_value
from app.resolve import schema_problem
from app.uploads import has_transparency, upright_size

OURS = {"n": "num_images", "steps": "num_inference_steps", "cfg_scale": "guidance_scale"}
"""Its fields, and short forms that people send beside them -> our fields."""
PASSED_OVER = frozenset({"user", "safety_identifier", "moderation"})
"""Clients name their users for OpenAI's records, and choose how strictly it moderates: nothing of that is here."""
_ASKS_FOR_NOTHING: Mapping[str, tuple[object, ...]] = {
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "input_fidelity": ("low",),
    "output_compression": (100,),
    **dict.fromkeys(("style", "complexity", "frame_count", "frame_duration_ms", "svg", "markup"), ()),
}
"""Fields that this server cannot honour -> their values that want what it does anyway. null is one of each."""
_INSTEAD = {
    "quality": "There are no levels of quality: `num_inference_steps` decides.",
    "style": "There are no styles: say it in `prompt`.",
    "background": "Pictures are opaque.",
    "input_fidelity": "`strength` says how near to `image` an edit without a mask stays.",
    "output_compression": "Compression cannot be chosen.",
    "complexity": "There is no planning: `num_inference_steps` decides about the effort.",
    "frame_count": "Pictures do not move.",
    "frame_duration_ms": "Pictures do not move.",
    "svg": "Pictures have pixels.",
    "markup": "No picture is read as instructions: send a `mask`.",
}
_NATIVE_ONLY = {"num_images": "n", "previews": "partial_images", "mask_image": "mask"}
"""Fields of ours that have another name here."""
_READ_LIKE = OURS | {"partial_images": "num_images", "output_compression": "num_images", "stream": "previews"}
_IN_FORM = frozenset({"image", "image[]", "mask"})
_OUTPAINTS = frozenset({"outpaint_left", "outpaint_top", "outpaint_right", "outpaint_bottom"})
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


class ImagesBody(BaseModel):
    """OpenAI's fields that are honoured. What is `Any` our own checks judge; further fields are ours, and so judged."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    prompt: Any = None
    model: Any = None
    n: Any = None
    output_format: Any = None
    size: Annotated[str, Field(max_length=100)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None


@dataclass(frozen=True)
class Wanted:
    """A request in our words, and how its answer is wanted."""

    payload: Payload
    sent: Payload
    """As it came."""
    event: Literal["image_generation", "image_edit"]
    response_format: Literal["b64_json", "url"]
    is_stream: bool
    partial_images: int
    names: Mapping[str, str]
    """Our fields -> the words that this request has for them, for refusals."""

    @property
    def once_queued(self) -> Wanted:
        """Without what came with it: the wait for the job may be long, and pictures take room."""
        return replace(self, payload=Payload({}), sent=Payload({}))


def read_value(name: str, text: str) -> Any:
    """A form's text as the value that it stands for."""
    return form_value(_READ_LIKE.get(name, name), text)


def generation(sent: Payload) -> Wanted:
    """POST /v1/images/generations. Raises Problem."""
    body, fields = _understood(sent)
    width, height = _size(body.size) or (None, None)
    _put(fields, "size", {"width": width, "height": height} if width else {})
    return _wanted(sent, body, Payload(fields, sent.files), "image_generation")


def edit(sent: Payload, max_pixels: int) -> Wanted:
    """POST /v1/images/edits: inpainting where something says what to edit, else image-to-image. Looks at the picture,
    which takes its time. Raises Problem."""
    body, fields = _understood(sent)
    image, mask = _picture(sent), sent.files.get("mask")
    files = {"image": image} | ({"mask_image": mask} if mask is not None else {})
    if mask is not None:
        fields.setdefault("mask_convention", "transparent")
    size = _size(body.size)
    if mask is not None or any(fields.get(name) for name in _OUTPAINTS) or has_transparency(image, max_pixels):
        fields["task"] = "inpainting"
        _check_size_within_mask(size, image, fields, max_pixels)
    else:
        fields["task"] = "image-to-image"
        _put(fields, "size", {"width": size[0], "height": size[1]} if size else {})
    rest = {name: data for name, data in sent.files.items() if name not in _IN_FORM}
    return _wanted(sent, body, Payload(fields, rest | files), "image_edit")


def variation(sent: Payload, max_pixels: int) -> Wanted:
    """POST /v1/images/variations: an edit without a mask, which needs a prompt. Raises Problem."""
    if sent.fields.get("prompt") is None:
        what = "A variation is drawn from `image` and a prompt here: send `prompt` too (extra_body)."
        raise field_problem("prompt_empty", "prompt", what)
    if "mask" in sent.files:
        raise field_problem("field_unknown", "mask", "A variation has no mask; an edit has.")
    return edit(sent, max_pixels)


def _understood(sent: Payload) -> tuple[ImagesBody, dict[str, Any]]:
    """The body, and our fields so far: those that only have another name, and those that are ours already."""
    try:
        body = ImagesBody.model_validate({k: v for k, v in sent.fields.items() if k not in PASSED_OVER})
    except ValidationError as error:
        raise schema_problem(error) from error
    ours = dict(body.model_extra or {})
    refuse_unsupported(
        {
            name: _INSTEAD[name]
            for name, harmless in _ASKS_FOR_NOTHING.items()
            if (value := ours.pop(name, None)) is not None and value not in harmless
        }
    )
    for name in ("task", *_NATIVE_ONLY):
        if name in ours:
            instead = f": it is called `{_NATIVE_ONLY[name]}`" if name in _NATIVE_ONLY else ""
            raise field_problem("field_unknown", name, f"There is no `{name}` here{instead}.")
    _check_stream(body)
    for name in ("prompt", "model", "output_format"):
        if getattr(body, name) is not None:
            ours[name] = getattr(body, name)
    for name, native in OURS.items():
        value = body.n if name == "n" else ours.pop(name, None)
        if value is not None:
            _put(ours, name, {native: value})
    ours["previews"] = bool(body.stream and body.partial_images)
    return body, ours


def _check_stream(body: ImagesBody) -> None:
    if body.partial_images and not body.stream:
        raise field_problem("field_invalid", "partial_images", "Partial images come with `stream` alone.")
    if not body.stream:
        return
    unsupported = {}
    if body.n not in (None, 1):
        unsupported["n"] = "A stream has one picture: leave `n` out, or `stream`."
    if body.response_format == "url":
        unsupported["response_format"] = "The events of a stream carry pictures, not addresses."
    refuse_unsupported(unsupported)


def _put(fields: dict[str, Any], name: str, values: Mapping[str, Any]) -> None:
    """Adds fields that `name` stands for. Raises Problem when they are there under their own names, too."""
    for native in values:
        if native in fields:
            raise field_problem("field_invalid", name, f"`{name}` and `{native}` say the same: send one of them.")
    fields.update(values)


def _size(size: str | None) -> tuple[int, int] | None:
    if size in (None, "auto"):
        return None
    match = _SIZE.fullmatch(size or "")
    if not match:
        raise field_problem("size_invalid", "size", f"`size` is no WIDTHxHEIGHT in pixels, and not auto: {size!r}.")
    return int(match[1]), int(match[2])


def _picture(sent: Payload) -> bytes:
    for name in _IN_FORM & sent.fields.keys():
        raise field_problem("field_invalid", name, f"`{name}` is a text: send the picture as a file.")
    found = [sent.files[name] for name in ("image", "image[]") if name in sent.files]
    if len(found) > 1:
        refuse_unsupported({"image[]": "One picture is edited at a time."})
    if not found:
        raise field_problem("field_invalid", "image", "`image` is missing: send the picture as a file of a form.")
    return found[0]


def _check_size_within_mask(
    size: tuple[int, int] | None, image: bytes, fields: Mapping[str, Any], max_pixels: int
) -> None:
    """An edit within a mask keeps every pixel outside of it, so that it has the size of its image."""
    if size is None:
        return
    there = upright_size(image, max_pixels)
    if size != there or any(fields.get(name) for name in _OUTPAINTS):
        what = f"An edit with a mask has the size of `image`, which is {there[0]}x{there[1]}: leave `size` out."
        refuse_unsupported({"size": what})


def _wanted(
    sent: Payload, body: ImagesBody, payload: Payload, event: Literal["image_generation", "image_edit"]
) -> Wanted:
    names = {"num_images": "n", "mask_image": "mask"}
    names |= {native: name for name, native in OURS.items() if name in sent.fields}
    return Wanted(
        payload=payload,
        sent=sent,
        event=event,
        response_format=body.response_format or "b64_json",
        is_stream=bool(body.stream),
        partial_images=body.partial_images or 0,
        names=names | ({"width": "size", "height": "size"} if "size" in sent.fields else {}),
    )
