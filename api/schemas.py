"""What goes over the wire: requests and answers as models, which are also the OpenAPI document."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from core.catalog import MethodEntry
from core.errors import ErrorCode
from core.family import Family
from core.jobs.records import ArtifactRecord, AttemptOutcome, Event, EventType, FileRecord, Job, Purpose
from core.jobs.spec import JobSpec
from core.jobs.state import Status

_LABEL_KEY = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
_LABEL_VALUE = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class JobRequest(JobSpec):
    """A job spec, and what the user calls it."""

    name: str | None = Field(
        None, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$", description="Any title, one line."
    )
    labels: dict[_LABEL_KEY, _LABEL_VALUE] = Field(
        default_factory=dict, max_length=32, description="The user's own keys and values, 32 at most."
    )

    def spec(self) -> JobSpec:
        """The job spec alone."""
        return JobSpec.model_validate({name: getattr(self, name) for name in JobSpec.model_fields})


class _Answer(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class JobError(_Answer):
    """Why a job failed."""

    code: ErrorCode
    message: str
    param: str | None = Field(description="JSON pointer into the spec, where one field is to blame.")
    retryable: bool
    phase: str | None
    attempt: int


class JobProgress(_Answer):
    """How far a job is."""

    fraction: float = Field(description="Of the whole job, 0 … 1.")
    step: int | None = Field(description="Training steps done.")
    total_steps: int | None
    eta_at: datetime | None = Field(description="When the job will probably be done.")
    message: str
    metrics: dict[str, float] = Field(description="Current values, such as loss and sparsity.")


class JobQueue(_Answer):
    """Where a queued job waits."""

    position: int = Field(description="1 for the job that runs next.")
    reason: str


class JobDurations(_Answer):
    """Seconds; null until they are known."""

    queued_seconds: float | None = Field(description="From acceptance to the start of the last attempt.")
    run_seconds: float | None = Field(description="From the start of the last attempt to the end.")


class JobLinks(_Answer):
    """Paths of what belongs to a job."""

    self: str
    cancel: str
    pause: str
    resume: str
    retry: str
    attempts: str
    events: str
    artifacts: str


class JobObject(_Answer):
    """A job as it stands."""

    id: str
    object: Literal["job"] = "job"
    name: str | None
    labels: dict[str, str]
    status: Status
    phase: str | None = Field(description="What a running job does; tolerate values you do not know.")
    progress: JobProgress | None
    queue: JobQueue | None
    spec: dict[str, Any] = Field(description="As it was accepted.")
    resolved_spec: dict[str, Any] = Field(description="With the task's defaults filled in.")
    attempt: int
    version: int = Field(description="Grows with every event.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    kept_until: datetime | None = Field(description="When an ended job may be deleted unasked; null: never.")
    durations: JobDurations
    warnings: list[str]
    error: JobError | None
    metrics_summary: dict[str, Any] | None
    links: JobLinks

    @classmethod
    def of(cls, job: Job, queue: JobQueue | None, retention_seconds: float | None) -> "JobObject":
        """For the wire.

        Args:
            retention_seconds: How long ended jobs are kept, where they are not for ever.
        """
        path = f"/v1/jobs/{job.id}"
        links = JobLinks(self=path, **{name: f"{path}/{name}" for name in JobLinks.model_fields if name != "self"})
        durations = JobDurations(
            queued_seconds=_seconds(job.created_at, job.started_at),
            run_seconds=_seconds(job.started_at, job.finished_at),
        )
        kept_until = None
        if job.finished_at is not None and retention_seconds is not None:
            kept_until = job.finished_at + timedelta(seconds=retention_seconds)
        ours = {"queue": queue, "links": links, "durations": durations, "kept_until": kept_until}
        return cls.model_validate(asdict(job) | ours)


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else round((end - start).total_seconds(), 3)


class JobPage(_Answer):
    """Jobs, newest first."""

    data: list[JobObject]
    has_more: bool
    next_cursor: str | None


class AttemptObject(_Answer):
    """One worker's go at a job; the last three are null while it is under way."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    outcome: AttemptOutcome | None = Field(
        description="`lost` attempts are limited; `handed_back` and `paused` ones stopped in good order."
    )
    reason: str | None


class AttemptList(_Answer):
    """Attempts in order."""

    data: list[AttemptObject]


class EventObject(_Answer):
    """One entry of a job's history; in an event stream `seq` is its id and `type` its event."""

    seq: int
    type: EventType
    data: dict[str, Any]
    created_at: datetime

    @classmethod
    def of(cls, event: Event) -> "EventObject":
        """For the wire."""
        return cls.model_validate(event)


class EventPage(_Answer):
    """Events in order."""

    data: list[EventObject]
    has_more: bool


class ArtifactObject(_Answer):
    """One file of a bundle."""

    name: str
    bytes: int
    sha256: str
    media_type: str
    url: str

    @classmethod
    def of(cls, record: ArtifactRecord) -> "ArtifactObject":
        """For the wire."""
        return cls(
            name=record.name,
            bytes=record.size,
            sha256=record.sha256,
            media_type=record.media_type,
            url=f"/v1/jobs/{record.job_id}/artifacts/{quote(record.name)}",
        )


class ArtifactList(_Answer):
    """The files of a bundle by name."""

    data: list[ArtifactObject]


class FileObject(_Answer):
    """An upload."""

    id: str
    object: Literal["file"] = "file"
    filename: str
    purpose: Purpose
    bytes: int
    sha256: str
    columns: list[str] | None = Field(
        description="Columns of JSONL and CSV, by the first rows; null where they are not known, as of Parquet, "
        "and where there are more than 200 or one's name has more than 200 characters."
    )
    created_at: datetime

    @classmethod
    def of(cls, record: FileRecord) -> "FileObject":
        """For the wire."""
        return cls(
            id=record.id,
            filename=record.filename,
            purpose=record.purpose,
            bytes=record.size,
            sha256=record.sha256,
            columns=record.columns,
            created_at=record.created_at,
        )


class FilePage(_Answer):
    """Uploads, newest first."""

    data: list[FileObject]
    has_more: bool
    next_cursor: str | None


class MethodObject(_Answer):
    """A pruning method."""

    name: str
    title: str
    summary: str
    paper: str
    options: dict[str, Any] = Field(description="JSON schema of the options, units and defaults included.")

    @classmethod
    def of(cls, entry: MethodEntry) -> "MethodObject":
        """For the wire."""
        return cls.model_validate(entry.described())


class MethodList(_Answer):
    """All methods."""

    data: list[MethodObject]


class FamilyObject(_Answer):
    """An architecture that can be pruned."""

    model_type: str = Field(description="As in the model's config.json.")
    title: str
    tasks: list[str]
    uniform: list[str] = Field(description="What can go with structure uniform: heads, neurons, or nothing.")
    export_formats: list[str] = Field(
        description="What a job may ask for in `export.formats`; gguf for causal-lm only."
    )

    @classmethod
    def of(cls, family: Family) -> "FamilyObject":
        """For the wire."""
        return cls.model_validate(family.described())


class FamilyList(_Answer):
    """All families."""

    data: list[FamilyObject]


class Health(_Answer):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(_Answer):
    """Everything that a job needs is there."""

    status: Literal["ready"] = "ready"
    checks: Mapping[str, Literal["ok"]]
