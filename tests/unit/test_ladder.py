"""A level that goes on from a lower one."""

from types import SimpleNamespace

import pytest

from core.engine import ladder as ladders
from core.engine.ladder import Ladder, Level
from tests import tiny
from tests.specs import demo_spec


def test_a_level_starts_with_what_is_gone_of_it_already(monkeypatch):
    monkeypatch.setattr(ladders, "prune", lambda *_, **__: None)
    monkeypatch.setattr(ladders, "Teacher", lambda *_: None)
    spec = demo_spec(method={"name": "random"}, training={"num_train_epochs": 1})
    ladder = Ladder(spec, SimpleNamespace(model=tiny.bert(), task=None, train=range(40)), listen=None)
    previous = ladder.stand_in(Level(0.4))
    assert ladder.reach(Level(0.4)).schedule.start == 0
    assert ladder.reach(Level(0.8), previous).schedule.start == pytest.approx(0.5, abs=0.005)
