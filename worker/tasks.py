"""The one Celery task: supervise a job. It brings no torch into the worker's process."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FrameType

from core.db import create_engine
from core.dispatch import TASK_NAME, Dispatcher
from core.jobs.store import JobStore
from core.settings import Settings, get_settings
from core.storage import Storage
from worker.app import app
from worker.supervisor import Supervisor


@app.task(name=TASK_NAME)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Run the job to its end, or give it back when the worker is told to stop."""
    settings = get_settings()
    with stop_signals() as stopping:
        supervisor = Supervisor(
            open_store(settings),
            Storage(settings.storage_url),
            open_dispatcher(settings),
            settings,
            owner=f"{socket.gethostname()}:{os.getpid()}",
            should_stop=stopping.is_set,
        )
        supervisor.run(job_id)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Within, the signals that ask this process to end set the event instead."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGQUIT)}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@lru_cache
def open_store(settings: Settings) -> JobStore:
    """The store of this process: connections must not cross a fork, so it is opened by the first job."""
    engine = create_engine(settings.database_url)
    return JobStore(engine, lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts)


@lru_cache
def open_dispatcher(settings: Settings) -> Dispatcher:
    """The dispatcher of this process."""
    return Dispatcher(settings.broker_url)
