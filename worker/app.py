"""The Celery application. The database is the truth; a message only says that a job may be ready.

Hence early acknowledgement and no result backend: a lost or doubled message is harmless, while redelivery by the
broker would start long jobs twice.
"""

from typing import Any

from celery import Celery
from celery.signals import setup_logging

from core import logs
from core.dispatch import KEY_PREFIX, QUEUE
from core.settings import get_settings

# worker.reaper holds no task: importing it ties the reaper to the worker's start.
app = Celery("neuroprune", broker=get_settings().broker_url, include=["worker.tasks", "worker.reaper"])
app.conf.update(
    task_default_queue=QUEUE,
    task_serializer="json",
    accept_content=["json"],
    task_ignore_result=True,
    task_acks_late=False,
    task_publish_retry=False,
    task_time_limit=None,  # the run timeout is the supervisor's
    # The job has a process of its own: the pool needs none, and a thread cannot get lost.
    worker_pool="threads",
    worker_concurrency=1,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "global_keyprefix": KEY_PREFIX,
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
    },
)


def _configure_logging(**_: Any) -> None:
    logs.configure(get_settings().log_format)


# Celery leaves logging alone where somebody listens to this.
setup_logging.connect(_configure_logging, weak=False)
