"""One progress bar over phases and training steps."""

from types import SimpleNamespace

import pytest

from core.engine import tracker as tracker_module
from core.engine.tracker import SHARES, Tracker
from core.engine.training import StepReport
from core.progress import PhaseStarted, StepDone


def test_progress_rises_from_nothing_to_the_end():
    heard = []
    tracker = Tracker(heard.append)
    tracker.expect(dense_steps=10, pruning_steps=30)
    for name in SHARES:
        with tracker.phase(name):
            for step in range(1, 4) if name in ("baseline", "pruning") else ():
                tracker.training_step(StepReport(step, 3, loss=0.5, sparsity=0.1))
    assert [m.phase for m in heard if isinstance(m, PhaseStarted)] == list(SHARES)
    fractions = [m.fraction for m in heard if isinstance(m, StepDone)]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert set(tracker.seconds) == set(SHARES)


def test_training_time_is_shared_by_steps():
    heard = []
    tracker = Tracker(heard.append)
    tracker.expect(dense_steps=30, pruning_steps=10)
    with tracker.phase("loading"):
        pass
    with tracker.phase("baseline"):
        tracker.training_step(StepReport(30, 30, loss=0.5, sparsity=0.0))
        expected = SHARES["loading"] + SHARES["baseline"] + 0.75 * SHARES["pruning"]
        assert heard[-1].fraction == pytest.approx(expected, abs=1e-3)
        assert heard[-1].eta_seconds >= 0


def test_several_trainings_and_bundles_share_one_bar():
    heard = []
    tracker = Tracker(heard.append)
    tracker.expect(dense_steps=0, pruning_steps=6, bundles=2)
    for name in ("loading", "baseline", "pruning", *("compacting", "evaluating", "exporting", "verifying") * 2):
        with tracker.phase(name):
            for step in (1, 2, 3, 1, 2, 3) if name == "pruning" else ():
                tracker.training_step(StepReport(step, 3, loss=0.5, sparsity=0.1))
    said = [m for m in heard if isinstance(m, StepDone)]
    assert [(m.step, m.total_steps) for m in said if m.step] == [(step, 6) for step in range(1, 7)]
    fractions = [m.fraction for m in said]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)


def test_the_time_that_is_left_falls_as_the_clock_goes_on(monkeypatch):
    """Of a job in which every phase takes as long as expected, a hundred seconds in all."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(tracker_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    left = []
    tracker = Tracker(lambda message: left.append(message.eta_seconds) if message.type == "progress" else None)
    tracker.expect(dense_steps=0, pruning_steps=76)
    for name, share in SHARES.items():
        with tracker.phase(name):
            for step in range(1, 77) if name == "pruning" else ():
                clock.now += 1
                tracker.training_step(StepReport(step, 76, loss=0.5, sparsity=0.1))
                assert left[-1] == pytest.approx(1100 - clock.now)
            clock.now += 0 if name == "pruning" else 100 * share
        assert left[-1] == pytest.approx(1100 - clock.now, abs=1e-6)
