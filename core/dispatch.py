"""Tells the workers through the broker that a job may be ready.

The message is only a wake-up call. One that is lost costs time, never a job: the reaper finds jobs that nobody
claimed and sends them again.
"""

import logging
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis import RedisError

TASK_NAME = "worker.tasks.run_job"
QUEUE = "cpu"
KEY_PREFIX = "np:"
"""Before every key in the broker, so that one server can be shared."""

_TIMEOUT_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Dispatcher:
    """Publishes jobs to the workers' queue; best effort, and quick to give up."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("neuroprune-dispatch", broker=broker_url, set_as_current=False)
        self._app.conf.update(
            task_ignore_result=True,
            task_publish_retry=False,
            task_serializer="json",
            broker_transport_options={
                "global_keyprefix": KEY_PREFIX,
                "socket_timeout": _TIMEOUT_SECONDS,
                "socket_connect_timeout": _TIMEOUT_SECONDS,
                # Without these two, kombu looks for the broker for as long as it takes.
                "max_retries": 0,
                "connect_retries_timeout": _TIMEOUT_SECONDS,
            },
        )

    def connect(self) -> None:
        """Open what the first job would have to open, which takes long enough for the second to overtake it.

        Never raises: a broker that cannot be reached now is sought again for every job.
        """
        try:
            with self._app.producer_pool.acquire(block=True) as producer:
                producer.channel.client.ping()
        except (OperationalError, RedisError, OSError) as error:
            logger.warning("the broker cannot be reached yet: %s", error)

    def job_ready(self, job_id: str) -> bool:
        """Publish, and say whether the broker took it; never raises, and gives up after about two seconds."""
        try:
            self._app.send_task(TASK_NAME, args=[job_id], queue=QUEUE, retry=False)
        except (OperationalError, RedisError, OSError) as error:
            logger.warning("job %s could not be published and will be sent later: %s", job_id, error)
            return False
        return True

    def is_drained(self) -> bool:
        """Whether no message waits; while some do, workers will come, and more messages help nobody."""
        return self._backlog() == 0

    def is_reachable(self) -> bool:
        """Whether the broker answers."""
        return self._backlog() is not None

    def close(self) -> None:
        """Close the connections to the broker."""
        self._app.close()

    def _backlog(self) -> int | None:
        """Messages in the queue; None if the broker does not say."""
        try:
            with self._app.connection_for_write() as connection:
                channel: Any = connection.default_channel
                return int(channel.queue_declare(QUEUE).message_count)
        except (OperationalError, RedisError, OSError) as error:
            logger.warning("the broker cannot be asked: %s", error)
            return None
