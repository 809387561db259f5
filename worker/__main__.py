"""`python -m worker`: a Celery worker with the flags that NeuroPrune needs."""

import sys
from importlib import import_module

from celery.bin.celery import celery

from core.dispatch import QUEUE
from core.errors import ConfigurationError


def main() -> None:
    """Be the worker until it is told to stop; arguments are passed on to Celery."""
    try:
        # Celery, which would look in the working directory first, whatever lies there, takes what is imported already.
        import_module("worker.app")
    except ConfigurationError as error:
        sys.exit(str(error))
    flags = ["--queues", QUEUE, "--loglevel", "INFO", "--without-gossip", "--without-mingle"]
    command = ["--app", "worker.app:app", "worker", *flags, *sys.argv[1:]]
    celery.main(args=command, prog_name="celery", auto_envvar_prefix="CELERY")


if __name__ == "__main__":
    main()
