"""The bodies of this API: every field that it knows, with its type.

Owns names and types, nothing else: what each means to us is `translate`'s. None stands for a field that was not sent.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
MAX_BATCH = 64
"""Pictures of one call: each is decoded before the first is queued."""


class Body(BaseModel):
    """Nothing is converted, nothing unknown is let in."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Drawing(Body):
    """What txt2img and img2img share."""

    prompt: str | None = None
    negative_prompt: str | None = None
    styles: list[str] | None = None
    seed: int | None = None
    subseed: int | None = None
    subseed_strength: float | None = None
    seed_resize_from_h: int | None = None
    seed_resize_from_w: int | None = None
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: Count | None = None
    n_iter: Count | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    denoising_strength: float | None = None
    restore_faces: bool | None = None
    tiling: bool | None = None
    eta: float | None = None
    s_min_uncond: float | None = None
    s_churn: float | None = None
    s_tmax: float | None = None
    s_tmin: float | None = None
    s_noise: float | None = None
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = None
    disable_extra_networks: bool | None = None
    firstpass_image: str | None = None
    comments: dict[str, Any] | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool | None = None
    script_name: str | None = None
    script_args: list[Any] | None = None
    alwayson_scripts: dict[str, Any] | None = None
    send_images: bool | None = None
    save_images: bool | None = None
    do_not_save_samples: bool | None = None
    do_not_save_grid: bool | None = None
    force_task_id: str | None = None
    infotext: str | None = None


class TextToImage(Drawing):
    """POST /sdapi/v1/txt2img"""

    enable_hr: bool | None = None
    hr_scale: float | None = None
    hr_upscaler: str | None = None
    hr_second_pass_steps: int | None = None
    hr_resize_x: int | None = None
    hr_resize_y: int | None = None
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str | None = None
    hr_negative_prompt: str | None = None
    firstphase_width: int | None = None
    firstphase_height: int | None = None


class ImageToImage(Drawing):
    """POST /sdapi/v1/img2img"""

    init_images: list[str] | None = None
    include_init_images: bool | None = None
    resize_mode: int | None = None
    image_cfg_scale: float | None = None
    initial_noise_multiplier: float | None = None
    mask: str | None = None
    latent_mask: str | None = None
    mask_blur: int | None = None
    mask_blur_x: int | None = None
    mask_blur_y: int | None = None
    mask_round: bool | None = None
    inpainting_fill: int | None = None
    inpaint_full_res: Annotated[int, Field(ge=0, le=1)] | bool | None = None
    inpaint_full_res_padding: int | None = None
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=1)] | bool | None = None


class ControlUnit(Body):
    """One of the `args` of the script ControlNet."""

    enabled: bool | None = None
    image: Any = None
    input_image: Any = None
    mask: str | None = None
    model: str | None = None
    module: str | None = None
    weight: float | None = None
    guidance_start: float | None = None
    guidance_end: float | None = None
    control_mode: int | str | None = None
    resize_mode: int | str | None = None
    low_vram: bool | None = None
    lowvram: bool | None = None
    processor_res: int | None = None
    threshold_a: float | None = None
    threshold_b: float | None = None
    pixel_perfect: bool | None = None
    hr_option: int | str | None = None
    save_detected_map: bool | None = None


class Extras(Body):
    """What extra-single-image and extra-batch-images share."""

    resize_mode: Annotated[int, Field(ge=0, le=1)] | None = None
    upscaling_resize: Annotated[float, Field(gt=0, le=1000)] | None = None
    upscaling_resize_w: Annotated[int, Field(ge=1, le=65535)] | None = None
    upscaling_resize_h: Annotated[int, Field(ge=1, le=65535)] | None = None
    upscaling_crop: bool | None = None
    upscaler_1: str | None = None
    upscaler_2: str | None = None
    extras_upscaler_2_visibility: Share | None = None
    upscale_first: bool | None = None
    gfpgan_visibility: Share | None = None
    codeformer_visibility: Share | None = None
    codeformer_weight: Share | None = None
    show_extras_results: bool | None = None


class ExtraSingleImage(Extras):
    """POST /sdapi/v1/extra-single-image"""

    image: str


class FileData(Body):
    """A picture of a batch."""

    data: str
    name: str | None = None


class ExtraBatchImages(Extras):
    """POST /sdapi/v1/extra-batch-images"""

    imageList: Annotated[list[FileData], Field(min_length=1, max_length=MAX_BATCH)]


class PngInfo(Body):
    """POST /sdapi/v1/png-info"""

    image: str
