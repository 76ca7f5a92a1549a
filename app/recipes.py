"""A recipe, as it was sent or as it lies in a picture's file -> the request that draws the picture again.

Owns what a recipe has to say and under which names today's models serve what it asks for. Knows neither uploads nor
queues.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import FieldError, Problem, field_problem
from app.parts import PartsRefused
from app.payload import parse_json
from app.resolve import schema_problem
from app.texts import DESCRIPTION, PARAMETERS, texts_of
from models.request import REQUEST_ADAPTER, AnyRequest
from workers.contract import CONTRACT_VERSION, ModelEntry, Provenance

RECIPE = "denoised"
"""The name of the text that a PNG file has it in (`workers.pictures`)."""
_ITS_OWN = frozenset({"json_invalid", "json_too_deep", "field_invalid", "field_unknown"})
"""Problems of a body that in a recipe are one and the same: nobody wrote it by hand."""


@dataclass(frozen=True)
class ReadRecipe:
    """What a recipe says: the request of its one picture, and what the picture was made with."""

    request: AnyRequest
    provenance: Provenance


class _Version(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    contract_version: int = Field(ge=1, lt=2**31)


def recipe_in(data: bytes) -> dict[str, Any]:
    """The recipe in a picture's file, unchecked. Raises Problem."""
    texts = _texts(data)
    recipe = _recipe_among(texts)
    if recipe is not None:
        return recipe
    what = "The file of `image` has no recipe of this server in it."
    if PARAMETERS in texts:
        what += " It has `parameters` as other tools write them, which leave out too much to draw the same pixels."
    raise field_problem("recipe_missing", "image", what)


def find_recipe(data: bytes) -> dict[str, Any] | None:
    """The recipe in a picture's file, unchecked; None where there is none."""
    return _recipe_among(_texts(data))


def _texts(data: bytes) -> dict[str, str]:
    try:
        return texts_of(data)
    except PartsRefused:
        return {}


def _recipe_among(texts: Mapping[str, str]) -> dict[str, Any] | None:
    text = texts.get(RECIPE) or texts.get(DESCRIPTION) or "{}"
    with contextlib.suppress(Problem):
        recipe = parse_json(text.encode("utf-8", "replace"))
        return recipe if "contract_version" in recipe else None
    return None


def read_recipe(given: dict[str, Any] | str) -> ReadRecipe:
    """A recipe as a value. Raises Problem `recipe_invalid`, which names every field at fault."""
    with about_recipe():
        fields = parse_json(given.encode("utf-8", "replace")) if isinstance(given, str) else given
        told = {name: fields[name] for name in Provenance.model_fields if name in fields}
        version = {name: fields[name] for name in _Version.model_fields if name in fields}
        asked = {name: value for name, value in fields.items() if name not in told and name not in version}
        try:
            newest = _Version.model_validate(version).contract_version
            request = REQUEST_ADAPTER.validate_json(json.dumps(asked), strict=True)
            provenance = Provenance.model_validate_json(json.dumps(told), strict=True)
        except ValidationError as error:
            raise schema_problem(error) from error
        if newest > CONTRACT_VERSION:
            what = f"It is of version {newest}, and this server reads up to {CONTRACT_VERSION}."
            raise field_problem("field_invalid", "contract_version", what)
        if request.num_images != 1:
            raise field_problem("field_invalid", "num_images", "A recipe is of one picture.")
        return ReadRecipe(request, provenance)


def served(recipe: ReadRecipe, catalogue: Mapping[str, ModelEntry]) -> AnyRequest:
    """The request with the names under which its very models are served now. Where none is, the names stay: another
    model of that name is the next best, and the verdict will say so."""
    request, made_with = recipe.request, recipe.provenance.made_with
    drawing = {name: entry.digest for name, entry in catalogue.items() if request.task in entry.tasks}
    model = _name_of(recipe.provenance.model_digest, request.model, drawing)
    upscaler = request.upscaler
    if upscaler is not None and made_with is not None and model in catalogue:
        beside = {name: catalogue[name].digest for name in catalogue[model].upscalers if name in catalogue}
        upscaler = _name_of(made_with.upscaler, upscaler, beside)
    return request.model_copy(update={"model": model, "upscaler": upscaler})


def _name_of(digest: str | None, name: str, served: Mapping[str, str]) -> str:
    if served.get(name) == digest:
        return name
    return next((other for other in sorted(served) if served[other] == digest), name)


@contextlib.contextmanager
def about_recipe() -> Iterator[None]:
    """Problems of what is inside are problems of the recipe: its fields are below `/recipe`."""
    try:
        yield
    except Problem as problem:
        errors = tuple(
            FieldError(pointer=f"/recipe{error.pointer.rstrip('/')}", detail=error.detail) for error in problem.errors
        )
        if problem.code not in _ITS_OWN:
            raise Problem(problem.code, problem.what, errors=errors) from problem
        if not errors:
            errors = (FieldError(pointer="/recipe", detail=problem.what.replace("The body", "The recipe")),)
        what = " ".join(f"{error.pointer.removeprefix('/')}: {error.detail.rstrip('.')}." for error in errors[:3])
        raise Problem("recipe_invalid", what, errors=errors) from problem
