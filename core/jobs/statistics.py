"""How the service does, counted in the database when somebody asks: nothing is kept between two questions.

What only ever grows is counted from the attempts: a job that is tried again forgets how it ended, and one that is
deleted everything; they stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from core.db import deletions, job_attempts, jobs, seconds_between, utcnow, workers
from core.errors import ErrorCode
from core.jobs.deletion import is_due
from core.jobs.records import AttemptOutcome
from core.jobs.state import ACTIVE, Status

_LOST: ErrorCode = "worker_lost"


@dataclass(frozen=True, slots=True)
class Durations:
    """Of how many, and how long together."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """All figures are of the moment; seconds are by the database's clock.

    Attributes:
        jobs: number of jobs by status; every status is there.
        failures: number of attempts that failed by the code of their error; those that were lost are `worker_lost`,
            also where the job went on.
        attempts: starts of jobs, of all jobs together.
        oldest_queued_seconds: how long the job is in the queue that is there longest; 0 where none is.
        shortest_lease_seconds: what is left of the lease that ends first, negative once it is over; None without one.
        waited: from when it was queued to its first start, of all jobs that were started.
        ran: from start to end, by outcome, of the attempts that have ended.
        deletions: what is to be removed from the store by now, in prefixes.
        worker_silence_seconds: time since each known worker last showed itself.
    """

    jobs: Mapping[Status, int]
    failures: Mapping[str, int]
    attempts: int
    oldest_queued_seconds: float
    shortest_lease_seconds: float | None
    waited: Durations
    ran: Mapping[AttemptOutcome, Durations]
    deletions: int
    worker_silence_seconds: Mapping[str, float]


def count(connection: Connection) -> Statistics:
    """Ask the database, in one transaction."""
    by_status = _pairs(connection, sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status))
    code = job_attempts.c.reason  # of the error, where an attempt failed
    failures = sa.select(code, sa.func.count()).where(job_attempts.c.outcome == "failed").group_by(code)
    age = sa.func.max(seconds_between(jobs.c.queued_at, utcnow()))
    lease = sa.func.min(seconds_between(utcnow(), jobs.c.lease_expires_at))
    wait = sa.func.sum(seconds_between(job_attempts.c.queued_at, job_attempts.c.started_at))
    waits = sa.select(sa.func.count(), wait).where(job_attempts.c.number == 1)
    run = sa.func.sum(seconds_between(job_attempts.c.started_at, job_attempts.c.ended_at))
    ended = sa.select(job_attempts.c.outcome, sa.func.count(), run).where(job_attempts.c.ended_at.is_not(None))
    silence = sa.select(workers.c.name, seconds_between(workers.c.seen_at, utcnow()))
    waited = connection.execute(waits).one()
    ran: dict[AttemptOutcome, Durations] = {
        outcome: Durations(number, float(seconds))
        for outcome, number, seconds in connection.execute(ended.group_by(job_attempts.c.outcome))
    }
    lost = ran["lost"].count if "lost" in ran else 0
    return Statistics(
        jobs={status: by_status.get(status, 0) for status in Status},
        failures=_pairs(connection, failures) | {_LOST: lost},
        attempts=connection.scalar(sa.select(sa.func.count()).select_from(job_attempts)) or 0,
        oldest_queued_seconds=_seconds(connection, sa.select(age).where(jobs.c.status == Status.QUEUED)) or 0.0,
        shortest_lease_seconds=_seconds(connection, sa.select(lease).where(jobs.c.status.in_(sorted(ACTIVE)))),
        waited=Durations(waited[0], float(waited[1] or 0)),
        ran=ran,
        deletions=connection.scalar(sa.select(sa.func.count()).select_from(deletions).where(is_due())) or 0,
        worker_silence_seconds={name: float(seconds) for name, seconds in connection.execute(silence)},
    )


def _pairs(connection: Connection, statement: sa.Select[str, int]) -> dict[str, int]:
    return {key: number for key, number in connection.execute(statement)}  # noqa: C416 - typed


def _seconds(connection: Connection, statement: sa.Select[Any]) -> float | None:
    value = connection.scalar(statement)
    return None if value is None else float(value)
