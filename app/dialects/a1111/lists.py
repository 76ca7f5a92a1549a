"""GET and POST /sdapi/v1/options, and the lists of what there is.

Owns how models, samplers, upscalers and LoRAs are shown in this API. Lists of what this server does not have are empty.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.dialects.a1111.current import HASH_DIGITS, current_of, drawing_models, set_options, title_of, upscalers
from app.dialects.a1111.extras import NO_UPSCALER
from app.dialects.a1111.routes import ROOT, read_json
from app.services import ServicesHere, TenantHere
from workers.contract import ModelEntry
from workers.titles import SAMPLER_TITLES, SCHEDULE_TITLES

router = APIRouter()

_SCHEDULE_NAMES = {"default": "automatic", "trailing": "sgm_uniform"}
_NOTHING: Mapping[str, Any] = {
    "sd-vae": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "latent-upscale-modes": [],
    "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": ["controlnet"], "img2img": ["controlnet"]},
    "script-info": [],
    "extensions": [],
    "cmd-flags": {"api": True},
    "memory": {"ram": {"error": "not told here"}, "cuda": {"error": "not told here"}},
}
"""Lists that are the same for everybody."""
_REFRESHED = ("refresh-checkpoints", "refresh-loras", "refresh-vae", "refresh-embeddings")
"""Workers look at their directories by themselves."""

Route = Callable[[str], Coroutine[Any, Any, Response]]


def _always(answer: Any) -> Route:
    async def route(_tenant: TenantHere) -> Response:
        return JSONResponse(answer)

    return route


def _add_constant_routes() -> None:
    for name, answer in _NOTHING.items():
        router.add_api_route(f"{ROOT}/{name}", _always(answer), methods=["GET"])
    for name in _REFRESHED:
        router.add_api_route(f"{ROOT}/{name}", _always(None), methods=["POST"])


_add_constant_routes()


@router.get(f"{ROOT}/options")
async def read_options(services: ServicesHere, tenant: TenantHere) -> Response:
    """What holds for this tenant."""
    return JSONResponse((await current_of(services, tenant)).options)


@router.post(f"{ROOT}/options")
async def write_options(request: Request, services: ServicesHere, tenant: TenantHere) -> Response:
    """Sets what can be set, for this tenant alone."""
    wanted, _ = await read_json(request, services, lambda fields: fields)
    await set_options(services, tenant, wanted)
    return JSONResponse(None)


@router.get(f"{ROOT}/sd-models")
async def sd_models(services: ServicesHere, _tenant: TenantHere) -> Response:
    """Models that draw."""
    catalogue = await services.on_board(services.board.catalogue)
    return JSONResponse([_model(entry) for entry in drawing_models(catalogue).values()])


def _model(entry: ModelEntry) -> dict[str, Any]:
    return {
        "title": title_of(entry),
        "model_name": entry.name,
        "hash": entry.digest[:HASH_DIGITS],
        "sha256": entry.digest,
        "filename": entry.name,
        "config": None,
    }


@router.get(f"{ROOT}/samplers")
async def samplers(services: ServicesHere, tenant: TenantHere) -> Response:
    """Of this tenant's model."""
    entry = (await current_of(services, tenant)).entry
    named = [(SAMPLER_TITLES.get(sampler.name, sampler.name), sampler.name) for sampler in entry.samplers]
    return JSONResponse([{"name": title, "aliases": [name], "options": {}} for title, name in named])


@router.get(f"{ROOT}/schedulers")
async def schedulers(services: ServicesHere, tenant: TenantHere) -> Response:
    """Noise schedules that some sampler of this tenant's model has."""
    entry = (await current_of(services, tenant)).entry
    offered = dict.fromkeys(schedule for sampler in entry.samplers for schedule in sampler.noise_schedules)
    return JSONResponse(
        [
            {
                "name": _SCHEDULE_NAMES.get(name, name),
                "label": SCHEDULE_TITLES.get(name, name),
                "aliases": [name],
                "default_rho": -1,
                "need_inner_model": False,
            }
            for name in offered
        ]
    )


@router.get(f"{ROOT}/upscalers")
async def list_upscalers(services: ServicesHere, _tenant: TenantHere) -> Response:
    """Models that enlarge, and the one that leaves pictures as they are."""
    there = upscalers(await services.on_board(services.board.catalogue))
    factors = [(NO_UPSCALER, None), *((name, entry.upscale_factor) for name, entry in there.items())]
    return JSONResponse(
        [
            {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": factor}
            for name, factor in factors
        ]
    )


@router.get(f"{ROOT}/loras")
async def loras(services: ServicesHere, tenant: TenantHere) -> Response:
    """That this tenant's model can draw with."""
    entry = (await current_of(services, tenant)).entry
    return JSONResponse([{"name": name, "alias": name, "path": name, "metadata": {}} for name in entry.loras])
