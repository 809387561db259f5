"""Algorithms 2 and 3: the dominating set against the paper's pseudo-code, and merging that changes nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.utils._python_dispatch import TorchDispatchMode

from core.engine.anatomy import bind
from core.engine.methods.neuroprune import redundancy
from core.engine.methods.neuroprune.criterion import NeuroPruneCriterion
from core.engine.methods.neuroprune.redundancy import (
    FIRST_ENTRIES,
    distances,
    find_dominating,
    hand_over_,
    head_matrix,
    representatives,
    similar_heads,
)
from core.engine.plan import Masks
from core.engine.topology import head_graph
from core.jobs.methods import NeuroPrune
from tests import tiny, tiny_families

THETA = 0.15
AT_THETA = np.float32(THETA)
ENTRIES = st.floats(-0.25, 0.25, width=32) | st.sampled_from(
    [0.0, AT_THETA, -AT_THETA, np.nextafter(AT_THETA, np.float32(1)), 1e30, math.inf, -math.inf, math.nan]
)
"""Differences around theta and just at it, and what no weight should be."""


def paper_pseudo_code(similar: list[list[int]]) -> list[int]:
    """FIND_DOMINATING line by line, indices from 0."""
    k = len(similar)
    result = []
    for i in range(k):
        best = i
        for j in range(k):
            s = [similar[best][m] - similar[j][m] for m in range(k)]
            if (1 not in s and -1 in s) or (all(x == 0 for x in s) and best < j):
                best = j
        result.append(best)
    return result


def random_graph(k: int, density: float, seed: int) -> torch.Tensor:
    upper = torch.rand(k, k, generator=torch.Generator().manual_seed(seed)) < density
    return upper.triu() | upper.triu().T | torch.eye(k, dtype=torch.bool)


@pytest.mark.parametrize("k", [1, 2, 5, 12])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_dominating_set(k, density, seed):
    similar = random_graph(k, density, seed)
    representative = find_dominating(similar)
    assert representative.tolist() == paper_pseudo_code(similar.int().tolist())
    dominating = set(representative.tolist())
    for head in range(k):
        assert any(bool(similar[head, d]) for d in dominating)
        assert bool(similar[head, representative[head]])
    for chosen in dominating:
        assert representative[chosen] == chosen


def test_isolated_heads_all_stay():
    assert find_dominating(torch.eye(6, dtype=torch.bool)).tolist() == list(range(6))


def test_distances_are_the_largest_entry_difference():
    heads = torch.randn(5, 7)
    expected = [[max(abs(float(a - b)) for a, b in zip(x, y, strict=True)) for y in heads] for x in heads]
    torch.testing.assert_close(distances(heads), torch.tensor(expected))


@given(arrays(np.float32, st.tuples(st.integers(0, 6), st.integers(1, 24)), elements=ENTRIES, fill=st.just(0.0)))
def test_the_same_heads_are_similar_whether_or_not_all_entries_are_compared(heads):
    heads = torch.tensor(heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redundancy, "FIRST_ENTRIES", 3)
        assert torch.equal(similar_heads(heads, THETA), distances(heads) <= THETA)


@pytest.mark.parametrize("entry", [0, 1, 5000, 3 * FIRST_ENTRIES - 1])
@pytest.mark.parametrize("value", [THETA, 0.1501, math.nan, math.inf])
def test_one_entry_of_many_tells_heads_apart(entry, value):
    heads = torch.zeros(5, 3 * FIRST_ENTRIES)
    heads[3, entry] = value
    assert torch.equal(similar_heads(heads, THETA), distances(heads) <= THETA)


def test_few_entries_are_compared_of_heads_that_differ_in_those():
    """Of each pair some, and of each head, with itself, all."""
    heads = torch.randn(8, 40 * FIRST_ENTRIES, generator=torch.Generator().manual_seed(0))
    with Subtractions() as counted:
        assert torch.equal(similar_heads(heads, THETA), torch.eye(8, dtype=torch.bool))
    assert counted.entries == 8 * 8 * FIRST_ENTRIES + heads.numel()


def test_heads_of_a_layer_that_loses_none_are_not_compared():
    anatomy = bind(tiny.bert())
    criterion = NeuroPruneCriterion(anatomy, NeuroPrune(name="neuroprune"))
    with Subtractions() as counted:
        assert criterion.hand_over(0, torch.tensor([], dtype=torch.long), torch.ones(4, dtype=torch.bool)) == []
    assert counted.entries == 0


@pytest.mark.parametrize("make", [tiny.bert_classifier, tiny.llama], ids=["bert", "llama"])
def test_identical_heads_merge_without_moving_the_logits(make):
    model = make()
    attention = bind(model).layers[1].attentions[0]
    plant_twin(attention, source=3, twin=1)
    assert distances(head_matrix(attention))[1, 3] == 0
    inputs = torch.arange(4, 14).view(2, 5)
    with torch.no_grad():
        before = model(inputs).logits
        hand_over_(attention, removed=1, successor=3)
        Masks(bind(model)).remove(attention.units.position, torch.tensor([1]))
        after = model(inputs).logits
    assert float((after - before).abs().max()) <= 1e-6


@pytest.mark.parametrize(
    ("family", "task", "alike"),
    [
        ("bert", "masked-lm", [True] * 3),
        ("bloom", "causal-lm", [False] * 3),
        ("mpnet", "masked-lm", [False] * 3),
        # Only self attention has a bias: of three layers that encode, and three, with both kinds, that decode.
        ("t5", "seq2seq", [False] * 3 + [False, True] * 3),
    ],
)
def test_no_head_stands_for_another_where_each_has_a_bias_of_its_own(family, task, alike):
    attentions = bind(tiny_families.model(family, task)).attentions
    for attention in attentions:
        plant_twin(attention, source=1, twin=0)
    kept = [torch.ones(attention.groups, dtype=torch.bool) for attention in attentions]
    found = [representatives(each, heads, theta=0.0)[0] == 1 for each, heads in zip(attentions, kept, strict=True)]
    assert found == alike
    graphs = [head_graph(each, heads, theta=0.0) for each, heads in zip(attentions, kept, strict=True)]
    assert [(graph.edges, graph.heads - graph.dominating) for graph in graphs] == [(one, one) for one in alike]


def test_removing_a_head_without_successor_keeps_its_value_bias():
    """A head that only passes on its value bias is a constant, which the output's bias takes over."""
    model = tiny.bert_classifier()
    anatomy = bind(model)
    attention = anatomy.layers[0].attentions[0]
    inputs = torch.arange(4, 14).view(2, 5)
    with torch.no_grad():
        attention.value.weight.values[2] = 0
        before = model(inputs).logits
        hand_over_(attention, removed=2, successor=None)
        Masks(anatomy).remove(0, torch.tensor([2]))
        after = model(inputs).logits
    assert float((after - before).abs().max()) <= 1e-6


def plant_twin(attention, source, twin):
    """Make head `twin` compute what head `source` computes; their output weights stay different."""
    with torch.no_grad():
        for part in attention.units.reads:
            by_unit = part.by_unit(part.parameter.data)
            by_unit[twin] = by_unit[source]


class Subtractions(TorchDispatchMode):
    """Counts the differences that are taken."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket is torch.ops.aten.sub:
            self.entries += result.numel()
        return result
