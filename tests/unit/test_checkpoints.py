"""Checkpoints in a store: whole or not at all, in time, and the last before a job stops."""

import pytest

from core.checkpoints import Checkpoints, CheckpointStore
from core.errors import Interrupted, StorageError
from core.progress import Checkpointed
from core.storage import Storage


class Attempt:
    """One attempt's view of a job's checkpoints."""

    def __init__(self, folder, known=None, number=1):
        self.storage = Storage(str(folder / "storage"))
        self.heard = []
        scratch = folder / f"scratch-{number}"
        self.store = CheckpointStore(self.storage, f"checkpoints/job/{number}", known or {}, scratch, self.heard.append)

    def recorded(self):
        return {message.stage: message for message in self.heard if isinstance(message, Checkpointed)}


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "pruner.pt").write_bytes(b"masks")
    return folder


@pytest.fixture
def attempt(tmp_path):
    return Attempt(tmp_path)


def test_another_attempt_gets_what_was_put(tmp_path, attempt, state):
    attempt.store.put("dense", 5, state, finished=True)
    found = Attempt(tmp_path, attempt.recorded(), number=2).store.fetch("dense")
    assert (found.step, found.finished) == (5, True)
    assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == {
        "model.safetensors": b"weights",
        "pruner.pt": b"masks",
    }
    assert Attempt(tmp_path, attempt.recorded(), number=3).store.fetch("pruning") is None


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path, attempt, state, damage):
    attempt.store.put("pruning", 5, state, finished=False)
    path = attempt.storage.local_path(f"{attempt.recorded()['pruning'].key}/pruner.pt")
    path.write_bytes(b"mas") if damage == "cut" else path.unlink()
    later = Attempt(tmp_path, attempt.recorded(), number=2)
    assert later.store.fetch("pruning") is None
    assert [message.message for message in later.heard] == [
        "The checkpoint at step 5 of pruning is damaged: pruning starts anew."
    ]


def test_a_store_that_fails_costs_the_checkpoint_and_not_the_job(attempt, state, monkeypatch):
    def refuse(key, path):
        raise StorageError("The store is away.")

    monkeypatch.setattr(attempt.storage, "put_file", refuse)
    attempt.store.put("pruning", 5, state, finished=False)
    assert [message.type for message in attempt.heard] == ["warning"]


def test_checkpoints_are_written_at_intervals_and_slow_ones_less_often(attempt, state, monkeypatch):
    now = 0.0
    monkeypatch.setattr("core.checkpoints.time.monotonic", lambda: now)
    checkpoints = Checkpoints(attempt.store, interval_seconds=100)
    assert not checkpoints.begin_if_due()
    now = 100.0
    assert checkpoints.begin_if_due()
    checkpoints.save("pruning", 1, state)
    now = 199.0
    assert not checkpoints.begin_if_due()
    now = 200.0
    assert checkpoints.begin_if_due()
    now = 210.0  # it took 10 s, which is 2 % of 500 s
    checkpoints.save("pruning", 2, state)
    now = 709.0
    assert not checkpoints.begin_if_due()
    now = 710.0
    assert checkpoints.begin_if_due()


def test_without_a_store_none_is_due():
    assert not Checkpoints(interval_seconds=0).begin_if_due()
    assert Checkpoints().fetch("pruning") is None


def test_a_stop_waits_for_the_checkpoint_of_a_training(attempt, state):
    checkpoints = Checkpoints(attempt.store, interval_seconds=1e9)

    def train():
        with checkpoints.stop_deferred():
            checkpoints.request_stop()
            assert checkpoints.begin_if_due()
            checkpoints.save("pruning", 3, state)

    with pytest.raises(Interrupted):
        train()
    assert attempt.recorded()["pruning"].step == 3


def test_a_stop_after_the_last_checkpoint_waits_for_the_end_of_a_training(attempt, state):
    checkpoints = Checkpoints(attempt.store, interval_seconds=1e9)

    def train():
        with checkpoints.stop_deferred():
            checkpoints.request_stop()
            checkpoints.save_end("pruning", 3, state)

    with pytest.raises(Interrupted):
        train()
    assert attempt.recorded()["pruning"].finished


def test_a_stop_outside_of_a_training_is_at_once():
    with pytest.raises(Interrupted):
        Checkpoints().request_stop()
