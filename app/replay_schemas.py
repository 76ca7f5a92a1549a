"""The body of POST /replay.

Owns its field names, their types and their words in the documentation. What a recipe says is checked by `app.recipes`.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from app.schemas import MAX_CONTROLS, MAX_DEADLINE_S, WebhookBody, Wire
from workers.contract import OutputFormat, Priority

_FILES = ("image", "init_image", "mask_image")
REPLAY_EXAMPLE: dict[str, Any] = {
    "recipe": {
        "task": "text-to-image",
        "model": "pictogram",
        "prompt": "a red heart",
        "width": 128,
        "height": 128,
        "num_inference_steps": 25,
        "guidance_scale": 6.5,
        "sampler": "dpmpp_2m",
        "noise_schedule": "default",
        "seed": 3,
        "num_images": 1,
        "model_digest": "0" * 64,
        "pixels_sha256": "0" * 64,
        "contract_version": 3,
    }
}


class ReplayBody(Wire):
    """A picture, or its recipe, to be drawn again and compared."""

    model_config = ConfigDict(json_schema_extra={"examples": [REPLAY_EXAMPLE]})

    image: str | None = Field(
        None,
        description="The picture file as this server gave it out: base64, a data URL, or the multipart part of this"
        " name. What is drawn is compared with its pixels.",
    )
    recipe: dict[str, Any] | str | None = Field(
        None,
        description="The recipe, as an object or as the text of one; left out, that of `image`. Without `image` only"
        " digests can be compared.",
    )
    init_image: str | None = Field(
        None,
        description="The picture that the first one was made from (the recipe's `image`), where no job of yours holds"
        " it any more. Sent like `image`.",
    )
    mask_image: str | None = Field(
        None, description="The mask that the first one was made with, where no job of yours holds it any more."
    )
    control_images: list[str] = Field(
        [],
        max_length=MAX_CONTROLS,
        description="The pictures of its ControlNets, in any order, where no job of yours holds them any more; not as"
        " parts.",
    )
    output_format: OutputFormat = Field("png", description="Of the new picture. The comparison is made before.")
    previews: bool = Field(False, description="Send pictures of the way there on the job's event stream.")
    priority: Priority = Field("normal", description="As for POST /generate.")
    deadline_s: float | None = Field(
        None, gt=0, le=MAX_DEADLINE_S, allow_inf_nan=False, description="As for POST /generate."
    )
    webhook: WebhookBody | None = Field(None, description="As for POST /generate.")

    @model_validator(mode="after")
    def _has_something_to_replay(self) -> Self:
        if self.image is None and self.recipe is None:
            raise ValueError("there is neither image nor recipe")
        return self


def replay_form_schema() -> dict[str, Any]:
    """OpenAPI of the same fields in a form: pictures are files, the recipe and the list are JSON texts."""
    fields = ReplayBody.model_json_schema()["properties"]
    return {
        "type": "object",
        "description": "The same fields as texts, `image`, `init_image` and `mask_image` as files.",
        "properties": {name: _form_field(name, field) for name, field in sorted(fields.items())},
        "additionalProperties": False,
    }


def _form_field(name: str, field: dict[str, Any]) -> dict[str, Any]:
    told = {"description": field["description"]}
    if name in _FILES:
        return {"type": "string", "format": "binary", **told}
    if name in ("recipe", "control_images", "webhook"):
        return {"type": "string", "contentMediaType": "application/json", **told}
    if name == "deadline_s":
        return {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_DEADLINE_S, **told}
    return {key: value for key, value in field.items() if key not in ("title", "default")}
