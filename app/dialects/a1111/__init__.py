"""The API of the AUTOMATIC1111 web UI, below /sdapi/v1: docs/a1111.md.

Owns the shape of its refusals and its names of our fields. Its parts, from the bottom: `bodies` (fields and types),
`current` (the tenant's model and options), `translate` (bodies -> our fields), and the routes: `routes`, `extras`,
`lists`.
"""

from __future__ import annotations

import re

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from app.dialect import Dialect
from app.dialects.a1111 import extras, lists, routes
from app.errors import Problem

_FIELD_NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "sampler": "sampler_name",
    "noise_schedule": "scheduler",
    "num_images": "batch_size",
    "strength": "denoising_strength",
    "clip_skip": "CLIP_stop_at_last_layers",
    "model": "sd_model_checkpoint",
    "output_format": "samples_format",
    "previews": "live_previews_enable",
    "upscale": "enable_hr",
    "upscaler": "hr_upscaler",
    "controls": "alwayson_scripts",
    "padding_mask_crop": "inpaint_full_res_padding",
}


def _refuse(problem: Problem, request_id: str) -> Response:
    errors = "; ".join(f"{error.pointer.removeprefix('/')}: {error.detail}" for error in problem.errors)
    document = {
        "error": problem.code,
        "detail": problem.detail,
        "body": "",
        "errors": errors or problem.detail,
        "request_id": request_id,
    }
    return JSONResponse(document, problem.status, problem.headers)


DIALECT = Dialect(
    name=routes.NAME,
    paths=re.compile(r"/sdapi/v1(/.*)?"),
    router=APIRouter(routes=[*routes.router.routes, *extras.router.routes, *lists.router.routes]),
    refuse=_refuse,
    field_names=_FIELD_NAMES,
)
