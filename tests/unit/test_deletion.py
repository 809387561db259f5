"""Deleting jobs and uploads from the store, on SQLite and PostgreSQL."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from core import db
from core.errors import ConflictError, InvalidInputError, LeaseLostError, NotFoundError, StorageError
from core.jobs import deletion
from core.jobs.ids import new_file_id
from core.jobs.records import FileRecord
from core.jobs.state import Status
from core.progress import Artifact, Failed, Succeeded, Warned
from tests.checkpoints import checkpoint
from tests.specs import demo_spec, upload_spec

BUNDLE = Succeeded(
    metrics_summary={},
    artifacts=[Artifact(name="report.json", size=2, sha256="ab", media_type="application/json")],
)
BROKEN = Failed(code="internal", message="broken")
DAY = 24 * 3600


@pytest.fixture
def upload(store):
    """A function that makes an upload as if so many days ago."""

    def make(days_ago=0.0, purpose="dataset", moment=None):
        file_id = new_file_id()
        moment = moment or datetime.now(UTC) - timedelta(days=days_ago)
        record = FileRecord(file_id, "rows.jsonl", purpose, 10, "00", f"uploads/{file_id}.jsonl", moment)
        store.expect_file(record.key)
        store.add_file(record)
        return record

    return make


@pytest.fixture
def ended(store):
    """A function that makes a job and ends it."""

    def make(outcome=BUNDLE, spec=None):
        job_id = store.create(spec or demo_spec(), name=None, labels={})[0].id
        lease = store.claim(job_id, "w")
        store.start(lease)
        store.finish(lease, outcome)
        return job_id

    return make


def a_day_passes(engine):
    with engine.begin() as connection:
        connection.execute(sa.update(db.deletions).values(not_before=db.utcnow(-1)))


def finished_days_ago(engine, job_id, days):
    with engine.begin() as connection:
        connection.execute(sa.update(db.jobs).where(db.jobs.c.id == job_id).values(finished_at=db.utcnow(-days * DAY)))


# ---- jobs ----------------------------------------------------------------------------------------------------------


def test_of_a_deleted_job_nothing_is_left_but_what_the_store_has_to_remove(store, ended):
    deleted, kept = ended(), ended()
    store.delete_job(deleted)
    for ask in (store.get, store.artifacts, store.attempts, store.delete_job, lambda i: store.events(i, 0, 1)):
        with pytest.raises(NotFoundError, match="There is no job"):
            ask(deleted)
    assert store.deletions() == [f"artifacts/{deleted}", f"checkpoints/{deleted}"]
    store.forget_deletion(f"artifacts/{deleted}")
    assert store.deletions() == [f"checkpoints/{deleted}"]
    assert len(store.artifacts(kept)) == 1
    assert store.page(9, None, None)[0] == [store.get(kept)]


@pytest.mark.parametrize("outcome", [BUNDLE, BROKEN])
def test_what_only_grows_does_not_fall_with_a_deletion(store, ended, outcome):
    job_id = ended(outcome)
    before = store.statistics()
    store.delete_job(job_id)
    after = store.statistics()
    assert sum(before.jobs.values()) == 1
    assert sum(after.jobs.values()) == 0
    assert (after.attempts, after.failures, after.waited, after.ran) == (
        before.attempts, before.failures, before.waited, before.ran,
    )  # fmt: skip


def test_the_key_of_a_deleted_job_makes_a_new_one(store, ended):
    job_id = store.create(demo_spec(), name=None, labels={}, idempotency_key="k")[0].id
    store.request_cancel(job_id)
    store.delete_job(job_id)
    job, replayed = store.create(demo_spec(), name=None, labels={}, idempotency_key="k")
    assert job.id != job_id
    assert not replayed


def test_a_job_that_has_not_ended_is_not_deleted(store):
    job_id = store.create(demo_spec(), name=None, labels={})[0].id
    for move in (lambda: None, lambda: store.claim(job_id, "w"), lambda: store.request_cancel(job_id)):
        move()
        status = store.get(job_id).status
        with pytest.raises(ConflictError, match=f"{job_id} is {status}; only a job that has ended"):
            store.delete_job(job_id)
    assert status is Status.CANCELLING
    assert store.deletions() == []


def test_a_worker_that_comes_back_late_finds_a_deleted_job_lost(store):
    job_id = store.create(demo_spec(), name=None, labels={})[0].id
    late = store.claim(job_id, "late")
    store.release(late, "it fell silent")
    store.request_cancel(job_id)
    store.delete_job(job_id)
    requests = [
        lambda: store.start(late),
        lambda: store.renew(late),
        lambda: store.record(late, Warned(message="slow")),
        lambda: store.keep_checkpoint(late, checkpoint("dense", 1)),
        lambda: store.finish(late, BUNDLE),
        lambda: store.hand_back(late, "shut down"),
    ]
    for ask in requests:
        with pytest.raises(LeaseLostError):
            ask()
    assert store.claim(job_id, "w") is None


# ---- uploads -------------------------------------------------------------------------------------------------------


def test_a_deleted_upload_is_gone_and_its_jobs_cannot_be_tried_again(store, upload, ended):
    record = upload()
    job_id = ended(BROKEN, upload_spec(record.id))
    store.delete_file(record.id)
    for ask in (store.get_file, store.delete_file):
        with pytest.raises(NotFoundError, match="There is no file"):
            ask(record.id)
    assert store.deletions() == [record.key]
    with pytest.raises(ConflictError, match=f"cannot be tried again: it reads {record.id}, deleted since"):
        store.retry(job_id)
    with pytest.raises(InvalidInputError, match="There is no file"):
        store.create(upload_spec(record.id), name=None, labels={})
    store.delete_job(job_id)


def test_an_upload_that_is_still_to_be_read_is_not_deleted(store, upload):
    record = upload()
    made = [store.create(upload_spec(record.id), name=None, labels={})[0].id for _ in range(5)]
    store.request_pause(made[0])
    with pytest.raises(ConflictError, match=f"ended: {', '.join(made[:3])} and 2 more"):
        store.delete_file(record.id)
    for job_id in made:
        store.request_cancel(job_id)
    store.delete_file(record.id)


def test_an_upload_that_was_cut_off_is_to_be_removed_a_day_later(store, engine, upload):
    record = upload()
    cut_off = replace(record, id=new_file_id(), key="uploads/cut_off.jsonl")
    store.expect_file(cut_off.key)
    assert (store.deletions(), store.statistics().deletions) == ([], 0)
    a_day_passes(engine)
    assert (store.deletions(), store.statistics().deletions) == ([cut_off.key], 1)
    with pytest.raises(StorageError, match="longer than a day"):
        store.add_file(cut_off)
    assert store.file_page(9, None, None)[0] == [record]


def test_a_note_without_a_time_is_due_and_one_with_a_time_is_kept_through_an_earlier_schema(
    own_database, engine, store, upload
):
    deleted = upload()
    store.delete_file(deleted.id)
    store.expect_file("uploads/cut_off.jsonl")
    assert store.deletions() == [deleted.key]
    engine.dispose()
    db.downgrade(own_database, "0003")
    db.upgrade(own_database)
    # No upload is under way while the schema changes.
    assert sorted(store.deletions()) == sorted([deleted.key, "uploads/cut_off.jsonl"])


def test_jobs_of_an_earlier_schema_keep_their_uploads(own_database, engine, store, upload):
    record, unused = upload(), upload()
    job_id = store.create(upload_spec(record.id), name=None, labels={})[0].id
    store.claim(job_id, "w")
    waited = store.statistics().waited
    engine.dispose()
    db.downgrade(own_database, "0002")
    db.upgrade(own_database)
    after = store.statistics().waited
    assert (after.count, after.seconds) == (1, pytest.approx(waited.seconds, abs=1e-2))
    with pytest.raises(ConflictError, match=job_id):
        store.delete_file(record.id)
    store.delete_file(unused.id)


def test_a_schema_that_goes_down_and_up_forgets_no_deleted_upload(own_database, engine, store, upload, ended):
    record = upload()
    job_id = ended(BROKEN, upload_spec(record.id))
    store.delete_file(record.id)
    engine.dispose()
    db.downgrade(own_database, "0002")
    db.upgrade(own_database)
    with pytest.raises(ConflictError, match="deleted since"):
        store.retry(job_id)


def test_a_job_and_the_deletion_of_its_upload_do_not_pass_each_other(store, upload, ended):
    """Whichever comes first, no job waits for what is gone."""
    with ThreadPoolExecutor(2) as pool:
        for number in range(16):
            record = upload(days_ago=8)
            spec = upload_spec(record.id)
            tried_again = ended(BROKEN, spec) if number % 2 else None
            together = threading.Barrier(2)

            def delete(file_id=record.id, together=together, by_age=number > 7):
                together.wait()
                with suppress(ConflictError):
                    store.delete_old(7 * DAY) if by_age else store.delete_file(file_id)

            def ask(spec=spec, job_id=tried_again, together=together):
                together.wait()
                with suppress(ConflictError, InvalidInputError):
                    return store.retry(job_id) if job_id else store.create(spec, name=None, labels={})[0]

            deleting, asking = pool.submit(delete), pool.submit(ask)
            deleting.result()
            if asking.result() is None:
                with pytest.raises(NotFoundError):
                    store.get_file(record.id)
            else:
                assert store.get_file(record.id) == record
            for job in store.page(99, None, Status.QUEUED)[0]:
                store.request_cancel(job.id)


def test_pages_of_uploads_are_newest_first_and_survive_a_deletion(store, upload):
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    same_moment = sorted((upload(moment=moment) for _ in range(3)), key=lambda record: record.id)
    older, newer = upload(moment=moment - timedelta(microseconds=1)), upload(moment=moment + timedelta(microseconds=1))
    model = upload(purpose="model", moment=moment - timedelta(days=1))
    wanted = [newer, *reversed(same_moment), older, model]
    page, cursor = store.file_page(2, None, None)
    assert page == wanted[:2]
    store.delete_file(page[-1].id)
    page, cursor = store.file_page(2, cursor, None)
    assert page == wanted[2:4]
    assert store.file_page(2, cursor, None) == (wanted[4:], None)
    assert store.file_page(9, None, "model") == ([model], None)


# ---- age -----------------------------------------------------------------------------------------------------------


def test_what_is_old_and_no_longer_needed_is_deleted(store, engine, upload, ended):
    old, new = ended(), ended(BROKEN)
    waiting = store.create(demo_spec(), name=None, labels={})[0].id
    finished_days_ago(engine, old, 8)
    finished_days_ago(engine, new, 6)
    unnamed, young = upload(days_ago=8), upload(days_ago=6)
    assert sorted(store.delete_old(7 * DAY)) == sorted([old, unnamed.id])
    assert store.delete_old(7 * DAY) == []
    assert sorted(store.deletions()) == sorted([f"artifacts/{old}", f"checkpoints/{old}", unnamed.key])
    assert [job.id for job in store.page(9, None, None)[0]] == [waiting, new]
    assert store.file_page(9, None, None)[0] == [young]


def test_an_old_upload_stays_as_long_as_a_job_names_it(store, engine, upload, ended):
    record = upload(days_ago=8)
    job_id = ended(BROKEN, upload_spec(record.id))
    assert store.delete_old(7 * DAY) == []
    finished_days_ago(engine, job_id, 8)
    assert store.delete_old(7 * DAY) == [job_id, record.id]


def test_an_old_upload_that_a_job_came_to_name_just_before_it_was_locked_stays(store, upload, monkeypatch):
    record = upload(days_ago=8)
    job_id = store.create(demo_spec(), name=None, labels={})[0].id
    naming = [{"job_id": job_id, "file_id": record.id}]
    with store._writer.begin() as connection:
        ask = connection.scalars

        def ask_once_named(statement):
            # The look that locks saw the time before: a job that names a file does not change the file's row.
            if naming and statement._for_update_arg is None:
                connection.execute(sa.insert(db.job_files), naming.pop())
            return ask(statement)

        monkeypatch.setattr(connection, "scalars", ask_once_named)
        assert deletion.delete_old(connection, 7 * DAY) == []
    assert naming == []
    assert store.get_file(record.id) == record


def test_a_great_deal_that_is_old_is_deleted_in_parts(store, upload, monkeypatch):
    monkeypatch.setattr("core.jobs.deletion.DELETED_AT_ONCE", 2)
    for _ in range(3):
        upload(days_ago=8)
    assert [len(store.delete_old(7 * DAY)) for _ in range(3)] == [2, 1, 0]
