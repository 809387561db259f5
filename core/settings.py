"""Settings of every process, read from environment variables with the prefix `NEUROPRUNE_`."""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import from_json
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from core.errors import ConfigurationError, shown

PREFIX = "NEUROPRUNE_"

_KEY = re.compile(r"[\x21-\x7e]{16,}")
_HOST = re.compile(r"\*|\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+")

Seconds = Annotated[float, Field(le=100 * 365.25 * 24 * 3600)]
"""A century at most: databases reckon with no endless times."""


class Settings(BaseSettings):
    """One deployment. Relative paths are taken from the working directory of the process."""

    # What is wrong may be a secret, and a server prints the error that keeps it from starting.
    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    database_url: str = Field(
        "sqlite:///.neuroprune/neuroprune.db",
        description="SQLAlchemy URL: sqlite:///… or postgresql+psycopg://…",
    )
    broker_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Celery broker: redis://… or redis+socket:///… (what is special in a path as in any URL).",
    )
    storage_url: str = Field(
        ".neuroprune/storage",
        description="Where uploads and artifacts live: a folder, or s3://bucket/prefix (AWS_… variables lead there).",
    )
    work_dir: Path = Field(
        Path(".neuroprune/work"), description="Scratch space of running jobs; emptied when they end."
    )
    model_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="Folders below which a job may name a model or data by path, separated as in PATH, or a JSON list; "
        "none by default.",
    )
    hub_offline: bool = Field(
        True, description="Whether jobs get from the Hugging Face Hub only what is in the cache already."
    )
    hub_home: Path | None = Field(
        None,
        description="Folder of the Hub's caches (hub/ of models, datasets/ of data), as HF_HOME, which is the default.",
    )
    max_upload_bytes: int = Field(4 * 2**30, gt=0, description="Largest file accepted by POST /v1/files, bytes.")
    max_unpacked_bytes: int = Field(
        16 * 2**30, gt=0, description="Largest total size of an uploaded model archive once unpacked, bytes."
    )
    job_disk_bytes: int = Field(
        64 * 2**30, gt=0, description="Most that one job's work folder may hold, inputs and bundle included, bytes."
    )
    max_attempts: int = Field(3, ge=1, description="Times a job is started before a lost worker fails it.")
    lease_seconds: Seconds = Field(60.0, gt=0, description="A running job whose lease is older than this is lost.")
    reaper_interval_seconds: Seconds = Field(5.0, gt=0, description="How often lost and unsent jobs are looked for.")
    redispatch_seconds: Seconds = Field(
        30.0, gt=0, description="A queued job that nobody claimed within this time is published again."
    )
    cancel_grace_seconds: Seconds = Field(2.0, ge=0, description="Between SIGINT and SIGKILL to a job's process.")
    run_timeout_seconds: Seconds = Field(24 * 3600.0, gt=0, description="Longest run of one attempt.")
    queue_timeout_seconds: Seconds | None = Field(
        None, gt=0, description="A job that waited longer than this for a worker expires; None: it waits on."
    )
    checkpoint_interval_seconds: Seconds = Field(
        300.0, gt=0, description="Time between two checkpoints of a training, from which another worker can go on."
    )
    checkpoint_retention_seconds: Seconds = Field(
        7 * 24 * 3600.0,
        ge=0,
        description="How long a job that ended without a bundle can be tried again from its checkpoints.",
    )
    retention_seconds: Seconds | None = Field(
        None,
        gt=0,
        description="How long ended jobs are kept with their bundles, and uploads that no job names, a century at "
        "most; None: until they are deleted.",
    )
    shutdown_grace_seconds: Seconds = Field(
        60.0, ge=0, description="How long a job's process may take to write a checkpoint when its worker stops."
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Keys of which a request to the API needs one, separated by commas or spaces, of 16 visible ASCII "
        "characters or more; none by default: the API is open to whoever reaches it.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        ("localhost", "127.0.0.1", "[::1]"),
        description="Names and addresses that the API goes by, without port, separated by commas or spaces; * for any.",
    )
    log_format: str = Field("console", pattern="^(console|json)$", description="console or json.")
    torch_threads: int | None = Field(
        None, ge=1, description="CPU threads of a job's process; by default OMP_NUM_THREADS, else all."
    )

    @field_validator("broker_url")
    @classmethod
    def _is_of_redis(cls, url: str) -> str:
        if not url.startswith(("redis://", "rediss://", "redis+socket://")):
            raise ValueError("it has to begin with redis://, rediss:// or redis+socket://")
        return url

    @field_validator("database_url", "broker_url", "storage_url", "work_dir", mode="before")
    @classmethod
    def _is_named(cls, value: object) -> object:
        if value == "":  # as a folder, it would be the working directory
            raise ValueError("it is empty; unset it for the default")
        return value

    @field_validator("model_roots", mode="before")
    @classmethod
    def _as_paths(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        # An empty part would be the working directory, and allow all that lies there.
        return from_json(value) if value.startswith("[") else [part for part in value.split(os.pathsep) if part]

    @field_validator("api_keys", "allowed_hosts", mode="before")
    @classmethod
    def _as_words(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        words = value.replace(",", " ").split()
        if not words:  # a secret that was not found must not open the service
            raise ValueError("it is empty; unset it for the default")
        return words

    @field_validator("api_keys")
    @classmethod
    def _are_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(_KEY.fullmatch(key.get_secret_value()) for key in keys):
            raise ValueError("each key has to have 16 characters or more, all of them visible ASCII")
        return keys

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{shown(host)} is no name or address without port, such as prune.example or [::1]")
        return hosts


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read once, when first asked for.

    Raises:
        ConfigurationError: a variable does not hold what it has to.
    """
    try:
        return Settings()
    except ValidationError as error:
        faults = [f"{PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()]
        raise ConfigurationError(f"The settings are wrong. {'; '.join(faults)}.") from error
