"""A level that goes on from a lower one."""

from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertModel

from core.engine import ladder as ladders
from core.engine.ladder import Ladder, Level
from core.engine.targets.course import Frontier
from core.errors import UnreachableTargetError
from tests import tiny
from tests.specs import demo_spec


def test_a_frontier_is_refused_at_once_where_a_level_is_out_of_reach_from_the_one_before():
    """Of two layers with two large heads each, either level can be met from dense."""
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    config = BertConfig(vocab_size=tiny.VOCABULARY, **sizes)
    spec = demo_spec(method={"name": "random"}, training={"num_train_epochs": 1})
    ladder = Ladder(spec, SimpleNamespace(model=BertModel(config), task=None, train=range(40)), listen=None)
    before = {name: tensor.clone() for name, tensor in ladder.prepared.model.state_dict().items()}
    for sparsity in (0.85, 0.92):
        ladder.check(Level(sparsity))
        Frontier(ladder, (0.5, sparsity))
    with pytest.raises(UnreachableTargetError, match=r"0\.9200 cannot be met"):
        Frontier(ladder, (0.85, 0.92))
    after = ladder.prepared.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_level_starts_with_what_is_gone_of_it_already(monkeypatch):
    monkeypatch.setattr(ladders, "prune", lambda *_, **__: None)
    monkeypatch.setattr(ladders, "Teacher", lambda *_: None)
    spec = demo_spec(method={"name": "random"}, training={"num_train_epochs": 1})
    ladder = Ladder(spec, SimpleNamespace(model=tiny.bert(), task=None, train=range(40)), listen=None)
    previous = ladder.stand_in(Level(0.4))
    assert ladder.reach(Level(0.4)).schedule.start == 0
    assert ladder.reach(Level(0.8), previous).schedule.start == pytest.approx(0.5, abs=0.005)
