"""Models and their versions, and what belongs to whoever asks.

Owns which model a name or a version means. The version of a model is the digest of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.dialects.replicate.documents import OWNER, base_url_of, model_page, version_page
from app.errors import Problem, field_problem
from app.services import ServicesHere, TenantHere
from workers.contract import ModelEntry

router = APIRouter()


@router.get("/v1/account")
async def read_account(tenant: TenantHere) -> Response:
    return JSONResponse({"type": "organization", "username": tenant, "name": tenant, "github_url": None})


@router.get("/v1/webhooks/default/secret")
async def read_webhook_secret(services: ServicesHere, tenant: TenantHere) -> Response:
    return JSONResponse({"key": await services.on_board(services.secrets.of, tenant)})


@router.get("/v1/models/{owner}/{name}")
async def read_model(request: Request, services: ServicesHere, _tenant: TenantHere, owner: str, name: str) -> Response:
    entry = model_named(await services.on_board(services.board.catalogue), name)
    counts = (await services.on_board(services.board.ended_counts)).get(name)
    run_count = sum(counts.by_status.values()) if counts else 0
    return JSONResponse(model_page(entry, owner, run_count, base_url_of(request)))


@router.get("/v1/models/{owner}/{name}/versions")
async def list_versions(services: ServicesHere, _tenant: TenantHere, owner: str, name: str) -> Response:
    entry = model_named(await services.on_board(services.board.catalogue), name)
    return JSONResponse({"next": None, "previous": None, "results": [version_page(entry)]})


@router.get("/v1/models/{owner}/{name}/versions/{version}")
async def read_version(services: ServicesHere, _tenant: TenantHere, owner: str, name: str, version: str) -> Response:
    entry = model_named(await services.on_board(services.board.catalogue), name)
    if version != entry.digest:
        raise Problem("model_absent", f"{name} has the one version {entry.digest}.")
    return JSONResponse(version_page(entry))


def model_named(catalogue: Mapping[str, ModelEntry], name: str) -> ModelEntry:
    """Raises Problem `model_absent`."""
    if not catalogue:
        raise Problem("no_worker")
    if name not in catalogue:
        raise Problem("model_absent", f"There are {', '.join(sorted(catalogue))}.")
    return catalogue[name]


def version_named(catalogue: Mapping[str, ModelEntry], version: str) -> tuple[str, ModelEntry]:
    """The owner and the model that `<digest>`, `owner/name:<digest>`, `owner/name` or a name means. Raises Problem."""
    if not catalogue:
        raise Problem("no_worker")
    model, _, digest = version.rpartition(":") if ":" in version else (version, "", "")
    owner, _, name = model.rpartition("/")
    if name in catalogue and digest in ("", catalogue[name].digest):
        return owner or OWNER, catalogue[name]
    serving = [entry for entry in catalogue.values() if entry.digest == version]
    if not serving:
        what = "`version` is none of the digests, and no name, of the models that are served now."
        raise field_problem("model_unknown", "version", what)
    return OWNER, serving[0]
