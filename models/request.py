"""A request for pictures, as a value.

Owns what the engine needs to draw: every default filled in, every name resolved, uploads replaced by their digest.
Knows nothing of HTTP, tenants, queues or file formats, and imports neither torch nor diffusers, so that the API
process can use it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

MAX_SEED = 2**63 - 1
"""Largest seed; picture n of a request is drawn with seed + n, modulo 2**63."""

DIGEST = r"^sha256:[0-9a-f]{64}$"
"""How a request names an upload."""

SIZE_MULTIPLE = 8
"""Pixels: widths and heights are multiples of the autoencoder's factor (arXiv 2112.10752, section 3.1, f = 8)."""


PromptSyntax = Literal["plain", "a1111"]
"""plain: text, one window of tokens, the rest is cut, as in diffusers. a1111: brackets weigh words, and a prompt takes
as many windows as it needs."""


def fold_name(name: str) -> str:
    """The name of a sampler or noise schedule as catalogues write it: `DPM++ 2M Karras` is `dpmpp_2m_karras`."""
    return name.strip().lower().replace("++", "pp").replace(" ", "_").replace("-", "_")


Reproducibility = Literal["standard", "strict"]
"""What a seed promises in any company: the same picture to within 1/255 (standard), or the same bytes (strict)."""


class LoraChoice(BaseModel):
    """A LoRA by the name of its file, and how strongly it counts; a negative weight turns it round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    weight: float = Field(1.0, ge=-10, le=10, allow_inf_nan=False)


class ControlChoice(BaseModel):
    """A ControlNet by name, the picture that it follows, how strongly, and in which share of the steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    image: str = Field(pattern=DIGEST)
    weight: float = Field(1.0, ge=0, le=10, allow_inf_nan=False)
    start: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    end: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)


class PictureRequest(BaseModel):
    """What every task has in common. Frozen; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    prompt: str
    negative_prompt: str | None = None
    """None is not the empty prompt for every network (SDXL zeroes it), so it is kept apart from ""."""
    width: int = Field(gt=0, multiple_of=SIZE_MULTIPLE)
    height: int = Field(gt=0, multiple_of=SIZE_MULTIPLE)
    num_inference_steps: int = Field(ge=1)
    guidance_scale: float = Field(ge=0, allow_inf_nan=False)
    """Classifier-free guidance (arXiv 2207.12598); 1 or less switches it off and halves the cost."""
    guidance_rescale: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    """Phi of arXiv 2305.08891, equation 16: against pictures burnt by guidance; 0 is off."""
    sampler: str
    noise_schedule: str
    prompt_syntax: PromptSyntax = "a1111"
    clip_skip: int = Field(0, ge=0)
    """Layers of the text encoder left out at its end, as diffusers counts them."""
    loras: tuple[LoraChoice, ...] = ()
    """Adaptations of the weights for these pictures alone (arXiv 2106.09685)."""
    controls: tuple[ControlChoice, ...] = ()
    """Pictures that steer where things go (arXiv 2302.05543)."""
    upscaler: str | None = None
    """Model that enlarges what was drawn, with its own defaults, as a second half of the same job."""
    reproducibility: Reproducibility = "standard"
    seed: int = Field(ge=0, le=MAX_SEED)
    num_images: int = Field(ge=1)

    def seed_of(self, index: int) -> int:
        """Seed of picture `index`: the picture is the same one that this seed draws alone."""
        return (self.seed + index) % (MAX_SEED + 1)

    @property
    def is_strict(self) -> bool:
        return self.reproducibility == "strict"

    @property
    def has_guidance(self) -> bool:
        return self.guidance_scale > 1.0


class TextToImageRequest(PictureRequest):
    """Pictures from noise, steered by a prompt."""

    task: Literal["text-to-image"] = "text-to-image"


class ImageToImageRequest(PictureRequest):
    """Pictures that start from an upload, noised as far as `strength` says (SDEdit, arXiv 2108.01073)."""

    task: Literal["image-to-image"] = "image-to-image"
    image: str = Field(pattern=DIGEST)
    """Digest of the upload: an 8-bit RGB PNG in the store, already EXIF-rotated, of any size."""
    strength: float = Field(gt=0, le=1, allow_inf_nan=False)


MAX_OUTPAINT = 4096
"""Pixels that may be added on one side."""


class InpaintingRequest(PictureRequest):
    """Pictures in which a part of an upload, or what lies around it, is drawn anew; the rest stays as it is.

    `width` and `height` are those of the canvas that the network sees (`models.region`); the answer has the size of
    the upload and what `outpaint_*` adds to it.
    """

    task: Literal["inpainting"] = "inpainting"
    image: str = Field(pattern=DIGEST)
    """Digest of the upload: an 8-bit RGB PNG in the store, already EXIF-rotated, of any size."""
    mask_image: str | None = Field(None, pattern=DIGEST)
    """Digest of an 8-bit grey PNG of the upload's size: from 128 on the pixel is drawn. None: only what is added."""
    strength: float = Field(gt=0, le=1, allow_inf_nan=False)
    mask_blur: int = Field(ge=0, le=64)
    """Pixels inside the mask over which the drawn picture comes in; never a pixel outside."""
    padding_mask_crop: int | None = Field(None, ge=0, le=1024)
    """None shows the network the whole picture; else only the mask and so many pixels around it."""
    outpaint_left: int = Field(0, ge=0, le=MAX_OUTPAINT)
    outpaint_top: int = Field(0, ge=0, le=MAX_OUTPAINT)
    outpaint_right: int = Field(0, ge=0, le=MAX_OUTPAINT)
    outpaint_bottom: int = Field(0, ge=0, le=MAX_OUTPAINT)

    @property
    def outpaint(self) -> tuple[int, int, int, int]:
        """Pixels added left, top, right, bottom."""
        return self.outpaint_left, self.outpaint_top, self.outpaint_right, self.outpaint_bottom


class UpscaleRequest(PictureRequest):
    """An upload, enlarged by the factor of the model: `width` and `height` are that factor times its own."""

    task: Literal["upscale"] = "upscale"
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    image: str = Field(pattern=DIGEST)
    """Digest of the upload: an 8-bit RGB PNG in the store, already EXIF-rotated, of any size."""
    noise_level: int | None = Field(None, ge=0)
    """Timestep of the model's own schedule to which the upload is noised (arXiv 2106.15282, section 4): more lets the
    network invent more. None: the model's default, and where the network is told none."""


AnyRequest = TextToImageRequest | ImageToImageRequest | InpaintingRequest | UpscaleRequest
GenerationRequest = Annotated[AnyRequest, Field(discriminator="task")]

REQUEST_ADAPTER: TypeAdapter[AnyRequest] = TypeAdapter(GenerationRequest)
"""Reads and writes a GenerationRequest as JSON."""

TASKS: tuple[str, ...] = ("text-to-image", "image-to-image", "inpainting", "upscale")
