"""What a supervisor hands to the child: one file in the work folder."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from core.jobs.spec import JobSpec
from core.progress import Checkpointed

_FILENAME = "job.json"


class Upload(BaseModel):
    """An uploaded file that the job reads; `key` is where `core.storage` keeps it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    filename: str
    sha256: str


class Assignment(BaseModel):
    """One attempt at one job, with all that the child may know; `files` are by file id, `checkpoints` by stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job_id: str
    attempt: int
    spec: JobSpec
    files: dict[str, Upload]
    storage_url: str
    artifact_prefix: str
    checkpoint_prefix: str
    checkpoints: dict[str, Checkpointed]

    def write(self, work_dir: Path) -> None:
        """Leave it where `read` finds it."""
        (work_dir / _FILENAME).write_text(self.model_dump_json())

    @classmethod
    def read(cls, work_dir: Path) -> Self:
        """Inverse of `write`."""
        return cls.model_validate_json((work_dir / _FILENAME).read_bytes())
