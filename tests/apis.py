"""Fixtures of the API: the real application over real HTTP, with a broker that only remembers."""

import io
from dataclasses import dataclass, field

import httpx
import pytest

from api.app import create_app
from core.jobs.store import JobStore
from core.progress import Artifact, Succeeded
from core.settings import Settings
from core.storage import Storage
from tests.servers import served

MAX_UPLOAD_BYTES = 300_000


@dataclass
class RememberingDispatcher:
    """Stands in for the broker."""

    reachable: bool = True
    sent: list[str] = field(default_factory=list)

    def job_ready(self, job_id: str) -> bool:
        if self.reachable:
            self.sent.append(job_id)
        return self.reachable

    def is_reachable(self) -> bool:
        return self.reachable

    def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True)
class Service:
    """A running API and what lies behind it."""

    http: httpx.Client
    store: JobStore
    storage: Storage
    dispatcher: RememberingDispatcher

    def succeed(self, job_id: str, files: dict[str, bytes]) -> None:
        """Do the worker's part: claim, run, store the files, finish."""
        lease = self.store.claim(job_id, "worker")
        self.store.start(lease)
        artifacts = []
        for name, content in files.items():
            stored = self.storage.put(f"artifacts/{job_id}/{lease.attempt}/{name}", io.BytesIO(content))
            artifacts.append(
                Artifact(name=name, size=stored.size, sha256=stored.sha256, media_type="application/octet-stream")
            )
        self.store.finish(lease, Succeeded(metrics_summary={"cosine": 0.9}, artifacts=artifacts))


@pytest.fixture
def service(database_url, store, tmp_path):
    settings = Settings(
        database_url=database_url,
        storage_url=str(tmp_path / "storage"),
        work_dir=tmp_path / "work",
        max_upload_bytes=MAX_UPLOAD_BYTES,
        max_unpacked_bytes=10 * MAX_UPLOAD_BYTES,
    )
    dispatcher = RememberingDispatcher()
    with served(create_app(settings, dispatcher=dispatcher)) as http:
        yield Service(http, store, Storage(settings.storage_url), dispatcher)
