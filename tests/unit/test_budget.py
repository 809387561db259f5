"""Exact numbers of units for a target, the schedule to it, and how layers share it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.engine.anatomy import bind
from core.engine.methods.allocation import allocate
from core.engine.methods.budget import TOLERANCE, Budget
from core.engine.methods.schedule import Schedule
from core.errors import NumericalError, UnreachableTargetError
from tests import tiny


@given(st.floats(0, 0.95))
def test_counts_come_as_near_as_a_neuron_allows(sparsity):
    budget = Budget(sparsity, 11_000_000, heads=72, head_cost=49_248, neurons=9216, neuron_cost=769)
    counts = budget.counts(1.0)
    wanted = min(sparsity * budget.encoder_parameters, 72 * 49_248 + 9216 * 769)
    assert abs(budget.achieved(counts) * budget.encoder_parameters - wanted) <= 769 / 2 + 1e-6
    assert 0 <= counts["heads"] <= 72
    assert 0 <= counts["neurons"] <= 9216


@given(st.floats(0.01, 0.95), st.floats(0, 1), st.floats(0, 1))
def test_nothing_is_removed_on_the_way_that_stays_in_the_end(sparsity, one, other):
    budget = Budget(sparsity, 32_448, heads=12, head_cost=1536, neurons=144, neuron_cost=96)
    early, late = sorted((one, other))
    assert budget.counts(early)["heads"] <= budget.counts(late)["heads"]
    assert budget.counts(early)["neurons"] <= budget.counts(1.0)["neurons"]


def test_nothing_and_nearly_everything():
    anatomy = bind(tiny.bert())
    assert Budget.of(anatomy, 0.0).counts(1.0) == {"heads": 0, "neurons": 0}
    most = Budget.of(anatomy, 0.95)
    assert abs(most.achieved(most.counts(1.0)) - 0.95) <= max(TOLERANCE, 0.5 * most.neuron_cost / 25_632)


@pytest.mark.parametrize("sparsity", [0.1, 0.37, 0.5, 0.77, 0.95])
def test_no_other_removal_is_nearer(sparsity):
    """One layer with two heads and few neurons: every combination is tried."""
    budget = Budget(sparsity, 10_000, heads=2, head_cost=3000, neurons=30, neuron_cost=120)
    every = [{"heads": h, "neurons": n} for h in range(3) for n in range(31)]
    nearest = min(abs(budget.achieved(counts) - sparsity) for counts in every)
    assert abs(budget.achieved(budget.counts(1.0)) - sparsity) <= max(nearest, 0.5 * 120 / 10_000) + 1e-12


def test_an_unreachable_target_says_what_is_possible():
    anatomy = bind(tiny.bert())
    with pytest.raises(UnreachableTargetError, match=r"all heads and neurons gone it would be 0\.9775"):
        Budget.of(anatomy, 0.99)


@given(st.integers(1, 3000), st.floats(0, 0.5), st.floats(0, 0.5))
def test_schedule_rises_from_dense_to_the_target(total, warmup, recovery):
    schedule = Schedule(total, warmup, recovery)
    reached = [schedule.reached(step) for step in range(0, total + 1, max(1, total // 50))] + [schedule.reached(total)]
    assert reached[0] == 0 or schedule.last_step == 0
    assert reached == sorted(reached)
    assert reached[-1] == 1
    assert schedule.reached(schedule.last_step) == 1


def test_schedule_is_the_cubic_of_zhu_and_gupta():
    schedule = Schedule(100, 0.1, 0.4)
    assert schedule.reached(10) == 0
    assert schedule.reached(35) == pytest.approx(1 - 0.5**3)
    assert schedule.reached(60) == 1


@st.composite
def scored_layers(draw):
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    values = st.floats(0, 3) | st.sampled_from([0.0, 1.0])
    scores = [torch.tensor(draw(st.lists(values, min_size=n, max_size=n))) for n in sizes]
    return scores, draw(st.integers(0, sum(sizes)))


@settings(max_examples=200)
@given(scored_layers(), st.floats(0, 1))
def test_allocation_is_exact_and_starves_no_layer(layers, floor):
    scores, remove = layers
    chosen = allocate(scores, remove, floor)
    total = sum(len(s) for s in scores)
    assert sum(len(c) for c in chosen) == remove
    for layer, indices in zip(scores, chosen, strict=True):
        assert len(set(indices.tolist())) == len(indices)
        assert len(layer) - len(indices) >= int(floor * (1 - remove / total) * len(layer))
        if 0 < len(indices) < len(layer):
            kept = torch.ones(len(layer), dtype=torch.bool)
            kept[indices] = False
            assert float(layer[indices].max()) <= float(layer[kept].min())


def test_ties_go_by_layer_then_index():
    chosen = allocate([torch.zeros(3), torch.zeros(3)], 4, 0.0)
    assert [c.tolist() for c in chosen] == [[0, 1, 2], [0]]


def test_without_a_floor_the_ranking_is_global_and_with_one_it_is_even():
    scores = [torch.tensor([1.0, 2, 3, 4]), torch.tensor([5.0, 6, 7, 8])]
    assert [len(c) for c in allocate(scores, 4, 0.0)] == [4, 0]
    assert [len(c) for c in allocate(scores, 4, 1.0)] == [2, 2]


def test_nan_scores_are_refused():
    with pytest.raises(NumericalError, match="NaN"):
        allocate([torch.tensor([1.0, float("nan")])], 1, 0.5)
