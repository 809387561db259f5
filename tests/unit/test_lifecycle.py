"""Pause, resume, retry, expire; checkpoints and attempts that outlive a worker. On SQLite and on PostgreSQL."""

from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress

import pytest
import sqlalchemy as sa

from core import db
from core.errors import ConflictError, LeaseLostError
from core.jobs.records import Cancelled
from core.jobs.state import Status
from core.jobs.store import JobStore
from core.jobs.transitions import transition
from core.progress import Failed, Succeeded
from tests.checkpoints import checkpoint
from tests.specs import demo_spec

FAILED = Failed(code="numerical_failure", message="NaN")


@pytest.fixture
def job_id(store):
    return store.create(demo_spec(), name=None, labels={})[0].id


def running(store, job_id):
    lease = store.claim(job_id, "worker")
    store.start(lease)
    return lease


def ways_out(store, job_id):
    return [(attempt.outcome, attempt.reason) for attempt in store.attempts(job_id)]


def test_a_waiting_job_is_paused_at_once_and_resumed(store, job_id):
    assert store.request_pause(job_id).status is Status.PAUSED
    assert store.request_pause(job_id).status is Status.PAUSED
    assert store.claim(job_id, "worker") is None
    assert store.undispatched(0) == []
    assert store.resume(job_id).status is Status.QUEUED
    assert store.claim(job_id, "worker").attempt == 1


def test_a_running_job_is_paused_when_its_worker_has_stopped_it(store, job_id):
    lease = running(store, job_id)
    assert store.request_pause(job_id).status is Status.PAUSING
    assert store.renew(lease) is Status.PAUSING
    with pytest.raises(ConflictError, match="is pausing; only a job that is paused can be resumed"):
        store.resume(job_id)
    assert store.hand_back(lease, "paused on request") is Status.PAUSED
    assert ways_out(store, job_id) == [("paused", "paused on request")]
    with pytest.raises(LeaseLostError):
        store.renew(lease)


def test_a_job_whose_worker_is_lost_while_pausing_is_paused(store, job_id):
    lease = running(store, job_id)
    store.request_pause(job_id)
    assert store.release(lease, "killed") is Status.PAUSED
    assert ways_out(store, job_id) == [("lost", "killed")]


def test_a_paused_job_can_be_cancelled(store, job_id):
    store.request_pause(job_id)
    assert store.request_cancel(job_id).status is Status.CANCELLED


def test_a_job_that_is_being_cancelled_cannot_be_paused(store, job_id):
    running(store, job_id)
    store.request_cancel(job_id)
    with pytest.raises(ConflictError, match="is cancelling and cannot be paused"):
        store.request_pause(job_id)


def test_only_lost_attempts_count(store, job_id):
    for _ in range(5):
        assert store.hand_back(running(store, job_id), "shutdown") is Status.QUEUED
    assert store.release(running(store, job_id), "killed") is Status.QUEUED
    assert store.release(running(store, job_id), "killed") is Status.FAILED
    assert store.get(job_id).error.message == "The worker was lost 2 times; the last time: killed."
    assert [outcome for outcome, _ in ways_out(store, job_id)] == ["handed_back"] * 5 + ["lost"] * 2


@pytest.mark.parametrize("outcome", [FAILED, Cancelled()], ids=["failed", "cancelled"])
def test_a_retry_starts_with_all_attempts_and_the_checkpoints(store, job_id, outcome):
    store.release(running(store, job_id), "killed")
    lease = running(store, job_id)
    store.keep_checkpoint(lease, checkpoint("dense", 3))
    if outcome == Cancelled():
        store.request_cancel(job_id)
    store.finish(lease, outcome)
    job = store.retry(job_id)
    assert (job.status, job.error, job.finished_at) == (Status.QUEUED, None, None)
    assert store.checkpoints(job_id) == {"dense": checkpoint("dense", 3)}
    assert store.release(running(store, job_id), "killed") is Status.QUEUED
    assert store.get(job_id).attempt == 3


def test_a_success_is_not_tried_again(store, job_id):
    store.finish(running(store, job_id), Succeeded(metrics_summary={}, artifacts=[]))
    with pytest.raises(ConflictError, match="only a job that is cancelled, expired, failed can be tried again"):
        store.retry(job_id)


def test_attempts_say_who_when_and_how(store, job_id):
    lease = running(store, job_id)
    (under_way,) = store.attempts(job_id)
    assert (under_way.number, under_way.worker) == (1, "worker")
    assert (under_way.ended_at, under_way.outcome, under_way.reason) == (None, None, None)
    store.finish(lease, FAILED)
    (ended,) = store.attempts(job_id)
    assert (ended.outcome, ended.reason) == ("failed", "numerical_failure")
    assert ended.ended_at >= ended.started_at == under_way.started_at


def test_the_newest_checkpoint_of_each_stage_counts(store, job_id):
    lease = running(store, job_id)
    for stage, step in (("dense", 5), ("pruning", 3), ("pruning", 9)):
        store.keep_checkpoint(lease, checkpoint(stage, step))
    assert store.deletions() == [checkpoint("pruning", 3).key]
    assert store.checkpoints(job_id) == {"dense": checkpoint("dense", 5), "pruning": checkpoint("pruning", 9)}
    told = [event.data for event in store.events(job_id, 0, 99) if event.type == "checkpoint"]
    assert told[-1] == {"stage": "pruning", "step": 9, "finished": False}


def test_a_fenced_attempts_checkpoint_does_not_count(store, job_id):
    old = running(store, job_id)
    store.keep_checkpoint(old, checkpoint("pruning", 3))
    store.release(old, "silent")
    running(store, job_id)
    with pytest.raises(LeaseLostError):
        store.keep_checkpoint(old, checkpoint("pruning", 9))
    assert store.checkpoints(job_id) == {"pruning": checkpoint("pruning", 3)}


def test_checkpoints_are_forgotten_after_a_success_at_once_else_in_time(store, job_id):
    lease = running(store, job_id)
    store.keep_checkpoint(lease, checkpoint("pruning", 3))
    assert store.finished_with_checkpoints(0) == []
    assert not store.forget_checkpoints(job_id)
    store.finish(lease, FAILED)
    assert store.finished_with_checkpoints(3600) == []
    assert store.finished_with_checkpoints(-1) == [job_id]
    store.retry(job_id)
    store.finish(running(store, job_id), Succeeded(metrics_summary={}, artifacts=[]))
    assert store.finished_with_checkpoints(3600) == [job_id]
    assert store.forget_checkpoints(job_id)
    assert store.finished_with_checkpoints(0) == []
    assert store.checkpoints(job_id) == {}


def test_a_job_that_waits_too_long_expires_and_a_retry_waits_anew(store, engine, job_id):
    assert store.expire(3600) == []
    with engine.begin() as connection:
        connection.execute(sa.update(db.jobs).values(queued_at=db.utcnow(-7200)))
    assert store.expire(3600) == [job_id]
    assert store.get(job_id).status is Status.EXPIRED
    store.retry(job_id)
    assert store.expire(3600) == []


@pytest.mark.parametrize(
    ("before", "meanwhile", "ask", "after"),
    [
        ((), Status.STARTING, JobStore.request_cancel, Status.CANCELLING),
        ((), Status.STARTING, JobStore.request_pause, Status.PAUSING),
        ((JobStore.request_pause,), Status.CANCELLED, JobStore.resume, Status.CANCELLED),
        ((JobStore.request_cancel,), Status.QUEUED, JobStore.delete_job, Status.QUEUED),
    ],
    ids=["cancel-claimed", "pause-claimed", "resume-cancelled", "delete-retried"],
)
def test_what_is_asked_of_a_job_waits_for_what_is_becoming_of_it(store, job_id, before, meanwhile, ask, after):
    for change in before:
        change(store, job_id)
    with ThreadPoolExecutor(1) as pool:
        with store._writer.begin() as connection:
            assert transition(connection, job_id, meanwhile, reason="meanwhile")
            asking = pool.submit(ask, store, job_id)
            wait([asking], timeout=0.5)
        with suppress(ConflictError):
            asking.result()
    assert store.get(job_id).status is after


def test_a_job_that_is_being_queued_anew_does_not_expire(store, job_id):
    with store._writer.begin() as connection:
        connection.execute(sa.update(db.jobs).values(queued_at=db.utcnow(-7200)))
    with ThreadPoolExecutor(1) as pool:
        with store._writer.begin() as connection:
            connection.execute(sa.update(db.jobs).values(queued_at=db.utcnow()))
            expiring = pool.submit(store.expire, 3600)
            wait([expiring], timeout=0.5)
        assert expiring.result() == []


def test_the_schema_goes_down_and_up_with_its_jobs(own_database, engine, store, job_id):
    running(store, job_id)
    engine.dispose()
    db.downgrade(own_database, "0001")
    db.upgrade(own_database)
    with engine.connect() as connection:
        assert db.is_migrated(connection)
    assert store.get(job_id).status is Status.RUNNING
    assert store.attempts(job_id) == []
