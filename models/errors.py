"""The faults a job can meet while its picture is made.

Owns the stable codes of failed jobs. Knows nothing of HTTP or queues: the worker writes `code` and `detail` into
the job document, the API only repeats them.

    GenerationError
    ├── RequestError          the request cannot be served by this model
    │   ├── SamplerRefused    `sampler_refused`
    │   ├── ImageUnusable     `image_unusable`
    │   ├── LoraRefused       `lora_refused`
    │   ├── ControlRefused    `control_refused`
    │   └── UploadMissing     `upload_missing`
    ├── CheckpointError       the weights cannot be used
    │   ├── CheckpointRefused `checkpoint_refused`
    │   └── CheckpointMissing `checkpoint_missing`
    ├── NotFinite             `not_finite`
    ├── OutOfMemory           `out_of_memory`
    ├── TimedOut              `timeout`
    ├── DeadlineExceeded      `deadline_exceeded`
    ├── Abandoned             `abandoned`
    └── InternalError         `internal`
"""

from __future__ import annotations

from typing import ClassVar


class GenerationError(Exception):
    """A fault with a stable `code` and, as its message, a sentence that says what to do instead."""

    code: ClassVar[str] = "internal"

    @property
    def detail(self) -> str:
        return str(self)


class RequestError(GenerationError):
    """The request is at fault and would fail again."""

    code = "request_refused"


class SamplerRefused(RequestError):
    """The sampler cannot run with these steps, or cannot be a step table."""

    code = "sampler_refused"


class ImageUnusable(RequestError):
    """An uploaded picture could not be read by the worker."""

    code = "image_unusable"


class LoraRefused(RequestError):
    """A LoRA does not fit the network, is of a kind that is not served, or is no longer there."""

    code = "lora_refused"


class ControlRefused(RequestError):
    """A ControlNet does not fit the network, cannot be loaded, or is no longer there."""

    code = "control_refused"


class UploadMissing(RequestError):
    """The uploaded picture is no longer in the store."""

    code = "upload_missing"


class CheckpointError(GenerationError):
    """The weights cannot be used."""

    code = "checkpoint_refused"


class CheckpointRefused(CheckpointError):
    """The checkpoint is there, and is of a kind we do not load (a pickle, an unknown network)."""

    code = "checkpoint_refused"


class CheckpointMissing(CheckpointError):
    """The checkpoint is not there, or cannot be fetched."""

    code = "checkpoint_missing"


class NotFinite(GenerationError):
    """The latents of this job turned NaN or infinite."""

    code = "not_finite"


class OutOfMemory(GenerationError):
    """The job does not fit the device even alone."""

    code = "out_of_memory"


class TimedOut(GenerationError):
    """The job ran longer than its limit."""

    code = "timeout"


class DeadlineExceeded(GenerationError):
    """The pictures would come too late to be of use."""

    code = "deadline_exceeded"


class Abandoned(GenerationError):
    """Worker after worker died on this job without getting any further."""

    code = "abandoned"


class InternalError(GenerationError):
    """A fault of ours. The log of the worker has the traceback under the job's id."""

    code = "internal"

    @classmethod
    def of(cls, error: Exception) -> InternalError:
        """That which a job met; `error`, its cause, is for the log."""
        fault = cls("The worker failed on this job; its log has the reason under the job's id.")
        fault.__cause__ = error
        return fault


JOB_ERROR_CODES: tuple[str, ...] = tuple(
    sorted(
        cls.code
        for cls in (
            RequestError,
            SamplerRefused,
            ImageUnusable,
            LoraRefused,
            ControlRefused,
            UploadMissing,
            CheckpointRefused,
            CheckpointMissing,
            NotFinite,
            OutOfMemory,
            TimedOut,
            DeadlineExceeded,
            Abandoned,
            InternalError,
        )
    )
)
"""Every `error.code` a job document can carry; `docs/errors.md` has a heading for each."""
