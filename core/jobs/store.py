"""Where jobs, their events, uploads, artifacts and workers are kept: the one truth of the service."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from core.db import artifacts, files, is_migrated, job_attempts, job_events, job_files, jobs, utcnow, workers
from core.errors import ConflictError, InvalidInputError, NotFoundError, StorageError, shown, shown_names
from core.jobs import deletion, statistics
from core.jobs.defaults import resolve
from core.jobs.ids import new_job_id
from core.jobs.leases import LeaseStore
from core.jobs.records import ArtifactRecord, Attempt, Event, FileRecord, Job, Purpose, WorkerRecord
from core.jobs.spec import JobSpec
from core.jobs.state import RETRYABLE, TERMINAL, TRANSITIONS, Status
from core.jobs.statistics import Statistics
from core.jobs.transitions import append_event, transition

IDEMPOTENCY_SECONDS = 24 * 3600
"""How long an idempotency key is remembered."""

WORKER_FORGOTTEN_SECONDS = 24 * 3600
"""After so much silence."""


class JobStore(LeaseStore):
    """What the API asks and tells; the worker's side is inherited. Each public method is one transaction."""

    # ---- jobs ------------------------------------------------------------------------------------------------------

    def create(
        self, spec: JobSpec, *, name: str | None, labels: dict[str, str], idempotency_key: str | None = None
    ) -> tuple[Job, bool]:
        """Queue a job; or, where the key was seen before, the job it made then, and True.

        Raises:
            InvalidInputError: a file that the spec names does not exist or lacks a column, or the key was used for
                another request.
        """
        try:
            return self._create(spec, name, labels, idempotency_key)
        except sa.exc.IntegrityError:
            # The same key was used at the same time, and won: now its job is there to be found.
            return self._create(spec, name, labels, idempotency_key)

    def _create(
        self, spec: JobSpec, name: str | None, labels: dict[str, str], idempotency_key: str | None
    ) -> tuple[Job, bool]:
        request = _request_sha256(spec, name, labels)
        with self._writer.begin() as connection:
            if idempotency_key is not None:
                earlier = _earlier(connection, idempotency_key)
                if earlier is not None and earlier["request_sha256"] != request:
                    raise InvalidInputError(
                        "This Idempotency-Key was used for another request; send a new key with a new job."
                    )
                if earlier is not None:
                    return Job.of(earlier), True
            _require_files(connection, spec)
            statement = sa.insert(jobs).values(
                id=new_job_id(),
                name=name,
                labels=labels,
                spec=spec.model_dump(mode="json"),
                resolved_spec=resolve(spec).model_dump(mode="json"),
                status=Status.QUEUED,
                warnings=[],
                attempt=0,
                created_at=utcnow(),
                queued_at=utcnow(),
                last_seq=1,
                idempotency_key=idempotency_key,
                request_sha256=request,
            )
            row = connection.execute(statement.returning(*jobs.c)).mappings().one()
            named = [{"job_id": row["id"], "file_id": file_id} for file_id in set(spec.file_ids().values())]
            if named:
                connection.execute(sa.insert(job_files), named)
            append_event(connection, row, "status", {"status": Status.QUEUED, "attempt": 0, "reason": "accepted"})
            return Job.of(row), False

    def get(self, job_id: str) -> Job:
        """The job as it stands.

        Raises:
            NotFoundError: no such job.
        """
        with self._engine.begin() as connection:
            return _get(connection, job_id)

    def standing(self, job_id: str) -> tuple[Status, int]:
        """The job's status and version: whether it is worth while to ask for all of it again.

        Raises:
            NotFoundError: no such job.
        """
        with self._engine.begin() as connection:
            return _standing(connection, job_id)

    def page(self, limit: int, cursor: str | None, status: Status | None) -> tuple[list[Job], str | None]:
        """Jobs, newest first, after the cursor; and the cursor of the next page, None on the last."""
        statement = sa.select(jobs).order_by(jobs.c.id.desc()).limit(limit + 1)
        if cursor is not None:
            statement = statement.where(jobs.c.id < cursor)
        if status is not None:
            statement = statement.where(jobs.c.status == status)
        with self._engine.begin() as connection:
            found = [Job.of(row) for row in connection.execute(statement).mappings()]
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    def events(self, job_id: str, after: int, limit: int) -> list[Event]:
        """The job's events with a number above `after`, in order.

        Raises:
            NotFoundError: no such job.
        """
        statement = (
            sa.select(job_events.c.seq, job_events.c.type, job_events.c.data, job_events.c.created_at)
            .where(job_events.c.job_id == job_id, job_events.c.seq > after)
            .order_by(job_events.c.seq)
            .limit(limit)
        )
        with self._engine.begin() as connection:
            found = [Event(**row) for row in connection.execute(statement).mappings()]
            if not found:
                _standing(connection, job_id)
        return found

    def queue_positions(self, job_ids: Collection[str]) -> dict[str, int]:
        """Place in the queue, 1 for the job that runs next, of those that are queued; who came back is last."""
        place = sa.func.row_number().over(order_by=(jobs.c.queued_at, jobs.c.id)).label("place")
        queue = sa.select(jobs.c.id, place).where(jobs.c.status == Status.QUEUED).subquery()
        statement = sa.select(queue.c.id, queue.c.place).where(queue.c.id.in_(job_ids))
        with self._engine.begin() as connection:
            return {row.id: row.place for row in connection.execute(statement)}

    def request_cancel(self, job_id: str) -> Job:
        """Cancel a waiting job at once; ask the worker of a running one to stop it.

        Raises:
            NotFoundError: no such job.
            ConflictError: it has already ended.
        """
        with self._writer.begin() as connection:
            job = _get(connection, job_id, lock=True)
            if job.status in TERMINAL:
                raise ConflictError(f"{job_id} is {job.status} and cannot be cancelled any more.")
            if job.status is Status.CANCELLING:
                return job
            waiting = Status.CANCELLED in TRANSITIONS[job.status]
            target = Status.CANCELLED if waiting else Status.CANCELLING
            transition(connection, job_id, target, reason="cancelled on request")
            return _get(connection, job_id)

    def request_pause(self, job_id: str) -> Job:
        """Hold a waiting job back at once; ask the worker of a running one to stop it at a checkpoint.

        Raises:
            NotFoundError: no such job.
            ConflictError: it has ended, or is being cancelled.
        """
        with self._writer.begin() as connection:
            job = _get(connection, job_id, lock=True)
            if job.status in {Status.PAUSING, Status.PAUSED}:
                return job
            target = Status.PAUSED if job.status is Status.QUEUED else Status.PAUSING
            if target not in TRANSITIONS[job.status]:
                raise ConflictError(f"{job_id} is {job.status} and cannot be paused.")
            transition(connection, job_id, target, reason="paused on request")
            return _get(connection, job_id)

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again.

        Raises:
            NotFoundError: no such job.
            ConflictError: it is not paused.
        """
        return self._queue_again(job_id, frozenset({Status.PAUSED}), "resumed", "resumed on request", {})

    def retry(self, job_id: str) -> Job:
        """Queue a job again that ended without a bundle; what was lost before counts no more.

        Raises:
            NotFoundError: no such job.
            ConflictError: it has not ended, or it has succeeded, or an upload that it reads was deleted.
        """
        return self._queue_again(job_id, RETRYABLE, "tried again", "tried again on request", {"losses": 0})

    def _queue_again(
        self, job_id: str, allowed: frozenset[Status], participle: str, reason: str, values: dict[str, Any]
    ) -> Job:
        with self._writer.begin() as connection:
            job = _get(connection, job_id, lock=True)
            if job.status not in allowed:
                wanted = ", ".join(sorted(allowed))
                raise ConflictError(f"{job_id} is {job.status}; only a job that is {wanted} can be {participle}.")
            named = set(connection.scalars(sa.select(job_files.c.file_id).where(job_files.c.job_id == job_id)))
            if deleted := sorted(named - set(deletion.lock_files(connection, named))):
                raise ConflictError(f"{job_id} cannot be {participle}: it reads {', '.join(deleted)}, deleted since.")
            transition(connection, job_id, Status.QUEUED, reason=reason, values=values)
            return _get(connection, job_id)

    def attempts(self, job_id: str) -> list[Attempt]:
        """All attempts at the job, in order.

        Raises:
            NotFoundError: no such job.
        """
        columns = [job_attempts.c[field.name] for field in fields(Attempt)]
        statement = sa.select(*columns).where(job_attempts.c.job_id == job_id).order_by(job_attempts.c.number)
        with self._engine.begin() as connection:
            _standing(connection, job_id)
            return [Attempt(**row) for row in connection.execute(statement).mappings()]

    def delete_job(self, job_id: str) -> None:
        """Delete a job that has ended, with its history and its bundle.

        Raises:
            NotFoundError: no such job.
            ConflictError: it has not ended.
        """
        with self._writer.begin() as connection:
            deletion.delete_job(connection, _get(connection, job_id, lock=True))

    # ---- files and artifacts ---------------------------------------------------------------------------------------

    def expect_file(self, key: str) -> None:
        """Bytes will be stored under this key, and are to be removed unless `add_file` follows within a day."""
        with self._writer.begin() as connection:
            deletion.expect_file(connection, key)

    def add_file(self, record: FileRecord) -> None:
        """Make an upload usable by jobs; it was expected, and its bytes are stored already.

        Raises:
            StorageError: that was longer than a day ago, or never.
        """
        row = {column.name: getattr(record, column.name) for column in files.c}
        with self._writer.begin() as connection:
            if not deletion.keep_file(connection, record.key):
                raise StorageError("The upload took longer than a day; send it again.")
            connection.execute(sa.insert(files).values(row))

    def get_file(self, file_id: str) -> FileRecord:
        """The upload.

        Raises:
            NotFoundError: no such file.
        """
        with self._engine.begin() as connection:
            return _get_file(connection, file_id)

    def file_page(self, limit: int, cursor: str | None, purpose: Purpose | None) -> tuple[list[FileRecord], str | None]:
        """Uploads, newest first, after the cursor; and the cursor of the next page, None on the last."""
        statement = sa.select(files).order_by(files.c.created_at.desc(), files.c.id.desc()).limit(limit + 1)
        if cursor is not None:
            # The moment is in the cursor, as the file that it names may be deleted by now.
            moment, file_id = FileRecord.place_of(cursor)
            place = sa.tuple_(sa.literal(moment, files.c.created_at.type), sa.literal(file_id))
            statement = statement.where(sa.tuple_(files.c.created_at, files.c.id) < place)
        if purpose is not None:
            statement = statement.where(files.c.purpose == purpose)
        with self._engine.begin() as connection:
            found = [FileRecord(**row) for row in connection.execute(statement).mappings()]
        return found[:limit], found[limit - 1].cursor if len(found) > limit else None

    def delete_file(self, file_id: str) -> None:
        """Delete an upload that no job will read; those that have ended and name it cannot be tried again.

        Raises:
            NotFoundError: no such file.
            ConflictError: a job that has not ended reads it.
        """
        with self._writer.begin() as connection:
            deletion.delete_file(connection, _get_file(connection, file_id, lock=True).id)

    def artifacts(self, job_id: str) -> list[ArtifactRecord]:
        """The files of the job's bundle by name; none unless it has succeeded.

        Raises:
            NotFoundError: no such job.
        """
        statement = sa.select(artifacts).where(artifacts.c.job_id == job_id).order_by(artifacts.c.name)
        with self._engine.begin() as connection:
            _standing(connection, job_id)
            return [ArtifactRecord(**row) for row in connection.execute(statement).mappings()]

    # ---- workers ---------------------------------------------------------------------------------------------------

    def worker_seen(self, name: str, queues: Sequence[str]) -> None:
        """A worker's heartbeat."""
        values = {"queues": list(queues), "seen_at": utcnow()}
        with self._writer.begin() as connection:
            known = connection.execute(sa.update(workers).where(workers.c.name == name).values(values))
            if known.rowcount == 0:
                connection.execute(sa.insert(workers).values(name=name, **values))
                # A name is a process's, and comes once: those of long ago are forgotten.
                connection.execute(sa.delete(workers).where(workers.c.seen_at < utcnow(-WORKER_FORGOTTEN_SECONDS)))

    def worker_gone(self, name: str) -> None:
        """A worker's last word."""
        with self._writer.begin() as connection:
            connection.execute(sa.delete(workers).where(workers.c.name == name))

    def live_workers(self, within_seconds: float) -> list[WorkerRecord]:
        """Workers that showed themselves within this time."""
        statement = sa.select(workers).where(workers.c.seen_at > utcnow(-within_seconds)).order_by(workers.c.name)
        with self._engine.begin() as connection:
            rows = connection.execute(statement).mappings().all()
        return [WorkerRecord(row["name"], tuple(row["queues"]), row["seen_at"]) for row in rows]

    def statistics(self) -> Statistics:
        """How the service does."""
        with self._engine.begin() as connection:
            return statistics.count(connection)

    def answers(self) -> None:
        """Ask the database anything; what SQLAlchemy raises says that it does not answer."""
        with self._engine.begin() as connection:
            connection.execute(sa.select(1))

    def is_migrated(self) -> bool:
        """Whether the database has the schema that this code was written for."""
        with self._engine.begin() as connection:
            return is_migrated(connection)


def _get(connection: Connection, job_id: str, *, lock: bool = False) -> Job:
    statement = sa.select(jobs).where(jobs.c.id == job_id)
    row = connection.execute(statement.with_for_update() if lock else statement).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"There is no job {job_id!r}.")
    return Job.of(row)


def _standing(connection: Connection, job_id: str) -> tuple[Status, int]:
    row = connection.execute(sa.select(jobs.c.status, jobs.c.last_seq).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no job {job_id!r}.")
    return Status(row.status), row.last_seq


def _get_file(connection: Connection, file_id: str, *, lock: bool = False) -> FileRecord:
    statement = sa.select(files).where(files.c.id == file_id)
    row = connection.execute(statement.with_for_update() if lock else statement).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"There is no file {file_id!r}.")
    return FileRecord(**row)


def _earlier(connection: Connection, idempotency_key: str) -> Any:
    """The row that the key made, if it is still remembered; an older one lets go of the key."""
    same_key = jobs.c.idempotency_key == idempotency_key
    forgotten = same_key & (jobs.c.created_at < utcnow(-IDEMPOTENCY_SECONDS))
    connection.execute(sa.update(jobs).where(forgotten).values(idempotency_key=None))
    return connection.execute(sa.select(jobs).where(same_key)).mappings().one_or_none()


def _require_files(connection: Connection, spec: JobSpec) -> None:
    named = spec.file_ids()
    uploads = deletion.lock_files(connection, set(named.values()))
    for pointer, file_id in named.items():
        upload = uploads.get(file_id)
        if upload is None:
            raise InvalidInputError(
                f"There is no file {file_id!r}; upload it with POST /v1/files and use the id it answers.", param=pointer
            )
        wanted = "model" if pointer.startswith("/model/") else "dataset"
        if upload.purpose != wanted:
            raise InvalidInputError(
                f"{file_id} was uploaded with purpose={upload.purpose}; this field takes a file of purpose={wanted}.",
                param=pointer,
            )
        if wanted == "dataset":
            _require_columns(upload, pointer, spec)


def _require_columns(upload: FileRecord, place: str, spec: JobSpec) -> None:
    """Refuse columns that none of the rows has that were looked at when they were uploaded."""
    if upload.columns is None:
        return
    for pointer, name in spec.columns().items():
        if name not in upload.columns:
            raise InvalidInputError(
                f"{upload.filename}, the file of {place}, has no column {shown(name)}; it has "
                f"{shown_names(upload.columns) or 'none'}.",
                param=pointer,
            )


def _request_sha256(spec: JobSpec, name: str | None, labels: dict[str, str]) -> str:
    # Without defaults, so that a request stays the same when a later version knows more options.
    request = repr((spec.model_dump_json(exclude_defaults=True), name, sorted(labels.items())))
    return hashlib.sha256(request.encode()).hexdigest()
