"""One round of the reaper."""

import io
import threading
import time

import pytest
import sqlalchemy as sa

from core.db import deletions, jobs, utcnow
from core.errors import NotFoundError, StorageError
from core.jobs.state import Status
from core.progress import Failed, Succeeded
from core.settings import Settings
from core.storage import Storage
from tests.checkpoints import checkpoint
from tests.databases import SQLITE_ONLY
from tests.specs import demo_spec
from worker.reaper import Reaper

pytestmark = SQLITE_ONLY


class Dispatcher:
    """In the broker's place."""

    def __init__(self):
        self.sent = []
        self.is_up = True
        self.waiting = 0

    def job_ready(self, job_id):
        if self.is_up:
            self.sent.append(job_id)
        return self.is_up

    def is_drained(self):
        return self.is_up and self.waiting == 0


@pytest.fixture
def dispatcher():
    return Dispatcher()


@pytest.fixture
def settings(tmp_path):
    return Settings(work_dir=tmp_path / "work", queue_timeout_seconds=3600)


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "storage"))


@pytest.fixture
def reaper(store, storage, dispatcher, settings):
    return Reaper(store, storage, dispatcher, settings, worker="w")


@pytest.fixture
def job_id(store):
    return store.create(demo_spec(), name=None, labels={})[0].id


def test_the_worker_shows_itself(reaper, store):
    reaper.round()
    assert [worker.name for worker in store.live_workers(5)] == ["w"]


def test_a_worker_without_room_is_not_counted_and_still_looks_after_jobs(reaper, store, dispatcher, settings, job_id):
    settings.work_dir.parent.mkdir(parents=True, exist_ok=True)
    settings.work_dir.write_text("in the way")
    reaper.round()
    assert store.live_workers(5) == []
    assert dispatcher.sent == [job_id]


def test_a_job_that_was_never_sent_is_sent_once(reaper, dispatcher, job_id):
    reaper.round()
    reaper.round()
    assert dispatcher.sent == [job_id]


def test_a_job_that_waits_again_is_sent_again(reaper, store, dispatcher, job_id):
    reaper.round()
    store.release(store.claim(job_id, "w"), "test")
    reaper.round()
    assert dispatcher.sent == [job_id, job_id]


@pytest.mark.parametrize(("seconds_late", "times_sent"), [(-10, 1), (10, 2)])
def test_a_message_that_may_be_lost_is_sent_again(
    reaper, engine, dispatcher, settings, job_id, seconds_late, times_sent
):
    reaper.round()
    sent_at = utcnow(-settings.redispatch_seconds - seconds_late)
    with engine.begin() as connection:
        connection.execute(sa.update(jobs).values(dispatched_at=sent_at))
    reaper.round()
    assert dispatcher.sent == [job_id] * times_sent


def test_nothing_is_added_to_a_queue_that_is_not_empty(reaper, dispatcher, job_id):
    dispatcher.waiting = 1
    reaper.round()
    assert dispatcher.sent == []


def test_a_job_is_sent_once_the_broker_is_back(reaper, dispatcher, job_id):
    dispatcher.is_up = False
    reaper.round()
    dispatcher.is_up = True
    reaper.round()
    assert dispatcher.sent == [job_id]


def test_only_folders_of_attempts_that_run_are_kept(reaper, store, job_id, settings):
    lease = store.claim(job_id, "w")
    work = settings.work_dir
    kept, stale, unknown, foreign = (work / name for name in (f"{job_id}-1", f"{job_id}-0", "job_gone-1", "notes"))
    for folder in (kept, stale, unknown, foreign):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    reaper.sweep()
    assert sorted(work.iterdir()) == sorted([kept, foreign])
    store.release(lease, "test")
    reaper.sweep()
    assert list(work.iterdir()) == [foreign]


SUCCEEDED = Succeeded(metrics_summary={}, artifacts=[])
BROKEN = Failed(code="internal", message="broken")


@pytest.fixture
def left_by(store, storage):
    """A job that has written a checkpoint and may have recorded it, and where the checkpoint lies."""

    def leave(outcome, *, recorded=True):
        job_id = store.create(demo_spec(), name=None, labels={})[0].id
        lease = store.claim(job_id, "w")
        store.start(lease)
        key = f"checkpoints/{job_id}/1/dense-5"
        storage.put(f"{key}/model.safetensors", io.BytesIO(b"ok"))
        if recorded:
            store.keep_checkpoint(lease, checkpoint("dense", 5).model_copy(update={"key": key}))
        if outcome is not None:
            store.finish(lease, outcome)
        return job_id, storage.local_path(key)

    return leave


def test_checkpoints_of_a_job_that_succeeded_are_removed_and_others_kept_for_a_retry(reaper, store, left_by):
    done, useless = left_by(SUCCEEDED)
    failed, kept = left_by(BROKEN)
    reaper.sweep()
    assert not useless.exists()
    assert kept.exists()
    assert (store.checkpoints(done), set(store.checkpoints(failed))) == ({}, {"dense"})


def test_checkpoints_of_a_job_that_succeeds_later_are_removed_too(reaper, left_by):
    reaper.sweep()
    _, useless = left_by(SUCCEEDED)
    reaper.sweep()
    assert not useless.exists()


def test_checkpoints_that_were_never_recorded_go_once_their_job_has_ended(reaper, storage, left_by):
    _, useless = left_by(BROKEN, recorded=False)
    _, running = left_by(None, recorded=False)
    storage.put("checkpoints/job_unknown/1/dense-5/model.safetensors", io.BytesIO(b"another service's"))
    reaper.sweep()
    assert not useless.exists()
    assert running.exists()
    assert storage.local_path("checkpoints/job_unknown").exists()


def test_what_the_store_would_not_remove_is_removed_later(reaper, storage, left_by, monkeypatch):
    places = [place for _, place in (left_by(SUCCEEDED), left_by(SUCCEEDED))]
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_prefix", unanswered)
        for _ in range(2):
            reaper.sweep()
    assert all(place.exists() for place in places)
    reaper.sweep()
    assert not any(place.exists() for place in places)


def test_what_was_deleted_leaves_the_store_whatever_else_stays(reaper, store, storage, left_by, monkeypatch):
    places = {}
    for _ in range(2):
        job_id, checkpoint_place = left_by(BROKEN)
        storage.put(f"artifacts/{job_id}/1/report.json", io.BytesIO(b"{}"))
        places[job_id] = [checkpoint_place, storage.local_path(f"artifacts/{job_id}")]
        store.delete_job(job_id)
    stubborn, _ = places
    delete = storage.delete_prefix

    def refuse(prefix):
        unanswered() if stubborn in prefix else delete(prefix)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_prefix", refuse)
        reaper.sweep()
    assert {job_id: [place.exists() for place in left] for job_id, left in places.items()} == {
        job_id: [job_id == stubborn] * 2 for job_id in places
    }
    assert store.deletions() == [f"artifacts/{stubborn}", f"checkpoints/{stubborn}"]
    reaper.sweep()
    assert store.deletions() == []
    assert not any(place.exists() for place in places[stubborn])


def test_a_checkpoint_that_stays_keeps_nothing_else(reaper, store, storage, left_by, monkeypatch):
    _, stubborn = left_by(SUCCEEDED)
    other, place = left_by(BROKEN)
    delete = storage.delete_prefix

    def refuse(prefix):
        delete(prefix) if other in prefix else unanswered()

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_prefix", refuse)
        reaper.sweep()
        store.delete_job(other)
        reaper.sweep()
    assert (stubborn.exists(), place.exists(), store.deletions()) == (True, False, [])
    reaper.sweep()
    assert not stubborn.exists()


def test_an_upload_that_was_cut_off_is_removed_a_day_later(reaper, store, engine, storage):
    key = "uploads/file_1.csv"
    store.expect_file(key)
    storage.put(key, io.BytesIO(b"text\none\n"))
    reaper.sweep()
    assert storage.names("uploads") == ["file_1.csv"]
    with engine.begin() as connection:
        connection.execute(sa.update(deletions).values(not_before=utcnow(-1)))
    reaper.sweep()
    assert (storage.names("uploads"), store.deletions()) == ([], [])


def test_what_was_deleted_is_not_forgotten_while_the_store_is_not_there(reaper, store, storage, left_by, monkeypatch):
    job_id, _ = left_by(BROKEN)
    store.delete_job(job_id)
    monkeypatch.setattr(storage, "check_writable", unanswered)
    with pytest.raises(StorageError):
        reaper.sweep()
    assert len(store.deletions()) == 2


def test_ended_jobs_are_kept_unless_the_settings_limit_it(reaper, store, storage, dispatcher, settings, left_by):
    job_id, place = left_by(BROKEN)
    reaper.sweep()
    assert store.get(job_id).status is Status.FAILED
    limited = settings.model_copy(update={"retention_seconds": 1e-3})
    time.sleep(0.01)
    Reaper(store, storage, dispatcher, limited, worker="w").sweep()
    with pytest.raises(NotFoundError):
        store.get(job_id)
    assert not place.exists()


def unanswered(*_):
    raise StorageError("the store does not answer")


def test_the_worker_shows_itself_while_the_store_does_not_answer(reaper, store, storage, monkeypatch):
    asked, answer = threading.Event(), threading.Event()

    def hang(_):
        asked.set()
        answer.wait(30)
        return []

    monkeypatch.setattr(storage, "names", hang)
    reaper.start()
    try:
        assert asked.wait(30)
        deadline = time.monotonic() + 30
        while not store.live_workers(5) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [worker.name for worker in store.live_workers(5)] == ["w"]
    finally:
        answer.set()
        reaper.stop()
    assert store.live_workers(5) == [], "one that has stopped is not counted on"


def test_a_worker_stops_without_the_database(reaper, monkeypatch):
    def gone(_):
        raise sa.exc.OperationalError("DELETE", {}, Exception("connection refused"))

    monkeypatch.setattr(reaper._store, "worker_gone", gone)
    reaper.start()
    reaper.stop()
    assert not any(thread.is_alive() for thread in reaper._threads)


def test_a_job_that_waited_too_long_expires(reaper, store, engine, job_id):
    with engine.begin() as connection:
        connection.execute(sa.update(jobs).values(queued_at=utcnow(-7200)))
    reaper.round()
    assert store.get(job_id).status is Status.EXPIRED


def test_a_round_that_fails_does_not_end_the_thread(reaper, monkeypatch):
    rounds = []

    def fail():
        rounds.append(1)
        if len(rounds) == 2:
            reaper._stopping.set()
        raise RuntimeError("database gone")

    monkeypatch.setattr(reaper._stopping, "wait", lambda seconds: None)
    reaper._repeat(fail)
    assert len(rounds) == 2
