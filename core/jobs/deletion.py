"""Deleting jobs and uploads: from the database at once, from the artifact store as soon as a worker comes to it.

The store may be slow, or away, and must not hold a transaction up. What has to go from it is written down where the
rows go, and reapers remove it until the store has done so.
"""

from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from core.db import deletions, files, job_files, jobs, utcnow
from core.errors import ConflictError
from core.jobs.keys import artifacts_of, checkpoints_of
from core.jobs.records import FileRecord, Job
from core.jobs.state import TERMINAL

DELETED_AT_ONCE = 10
"""Most jobs, and most uploads, that one transaction deletes because of their age: a job has about an event a second."""

UPLOAD_SECONDS = 24 * 3600
"""Within this, the row of an upload follows the note that its bytes may come to be stored; or it was cut off."""

_NAMED_IN_A_REFUSAL = 3


def delete_job(connection: Connection, job: Job) -> None:
    """Delete a job whose row is locked, with its history and its bundle.

    Raises:
        ConflictError: it has not ended.
    """
    if job.status not in TERMINAL:
        raise ConflictError(f"{job.id} is {job.status}; only a job that has ended can be deleted. Cancelling ends it.")
    _delete_jobs(connection, [job.id])


def delete_file(connection: Connection, file_id: str) -> None:
    """Delete an upload whose row is locked, so that no further job can come to name it: see `lock_files`.

    Raises:
        ConflictError: a job that has not ended reads it.
    """
    readers = (
        sa.select(jobs.c.id)
        .join_from(jobs, job_files)
        .where(job_files.c.file_id == file_id, jobs.c.status.not_in(sorted(TERMINAL)))
        .order_by(jobs.c.id)
    )
    found = list(connection.scalars(readers))
    if found:
        more = f" and {len(found) - _NAMED_IN_A_REFUSAL} more" if len(found) > _NAMED_IN_A_REFUSAL else ""
        named = ", ".join(found[:_NAMED_IN_A_REFUSAL])
        raise ConflictError(f"{file_id} cannot be deleted while jobs that read it have not ended: {named}{more}.")
    _delete_files(connection, [file_id])


def delete_old(connection: Connection, older_than_seconds: float) -> list[str]:
    """Delete jobs that ended longer ago than this, and older uploads that no job names (any more); the ids of both."""
    ended = (
        sa.select(jobs.c.id)
        .where(jobs.c.status.in_(sorted(TERMINAL)), jobs.c.finished_at < utcnow(-older_than_seconds))
        .limit(DELETED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    old_jobs = connection.scalars(ended).all()
    _delete_jobs(connection, old_jobs)
    unnamed = sa.select(files.c.id).where(~sa.exists().where(job_files.c.file_id == files.c.id))
    old = (
        unnamed.where(files.c.created_at < utcnow(-older_than_seconds))
        .limit(DELETED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    candidates = connection.scalars(old).all()
    # Once more, now that they are locked: a job may have come to name one of them just before.
    old_files = connection.scalars(unnamed.where(files.c.id.in_(candidates))).all()
    _delete_files(connection, old_files)
    return [*old_jobs, *old_files]


def expect_file(connection: Connection, key: str) -> None:
    """Write down that an upload's bytes are to go, in case its row does not follow."""
    connection.execute(sa.insert(deletions).values(prefix=key, not_before=utcnow(UPLOAD_SECONDS)))


def keep_file(connection: Connection, key: str) -> bool:
    """An upload's bytes are to stay; False where it is too late for that."""
    expected = sa.delete(deletions).where(deletions.c.prefix == key, ~is_due())
    return connection.execute(expected).rowcount == 1


def is_due() -> sa.ColumnElement[bool]:
    """Of what is written down: that it may go now."""
    return deletions.c.not_before.is_(None) | (deletions.c.not_before <= utcnow())


def lock_files(connection: Connection, file_ids: Collection[str]) -> dict[str, FileRecord]:
    """Those uploads that exist, by id; until the transaction ends, none of them can be deleted."""
    statement = sa.select(files).where(files.c.id.in_(file_ids))
    locked = statement.with_for_update(read=True, key_share=True)
    return {row["id"]: FileRecord(**row) for row in connection.execute(locked).mappings()}


def _delete_jobs(connection: Connection, job_ids: Sequence[str]) -> None:
    write_down(connection, [prefix for job_id in job_ids for prefix in (artifacts_of(job_id), checkpoints_of(job_id))])
    connection.execute(sa.delete(jobs).where(jobs.c.id.in_(job_ids)))


def _delete_files(connection: Connection, file_ids: Sequence[str]) -> None:
    write_down(connection, connection.scalars(sa.select(files.c.key).where(files.c.id.in_(file_ids))).all())
    connection.execute(sa.delete(files).where(files.c.id.in_(file_ids)))


def write_down(connection: Connection, prefixes: Sequence[str]) -> None:
    """Have reapers remove from the artifact store what lies there."""
    if prefixes:
        connection.execute(sa.insert(deletions), [{"prefix": prefix} for prefix in prefixes])
