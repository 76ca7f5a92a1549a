"""Jobs and models -> the documents that Replicate's clients read.

Owns the translation, nothing else: no Redis, no files.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from app.dialects.replicate.inputs import PASSED_OVER, SCHEDULERS, PredictionInput
from app.documents import job_path, moment
from workers.contract import JobView, ModelEntry

OWNER = "denoised"
"""Of every model, in documents of requests that named none."""
_STATUSES = {"queued": "starting", "running": "processing"}
_BAR = 10
"""Characters of a progress bar."""
_MASKED = frozenset(
    {
        *("mask", "mask_convention", "mask_blur", "padding_mask_crop"),
        *("outpaint_left", "outpaint_top", "outpaint_right", "outpaint_bottom"),
    }
)
COG_VERSION = "0.3.9"
"""From this one on clients read an array as a list, which it is here, and not as a stream of words."""


def base_url_of(request: Request) -> str:
    """What the client calls this server, without a slash at the end."""
    return str(request.base_url).rstrip("/")


def prediction_path(job_id: str) -> str:
    return f"/v1/predictions/{job_id}"


def prediction_document(view: JobView, base_url: str) -> dict[str, Any]:
    """The job as a prediction. `base_url`: what the addresses in it begin with, without a slash at the end."""
    record, outcome = view.record, view.record.outcome
    memo: dict[str, Any] = record.submission.memo
    address = base_url + prediction_path(record.id)
    webhook: dict[str, Any] = {name: memo[name] for name in ("webhook", "webhook_events_filter") if name in memo}
    return {
        "id": record.id,
        "model": memo["model"],
        "version": memo["version"],
        "input": _input(view),
        "output": output_addresses(view, base_url),
        "logs": logs(view),
        "error": error_text(view),
        "status": _STATUSES.get(view.status, view.status),
        "source": "api",
        "data_removed": False,
        "metrics": _metrics(view),
        "created_at": written(record.created_at),
        "started_at": written(record.started_at) if record.started_at is not None else None,
        "completed_at": written(outcome.ended_at) if outcome else None,
        "urls": {"get": address, "cancel": f"{address}/cancel", "stream": f"{address}/stream"},
        **webhook,
    }


def error_text(view: JobView) -> str | None:
    """Why it failed; None when it did not."""
    error = view.record.outcome.error if view.record.outcome else None
    return f"{error.code}: {error.detail}" if error else None


def output_addresses(view: JobView, base_url: str) -> list[str] | None:
    """Where the pictures are; None as long as there are none."""
    outcome = view.record.outcome
    if outcome is None or outcome.status != "succeeded":
        return None
    return [f"{base_url}{job_path(view.record.id)}/images/{index}" for index in range(len(outcome.pictures))]


def webhook_body(_event: str, _at: float, view: JobView, base_url: str) -> bytes:
    """What a webhook says, whichever event it tells of: the prediction."""
    document = prediction_document(view, base_url.rstrip("/"))
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def logs(view: JobView) -> str:
    """The seed, warnings, and a progress bar as its clients read it."""
    request = view.record.submission.request
    lines = [f"Using seed: {request.seed}", *view.record.warnings]
    bar = progress_bar(view)
    return "\n".join([*lines, bar] if bar else lines) + "\n"


def progress_bar(view: JobView) -> str | None:
    """One line, or None before the first step."""
    if view.progress is None or not view.progress.steps:
        return None
    step, steps = view.progress.step, view.progress.steps
    full = _BAR * step // steps
    return f"{100 * step // steps:3d}%|{'█' * full}{' ' * (_BAR - full)}| {step}/{steps}"


def _input(view: JobView) -> dict[str, Any]:
    """As it was sent; a picture that came in it is told by its digest, which can be sent again."""
    request = view.record.submission.request
    told: Any = view.record.submission.memo["input"]
    digests = {"image": getattr(request, "image", None), "mask": getattr(request, "mask_image", None)}
    known: dict[str, Any] = {name: digests.get(name) if value is None else value for name, value in told.items()}
    if known.get("controls"):
        known["controls"] = [
            {**control, "image": control["image"] or choice.image}
            for control, choice in zip(known["controls"], request.controls, strict=True)
        ]
    return known


def _metrics(view: JobView) -> dict[str, Any]:
    record, outcome = view.record, view.record.outcome
    if outcome is None or record.started_at is None:
        return {}
    return {
        "predict_time": round(max(0.0, outcome.ended_at - record.started_at), 3),
        "total_time": round(max(0.0, outcome.ended_at - record.created_at), 3),
        **({"image_count": len(outcome.pictures)} if outcome.pictures else {}),
    }


def written(unix_s: float) -> str:
    """A moment as documents have it."""
    return moment(unix_s).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- models ----------------------------------------------------------------------------------------------------------


def model_page(entry: ModelEntry, owner: str, run_count: int, base_url: str) -> dict[str, Any]:
    """The model as its clients know one."""
    return {
        "url": f"{base_url}/v1/models/{owner}/{entry.name}",
        "owner": owner,
        "name": entry.name,
        "description": f"Serves {', '.join(entry.tasks)}.",
        "visibility": "public",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": run_count,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": version_page(entry),
    }


def version_page(entry: ModelEntry) -> dict[str, Any]:
    """The weights that are served now, and what a request for them may say."""
    return {
        "id": entry.digest,
        "created_at": written(0),  # nobody knows; clients want a time
        "cog_version": COG_VERSION,
        "openapi_schema": {
            "openapi": "3.0.2",
            "info": {"title": entry.name, "version": "1"},
            "paths": {},
            "components": {"schemas": {"Input": input_schema(entry), "Output": _OUTPUT}},
        },
    }


_OUTPUT = {"title": "Output", "type": "array", "items": {"type": "string", "format": "uri"}}


def input_schema(entry: ModelEntry) -> dict[str, Any]:
    """What `input` may hold for this model, with its defaults and limits."""
    offered = PredictionInput.model_json_schema()["properties"]
    hidden = PASSED_OVER | (frozenset() if "inpainting" in entry.tasks else _MASKED)
    hidden |= frozenset() if "upscale" in entry.tasks else {"noise_level"}
    if set(entry.tasks) <= {"text-to-image"}:
        hidden |= {"image", "prompt_strength"}
    limits = _limits(entry)
    properties = {
        name: {**_property(name, field), **limits.get(name, {}), "x-order": order}
        for order, (name, field) in enumerate(item for item in offered.items() if item[0] not in hidden)
    }
    required = ["prompt"] if set(entry.tasks) - {"upscale"} else ["image"]
    return {"title": "Input", "type": "object", "properties": properties, "required": required}


def _property(name: str, field: dict[str, Any]) -> dict[str, Any]:
    kind = next(kind for kind in field["anyOf"] if kind != {"type": "null"})
    if kind["type"] == "array":
        kind = {"type": "array", "items": {"type": "object"}}
    if name in ("image", "mask"):
        kind = {"type": "string", "format": "uri"}
    return {**kind, "title": name.replace("_", " ").capitalize(), "description": field["description"]}


def _limits(entry: ModelEntry) -> dict[str, dict[str, Any]]:
    defaults = entry.defaults
    side = {"minimum": entry.min_size, "maximum": entry.max_size, "multipleOf": entry.size_multiple}
    known = {*(sampler.name for sampler in entry.samplers), *entry.sampler_aliases}
    theirs = [name for name, ours in SCHEDULERS.items() if ours in known]
    steps = max((sampler.max_steps for sampler in entry.samplers), default=defaults.num_inference_steps)
    return {
        "width": {**side, "default": defaults.width},
        "height": {**side, "default": defaults.height},
        "num_outputs": {"minimum": 1, "maximum": entry.max_images, "default": 1},
        "num_inference_steps": {"minimum": 1, "maximum": steps, "default": defaults.num_inference_steps},
        "guidance_scale": {"minimum": 0, "maximum": 100, "default": defaults.guidance_scale},
        "prompt_strength": {"minimum": 0, "maximum": 1, "default": defaults.strength},
        "scheduler": {"enum": [*(sampler.name for sampler in entry.samplers), *theirs], "default": defaults.sampler},
        "output_format": {"default": "png"},
    }
