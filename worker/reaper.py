"""Finds what got lost: jobs whose worker vanished, messages that never arrived, folders and checkpoints nobody needs.

Two threads a worker, in its main process, as a store that does not answer must not keep the worker from saying that it
lives; the database makes it harmless that there are several.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from celery.signals import worker_ready, worker_shutdown

from core.db import create_engine
from core.dispatch import QUEUE, Dispatcher
from core.errors import NotFoundError, StorageError
from core.jobs.keys import CHECKPOINTS, checkpoints_of
from core.jobs.state import ACTIVE, TERMINAL
from core.jobs.store import JobStore
from core.settings import Settings, get_settings
from core.storage import Storage
from worker.quota import check_room

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
        self._may_have_strays = True
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(work,), name=work.__name__, daemon=True)
            for work in (self.round, self.sweep)
        ]

    def start(self) -> None:
        """Begin at once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Return when what is under way is over, or takes too long; nobody counts on this worker any more."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(self._settings.reaper_interval_seconds)
        try:
            self._store.worker_gone(self._worker)
        except sa.exc.SQLAlchemyError as error:
            logger.warning("this worker is counted until its silence is noticed: %s", error)

    def round(self) -> None:
        """Take lost jobs back, send waiting ones again; say that this worker can take jobs."""
        for job_id in self._store.reap():
            logger.warning("job %s lost its worker and waits again", job_id)
        if self._settings.queue_timeout_seconds is not None:
            for job_id in self._store.expire(self._settings.queue_timeout_seconds):
                logger.warning("job %s waited too long and has expired", job_id)
        self._send_again()
        self._show_itself()

    def sweep(self) -> None:
        """Remove what ended jobs and vanished workers left, and what was deleted or is too old."""
        self._sweep_folders()
        self._delete_old()
        self._sweep_deleted()
        self._sweep_checkpoints()

    def _show_itself(self) -> None:
        """Last, as a disk may hang: whether others' jobs are looked after must not depend on this worker's."""
        try:
            check_room(self._settings.work_dir)
        except OSError as error:
            logger.warning("this worker is not counted while it has no room to work in: %s", error)
        else:
            self._store.worker_seen(self._worker, [QUEUE])

    def _send_again(self) -> None:
        waiting = self._store.undispatched(self._settings.redispatch_seconds)
        if not waiting or not self._dispatcher.is_drained():
            return
        for job_id in waiting:
            if not self._dispatcher.job_ready(job_id):
                break  # the broker is down: the next round tries again
            self._store.mark_dispatched(job_id)

    def _sweep_folders(self) -> None:
        for folder in self._settings.work_dir.glob("job_*-*"):
            if not self._is_in_use(folder):
                logger.warning("removing %s, left by a worker that vanished", folder)
                shutil.rmtree(folder, ignore_errors=True)

    def _sweep_checkpoints(self) -> None:
        for job_id in self._store.finished_with_checkpoints(self._settings.checkpoint_retention_seconds):
            if self._store.forget_checkpoints(job_id):
                self._may_have_strays = True
        if self._may_have_strays:
            self._may_have_strays = not self._sweep_strays()

    def _sweep_strays(self) -> bool:
        """Remove checkpoints that no record knows of; whether none is left.

        They were forgotten, or were never recorded: their writer was killed, and the job has ended since.
        """
        strays = [job_id for job_id in self._storage.names(CHECKPOINTS) if self._is_stray(job_id)]
        staying = [job_id for job_id in strays if not self._is_removed(checkpoints_of(job_id))]
        return not staying

    def _delete_old(self) -> None:
        if self._settings.retention_seconds is not None:
            for old in self._store.delete_old(self._settings.retention_seconds):
                logger.info("%s was kept for long enough and is deleted", old)

    def _sweep_deleted(self) -> None:
        prefixes = self._store.deletions()
        if prefixes:
            # Nothing is there, either, where the bucket is not.
            self._storage.check_writable()
        for prefix in prefixes:
            if self._is_removed(prefix):
                self._store.forget_deletion(prefix)

    def _is_removed(self, prefix: str) -> bool:
        """Remove what lies there; what cannot be removed must not keep the rest, and is tried again another time."""
        try:
            self._storage.delete_prefix(prefix)
        except StorageError as error:
            logger.warning("%s is needed no more, and still stored: %s", prefix, error)
            return False
        return True

    def _is_stray(self, job_id: str) -> bool:
        with suppress(NotFoundError):
            return self._store.get(job_id).status in TERMINAL and not self._store.checkpoints(job_id)
        # Another service's, which has another database.
        return False

    def _is_in_use(self, folder: Path) -> bool:
        job_id, _, attempt = folder.name.rpartition("-")
        with suppress(NotFoundError):
            job = self._store.get(job_id)
            return job.status in ACTIVE and str(job.attempt) == attempt
        return False

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                work()
            except Exception:  # whatever it is, the next time may work
                logger.exception("the reaper's %s failed", work.__name__)
            self._stopping.wait(self._settings.reaper_interval_seconds)


def _start(sender: Any, **_: Any) -> None:
    settings = get_settings()
    engine = create_engine(settings.database_url)
    store = JobStore(engine, lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts)
    storage = Storage(settings.storage_url)
    # Workers of one machine have the same host name.
    name = f"{sender.hostname}:{os.getpid()}"
    reaper = Reaper(store, storage, Dispatcher(settings.broker_url), settings, worker=name)
    reaper.start()

    def stop(**_: Any) -> None:
        reaper.stop()
        engine.dispose()

    worker_shutdown.connect(stop, weak=False)


worker_ready.connect(_start, weak=False)
