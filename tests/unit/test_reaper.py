"""One round of the reaper."""

import io

import pytest
import sqlalchemy as sa

from core.db import jobs, utcnow
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


def test_a_job_that_was_never_sent_is_sent_once(reaper, dispatcher, job_id):
    reaper.round()
    reaper.round()
    assert dispatcher.sent == [job_id]


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
    reaper.round()
    assert sorted(work.iterdir()) == sorted([kept, foreign])
    store.release(lease, "test")
    reaper.round()
    assert list(work.iterdir()) == [foreign]


def test_checkpoints_of_a_job_that_succeeded_are_removed_and_others_kept_for_a_retry(reaper, store, storage):
    def left_by(outcome):
        job_id = store.create(demo_spec(), name=None, labels={})[0].id
        lease = store.claim(job_id, "w")
        store.start(lease)
        key = f"checkpoints/{job_id}/1/dense-5"
        storage.put(f"{key}/model.safetensors", io.BytesIO(b"ok"))
        store.keep_checkpoint(lease, checkpoint("dense", 5).model_copy(update={"key": key}))
        store.finish(lease, outcome)
        return job_id, storage.local_path(key)

    done, useless = left_by(Succeeded(metrics_summary={}, artifacts=[]))
    failed, kept = left_by(Failed(code="internal", message="broken"))
    reaper.round()
    assert not useless.exists()
    assert kept.exists()
    assert (store.checkpoints(done), set(store.checkpoints(failed))) == ({}, {"dense"})


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

    monkeypatch.setattr(reaper, "round", fail)
    monkeypatch.setattr(reaper._stopping, "wait", lambda seconds: None)
    reaper._run()
    assert len(rounds) == 2
