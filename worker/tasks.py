"""The one Celery task: supervise a job. It brings no torch into the worker's process."""

import logging
import os
import socket
import threading
from functools import lru_cache
from typing import Any

from celery.signals import worker_shutting_down

from core.db import create_engine
from core.dispatch import TASK_NAME, Dispatcher
from core.jobs.store import JobStore
from core.settings import Settings, get_settings
from core.storage import Storage
from worker.app import app
from worker.supervisor import Supervisor

logger = logging.getLogger(__name__)

_stopping = threading.Event()


def _stop(**_: Any) -> None:
    _stopping.set()


# Celery says so when it is asked to end, and then waits for the task.
worker_shutting_down.connect(_stop, weak=False)


@app.task(name=TASK_NAME)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Run the job that has waited longest to its end, or give it back when the worker is told to stop.

    Args:
        job_id: The one that this message was sent for, which is ready unless another message was faster.
    """
    logger.info("woken for job %s", job_id)
    settings = get_settings()
    supervisor = Supervisor(
        open_store(settings),
        # It only removes, between two renewals of the lease: what cannot be removed at once stays.
        Storage(settings.storage_url, attempts=1),
        open_dispatcher(settings),
        settings,
        owner=f"{socket.gethostname()}:{os.getpid()}",
        should_stop=_stopping.is_set,
    )
    supervisor.run_next()


@lru_cache
def open_store(settings: Settings) -> JobStore:
    """The store of this process, opened by the first job."""
    engine = create_engine(settings.database_url)
    return JobStore(engine, lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts)


@lru_cache
def open_dispatcher(settings: Settings) -> Dispatcher:
    """The dispatcher of this process."""
    return Dispatcher(settings.broker_url)
