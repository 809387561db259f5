"""`python -m worker`: a Celery worker with the flags and signals that NeuroPrune needs.

SIGTERM stops the running job and gives it back to the queue, instead of waiting for hours until it is done.
"""

import os
import sys

from core.dispatch import QUEUE


def main() -> None:
    """Become the worker; arguments are passed on to Celery."""
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"  # read by Celery's process pool when it is imported
    celery = [sys.executable, "-m", "celery", "--app", "worker.app:app", "worker"]
    flags = ["--queues", QUEUE, "--loglevel", "INFO", "--without-gossip", "--without-mingle"]
    os.execv(sys.executable, [*celery, *flags, *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    main()
