"""`python -m worker`: a Celery worker with the flags that NeuroPrune needs."""

import os
import sys

from core.dispatch import QUEUE


def main() -> None:
    """Become the worker; arguments are passed on to Celery."""
    celery = [sys.executable, "-m", "celery", "--app", "worker.app:app", "worker"]
    flags = ["--queues", QUEUE, "--loglevel", "INFO", "--without-gossip", "--without-mingle"]
    os.execv(sys.executable, [*celery, *flags, *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    main()
