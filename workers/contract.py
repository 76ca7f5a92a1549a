"""What crosses Redis: the values and the names that the API and the workers agree on.

Owns job ids, key names, queue names, and the frozen values of a job's life (request, progress, outcome, document) and
of a worker's beat (catalogue entry, beat). Knows no Redis client, no HTTP, no torch. `workers.board`
does the reading and writing.

Where is it? One key each, `denoised:` in front:

    job:<id>                  hash    the record: see JobRecord; from the commit point on it holds `outcome`
    progress:<id>             hash    step, steps, eta_s of a running job; expires by itself
    preview:<id>              string  newest preview of a running job (WebP bytes); expires by itself
    jobs:<tenant>             zset    the tenant's job ids by creation time
    idempotency:<tenant>:<h>  string  "<body digest> <job id>" of an Idempotency-Key; expires with its job
    choices:<tenant>          hash    name -> what the tenant has chosen for its later requests; expires by itself
    repeats:<tenant>:<digest> zset    attempts of requests that say this, by the time until which they wait:
                                      `workers.repeats`; expires by itself
    upload:<tenant>:<digest>  string  the newest job that holds this upload; expires with its job
    gone:<id>                 string  the tenant of an erased job; expires by itself
    costs:<model>             hash    job id -> predicted cost of each job that has not ended (row-steps at the model's
                                      own size): the list of what must not be lost
    suspects:<model>          hash    job id -> since when it has been in no queue and in no worker's hands
    ended:<model>             hash    how many jobs have ended, by status, and failed, by `code:<code>`; only ever grows
    promise:<id>              string  the seconds it was said to take when it was queued; until it has ended
    urgent:<queue>            zset    queued jobs with a deadline, by that (unix seconds): they leave the queue first
    queues:<model>            set     names of this model's RQ queues that may hold jobs
    doorbell:<model>          list    rung at enqueue; an idle worker blocks on it
    events                    stream  job, kind: one entry whenever a document changes
    catalogue                 hash    model name -> ModelEntry; stays when its worker is gone
    workers                   hash    worker name -> WorkerBeat; an older beat than BEAT_TTL_S is a dead worker
    wishes                    hash    model name -> Wish: what an operator last asked of its workers; expires by itself
    ceilings                  hash    kind of call -> rows that memory sufficed for, and since when: `workers.ceilings`;
                                      expires by itself
    recovery:<model>          string  a worker has just looked for this model's lost jobs; expires by itself
    reserved                  hash    job id -> bytes that it may write into the store; see `workers.reservations`
    stored                    string  bytes that the store had when it was last counted; expires by itself
    counting                  string  an API process counts, or has just counted, the store; expires by itself
    webhooks                  zset    jobs whose webhook may have something to tell, by when it is looked at next
    webhook:<id>              hash    how far that is: see WebhookState; from the outcome on it expires with its job
    webhook-secret            string  what the signatures are derived from, unless the settings say it

Two versions beside each other, while a running installation is upgraded or goes back:

- What comes out of Redis is read with `Value.read`: fields that this version does not know are passed over, and every
  field that came after version 2 has a default. Nobody writes back what another one wrote, so nothing gets lost.
- A field may be passed over because a job says which version it needs: `contract_version` of its record is the lowest
  one whose workers draw it as it is meant (`needed_version`). A worker of a lower version puts such a job back and
  leaves its queue alone for a while; it keeps its place, and the document says when no living worker can draw it.
- What a newer version wrote and this one cannot read at all (a word it does not know) is left for those who can:
  neither failed nor deleted, and not overwritten. What cannot be read although it needs no newer version is broken.

Whoever changes the contract: a new field gets a default and is done; a new meaning of a request gets a new
CONTRACT_VERSION and a line in `_NEEDS`; `tests/recorded` gets values of the new version, which are read for ever.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import time
from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from models.request import DIGEST, GenerationRequest, Reproducibility

CONTRACT_VERSION = 3
"""3: a submission may name a picture that what is drawn is compared with."""
FIRST_VERSION = 2
"""What needs no newer version needs this one."""
RETENTION_S = 24 * 3600
"""Seconds that an ended job and its pictures are kept unless the settings say otherwise."""
BEAT_TTL_S = 20.0
PROGRESS_TTL_S = 120
WISH_TTL_S = 3600
CEILING_TTL_S = 24 * 3600
"""By then a ceiling has risen by 720 rows: it lowers nothing any more."""
EVENT_STREAM_LENGTH = 10_000
ALONE_AFTER_DEATHS = 2
LOCAL_TENANT = "local"
"""Everybody's tenant while the server has no keys."""

Status = Literal["queued", "running", "succeeded", "failed", "canceled"]
ENDED: frozenset[str] = frozenset({"succeeded", "failed", "canceled"})
Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
OutputFormat = Literal["png", "jpeg", "webp"]
EventKind = Literal["status", "progress", "preview", "end"]
WebhookEvent = Literal["started", "progress", "ended"]
WebhookEnd = Literal["told", "given_up", "gone"]
"""told: everything; given_up: what was left could not be told in time; gone: the receiver wants no more."""
WEBHOOK_NEWS = "webhooks"
"""Stands in the events stream instead of a job's id when one of `webhooks` has become due."""

_JOB_ID = re.compile(r"^([0-9a-f]{12})([0-9a-f]{32})$")
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")
_HASHED = re.compile(r"-[0-9a-f]{16}$")


class Value(BaseModel):
    """A frozen value that refuses unknown fields, unless it is read as another version's, and numbers that JSON cannot
    write. What it is refused for is told without the value, which may be a prompt: such errors end in logs."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    @classmethod
    def read(cls, raw: str | bytes) -> Self:
        """A value that another version may have written, as JSON: what this one does not know is passed over."""
        return cls.model_validate_json(raw, extra="ignore")


def _writable(text: str) -> str:
    """Half of a surrogate pair is no character, and stands for a byte in names of files that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


UnixTime = Annotated[float, Field(ge=0, lt=2**37)]
"""Seconds since 1970; what is no time (it would be the year 6325) is refused where it is read."""


# --- names ---------------------------------------------------------------------------------------------------------


def new_job_id() -> str:
    """44 hex digits: milliseconds since 1970 (12), then 128 random bits: not to be guessed, and it tells its age."""
    return f"{int(time.time() * 1000):012x}{secrets.token_hex(16)}"


def created_at_of(job_id: str) -> float | None:
    """Unix seconds at which this id was made, or None when it is no id of ours."""
    match = _JOB_ID.fullmatch(job_id)
    return int(match[1], 16) / 1000 if match else None


def key(kind: str, *parts: str) -> str:
    """Redis key of one noun of the table above: `key("job", job_id)`."""
    return ":".join(("denoised", kind, *parts))


def slug(name: str) -> str:
    """A name fit for keys and queues, for each name another one: other characters than letters, digits, `_`, `-` are
    replaced and hashed. A name that looks as if it had been through this is hashed, too."""
    plain = _UNFIT.sub("_", name)
    if plain == name and not _HASHED.search(name):
        return name
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def queue_name(model: str, priority: Priority, tenant: str) -> str:
    """Name of the RQ queue of one (model, priority, tenant)."""
    return ".".join((slug(model), priority, slug(tenant)))


def is_queue_of(name: str, model: str) -> bool:
    """True when `name` is what `queue_name` makes for this model and some priority and tenant."""
    parts = name.split(".")
    return len(parts) == 3 and parts[0] == slug(model) and parts[1] in PRIORITIES


# --- a job ---------------------------------------------------------------------------------------------------------


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hex."""
_Word = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""Ends on terminals, and may come from a stranger's file."""


class Making(Value):
    """What decides about pixels beside the request and the weights of its model."""

    contract: Reproducibility
    """The one that was really held."""
    hardware: _Word
    """The kind of device, as far as it computes otherwise than others."""
    dtype: _Word
    software: dict[_Word, _Word] = Field({}, max_length=16)
    """Version of each package that computes."""
    loras: dict[_Word, Digest] = Field({}, max_length=16)
    """Of the files, by name."""
    controls: dict[_Word, Digest] = Field({}, max_length=16)
    upscaler: Digest | None = None


class Provenance(Value):
    """What a recipe tells of its picture beside the request. Recipes of version 2 have the first of it."""

    model_digest: Digest
    pixels_sha256: Digest | None = None
    made_with: Making | None = None


FileKind = Literal["lossless", "jpeg", "lossy"]
"""What was done to the pixels of a file: nothing, what our own JPEGs do to them, or something else."""


class Original(Value):
    """A picture that was drawn before and is drawn again, to be compared."""

    provenance: Provenance
    picture: str | None = Field(None, pattern=DIGEST)
    """Upload with the pixels of its file; None where only the recipe is known."""
    file_kind: FileKind = "lossless"


class Delivery(Value):
    """How the pictures are handed over. No influence on their pixels before encoding."""

    output_format: OutputFormat = "png"
    previews: bool = False


class Webhook(Value):
    """Whom to tell of a job. No influence on what is drawn: a worker that knows nothing of it draws the same, and what
    it does not announce is found when the webhook is looked at next."""

    url: str
    host: str
    """Of the URL, as whoever checked it has read it."""
    events: tuple[WebhookEvent, ...] = ("ended",)
    dialect: str = "native"
    """In whose words."""
    base_url: str = ""
    """What the addresses in them begin with."""


class Submission(Value):
    """An accepted request on its way into the queue."""

    tenant: str
    request: GenerationRequest
    delivery: Delivery = Delivery()
    priority: Priority = "normal"
    deadline_s: float | None = None
    """Seconds from its creation after which its pictures are of no use."""
    traceparent: str | None = None
    original: Original | None = None
    """What the picture is compared with before it is handed over."""
    request_id: str | None = None
    """Of the POST, so that one search finds a job in the logs of the API and of its workers."""
    dialect: str | None = None
    """The API in whose words it came; None for our own."""
    memo: dict[str, JsonValue] = {}
    """What that API's documents tell again of the request; read by nobody else."""
    webhook: Webhook | None = None


_NEEDS: tuple[tuple[int, Callable[[Submission], bool]], ...] = (
    (3, lambda submission: submission.original is not None),
)
"""Versions after the first, and whether a submission means something that only their workers know."""


def needed_version(submission: Submission) -> int:
    """The lowest contract version whose workers draw this as it is meant."""
    return max((version for version, is_needed in _NEEDS if is_needed(submission)), default=FIRST_VERSION)


def is_newer(version: int) -> bool:
    """What needs this version is not for processes of ours."""
    return version > CONTRACT_VERSION


class Progress(Value):
    """Where a running job stands. `step` counts UNet evaluations (a 20-step Heun request has 39)."""

    step: int = 0
    steps: int = 0
    eta_s: float | None = None


class Picture(Value):
    """One finished picture in the store."""

    file: str
    """Name inside the job's folder of the store; carries the execution that wrote it."""
    seed: int
    width: int
    height: int
    sha256: str
    """Of the file's bytes."""
    size_bytes: int
    media_type: str


class JobError(Value):
    """Why a job failed: a stable code (`models.errors`) and a sentence."""

    code: str
    detail: Annotated[str, AfterValidator(_writable)]


class Timings(Value):
    """Seconds per phase. `denoise_s` includes the turns of other shapes while this job was in the batch."""

    queued_s: float | None = None
    prepare_s: float | None = None
    """Upload decoded, step table compiled, prompts encoded, upload encoded to latents."""
    denoise_s: float | None = None
    decode_s: float | None = None
    """From the last step to pixels."""
    save_s: float | None = None
    """File encoded, written and synced."""
    total_s: float | None = None


class Reason(Value):
    """Why a picture drawn again does not agree with the first one, or why nobody had promised that: a stable code
    (docs/replay.md) and a sentence."""

    code: str
    detail: Annotated[str, AfterValidator(_writable)]


class Verdict(Value):
    """Whether the pixels of a picture that was drawn again are those of the first one."""

    agrees: bool | None
    """None where that cannot be told from what was sent."""
    contract: Reproducibility | None
    """Within which they were to agree; None where nothing was promised: `reasons` says why."""
    exact: bool
    """To the last bit."""
    max_difference: int | None = None
    """Of 255, over all pixels and channels, with what the file shows, unless it is known to be exact; None without a
    picture of the same size to compare with."""
    differing_pixels: int | None = None
    reasons: tuple[Reason, ...] = ()


class Outcome(Value):
    """How a job ended. Written once, by whoever gets there first: the commit point."""

    status: Literal["succeeded", "failed", "canceled"]
    pictures: tuple[Picture, ...] = ()
    error: JobError | None = None
    reproducibility: Reproducibility | None = None
    """The contract that the pictures hold; None without any."""
    timings: Timings = Timings()
    ended_at: UnixTime
    execution: str | None = None
    """RQ execution that made it; None when the API or the clean-up ended the job."""
    replay: Verdict | None = None
    """Of a job that draws an earlier picture again."""
    resumed_from_step: int | None = None
    """Where that execution began, when another had come so far."""


class JobRecord(Value):
    """The `job:<id>` hash. Everything but the fields from `started_at` on is written once, at enqueue."""

    id: str
    submission: Submission
    created_at: UnixTime
    queue: str
    cost: float
    contract_version: int = FIRST_VERSION
    """The lowest whose workers can draw it."""
    started_at: UnixTime | None = None
    warnings: tuple[str, ...] = ()
    execution: str | None = None
    """The execution that last claimed the job and has not handed it back; a claim that finds one counts a death."""
    claims: int = 0
    """Executions that have claimed it."""
    deaths: int = 0
    """Workers that died on this job without getting further than the one before."""
    reached: int = 0
    """Step that the execution in question has shown."""
    best_step: int = 0
    """The furthest step of the executions before it."""
    outcome: Outcome | None = None

    @property
    def deadline(self) -> float:
        """Unix seconds."""
        deadline_s = self.submission.deadline_s
        return math.inf if deadline_s is None else self.created_at + deadline_s

    @property
    def runs_alone(self) -> bool:
        """Two workers have died on it without progress: a third takes no neighbours along."""
        return self.deaths >= ALONE_AFTER_DEATHS

    @property
    def has_left_something(self) -> bool:
        """An execution before this one may have saved what it had come to. Where that may be what they died of, it is
        not looked at."""
        return self.claims > 1 and not self.runs_alone


class WebhookState(Value):
    """What a job's webhook has told, and how it went. Part of the `webhook:<id>` hash."""

    told: tuple[WebhookEvent, ...] = ()
    """Of `started` and `ended`, those that are done with."""
    mark: str = ""
    """Of the last progress that was told."""
    trying: WebhookEvent | None = None
    failures: int = 0
    """In a row, of the event that is being tried."""
    last_at: UnixTime | None = None
    last_status: int | None = None
    """What the receiver answered last; None when it did not."""
    last_error: str | None = None
    """Why the last attempt failed; None when it did not."""
    next_at: UnixTime | None = None
    end: WebhookEnd | None = None


class JobView(Value):
    """Everything known of a job at one moment; the API makes its document from it."""

    record: JobRecord
    status: Status
    progress: Progress | None = None
    queue_position: int | None = None
    """Jobs that will start before this one if all tenants keep their turns; 0 is next."""
    eta_s: float | None = None
    needs_newer_worker: bool = False
    """It waits, and every living worker of its model is of a version that cannot draw it."""
    webhook: WebhookState | None = None
    """Of a job that has one."""


# --- a worker's beat ----------------------------------------------------------------------------------------------


class SamplerEntry(Value):
    """A sampler as `GET /models` shows it."""

    name: str
    description: str
    noise_schedules: tuple[str, ...]
    min_steps: int = 1
    max_steps: int
    order: int = 1
    """Calls of the network that one step takes."""


class ModelDefaults(Value):
    """What a request gets when it says nothing."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    noise_schedule: str
    strength: float = 0.8
    clip_skip: int = 0
    guidance_rescale: float = 0.0
    noise_level: int | None = 20
    """None where the model knows none."""


class ModelEntry(Value):
    """A loaded model in the catalogue: what the API validates against."""

    name: str
    tasks: tuple[str, ...]
    defaults: ModelDefaults
    size_multiple: int = Field(8, gt=0)
    min_size: int
    max_size: int
    """Pixels a side."""
    max_pixels: int
    """Pixels a picture."""
    max_images: int
    token_limit: int
    """Tokens of a prompt that reach the network, without those that frame its windows."""
    window_tokens: int
    """Of them those that one window holds."""
    max_clip_skip: int = 0
    """Layers of the text encoder that can be left out."""
    loras: tuple[str, ...] = ()
    """Names of the LoRA files that are there."""
    upscalers: tuple[str, ...] = ()
    """Upscalers that the same worker serves."""
    controlnets: tuple[str, ...] = ()
    """Names of the ControlNets that are there."""
    upscale_factor: int | None = None
    """Of an upscaler: pixels of the answer per pixel of the upload, a side."""
    max_noise_level: int | None = None
    """Of an upscaler that is told how much noise is laid over the upload; None for any other model."""
    samplers: tuple[SamplerEntry, ...]
    sampler_aliases: dict[str, tuple[str, str]] = {}
    """Alias -> (sampler, noise schedule)."""
    prediction_type: str
    device: str
    dtype: str
    digest: str
    """SHA-256 over the weight files: the same digest draws the same pictures."""
    contract_version: int = FIRST_VERSION
    """Of the worker that tells of it."""


class ModelLoad(Value):
    """Measured speed and load of one model on one worker; the source of ETAs."""

    loaded: bool
    warmed: bool
    cost_per_s: float | None = None
    """Row-steps a second, at the model's own size, over the last busy seconds."""
    cost_in_flight: float = 0.0
    """Row-steps still to do for the jobs in the batch."""
    slots: int = 0
    rows_in_flight: float = 0.0
    """Rows of a call for all that is in the batch, at the model's own size."""
    max_rows: int = 0
    """Rows of a full call."""
    call_base_s: float | None = None
    call_row_s: float | None = None
    """A call of x rows takes call_base_s + call_row_s x seconds, with what comes between calls."""
    next_room_s: float | None = None
    """Seconds until the first job in the batch is drawn, which makes room."""
    rows_per_step: float | None = None
    step_s: float | None = None


class Wish(Value):
    """What an operator asks of every worker of a model: to hold its weights in memory, or to forget them until a job
    needs them."""

    id: str
    action: Literal["load", "unload"]


class RowCeiling(Value):
    """Rows that calls of one group may have on a worker: a model, a shape (C, h, w) of latents, a length of prompts."""

    model: str
    shape: tuple[int, ...]
    context_length: int
    is_strict: bool = False
    rows: int
    limit: int
    """What `rows` may grow back to, where memory did not suffice."""


class WorkerBeat(Value):
    """A worker's heartbeat."""

    name: str
    beat_at: UnixTime
    started_at: UnixTime
    pid: int
    host: str
    contract_version: int = Field(default_factory=lambda: CONTRACT_VERSION)
    state: Literal["loading", "running", "draining"]
    models: dict[str, ModelLoad]
    faults: dict[str, JobError] = {}
    """Model -> why it could not be loaded when last tried. One that had been fine before is in `models` too."""
    wishes: dict[str, str] = {}
    """Model -> id of the last wish that is done, or turned out impossible."""
    ceilings: tuple[RowCeiling, ...] = ()
    """Of the groups in the batch and of those that memory was too small for."""
    counters: dict[str, float] = {}
    """Monotonic since the worker started, for metrics: steps, rows, oom splits, ...; named as in `models.counts`."""


def predict_cost(request: GenerationRequest, entry: ModelEntry) -> float:
    """Cost of a request in row-steps at the model's default size: what ETAs and Retry-After count with."""
    rows = 2 if request.has_guidance and entry.window_tokens else 1
    share = getattr(request, "strength", 1.0)
    calls = next((sampler.order for sampler in entry.samplers if sampler.name == request.sampler), 1)
    pixels = request.width * request.height / (entry.defaults.width * entry.defaults.height)
    return max(1.0, request.num_inference_steps * share) * calls * rows * request.num_images * pixels
