"""Settings of the API process, read from the environment once.

Owns the names, the limits and how to choose them. Knows nothing of what the limits guard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from redis.connection import parse_url

from app.webhooks.address import Allowed
from workers.contract import RETENTION_S

MIB = 1024 * 1024
MIN_SECRET_CHARACTERS = 32

Names = Annotated[tuple[str, ...], NoDecode]
"""A comma-separated list in the environment."""


class ApiSettings(BaseSettings):
    """Everything the API can be told. Each is `DENOISED_<NAME>` in the environment; Redis is `REDIS_URL`."""

    model_config = SettingsConfigDict(
        env_prefix="DENOISED_", frozen=True, extra="forbid", populate_by_name=True, env_ignore_empty=True
    )

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Loopback keeps the server to this machine; any other address (0.0.0.0 for"
        " all) is refused until there are keys.",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        validation_alias=AliasChoices("REDIS_URL", "redis_url"),
        description="The Redis that API and workers share. All processes of one installation need the same one.",
    )
    data_dir: Path = Field(
        Path("~/.local/share/denoised"),
        description="Folder of everything that is kept: pictures, keys, the embedded server's data. Choose a disk with"
        " room for a day of pictures.",
    )
    store_url: str = Field(
        "",
        description="Where pictures and uploads lie. Empty: `store` in the data directory. Workers on several machines"
        " need a shared path or an fsspec URL such as s3://bucket/pictures, the same for API and workers.",
    )
    store_quota: int | None = Field(
        None,
        gt=0,
        description="Bytes that uploads and pictures may take together; a request that would need more is answered 503."
        " Nothing is deleted before its time to make room, so choose what a day of pictures takes"
        " (DENOISED_RETENTION_S). All API processes need the same one. Default: no limit but the disk.",
    )
    store_reserve: int = Field(
        256 * MIB,
        ge=0,
        description="Bytes that stay free on the store's disk: requests are answered 503 before it is full. Leave room"
        " for whatever else writes there, such as the embedded server's log. Not for stores behind a URL.",
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="`tenant:key,tenant:key`: each key opens its tenant's own jobs. Choose long random keys"
        " (`openssl rand -hex 24`). Prefer the keys file, which holds hashes only.",
    )
    keys_file: Path | None = Field(
        None,
        description="File of `tenant sha256hex` lines (`printf %s KEY | sha256sum`). Unset: `keys` in the data"
        " directory, if it is there. It is read when the server starts.",
    )
    operators: Names = Field(
        (),
        description="Tenants, comma-separated, who may load and unload models, see why one cannot be loaded, and look"
        " at all queues and workers. Without keys whoever reaches the server may.",
    )
    high_priority: Names = Field(
        (),
        description="Tenants, comma-separated, whose jobs may have the priority `high`, besides operators: beside those"
        " of others they have twice the time. Without keys everybody's may.",
    )
    allowed_hosts: Names = Field(
        (),
        description="Host names the server answers to, comma-separated, besides loopback. Empty: any with keys, only"
        " loopback without. Name your public host here when browsers reach the server.",
    )
    allowed_origins: Names = Field(
        (),
        description="Web origins (https://studio.example.org), comma-separated, whose pages may call this server."
        " Empty: only pages that the server itself delivered.",
    )
    max_body_bytes: int = Field(
        32 * MIB,
        gt=0,
        description="Largest request body. Base64 makes a picture a third longer; memory use is this times the uploads"
        " that arrive at the same moment.",
    )
    max_upload_pixels: int = Field(
        4096 * 4096,
        gt=0,
        description="Most pixels of an uploaded picture, read from its header before anything is decoded. Each costs"
        " about 8 bytes of memory while it is decoded.",
    )
    upload_timeout_s: float = Field(
        60.0,
        gt=0,
        description="Seconds that a client may take to send its body. Raise it for large uploads over slow lines.",
    )
    decode_threads: int = Field(
        2, gt=0, description="Uploads decoded at the same time. Keep it below the number of cores."
    )
    max_queued: int = Field(
        64,
        gt=0,
        description="Queued jobs a tenant may have before it gets 429. Choose what your workers finish in the longest"
        " wait that you find acceptable.",
    )
    retention_s: int = Field(
        RETENTION_S,
        gt=0,
        description="Seconds that an ended job, its pictures and uploads are kept. The workers need the same value.",
    )
    durability: Literal["everysec", "always"] = Field(
        "everysec",
        description="When an accepted job is on Redis's disk: within a second or two (a machine that loses power may"
        " forget what it accepted last), or always before it is accepted. `always` makes the embedded server sync"
        " before every answer; a Redis of your own must be 7.2 or later, and answers as soon as its appendfsync lets"
        " it. docs/reliability.md has the price.",
    )
    max_wait_s: float = Field(
        60.0,
        ge=0,
        description="Longest `Prefer: wait` that is honoured. Stay below the idle timeout of any proxy in front.",
    )
    max_event_streams: int = Field(
        256,
        gt=0,
        description="Event streams open at the same time. Each is one connection and, while its job runs, a few small"
        " Redis reads a second.",
    )
    max_tenant_streams: int = Field(
        64,
        gt=0,
        description="Event streams that one tenant may have open at the same time, when there are keys. Keep it well"
        " below max_event_streams, so that no tenant can take them all.",
    )
    default_model: str | None = Field(
        None,
        description="Model for requests that name none, if it serves their task. Unset: the first by name that does.",
    )

    webhook_allow: Names = Field(
        (),
        description="Receivers of webhooks that may be private, comma-separated: host names as they are written in URLs"
        " (hooks.internal), addresses and networks (127.0.0.1, 10.0.0.0/8). Whoever may post jobs can make the server"
        " call them, so name as few as you can. Unset: only public addresses are called.",
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        description="What the secrets of all tenants, with which webhooks are signed, are derived from: 32 or more"
        " random characters (`openssl rand -hex 32`), the same for all API processes. To replace it, set `new,old`:"
        " both sign until you drop the old one. Unset: one is made once and kept in Redis; set it where Redis may be"
        " replaced by an empty one.",
    )

    log_format: Literal["json", "console"] = Field(
        "json", description="json for machines, console for people; `denoised serve` chooses console."
    )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        parse_url(value)
        return value

    @field_validator("webhook_allow")
    @classmethod
    def _check_webhook_allow(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        Allowed.parse(value)
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _check_webhook_secret(cls, value: SecretStr) -> SecretStr:
        if any(len(part) < MIN_SECRET_CHARACTERS for part in _parts(value.get_secret_value())):
            raise ValueError(f"each secret needs {MIN_SECRET_CHARACTERS} characters or more")
        return value

    @field_validator("operators", "high_priority", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        if isinstance(value, str):
            return _parts(value)
        return value

    @field_validator("allowed_hosts", "allowed_origins", "webhook_allow", mode="before")
    @classmethod
    def _split_hosts(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip().lower().rstrip("/") for part in value.split(",") if part.strip())
        return value

    @property
    def data_path(self) -> Path:
        return self.data_dir.expanduser()

    @property
    def store(self) -> str:
        """Path or URL of the store."""
        return self.store_url or str(self.data_path / "store")

    @property
    def keys_path(self) -> Path:
        return self.keys_file or self.data_path / "keys"

    @property
    def webhook_allowed(self) -> Allowed:
        return Allowed.parse(self.webhook_allow)

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """The newest first; none when Redis keeps one."""
        return _parts(self.webhook_secret.get_secret_value())


def _parts(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())
