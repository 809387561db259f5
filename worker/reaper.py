"""Finds what got lost: jobs whose worker vanished, messages that never arrived, folders nobody will remove.

One thread a worker, in its main process; the database makes it harmless that there are several.
"""

import logging
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery.signals import worker_ready, worker_shutdown

from core.db import create_engine
from core.dispatch import QUEUE, Dispatcher
from core.errors import NotFoundError
from core.jobs.state import ACTIVE
from core.jobs.store import JobStore
from core.settings import Settings, get_settings
from core.storage import Storage
from worker.supervisor import checkpoint_prefix

logger = logging.getLogger(__name__)


class Reaper:
    """One round after the other until it is stopped."""

    def __init__(
        self, store: JobStore, storage: Storage, dispatcher: Dispatcher, settings: Settings, worker: str
    ) -> None:
        self._store = store
        self._storage = storage
        self._dispatcher = dispatcher
        self._settings = settings
        self._worker = worker
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Begin at once."""
        self._thread.start()

    def stop(self) -> None:
        """Return when the round under way is over."""
        self._stopping.set()
        self._thread.join(self._settings.reaper_interval_seconds)

    def round(self) -> None:
        """Say that this worker lives; take lost jobs back, send waiting ones again; sweep what ended jobs left."""
        self._store.worker_seen(self._worker, [QUEUE])
        for job_id in self._store.reap():
            logger.warning("job %s lost its worker and waits again", job_id)
        if self._settings.queue_timeout_seconds is not None:
            for job_id in self._store.expire(self._settings.queue_timeout_seconds):
                logger.warning("job %s waited too long and has expired", job_id)
        self._send_again()
        self._sweep()
        self._sweep_checkpoints()

    def _send_again(self) -> None:
        waiting = self._store.undispatched(self._settings.redispatch_seconds)
        if not waiting or not self._dispatcher.is_drained():
            return
        for job_id in waiting:
            if not self._dispatcher.job_ready(job_id):
                break  # the broker is down: the next round tries again
            self._store.mark_dispatched(job_id)

    def _sweep(self) -> None:
        for folder in self._settings.work_dir.glob("job_*-*"):
            if not self._is_in_use(folder):
                logger.warning("removing %s, left by a worker that vanished", folder)
                shutil.rmtree(folder, ignore_errors=True)

    def _sweep_checkpoints(self) -> None:
        for job_id in self._store.finished_with_checkpoints(self._settings.checkpoint_retention_seconds):
            if self._store.forget_checkpoints(job_id):
                self._storage.delete_prefix(checkpoint_prefix(job_id))

    def _is_in_use(self, folder: Path) -> bool:
        job_id, _, attempt = folder.name.rpartition("-")
        with suppress(NotFoundError):
            job = self._store.get(job_id)
            return job.status in ACTIVE and str(job.attempt) == attempt
        return False

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.round()
            except Exception:  # whatever it is, the next round may work
                logger.exception("the reaper's round failed")
            self._stopping.wait(self._settings.reaper_interval_seconds)


def _start(sender: Any, **_: Any) -> None:
    settings = get_settings()
    engine = create_engine(settings.database_url)
    store = JobStore(engine, lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts)
    storage = Storage(settings.storage_url)
    reaper = Reaper(store, storage, Dispatcher(settings.broker_url), settings, worker=sender.hostname)
    reaper.start()

    def stop(**_: Any) -> None:
        reaper.stop()
        engine.dispose()

    worker_shutdown.connect(stop, weak=False)


worker_ready.connect(_start, weak=False)
