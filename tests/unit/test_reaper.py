"""One round of the reaper."""

import pytest

from core.settings import Settings
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
def reaper(store, dispatcher, tmp_path):
    return Reaper(store, dispatcher, Settings(work_dir=tmp_path), worker="w")


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


def test_only_folders_of_attempts_that_run_are_kept(reaper, store, job_id, tmp_path):
    lease = store.claim(job_id, "w")
    kept, stale, unknown, foreign = (tmp_path / name for name in (f"{job_id}-1", f"{job_id}-0", "job_gone-1", "notes"))
    for folder in (kept, stale, unknown, foreign):
        folder.mkdir()
        (folder / "file").touch()
    reaper.round()
    assert sorted(tmp_path.iterdir()) == sorted([kept, foreign])
    store.release(lease, "test")
    reaper.round()
    assert list(tmp_path.iterdir()) == [foreign]


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
