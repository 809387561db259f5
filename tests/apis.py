"""Fixtures of the API: the real application over real HTTP, with a broker that only remembers."""

import io
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import structlog

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
    connected: bool = False
    sent: list[str] = field(default_factory=list)

    def connect(self) -> None:
        self.connected = True

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
    storage_root: Path
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


@pytest.fixture(scope="session")
def served_api(database, tmp_path_factory):
    """The running API of a session, its storage folder and its broker."""
    root = tmp_path_factory.mktemp("service")
    settings = Settings(
        database_url=database,
        storage_url=str(root / "storage"),
        work_dir=root / "work",
        max_upload_bytes=MAX_UPLOAD_BYTES,
        max_unpacked_bytes=10 * MAX_UPLOAD_BYTES,
    )
    dispatcher = RememberingDispatcher()
    # As the service's own, tracebacks are plain: the default ones print local variables, for seconds.
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])
    with served(create_app(settings, dispatcher=dispatcher)) as http:
        yield http, root / "storage", dispatcher


@pytest.fixture
def service(served_api, store):
    """The API, with nothing stored."""
    http, root, dispatcher = served_api
    dispatcher.reachable = True
    yield Service(http, store, Storage(str(root)), root, dispatcher)
    shutil.rmtree(root, ignore_errors=True)
