"""What the routes are given: the services of the application, and checked path parameters."""

import re
from dataclasses import dataclass
from typing import Annotated, Protocol

from anyio import CapacityLimiter
from fastapi import Depends, Request

from core.errors import NotFoundError, shown
from core.jobs.store import JobStore
from core.settings import Settings
from core.storage import Storage

_JOB_ID = re.compile(r"job_[0-9a-f]{32}")
_FILE_ID = re.compile(r"file_[0-9a-f]{32}")


class JobDispatcher(Protocol):
    """Wakes the workers; best effort."""

    def connect(self) -> None:
        """Make ready, so that the first job is told as quickly as those after it."""
        ...

    def job_ready(self, job_id: str) -> bool:
        """Say that the job may be claimed; False if that could not be said."""
        ...

    def is_reachable(self) -> bool:
        """Whether the broker answers."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """All that the routes work with."""

    settings: Settings
    store: JobStore
    storage: Storage
    dispatcher: JobDispatcher
    upload_slots: CapacityLimiter


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _store(request: Request) -> JobStore:
    return _services(request).store


def _storage(request: Request) -> Storage:
    return _services(request).storage


def _job_id(job_id: str) -> str:
    if not _JOB_ID.fullmatch(job_id):
        raise NotFoundError(f"There is no job {shown(job_id)}.")
    return job_id


def _file_id(file_id: str) -> str:
    if not _FILE_ID.fullmatch(file_id):
        raise NotFoundError(f"There is no file {shown(file_id)}.")
    return file_id


Provided = Annotated[Services, Depends(_services)]
Store = Annotated[JobStore, Depends(_store)]
Stored = Annotated[Storage, Depends(_storage)]
JobId = Annotated[str, Depends(_job_id)]
FileId = Annotated[str, Depends(_file_id)]
