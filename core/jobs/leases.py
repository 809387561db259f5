"""The worker's side of the store: take a job, keep it, say how it goes, end it or give it back."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, RowMapping

from core.db import artifacts, deletions, job_attempts, jobs, utcnow, writer
from core.errors import IllegalTransitionError, LeaseLostError
from core.jobs import deletion
from core.jobs.records import AttemptOutcome, Cancelled, JobFailure, Lease, Progress
from core.jobs.state import ACTIVE, TERMINAL, Status
from core.jobs.transitions import note, transition
from core.progress import Checkpointed, Failed, PhaseStarted, StepDone, Succeeded, Warned

REPUBLISHED_AT_ONCE = 100
"""Most jobs sent again in one round: a long queue must not flood the broker, and only the oldest run next."""


class LeaseStore:
    """Claims, leases and outcomes. Each public method is one transaction.

    Args:
        engine: from `core.db.create_engine`.
        lease_seconds: how long a claim or a renewal holds, by the database's clock.
        max_attempts: times that a job's worker may be lost; the last fails the job.
    """

    def __init__(self, engine: Engine, *, lease_seconds: float = 60.0, max_attempts: int = 3) -> None:
        self._engine = engine
        self._writer = writer(engine)
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts

    def claim_next(self, owner: str) -> Lease | None:
        """Take the job that has waited longest; None where none waits.

        Whichever job a message was sent for: one whose own message was lost must not wait until the queue is empty.
        """
        longest = (
            sa.select(jobs.c.id).where(jobs.c.status == Status.QUEUED).order_by(jobs.c.queued_at, jobs.c.id).limit(1)
        )
        while True:
            with self._engine.begin() as connection:
                job_id = connection.scalar(longest)
            if job_id is None:
                return None
            lease = self.claim(job_id, owner)
            if lease is not None:
                return lease

    def claim(self, job_id: str, owner: str) -> Lease | None:
        """Take a queued job; None where it is not queued (any more): of two claimers one gets it."""
        values = {
            "attempt": jobs.c.attempt + 1,
            "owner": owner,
            "lease_expires_at": utcnow(self._lease_seconds),
            "started_at": utcnow(),
            "warnings": [],
        }
        with self._writer.begin() as connection:
            row = transition(connection, job_id, Status.STARTING, reason="claimed by a worker", values=values)
            if row is None:
                return None
            attempt = {
                "job_id": job_id,
                "number": row["attempt"],
                "worker": owner,
                "queued_at": row["queued_at"],
                "started_at": utcnow(),
            }
            connection.execute(sa.insert(job_attempts).values(attempt))
            return Lease(job_id, row["attempt"], owner)

    def start(self, lease: Lease) -> None:
        """The job's process runs: starting → running.

        Raises:
            LeaseLostError: another attempt owns the job.
            IllegalTransitionError: the job is not starting, as when it was cancelled meanwhile.
        """
        with self._writer.begin() as connection:
            _held(connection, lease, Status.RUNNING, reason="process started")

    def renew(self, lease: Lease) -> Status:
        """Extend the lease; the job's status now, which may have become `cancelling`.

        Raises:
            LeaseLostError: another attempt owns the job, or it has ended.
        """
        statement = (
            sa.update(jobs)
            .where(jobs.c.id == lease.job_id, _owned(lease), jobs.c.status.in_(sorted(ACTIVE)))
            .values(lease_expires_at=utcnow(self._lease_seconds))
            .returning(jobs.c.status)
        )
        with self._writer.begin() as connection:
            status = connection.execute(statement).scalar_one_or_none()
        if status is None:
            raise _lost(lease)
        return Status(status)

    def record(self, lease: Lease, message: PhaseStarted | StepDone | Warned) -> None:
        """Keep what the job says about itself, and tell it in an event.

        Raises:
            LeaseLostError: another attempt owns the job, or it has ended.
        """
        with self._writer.begin() as connection:
            values: dict[str, Any]
            match message:
                case PhaseStarted():
                    data = values = {"phase": message.phase}
                case StepDone():
                    data = asdict(_progress(message))
                    values = {"progress": data}
                case Warned():
                    row = _locked(connection, lease)
                    data = {"message": message.message}
                    values = {"warnings": [*row["warnings"], message.message]}
            if note(connection, lease.job_id, message.type, data, values=values, guard=_owned(lease)) is None:
                raise _lost(lease)

    def checkpoints(self, job_id: str) -> dict[str, Checkpointed]:
        """The newest checkpoint of each stage that some attempt at the job has left."""
        with self._engine.begin() as connection:
            found = connection.execute(sa.select(jobs.c.checkpoints).where(jobs.c.id == job_id)).scalar_one_or_none()
        return {stage: Checkpointed.model_validate(data) for stage, data in (found or {}).items()}

    def keep_checkpoint(self, lease: Lease, checkpoint: Checkpointed) -> None:
        """Let the next attempt go on from here; a checkpoint that this one takes the place of is to be removed.

        Raises:
            LeaseLostError: another attempt owns the job, or it has ended; the checkpoint does not count.
        """
        stage = checkpoint.stage
        with self._writer.begin() as connection:
            kept = _locked(connection, lease)["checkpoints"] or {}
            values = {"checkpoints": kept | {stage: checkpoint.model_dump(mode="json")}}
            data = checkpoint.model_dump(include={"stage", "step", "finished"})
            if note(connection, lease.job_id, "checkpoint", data, values=values, guard=_owned(lease)) is None:
                raise _lost(lease)
            if stage in kept:
                deletion.write_down(connection, [kept[stage]["key"]])

    def finish(self, lease: Lease, outcome: Succeeded | Failed | Cancelled) -> None:
        """End the job; a bundle's files become visible here and nowhere else.

        Raises:
            LeaseLostError: another attempt owns the job, or it has ended; nothing was changed.
            IllegalTransitionError: the outcome does not follow from the job's status.
        """
        with self._writer.begin() as connection:
            match outcome:
                case Succeeded():
                    values: dict[str, Any] = {"metrics_summary": outcome.metrics_summary}
                    _held(connection, lease, Status.SUCCEEDED, reason="bundle verified and stored", values=values)
                    _publish(connection, lease, outcome)
                case Failed():
                    phase = _locked(connection, lease)["phase"]
                    failure = JobFailure(**outcome.model_dump(exclude={"type"}), phase=phase, attempt=lease.attempt)
                    values = {"error": asdict(failure)}
                    _held(connection, lease, Status.FAILED, reason=outcome.code, values=values)
                case Cancelled():
                    _held(connection, lease, Status.CANCELLED, reason="cancelled on request")

    def release(self, lease: Lease, reason: str) -> Status:
        """The attempt was lost: the job is queued again, or ended; the status it got.

        Raises:
            LeaseLostError: another attempt owns the job, or it has ended.
        """
        with self._writer.begin() as connection:
            return self._give_up(connection, _locked(connection, lease), reason, "lost")

    def hand_back(self, lease: Lease, reason: str) -> Status:
        """Stop in good order, which does not count as a lost attempt; the status the job got.

        Raises:
            LeaseLostError: another attempt owns the job, or it has ended.
        """
        with self._writer.begin() as connection:
            return self._give_up(connection, _locked(connection, lease), reason, "handed_back")

    def reap(self) -> list[str]:
        """End or queue again the jobs whose worker fell silent; the ids of those that are queued again."""
        expired = (
            sa.select(jobs)
            .where(jobs.c.status.in_(sorted(ACTIVE)), jobs.c.lease_expires_at < utcnow())
            .with_for_update(skip_locked=True)
        )
        with self._writer.begin() as connection:
            rows = connection.execute(expired).mappings().all()
            reason = "the worker stopped answering"
            ended = [(row["id"], self._give_up(connection, row, reason, "lost")) for row in rows]
        return [job_id for job_id, status in ended if status is Status.QUEUED]

    def expire(self, older_than_seconds: float) -> list[str]:
        """End the jobs that have waited for a worker longer than this; their ids."""
        late = jobs.c.queued_at < utcnow(-older_than_seconds)
        waiting = sa.select(jobs.c.id).where(jobs.c.status == Status.QUEUED, late).order_by(jobs.c.id)
        reason = f"no worker took it within {older_than_seconds:g} s"
        with self._writer.begin() as connection:
            found = list(connection.scalars(waiting))
            return [i for i in found if transition(connection, i, Status.EXPIRED, reason=reason, guard=late)]

    def finished_with_checkpoints(self, older_than_seconds: float) -> list[str]:
        """Jobs whose checkpoints nobody needs: they succeeded, or ended otherwise longer ago than this."""
        statement = sa.select(jobs.c.id).where(
            jobs.c.checkpoints.is_not(None),
            jobs.c.status.in_(sorted(TERMINAL)),
            (jobs.c.status == Status.SUCCEEDED) | (jobs.c.finished_at < utcnow(-older_than_seconds)),
        )
        with self._engine.begin() as connection:
            return list(connection.scalars(statement))

    def forget_checkpoints(self, job_id: str) -> bool:
        """Forget a finished job's checkpoints, before they are removed; False where it was queued again meanwhile."""
        statement = sa.update(jobs).where(jobs.c.id == job_id, jobs.c.status.in_(sorted(TERMINAL)))
        with self._writer.begin() as connection:
            return connection.execute(statement.values(checkpoints=None)).rowcount == 1

    def delete_old(self, older_than_seconds: float) -> list[str]:
        """Delete jobs that ended longer ago than this, and older uploads that no job names any more; their ids."""
        with self._writer.begin() as connection:
            return deletion.delete_old(connection, older_than_seconds)

    def deletions(self) -> list[str]:
        """What has to go from the artifact store now, as prefixes of its keys."""
        statement = sa.select(deletions.c.prefix).where(deletion.is_due()).order_by(deletions.c.prefix)
        with self._engine.begin() as connection:
            return list(connection.scalars(statement))

    def forget_deletion(self, prefix: str) -> None:
        """It has gone, or was never there."""
        with self._writer.begin() as connection:
            connection.execute(sa.delete(deletions).where(deletions.c.prefix == prefix))

    def undispatched(self, older_than_seconds: float) -> list[str]:
        """Queued jobs that were never sent to the broker, or so long ago that the message may be lost; oldest first."""
        statement = (
            sa.select(jobs.c.id)
            .where(
                jobs.c.status == Status.QUEUED,
                jobs.c.dispatched_at.is_(None) | (jobs.c.dispatched_at < utcnow(-older_than_seconds)),
            )
            .order_by(jobs.c.queued_at, jobs.c.id)
            .limit(REPUBLISHED_AT_ONCE)
        )
        with self._engine.begin() as connection:
            return list(connection.scalars(statement))

    def mark_dispatched(self, job_id: str) -> None:
        """The broker has taken the message that the job is ready."""
        statement = sa.update(jobs).where(jobs.c.id == job_id).values(dispatched_at=utcnow())
        with self._writer.begin() as connection:
            connection.execute(statement)

    def _give_up(
        self, connection: Connection, row: RowMapping, reason: str, outcome: Literal["lost", "handed_back"]
    ) -> Status:
        """Move an active job, whose row is locked, to where it goes without its worker."""
        losses = row["losses"] + (outcome == "lost")
        values: dict[str, Any] = {"losses": losses}
        ending: AttemptOutcome = outcome
        if row["status"] == Status.CANCELLING:
            target, ending = Status.CANCELLED, "cancelled"
        elif losses >= self._max_attempts:
            target = Status.FAILED
            message = f"The worker was lost {losses} times; the last time: {reason}."
            values["error"] = asdict(JobFailure("worker_lost", message, None, True, row["phase"], row["attempt"]))
        elif row["status"] == Status.PAUSING:
            target = Status.PAUSED
            ending = "paused" if outcome == "handed_back" else outcome
        else:
            target = Status.QUEUED
        transition(connection, row["id"], target, reason=reason, values=values, outcome=ending)
        return target


def _owned(lease: Lease) -> sa.ColumnElement[bool]:
    return (jobs.c.attempt == lease.attempt) & (jobs.c.owner == lease.owner)


def _lost(lease: Lease) -> LeaseLostError:
    return LeaseLostError(f"Attempt {lease.attempt} no longer owns {lease.job_id}.")


def _locked(connection: Connection, lease: Lease) -> RowMapping:
    """The row, which nobody else can change until the transaction ends; LeaseLostError if it is not the lease's."""
    statement = sa.select(jobs).where(jobs.c.id == lease.job_id, _owned(lease)).with_for_update()
    row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        raise _lost(lease)
    return row


def _held(
    connection: Connection, lease: Lease, target: Status, *, reason: str, values: dict[str, Any] | None = None
) -> None:
    """A transition that only the lease's holder may make."""
    if transition(connection, lease.job_id, target, reason=reason, values=values, guard=_owned(lease)) is None:
        status = _locked(connection, lease)["status"]
        raise IllegalTransitionError(f"{lease.job_id} is {status} and cannot become {target}.")


def _publish(connection: Connection, lease: Lease, outcome: Succeeded) -> None:
    rows = [
        {"job_id": lease.job_id, "attempt": lease.attempt, **artifact.model_dump()} for artifact in outcome.artifacts
    ]
    if rows:
        connection.execute(sa.insert(artifacts), rows)


def _progress(message: StepDone) -> Progress:
    eta_at = None
    if message.eta_seconds is not None:
        eta_at = (datetime.now(UTC) + timedelta(seconds=message.eta_seconds)).isoformat(timespec="seconds")
    return Progress(
        fraction=message.fraction,
        step=message.step,
        total_steps=message.total_steps,
        eta_at=eta_at,
        message=message.message,
        metrics=message.metrics,
    )
