"""The model that a tenant draws with when its requests name none, and the options of this API.

Owns how models are called here, and what an option may be set to: what it is already, or one of the few that mean
something. What is set holds for the tenant who set it, and for nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import Problem, field_problem
from app.services import Services
from workers.contract import ModelEntry

MODEL, PREVIEWS = "sd_model_checkpoint", "live_previews_enable"
_MODEL_CHOICE, _PREVIEWS_CHOICE = "a1111.model", "a1111.previews"
HASH_DIGITS = 10


@dataclass(frozen=True)
class Current:
    """What holds for a tenant now. `chosen` may be the name of a model that is served no more; then `entry` is the
    server's own choice, and requests to draw are refused."""

    catalogue: Mapping[str, ModelEntry]
    entry: ModelEntry
    chosen: str | None
    has_previews: bool

    @property
    def options(self) -> dict[str, Any]:
        """What GET /options tells. Values are those that the tools of this API ask for; most cannot be changed."""
        return {
            MODEL: title_of(self.entry),
            "sd_checkpoint_hash": self.entry.digest,
            "sd_vae": "Automatic",
            "CLIP_stop_at_last_layers": self.entry.defaults.clip_skip + 1,
            PREVIEWS: self.has_previews,
            "samples_format": "png",
            "enable_pnginfo": True,
            "return_grid": False,
            "grid_save": False,
            "samples_save": False,
            "img2img_fix_steps": False,
            "eta_noise_seed_delta": 0,
        }


async def current_of(services: Services, tenant: str) -> Current:
    """Raises Problem when no worker has told of a model that draws."""
    catalogue = await services.on_board(services.board.catalogue)
    drawing = drawing_models(catalogue)
    if not drawing:
        raise Problem("no_worker")
    choices = await services.on_board(services.choices.of, tenant)
    chosen = choices.get(_MODEL_CHOICE)
    entry = next((drawing[name] for name in (chosen, services.settings.default_model) if name in drawing), None)
    return Current(
        catalogue=catalogue,
        entry=entry or next(iter(drawing.values())),
        chosen=chosen,
        has_previews=choices.get(_PREVIEWS_CHOICE) == "true",
    )


def drawing_models(catalogue: Mapping[str, ModelEntry]) -> dict[str, ModelEntry]:
    """Those that do more than enlarge, by name."""
    return {name: catalogue[name] for name in sorted(catalogue) if set(catalogue[name].tasks) - {"upscale"}}


def upscalers(catalogue: Mapping[str, ModelEntry]) -> dict[str, ModelEntry]:
    """Those that enlarge, by name."""
    return {name: catalogue[name] for name in sorted(catalogue) if catalogue[name].upscale_factor}


def title_of(entry: ModelEntry) -> str:
    """As the tools of this API show a model and send it back."""
    return f"{entry.name} [{entry.digest[:HASH_DIGITS]}]"


def model_named(text: str, catalogue: Mapping[str, ModelEntry]) -> str:
    """Name of the model that a title, a name or a hash means; what means none comes back as it is."""
    for entry in catalogue.values():
        if text in (entry.name, title_of(entry), entry.digest, entry.digest[:HASH_DIGITS]):
            return entry.name
    return text


async def set_options(services: Services, tenant: str, wanted: Mapping[str, Any]) -> None:
    """Raises Problem for the first that cannot be what is wanted; then nothing has changed."""
    current = await current_of(services, tenant)
    keep: dict[str, str] = {}
    for name, value in wanted.items():
        if value is None or (name in current.options and is_same(current.options[name], value)):
            continue
        if name == MODEL:
            keep[_MODEL_CHOICE] = _drawing_model(value, current)
        elif name == PREVIEWS and isinstance(value, bool):
            keep[_PREVIEWS_CHOICE] = "true" if value else "false"
        else:
            what = f"`{name[:80]}` cannot be set to this."
            raise field_problem("field_unsupported", name[:80], what)
    if keep:
        await services.on_board(services.choices.keep, tenant, keep)


def is_same(one: Any, other: Any) -> bool:
    """Equal, and of one type where that is a boolean: JSON keeps 1 and true apart."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _drawing_model(value: Any, current: Current) -> str:
    models = drawing_models(current.catalogue)
    name = model_named(value, models) if isinstance(value, str) else None
    if name not in models:
        what = f"There is no model {str(value)[:80]!r}; there are {', '.join(models)}."
        raise field_problem("model_unknown", MODEL, what)
    return name
