"""Fixtures of the API: the real application over real HTTP, with a broker that only remembers."""

import errno
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import pytest
import sqlalchemy as sa
import structlog
from fsspec import AbstractFileSystem

from api.app import create_app
from core.db import utcnow, workers
from core.jobs.store import JobStore
from core.progress import Artifact, Succeeded
from core.settings import Settings
from core.storage import Storage
from tests.servers import served

MAX_UPLOAD_BYTES = 300_000
LIVE_SECONDS, SILENT_SECONDS = 20, 31
"""How long ago a worker showed itself that is counted on, and one that is not any more."""
PATIENCE_SECONDS = 30.0

FOLDER, REMOTE = "folder", "remote"
on_every_store = pytest.mark.parametrize("storage_url", [FOLDER, REMOTE], indirect=True, scope="session")
"""For tests of uploads: in a folder the API checks the file itself, of a remote store's a copy."""
on_remote_store = pytest.mark.parametrize("storage_url", [REMOTE], indirect=True, scope="session")


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
    settings: Settings
    dispatcher: RememberingDispatcher

    def see_worker(self, name: str, seconds_ago: float) -> None:
        """A worker showed itself then, and not since."""
        self.store.worker_seen(name, ["cpu"])
        seen = sa.update(workers).where(workers.c.name == name).values(seen_at=utcnow(-seconds_ago))
        with self.store._writer.begin() as connection:
            connection.execute(seen)

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


def until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Return once the condition holds, which it does within this time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="session")
def storage_url(request, tmp_path_factory):
    """A folder; in memory, in a remote store's place, where a test says so by one of the marks above."""
    if getattr(request, "param", FOLDER) == REMOTE:
        return "memory://service"
    return str(tmp_path_factory.mktemp("service") / "storage")


@pytest.fixture(scope="session")
def served_api(database, storage_url, tmp_path_factory):
    """The running API of a session, its settings and its broker."""
    settings = Settings(
        database_url=database,
        storage_url=storage_url,
        work_dir=tmp_path_factory.mktemp("service") / "work",
        max_upload_bytes=MAX_UPLOAD_BYTES,
        max_unpacked_bytes=10 * MAX_UPLOAD_BYTES,
    )
    dispatcher = RememberingDispatcher()
    # As the service's own, tracebacks are plain: the default ones print local variables, for seconds.
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])
    with served(create_app(settings, dispatcher=dispatcher)) as http:
        yield http, settings, dispatcher


@pytest.fixture
def service(served_api, store):
    """The API, with nothing stored."""
    http, settings, dispatcher = served_api
    dispatcher.reachable = True
    storage = Storage(settings.storage_url)
    yield Service(http, store, storage, settings, dispatcher)
    for prefix in ("uploads", "artifacts"):
        storage.delete_prefix(prefix)


@pytest.fixture
def refuse_to_open(monkeypatch):
    """A function that makes the store, whatever it is, refuse to open anything, after so many times that it does."""
    opens = AbstractFileSystem.open

    def refuse(*, after: int = 0) -> None:
        left = iter(range(after))

        def open_or_refuse(*args, **kwargs):
            if next(left, None) is None:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            return opens(*args, **kwargs)

        monkeypatch.setattr(AbstractFileSystem, "open", open_or_refuse)

    return refuse
