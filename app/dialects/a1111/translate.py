"""This API's bodies -> fields of `POST /generate`.

Owns what each of its fields means here: some become a field of ours, some are passed over since clients always send
them, the others may only ask for nothing. Our own checks do the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from app.dialect import refuse_unsupported
from app.dialects.a1111.bodies import ControlUnit, Drawing, ImageToImage, TextToImage
from app.dialects.a1111.current import MODEL, PREVIEWS, Current, is_same, model_named
from app.errors import FieldError
from app.resolve import UPSCALE_FACTOR, schema_problem
from models.request import fold_name

Fields = dict[str, Any]
Refused = dict[str, str]
"""Field -> what of it cannot be done."""

PASSED_OVER: frozenset[str] = frozenset(
    {
        *("do_not_save_samples", "do_not_save_grid", "save_images", "override_settings_restore_afterwards"),
        *("force_task_id", "comments", "script_args", "subseed", "s_tmin", "s_tmax", "refiner_switch_at"),
        *("image_cfg_scale", "firstphase_width", "firstphase_height", "hr_second_pass_steps", "hr_checkpoint_name"),
        *("hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt"),
    }
)
"""Fields that change nothing here, whatever they say: files are not kept under names, and the others only mean
something together with one that is refused."""

_ASKS_FOR_NOTHING: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "styles": (([],), "There are no `styles` here: write them into `prompt`."),
    "subseed_strength": ((0,), "Seeds are not mixed: `subseed_strength` is 0."),
    "seed_resize_from_h": ((0, -1), "Noise is not drawn for another size: `seed_resize_from_h` is 0."),
    "seed_resize_from_w": ((0, -1), "Noise is not drawn for another size: `seed_resize_from_w` is 0."),
    "restore_faces": ((False,), "There is no face restorer: `restore_faces` is false."),
    "tiling": ((False,), "Edges are not made to fit each other: `tiling` is false."),
    "eta": ((0, 1), "A sampler draws as much noise as it was made for: leave `eta` out."),
    "s_churn": ((0,), "Samplers add no noise on the way: `s_churn` is 0."),
    "s_noise": ((0, 1), "Noise has the strength that it was made for: leave `s_noise` out."),
    "s_min_uncond": ((0,), "Guidance is computed at every step: `s_min_uncond` is 0."),
    "refiner_checkpoint": (("", "None"), "One model draws a picture: leave `refiner_checkpoint` out."),
    "disable_extra_networks": ((False,), "LoRAs in a prompt are always read: `disable_extra_networks` is false."),
    "firstpass_image": (("",), "A picture to enlarge goes to extra-single-image, not into `firstpass_image`."),
    "infotext": (("",), "`infotext` is not read: send its values as fields."),
    "script_name": (("", "None"), "There are no scripts: leave `script_name` out."),
    "resize_mode": ((0,), "Pictures are stretched to the size (`resize_mode` 0): crop or fill them before."),
    "latent_mask": (("",), "Send the mask as `mask`, not as `latent_mask`."),
    "mask_round": ((True,), "A mask's pixel is drawn or not: `mask_round` is true."),
    "initial_noise_multiplier": ((0, 1), "The start is not noised otherwise: leave `initial_noise_multiplier` out."),
}
"""Field -> the values that ask for nothing, besides null, and what is said of others."""

_SCHEDULES: Mapping[str, str | None] = {"automatic": None, "": None, "sgm_uniform": "trailing"}
"""Its names of noise schedules, where ours differ."""
_FORGOTTEN = (2, 3)
"""Values of `inpainting_fill` that begin with noise, or with nothing: what strength 1 does anyway."""
_OFF = (None, "", "none", "None")


def text_to_image(body: TextToImage, current: Current) -> Fields:
    """Raises Problem for what cannot be done."""
    fields, refused = _common(body, current)
    if body.enable_hr:
        fields |= {"upscale": True} if body.hr_upscaler in _OFF else {"upscaler": body.hr_upscaler}
        refused |= _refused_enlarging(body)
    refuse_unsupported(refused)
    return {"task": "text-to-image", **fields}


def image_to_image(body: ImageToImage, current: Current) -> Fields:
    """Image-to-image, or inpainting where there is a mask. Raises Problem for what cannot be done."""
    fields, refused = _common(body, current)
    images = body.init_images or []
    if len(images) != 1:
        refused["init_images"] = f"One picture is drawn from at a time: `init_images` has {len(images)}."
    fields |= _sent(image=images[0] if images else None, strength=body.denoising_strength)
    if not body.mask:
        refuse_unsupported(refused)
        return {"task": "image-to-image", **fields}
    if body.inpainting_fill in _FORGOTTEN and body.denoising_strength != 1:
        refused["inpainting_fill"] = "What lies under the mask is forgotten (`inpainting_fill`) at strength 1 only."
    refuse_unsupported(refused | _refused_blur(body))
    whole = body.inpaint_full_res is not None and not body.inpaint_full_res
    return {
        "task": "inpainting",
        **fields,
        "mask_image": body.mask,
        "mask_convention": "black" if body.inpainting_mask_invert else "white",
        **_sent(
            mask_blur=body.mask_blur if body.mask_blur is not None else body.mask_blur_x,
            padding_mask_crop=None if whole else body.inpaint_full_res_padding or 0,
        ),
    }


def _common(body: Drawing, current: Current) -> tuple[Fields, Refused]:
    settings, refused = _settings(body.override_settings or {}, current)
    controls, refused_scripts = _scripts(body.alwayson_scripts or {})
    values = {name: getattr(body, name, None) for name in _ASKS_FOR_NOTHING}
    for name, (nothing, what) in _ASKS_FOR_NOTHING.items():
        if values[name] is not None and values[name] not in nothing:
            refused[name] = what
    schedule = fold_name(body.scheduler or "")
    fields = {
        "prompt": body.prompt or "",
        **_sent(
            negative_prompt=body.negative_prompt or None,  # here, too, no words are no negative prompt
            seed=body.seed if body.seed != -1 else None,
            sampler=body.sampler_name or body.sampler_index or None,
            noise_schedule=_SCHEDULES.get(schedule, schedule),
            num_inference_steps=body.steps,
            guidance_scale=body.cfg_scale,
            width=body.width,
            height=body.height,
            controls=controls or None,
        ),
        "num_images": (body.batch_size or 1) * (body.n_iter or 1),
        **settings,
    }
    return fields, refused | refused_scripts


def _sent(**fields: Any) -> Fields:
    return {name: value for name, value in fields.items() if value is not None}


# --- override_settings -----------------------------------------------------------------------------------------------


def _settings(wanted: Mapping[str, Any], current: Current) -> tuple[Fields, Refused]:
    fields: Fields = {"previews": current.has_previews, **_sent(model=current.chosen)}
    refused: Refused = {}
    for name, value in wanted.items():
        if value is None or (name == MODEL and value == ""):
            continue
        if name == MODEL:
            fields["model"] = model_named(value, current.catalogue) if isinstance(value, str) else value
        elif name == "CLIP_stop_at_last_layers":
            fields["clip_skip"] = value - 1 if type(value) is int else value
        elif name == "samples_format":
            fields["output_format"] = "jpeg" if value == "jpg" else value
        elif name == PREVIEWS:
            fields["previews"] = value
        elif not (name in current.options and is_same(current.options[name], value)):
            refused[f"override_settings/{name[:80]}"] = f"The setting `{name[:80]}` cannot be changed to this."
    return fields, refused


# --- scripts ---------------------------------------------------------------------------------------------------------


def _scripts(scripts: Mapping[str, Any]) -> tuple[list[Fields], Refused]:
    controls: list[Fields] = []
    refused: Refused = {}
    for name, script in scripts.items():
        args = script.get("args") if isinstance(script, dict) else script
        where = f"alwayson_scripts/{name[:80]}"
        if name.lower() == "controlnet" and isinstance(args, list):
            for number, unit in enumerate(args):
                control, refused_here = _control(unit, f"{where}/args/{number}")
                controls += [control] if control else []
                refused |= refused_here
        elif args and not (isinstance(args, list) and args[0] is False):
            refused[where] = f"There is no script {name[:80]!r} here."
    return controls, refused


def _control(sent: Any, where: str) -> tuple[Fields | None, Refused]:
    """One unit of ControlNet as one of our `controls`; None where it is switched off."""
    unit = _control_unit(sent, where)
    if unit.enabled is False:
        return None, {}
    refused: Refused = {}
    if unit.module not in _OFF:
        refused[f"{where}/module"] = "Maps are not made from pictures here: send the map, with `module` none."
    if unit.mask:
        refused[f"{where}/mask"] = "A ControlNet steers the whole picture: leave `mask` out."
    if unit.control_mode not in (None, 0, "Balanced"):
        refused[f"{where}/control_mode"] = "ControlNets are balanced here (`control_mode` 0): use `weight`."
    image = unit.image if unit.image not in _OFF else unit.input_image
    if isinstance(image, dict):
        image = image.get("image")
    return (
        {
            "name": (unit.model or "None").partition(" [")[0],
            "image": image if image is not None else "",
            **_sent(weight=unit.weight, start=unit.guidance_start, end=unit.guidance_end),
        },
        refused,
    )


def _control_unit(sent: Any, where: str) -> ControlUnit:
    try:
        return ControlUnit.model_validate(sent)
    except ValidationError as error:
        problem = schema_problem(error)
        problem.errors = tuple(
            FieldError(pointer=f"/{where}{one.pointer}", detail=one.detail) for one in problem.errors
        )
        raise problem from error


# --- what depends on several fields ----------------------------------------------------------------------------------


def _refused_enlarging(body: TextToImage) -> Refused:
    refused: Refused = {}
    if body.hr_resize_x or body.hr_resize_y:
        name = "hr_resize_x" if body.hr_resize_x else "hr_resize_y"
        refused[name] = f"What is drawn is enlarged by a factor: `{name}` is 0, and `hr_scale` {UPSCALE_FACTOR}."
    if body.hr_scale != UPSCALE_FACTOR:
        refused["hr_scale"] = f"Upscalers here enlarge {UPSCALE_FACTOR} times: `hr_scale` is {UPSCALE_FACTOR}."
    if body.denoising_strength != 0:
        what = "What was enlarged is not drawn over again: `denoising_strength` is 0 where `enable_hr` is true."
        refused["denoising_strength"] = what
    return refused


def _refused_blur(body: ImageToImage) -> Refused:
    """The blur is the same both ways; its default, which some clients always send, asks for nothing."""
    blur = body.mask_blur if body.mask_blur is not None else body.mask_blur_x
    refused: Refused = {}
    for name in ("mask_blur_x", "mask_blur_y"):
        value = getattr(body, name)
        if value is not None and value not in (blur, 4):
            refused[name] = f"A mask is blurred alike both ways: leave `{name}` out, and send `mask_blur`."
    return refused
