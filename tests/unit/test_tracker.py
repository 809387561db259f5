"""One progress bar over phases and training steps."""

import pytest

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
