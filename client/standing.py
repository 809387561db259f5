"""Where a job stands, in words."""

from collections.abc import Iterator

from client.answers import Json
from client.display import metrics_line, time_left
from core.jobs.state import Status


def standing(job: Json) -> str:
    """The status, and the phase; a job that has ended keeps the one that it ended in, which tells of a failure."""
    return f"{job['status']} ({job['phase']})" if job["phase"] and job["status"] != Status.SUCCEEDED else job["status"]


def sentences(job: Json) -> Iterator[str]:
    """A line for each thing that a job says about itself."""
    yield f"{job['id']} is {standing(job)}{': ' + job['error']['message'] if job['error'] else '.'}"
    yield from place_in_queue(job)
    # Otherwise it is that of an attempt which is over.
    if job["progress"] and job["status"] == Status.RUNNING:
        yield _progress(job["progress"])
    yield from (f"warning: {warning}" for warning in job["warnings"])
    if job.get("kept_until"):  # which an older service does not say
        yield f"It is kept until {moment(job['kept_until'])} (UTC)."


def place_in_queue(job: Json) -> Iterator[str]:
    """Where a job waits, and why; nothing of one that does not."""
    if job["queue"]:
        yield f"Number {job['queue']['position']} in the queue. {job['queue']['reason']}"


def moment(timestamp: str) -> str:
    """A time as a person reads it."""
    return timestamp[:19].replace("T", " ")


def _progress(progress: Json) -> str:
    parts = [f"{progress['fraction']:.0%} done", metrics_line(progress), time_left(progress["eta_at"])]
    return f"{', '.join(part for part in parts if part)}."
