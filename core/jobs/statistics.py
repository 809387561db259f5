"""How the service does, counted in the database when somebody asks: nothing is kept between two questions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from core.db import jobs, seconds_between, utcnow, workers
from core.jobs.state import ACTIVE, TERMINAL, Status


@dataclass(frozen=True, slots=True)
class Durations:
    """Of how many jobs, and how long together."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """All figures are of the moment; seconds are by the database's clock.

    Attributes:
        jobs: number of jobs by status; every status is there.
        failures: number of failed jobs by the code of their error.
        attempts: starts of jobs, of all jobs together.
        oldest_queued_seconds: how long the job waits that has waited longest; 0 where none waits.
        shortest_lease_seconds: what is left of the lease that ends first, negative once it is over; None without one.
        waited: from submission to the last start, of the jobs that were started.
        ran: from the last start to the end, by final status, of the jobs that were started.
        worker_silence_seconds: time since each known worker last showed itself.
    """

    jobs: Mapping[Status, int]
    failures: Mapping[str, int]
    attempts: int
    oldest_queued_seconds: float
    shortest_lease_seconds: float | None
    waited: Durations
    ran: Mapping[Status, Durations]
    worker_silence_seconds: Mapping[str, float]


def count(connection: Connection) -> Statistics:
    """Ask the database, in one transaction."""
    by_status = _pairs(connection, sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status))
    code = jobs.c.error["code"].as_string()
    failures = sa.select(code, sa.func.count()).where(jobs.c.status == Status.FAILED).group_by(code)
    age = sa.func.max(seconds_between(jobs.c.created_at, utcnow()))
    lease = sa.func.min(seconds_between(utcnow(), jobs.c.lease_expires_at))
    started = jobs.c.started_at.is_not(None)
    wait = seconds_between(jobs.c.created_at, jobs.c.started_at)
    run = seconds_between(jobs.c.started_at, jobs.c.finished_at)
    ended = sa.select(jobs.c.status, sa.func.count(), sa.func.sum(run)).where(
        started, jobs.c.status.in_(sorted(TERMINAL))
    )
    silence = sa.select(workers.c.name, seconds_between(workers.c.seen_at, utcnow()))
    waited = connection.execute(sa.select(sa.func.count(), sa.func.sum(wait)).where(started)).one()
    return Statistics(
        jobs={status: by_status.get(status, 0) for status in Status},
        failures=_pairs(connection, failures),
        attempts=connection.scalar(sa.select(sa.func.sum(jobs.c.attempt))) or 0,
        oldest_queued_seconds=_seconds(connection, sa.select(age).where(jobs.c.status == Status.QUEUED)) or 0.0,
        shortest_lease_seconds=_seconds(connection, sa.select(lease).where(jobs.c.status.in_(sorted(ACTIVE)))),
        waited=Durations(waited[0], float(waited[1] or 0)),
        ran={
            Status(status): Durations(number, float(seconds))
            for status, number, seconds in connection.execute(ended.group_by(jobs.c.status))
        },
        worker_silence_seconds={name: float(seconds) for name, seconds in connection.execute(silence)},
    )


def _pairs(connection: Connection, statement: sa.Select[str, int]) -> dict[str, int]:
    return {key: number for key, number in connection.execute(statement)}  # noqa: C416 - typed


def _seconds(connection: Connection, statement: sa.Select[Any]) -> float | None:
    value = connection.scalar(statement)
    return None if value is None else float(value)
