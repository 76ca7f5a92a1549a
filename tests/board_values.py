"""Values that the tests about the queue share: a model entry and submissions to it."""

from __future__ import annotations

from models.request import TextToImageRequest
from workers.contract import Delivery, ModelDefaults, ModelEntry, Priority, SamplerEntry, Submission


def make_entry(name: str = "fake") -> ModelEntry:
    return ModelEntry(
        name=name,
        tasks=("text-to-image", "image-to-image"),
        defaults=ModelDefaults(
            width=64,
            height=64,
            num_inference_steps=10,
            guidance_scale=5.0,
            sampler="ddim",
            noise_schedule="default",
        ),
        min_size=8,
        max_size=512,
        max_pixels=512 * 512,
        max_images=8,
        token_limit=600,
        window_tokens=75,
        samplers=(SamplerEntry(name="ddim", description="DDIM", noise_schedules=("default",), max_steps=1000),),
        prediction_type="epsilon",
        device="cpu",
        dtype="float32",
        digest="0" * 64,
    )


def make_submission(
    tenant: str = "ann",
    *,
    prompt: str = "a red apple",
    steps: int = 10,
    seed: int = 1,
    num_images: int = 1,
    priority: Priority = "normal",
    model: str = "fake",
    previews: bool = False,
    deadline_s: float | None = None,
) -> Submission:
    request = TextToImageRequest(
        model=model,
        prompt=prompt,
        width=64,
        height=64,
        num_inference_steps=steps,
        guidance_scale=1.0,
        sampler="ddim",
        noise_schedule="default",
        seed=seed,
        num_images=num_images,
    )
    return Submission(
        tenant=tenant,
        request=request,
        priority=priority,
        deadline_s=deadline_s,
        delivery=Delivery(previews=previews),
    )
