"""The Python client of a denoised server: `Client`, and `AsyncClient` with the same calls to await.

    from app.client import Client

    with Client() as client:
        job = client.generate({"prompt": "a red heart", "seed": 3})
        client.save(job.images[0], "heart.png")

`surface` has the calls, `errors` what they raise, docs/client.md how to use them. Needs httpx2 and pydantic, and
nothing of the server's own code.
"""

from app.client.drivers import DEFAULT_SERVER
from app.client.errors import ClientError, JobFailed, PictureDamaged, Refused, Unreachable, WaitTimeout
from app.client.request import Control, Lora, Picture, Replay, Request
from app.client.surface import AsyncClient, Client
from app.client.values import (
    Fault,
    FieldError,
    Image,
    Job,
    Model,
    ModelFault,
    Preview,
    Progress,
    Reason,
    Sampler,
    Timings,
    Verdict,
)

__all__ = [
    "DEFAULT_SERVER",
    "AsyncClient",
    "Client",
    "ClientError",
    "Control",
    "Fault",
    "FieldError",
    "Image",
    "Job",
    "JobFailed",
    "Lora",
    "Model",
    "ModelFault",
    "Picture",
    "PictureDamaged",
    "Preview",
    "Progress",
    "Reason",
    "Refused",
    "Replay",
    "Request",
    "Sampler",
    "Timings",
    "Unreachable",
    "Verdict",
    "WaitTimeout",
]
