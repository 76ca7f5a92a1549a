"""How one worker process is configured.

Owns the names, defaults and meaning of the worker's settings; `docs/settings.md` has a heading for each. Knows nothing
of what is done with them. Each is read from the environment: `DENOISED_` and the field's name in capitals, but
`REDIS_URL` without the prefix.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from redis.connection import parse_url

from workers.contract import RETENTION_S

_WEIGHTS_SUFFIX = ".safetensors"
_HUB_ID = re.compile(r"[^./~][^/]*/[^/]+(?<!\.safetensors)")

_BUNDLED = Path(__file__).resolve().parent.parent / "models" / "bundled"
BUNDLED_MODEL = "pictogram"
BUNDLED_UPSCALER = "pictogram-x4"
"""Names of the models in the box."""
BUNDLED = {name: str(_BUNDLED / name) for name in (BUNDLED_MODEL, BUNDLED_UPSCALER)}
"""Where they lie; as sources their names alone will do."""
BUNDLED_SOURCE = BUNDLED[BUNDLED_MODEL]


class WorkerSettings(BaseSettings):
    """One worker's settings. Frozen; a value that cannot be meant is refused at the start."""

    model_config = SettingsConfigDict(
        env_prefix="DENOISED_", frozen=True, extra="forbid", populate_by_name=True, env_ignore_empty=True
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        validation_alias="REDIS_URL",
        description="The Redis that the API uses too: redis://, rediss:// or unix://. `denoised serve` sets it.",
    )
    data_dir: Path = Field(
        Path("~/.local/share/denoised"), description="Where pictures are kept when no store_url is given."
    )
    store_url: str | None = Field(
        None,
        description="Where pictures are kept: a directory, or any fsspec URL (s3://bucket/path). Workers and API on "
        "several machines need one that all of them see. Default: the folder `store` in the data directory.",
    )
    models: Annotated[dict[str, str], NoDecode] = Field(
        BUNDLED,
        description="Models this worker serves, as `name=source` pairs with commas between; a source is a directory "
        "in diffusers layout, a single .safetensors file, a hub id, or the name of a bundled model. The first one is "
        "loaded last and so the last to leave a short memory budget. Default: the bundled models.",
    )
    models_dir: Path | None = Field(
        None,
        description="Directory of more models, a folder in diffusers layout or a .safetensors file each, served under "
        "the name of the folder or file; they may come, change and go while the worker runs. Give all workers the same "
        "ones. Default: the folder `models` in the data directory.",
    )
    loras: Path | None = Field(
        None,
        description="Directory of LoRA files (.safetensors) that requests may name by file name; files may come and go "
        "while the worker runs. Give all workers of a model the same ones. Default: the folder `loras` in the data "
        "directory.",
    )
    controlnets: Path | None = Field(
        None,
        description="Directory of ControlNets, a folder in diffusers layout each, that requests may name by folder. "
        "Give all workers of a model the same ones. Default: the folder `controlnets` in the data directory.",
    )
    device: str = Field("auto", description="cuda, cuda:1, cpu, ... `auto` takes CUDA when it is there.")
    dtype: str = Field(
        "auto",
        description="float32, bfloat16 or float16. `auto`: bfloat16 on CUDA (float16 before it), float32 on a CPU.",
    )
    memory_budget: int | None = Field(
        None,
        gt=0,
        description="Bytes that the weights of all loaded models may take together; set it when several models do not "
        "fit the device at once. Default: no limit.",
    )
    max_rows: int | None = Field(
        None,
        gt=0,
        description="Rows in one call of the network (a picture with guidance is two). More is faster up to what the "
        "device computes in parallel, and slower for whoever waits for the step. Default: found out by the engine.",
    )
    lease_s: float = Field(
        8.0,
        gt=0,
        description="Seconds without a heartbeat after which other workers take this worker's jobs. Shorter recovers "
        "faster from a crash; longer forgives longer stalls of Redis or of the machine.",
    )
    beat_s: float = Field(2.5, gt=0, description="Seconds between heartbeats; at most a third of the lease.")
    stall_s: float = Field(
        600.0,
        gt=0,
        description="Seconds that one step or one loading of a model may take before the worker counts as hung and "
        "its jobs go to others. Set it well above your slowest step.",
    )
    maintenance_interval_s: float = Field(
        2.0, gt=0, description="Seconds between looks for jobs of dead workers; workers share the work."
    )
    recovery_age_s: float = Field(
        5.0,
        gt=0,
        description="Seconds that a job may lie between queue and worker before it is queued again. Longer than the "
        "longest pause between taking a job and starting it.",
    )
    retention_s: int = Field(
        RETENTION_S, gt=0, description="Seconds that ended jobs and their pictures are kept; the same for the API."
    )
    save_threads: int = Field(
        2, gt=0, le=64, description="Threads that encode and write pictures beside the steps; two suit most disks."
    )
    save_backlog: int = Field(
        16, gt=0, description="Finished jobs that may wait to be written before no new ones are started."
    )
    save_patience_s: float = Field(
        300.0,
        ge=0,
        description="Seconds that a job waits in this worker for a store that refuses it (a full disk). Then it goes "
        "back to its queue, and the worker takes no others until the store takes files again.",
    )
    snapshot_interval_s: float = Field(
        5.0,
        ge=0,
        description="Seconds between two snapshots of a job that is being drawn: what a crash costs at most. Shorter "
        "writes more to the store. 0: none, and a job whose worker dies begins anew.",
    )
    max_jobs: int = Field(
        128,
        gt=0,
        description="Jobs in this worker's hands at once, whatever their sizes; each holds its latents in memory. One "
        "tenant gets half of them, so that there is room at once for another.",
    )
    admissions_per_tick: int = Field(
        4, gt=0, description="Jobs that may join between two steps; each delays the step by a millisecond or two."
    )
    patience_s: float = Field(
        30.0,
        ge=0,
        description="Seconds that jobs of a model that is not loaded wait while loaded models have work; after as many "
        "again what is in work for those is put away to make room. Shorter is fairer between models, longer loads less "
        "often. Also what a job waits in the queue to count as of the next higher priority.",
    )
    log_format: Literal["json", "console"] = Field("json", description="json for machines, console for people.")

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: Any) -> Any:
        """`name=source,name2=source2`; a source alone is named after its last part, a file without its ending."""
        if not isinstance(value, str):
            return value
        parsed: dict[str, str] = {}
        for item in filter(None, (part.strip() for part in value.split(","))):
            name, equals, source = item.partition("=")
            if not equals:
                name, source = Path(item).name.removesuffix(_WEIGHTS_SUFFIX), item
            if not name or not source or name in parsed:
                raise ValueError(f"{item!r} is not `name=source` with a name of its own")
            parsed[name] = BUNDLED.get(source, source)
        return parsed

    @model_validator(mode="after")
    def _refuse_nonsense(self) -> Self:
        if not self.models:
            raise ValueError("models is empty: name at least one, as `name=source`")
        if self.beat_s > self.lease_s / 3:
            raise ValueError(f"beat_s ({self.beat_s}) must be at most a third of lease_s ({self.lease_s})")
        return self

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        parse_url(value)  # raises ValueError with the schemes there are
        return value

    @property
    def has_only_local_models(self) -> bool:
        """No source is a hub id: what cannot be loaded now cannot be loaded later either."""
        sources = self.models.values()
        return all(Path(source).expanduser().exists() or not _HUB_ID.fullmatch(source) for source in sources)

    @property
    def models_folder(self) -> Path:
        """Directory of more models; it need not exist."""
        return (self.models_dir or self.data_dir / "models").expanduser()

    @property
    def lora_folder(self) -> Path:
        """Directory of LoRA files; it need not exist."""
        return (self.loras or self.data_dir / "loras").expanduser()

    @property
    def controlnet_folder(self) -> Path:
        """Directory of ControlNets; it need not exist."""
        return (self.controlnets or self.data_dir / "controlnets").expanduser()

    @property
    def store(self) -> str:
        """URL or path of the picture store."""
        return self.store_url or str(self.data_dir.expanduser() / "store")
