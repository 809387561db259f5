"""The real API with a fault point: it dies after it has committed a job and before it has told the broker."""

import os
import random
import signal

from fastapi import FastAPI

from api.app import create_app as create_real_app
from core.dispatch import Dispatcher
from core.settings import get_settings

_SHARE = 0.5


class MortalDispatcher(Dispatcher):
    """Kills its process instead of publishing, every other time."""

    def job_ready(self, job_id: str) -> bool:
        """As the real one, if the process lives to do it."""
        if random.random() < _SHARE:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().job_ready(job_id)


def create_app() -> FastAPI:
    """For uvicorn."""
    settings = get_settings()
    return create_real_app(settings, dispatcher=MortalDispatcher(settings.broker_url))
