"""The Celery worker: supervises one child process per job."""
