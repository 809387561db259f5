"""`python -m worker`: a Celery worker with the flags that NeuroPrune needs."""

import sys

from core.dispatch import QUEUE
from worker.app import app


def main() -> None:
    """Be the worker until it is told to stop; arguments are passed on to Celery.

    Celery's own command would look for the app in the working directory first, whatever lies there.
    """
    flags = ["--queues", QUEUE, "--loglevel", "INFO", "--without-gossip", "--without-mingle"]
    sys.exit(app.worker_main(["worker", *flags, *sys.argv[1:]]))


if __name__ == "__main__":
    main()
