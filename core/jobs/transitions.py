"""The only two statements that change a job: a status transition, and a note while it runs.

Both are one UPDATE whose WHERE clause carries the rule, so that of two writers only one succeeds; both append the
event that tells about it in the same transaction.
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from core.db import job_attempts, job_events, jobs, utcnow
from core.jobs.records import AttemptOutcome, EventType
from core.jobs.state import ACTIVE, TERMINAL, Status, sources


def transition(
    connection: Connection,
    job_id: str,
    target: Status,
    *,
    reason: str,
    values: Mapping[str, Any] | None = None,
    guard: sa.ColumnElement[bool] | None = None,
    outcome: AttemptOutcome | None = None,
) -> RowMapping | None:
    """Move the job to `target` if the table of transitions and the guard allow it; the new row, or None.

    Where that ends an attempt, its record says how: `outcome`, or as the job itself.
    """
    changes: dict[str, Any] = {"status": target}
    if target not in ACTIVE:
        changes |= {"owner": None, "lease_expires_at": None}
    if target in TERMINAL:
        changes["finished_at"] = utcnow()
    if target is Status.QUEUED:
        changes |= {"queued_at": utcnow(), "dispatched_at": None, "phase": None, "progress": None}
        changes |= {"finished_at": None, "error": None}
    where = jobs.c.status.in_(sorted(sources(target)))
    row = _update(connection, job_id, changes | dict(values or {}), where if guard is None else where & guard)
    if row is not None:
        data = {"status": target, "attempt": row["attempt"], "reason": reason}
        if row["error"]:
            data["error"] = row["error"]
        append_event(connection, row, "status", data)
        if target not in ACTIVE:
            _end_attempt(connection, row, outcome or target, reason)
    return row


def note(
    connection: Connection,
    job_id: str,
    event_type: EventType,
    data: dict[str, Any],
    *,
    values: Mapping[str, Any],
    guard: sa.ColumnElement[bool],
) -> RowMapping | None:
    """Change what an active job says about itself; the new row, or None where the guard does not hold."""
    row = _update(connection, job_id, values, jobs.c.status.in_(sorted(ACTIVE)) & guard)
    if row is not None:
        append_event(connection, row, event_type, data)
    return row


def append_event(connection: Connection, row: RowMapping, event_type: EventType, data: dict[str, Any]) -> None:
    """Add the event whose number is the row's `last_seq`; the row's own lock makes the numbers gapless."""
    connection.execute(
        sa.insert(job_events).values(
            job_id=row["id"], seq=row["last_seq"], type=event_type, data=data, created_at=utcnow()
        )
    )


def _end_attempt(connection: Connection, row: RowMapping, outcome: str, reason: str) -> None:
    """Write down how the job's attempt ended, if one was under way."""
    under_way = (job_attempts.c.job_id == row["id"]) & job_attempts.c.ended_at.is_(None)
    values = {"ended_at": utcnow(), "outcome": outcome, "reason": reason}
    connection.execute(sa.update(job_attempts).where(under_way).values(values))


def _update(
    connection: Connection, job_id: str, values: Mapping[str, Any], where: sa.ColumnElement[bool]
) -> RowMapping | None:
    statement = (
        sa.update(jobs)
        .where(jobs.c.id == job_id, where)
        .values(last_seq=jobs.c.last_seq + 1, **values)
        .returning(*jobs.c)
    )
    return connection.execute(statement).mappings().one_or_none()
