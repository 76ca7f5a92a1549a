"""Bytes of a request body -> plain fields and files.

Owns reading JSON and multipart strictly. Knows nothing of what the fields mean, except which of them a form, where
everything is text, has to read as numbers and booleans.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers

from app.errors import Problem, field_problem

MAX_DEPTH = 4
"""Bodies nest two levels (`loras`, `controls`, `webhook`); more, so that what nests deeper is told as a wrong field."""
MAX_VALUES = 2000
"""In JSON, at all levels: each that is wrong costs, and no body has more than some hundred."""
MAX_FORM_FIELDS = 64
MAX_FORM_FILES = 2
"""No task takes more than a picture and its mask; routes for which that is not so say otherwise."""
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True)
class Payload:
    """One body: its fields as JSON values, its file parts, and a digest over what it says."""

    fields: dict[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)
    memo: Mapping[str, Any] = field(default_factory=dict)
    """What a dialect wants to tell again in its documents, as JSON values. Says nothing of what is to be drawn."""

    @functools.cached_property
    def digest(self) -> str:
        """The same for two bodies that say the same, whatever their spaces, key order or part boundary. Of a large one
        it takes its time: ask first in a thread."""
        files = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        return hashlib.sha256(_canonical({"fields": self.fields, "files": files})).hexdigest()


_FORM_INTEGERS = frozenset(
    {
        *("width", "height", "num_inference_steps", "seed", "num_images", "clip_skip"),
        *("mask_blur", "padding_mask_crop", "noise_level"),
        *("outpaint_left", "outpaint_top", "outpaint_right", "outpaint_bottom"),
    }
)
_FORM_NUMBERS = frozenset({"guidance_scale", "guidance_rescale", "strength", "deadline_s"})
_FORM_JSON = {"loras": list, "controls": list, "control_images": list, "webhook": dict}
_FORM_BOOLEANS = frozenset({"previews", "upscale"})


def form_value(name: str, text: str) -> Any:
    """A form's text as the JSON value it stands for; a text that stands for none is left for the schema to refuse."""
    if name in _FORM_INTEGERS and _INTEGER.fullmatch(text):
        return int(text)
    if name in _FORM_NUMBERS and _NUMBER.fullmatch(text):
        return _finite(text)
    if name in _FORM_JSON:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(text)
            is_small = not _is_deeper_than(value, MAX_DEPTH) and not _has_more_values_than(value, MAX_VALUES)
            if isinstance(value, _FORM_JSON[name]) and is_small:
                return value
    if name in _FORM_BOOLEANS and text in ("true", "false"):
        return text == "true"
    return text


def read_payload(
    headers: Headers,
    body: bytes,
    max_depth: int = MAX_DEPTH,
    form_value: Callable[[str, str], Any] = form_value,
    max_files: int = MAX_FORM_FILES,
) -> Payload:
    """The body as its Content-Type says. Raises Problem for anything else than one well-formed body.

    max_depth: levels that JSON may nest. form_value: name and text of a form's field -> the value that it stands for.
    max_files: parts of a form that are files.
    """
    media_type, options = parse_options_header(headers.get("content-type", ""))
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem("content_type_unsupported", "The body is compressed.")
    if media_type == b"application/json":
        return Payload(parse_json(body, max_depth))
    if media_type == b"multipart/form-data":
        return _Form(options.get(b"boundary", b""), form_value, max_files).read(body)
    sent = media_type.decode("latin-1") or "nothing"
    raise Problem("content_type_unsupported", f"The Content-Type is {sent}.")


# --- JSON ----------------------------------------------------------------------------------------------------------


def parse_json(body: bytes, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """One JSON object. Refuses what Python's reader lets pass: NaN, infinity, repeated keys, lone surrogates."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("json_invalid", f"Byte {error.start} is not UTF-8.") from error
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_repeats
        )
    except RecursionError as error:
        raise Problem("json_too_deep", "The nesting has no end in sight.") from error
    except json.JSONDecodeError as error:
        raise Problem("json_invalid", f"At character {error.pos}: {error.msg}.") from error
    except ValueError as error:  # an integer of more digits than Python reads
        raise Problem("json_invalid", "A number has thousands of digits.") from error
    if not isinstance(value, dict):
        raise Problem("json_invalid", "The body is no JSON object.")
    if _is_deeper_than(value, max_depth):
        raise Problem("json_too_deep", f"It nests more than {max_depth} levels.")
    if _has_more_values_than(value, MAX_VALUES):
        raise Problem("json_invalid", f"It has more than {MAX_VALUES} values.")
    if "\\u" in text:  # only an escape can spell half of a pair
        try:
            _canonical(value)
        except UnicodeEncodeError as error:
            raise Problem("json_invalid", "A text has half of a surrogate pair, which is no character.") from error
    return value


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _refuse_constant(token: str) -> float:
    raise Problem("json_invalid", f"{token} is no JSON number.")


def _finite(token: str) -> float:
    value = float(token)
    if not math.isfinite(value):
        raise Problem("json_invalid", f"The number {token[:40]} is too large to be finite.")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name in counts if counts[name] > 1)
        raise Problem("json_invalid", f"The key {json.dumps(twice[:80])} is there twice.")
    return result


def _is_deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = _inside(level)
        if not level:
            return False
    return True


def _has_more_values_than(value: Any, limit: int) -> bool:
    level, count = [value], 0
    while level and count <= limit:
        level = _inside(level)
        count += len(level)
    return count > limit


def _inside(level: list[Any]) -> list[Any]:
    """All values of the objects and lists of one level."""
    return [
        child
        for parent in level
        if isinstance(parent, dict | list)
        for child in (parent.values() if isinstance(parent, dict) else parent)
    ]


# --- multipart -----------------------------------------------------------------------------------------------------


class _Form:
    """Collects the parts of one form-data body: texts as fields, parts with a file name as files."""

    def __init__(self, boundary: bytes, form_value: Callable[[str, str], Any], max_files: int) -> None:
        if not boundary:
            raise Problem("multipart_invalid", "The Content-Type has no boundary.")
        self._boundary = boundary
        self._value = form_value
        self._max_files = max_files
        self._fields: dict[str, Any] = {}
        self._files: dict[str, bytes] = {}
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._data = bytearray()
        self._is_complete = False

    def read(self, body: bytes) -> Payload:
        try:
            parser = MultipartParser(
                self._boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
            parser.write(body)
            parser.finalize()
        except FormParserError as error:
            raise Problem("multipart_invalid", "The parts are not divided as the boundary says.") from error
        if not self._is_complete:
            raise Problem("multipart_invalid", "The closing boundary is missing.")
        return Payload(self._fields, self._files)

    def _begin(self) -> None:
        self._disposition, self._data = b"", bytearray()

    def _end_header(self) -> None:
        name, value = self._header
        if bytes(name).lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _end_part(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = _text(options.get(b"name", b""), "the name of a part")
        if not name:
            raise Problem("multipart_invalid", "A part has no name.")
        if name in self._fields or name in self._files:
            raise field_problem("multipart_invalid", name, f"There are several parts {name[:80]!r}.")
        if b"filename" in options:
            self._files[name] = bytes(self._data)
        else:
            self._fields[name] = self._value(name, _text(bytes(self._data), f"the part {name!r}"))
        if len(self._files) > self._max_files or len(self._fields) > MAX_FORM_FIELDS:
            raise Problem("multipart_invalid", "There are too many files or fields.")

    def _end(self) -> None:
        self._is_complete = True


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("multipart_invalid", f"Byte {error.start} of {what} is not UTF-8.") from error


def require_no_files_but(payload: Payload, allowed: frozenset[str]) -> None:
    """Raises Problem for a file part that no field takes."""
    for name in payload.files:
        if name not in allowed:
            raise field_problem("field_unknown", name, f"There is no upload field {name!r}.")


def content_length(headers: Headers) -> int | None:
    """What the client promises, or None when it promises nothing readable."""
    with contextlib.suppress(ValueError):
        return max(0, int(headers.get("content-length", "")))
    return None
