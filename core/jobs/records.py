"""What the store hands out: plain frozen values, never a live database object."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from core.errors import ErrorCode
from core.jobs.keys import artifact_prefix
from core.jobs.state import Status

EventType = Literal["status", "phase", "progress", "warning", "checkpoint"]
Purpose = Literal["model", "dataset"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

AttemptOutcome = Literal["succeeded", "failed", "cancelled", "paused", "handed_back", "lost"]
"""How an attempt ended: as its job, or the job goes on without it. Only those that were lost count."""


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why a job failed; `param` is a JSON pointer into its spec."""

    code: ErrorCode
    message: str
    param: str | None
    retryable: bool
    phase: str | None
    attempt: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job is; `fraction` is of the whole job, 0 … 1."""

    fraction: float
    step: int | None
    total_steps: int | None
    eta_at: str | None
    message: str
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it stands; `version` grows by one with every event."""

    id: str
    name: str | None
    labels: dict[str, str]
    spec: dict[str, Any]
    resolved_spec: dict[str, Any]
    status: Status
    phase: str | None
    progress: Progress | None
    warnings: tuple[str, ...]
    error: JobFailure | None
    metrics_summary: dict[str, Any] | None
    attempt: int
    version: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> "Job":
        """From a row of `core.db.jobs`."""
        return cls(
            status=Status(row["status"]),
            progress=Progress(**row["progress"]) if row["progress"] else None,
            warnings=tuple(row["warnings"]),
            error=JobFailure(**row["error"]) if row["error"] else None,
            version=row["last_seq"],
            **{name: row[name] for name in _COPIED},
        )


_COPIED = (
    "id",
    "name",
    "labels",
    "spec",
    "resolved_spec",
    "phase",
    "metrics_summary",
    "attempt",
    "created_at",
    "started_at",
    "finished_at",
)


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a job's history; `seq` counts from 1 per job."""

    seq: int
    type: EventType
    data: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Attempt:
    """One worker's go at a job; the last three are None while it is under way."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    outcome: AttemptOutcome | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's right to change a job; the attempt is the fencing token."""

    job_id: str
    attempt: int
    owner: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The outcome of a job that was stopped because its user asked."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One uploaded file; `key` is where `core.storage` keeps it."""

    id: str
    filename: str
    purpose: Purpose
    size: int
    sha256: str
    key: str
    created_at: datetime
    columns: list[str] | None = None
    """Of its rows, as far as they were looked at; None where that is not known, as of models."""

    @property
    def cursor(self) -> str:
        """Its place among all files by age."""
        microseconds = (self.created_at - _EPOCH) // timedelta(microseconds=1)
        return f"{microseconds:016d}_{self.id}"

    @staticmethod
    def place_of(cursor: str) -> tuple[datetime, str]:
        """The moment and the id that a cursor names."""
        microseconds, _, file_id = cursor.partition("_")
        return _EPOCH + timedelta(microseconds=int(microseconds)), file_id


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """One file of a finished job's bundle."""

    job_id: str
    attempt: int
    name: str
    size: int
    sha256: str
    media_type: str

    @property
    def key(self) -> str:
        """Where `core.storage` keeps it."""
        return f"{artifact_prefix(self.job_id, self.attempt)}/{self.name}"


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker process and when it last showed itself."""

    name: str
    queues: tuple[str, ...]
    seen_at: datetime
