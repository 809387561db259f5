"""Exact numbers of units for a target, the schedule to it, and how layers share it."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from core.engine.anatomy import bind
from core.engine.ladder import AT_ONCE
from core.engine.methods import build_pruner
from core.engine.methods.allocation import allocate
from core.engine.methods.budget import TOLERANCE, Budget
from core.engine.methods.gradual import gradual
from core.engine.methods.random import RandomCriterion
from core.engine.methods.schedule import Schedule
from core.engine.units import KINDS
from core.errors import NumericalError, UnreachableTargetError
from core.jobs.methods import L1, Importance, Magnitude, NeuroPrune, Random
from tests import tiny, tiny_families
from tests.pruning import Case, train


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
    assert Budget.of(anatomy, 0.0).counts(1.0) == {"heads": 0, "experts": 0, "neurons": 0, "inputs": 0}
    most = Budget.of(anatomy, 0.95)
    assert abs(most.achieved(most.counts(1.0)) - 0.95) <= max(TOLERANCE, 0.5 * most.neuron_cost / 25_632)


@pytest.mark.parametrize("sparsity", [0.1, 0.37, 0.5, 0.77, 0.95])
def test_no_other_removal_is_nearer(sparsity):
    """One layer with two heads and few neurons: every combination is tried."""
    budget = Budget(sparsity, 10_000, heads=2, head_cost=3000, neurons=30, neuron_cost=120)
    every = [{"heads": h, "experts": 0, "neurons": n, "inputs": 0} for h in range(3) for n in range(31)]
    nearest = min(abs(budget.achieved(counts) - sparsity) for counts in every)
    assert abs(budget.achieved(budget.counts(1.0)) - sparsity) <= max(nearest, 0.5 * 120 / 10_000) + 1e-12


@pytest.mark.parametrize("make", [tiny.bert, tiny.llama], ids=["bert", "llama"])
@settings(max_examples=25)
@given(
    sparsity=st.floats(0, 0.95),
    heads_kept=st.none() | st.integers(0, 12),
    in_rows=st.floats(0, 0.9),
    reached=st.floats(0, 1),
    floor=st.floats(0, 1),
)
def test_what_really_becomes_zero_is_what_the_budget_says(make, sparsity, heads_kept, in_rows, reached, floor):
    """Counted on a model without any zero of its own, on the way and in the end."""
    model = make()
    anatomy = bind(model)
    try:
        pruner = removing(anatomy, sparsity, layer_floor=floor, heads_kept=heads_kept, in_rows=in_rows)
    except UnreachableTargetError:
        return
    for share in (reached, 1.0):
        pruner.removal.advance(share, pruner.criterion)
        zeros = sum(int((parameter == 0).sum()) for parameter in anatomy.stack.parameters())
        assert pruner.masks.removed_parameters() == zeros
        assert pruner.sparsity == zeros / anatomy.encoder_parameters
        assert share < 1 or pruner.sparsity == pruner.removal.final_sparsity
    assert abs(pruner.sparsity - sparsity) <= max(TOLERANCE, 0.5 * anatomy.layers[0].mlps[0].units.cost / 25_632)
    heads = [4 - count for count in pruner.masks.removed("heads")]
    assert heads_kept is None or sum(heads) == heads_kept
    assert pruner.masks.removed("inputs") == [int(in_rows * 32 + 0.5)] * 3


def removing(anatomy, sparsity, **options):
    """A pruner that picks at random."""
    return gradual(
        anatomy, RandomCriterion(anatomy, 0), Schedule(10, 0, 0), sparsity, granularity="structured", **options
    )


def left_to_neurons(anatomy, sparsity, in_rows):
    """By number of removed heads, the parameters that neurons have to make up; counted row by row."""
    layer = anatomy.layers[0]
    hidden, inputs = layer.attentions[0].inputs.count, int(in_rows * layer.attentions[0].inputs.count + 0.5)
    head_dim, queries = layer.attentions[0].head_dim, layer.attentions[0].queries_per_group
    biases = (queries + 2) * head_dim if layer.attentions[0].query.bias else 0
    rows, columns = (queries + 2) * head_dim, queries * head_dim
    for heads in range(13):
        gone = heads * (rows * hidden + biases + columns * hidden) + (12 - heads) * rows * inputs
        yield sparsity * anatomy.encoder_parameters - gone


@pytest.mark.parametrize("make", [tiny.bert, tiny.llama], ids=["bert", "llama"])
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("in_rows", [0.0, 0.3, 0.5])
def test_brute_force_finds_no_nearer_budget(make, sparsity, in_rows):
    anatomy = bind(make())
    cost = anatomy.layers[0].mlps[0].units.cost
    total = sum(layer.mlps[0].units.count for layer in anatomy.layers)
    nearest = [
        min(abs(left - neurons * cost) for neurons in range(total + 1))
        for left in left_to_neurons(anatomy, sparsity, in_rows)
    ]
    budget = Budget.of(anatomy, sparsity, None, in_rows)
    found = abs(budget.achieved(budget.counts(1.0)) - sparsity) * anatomy.encoder_parameters
    assert found <= max(min(nearest), 0.5 * cost) + 1e-6
    for heads_kept in (12, 7, 3):
        missed = nearest[12 - heads_kept]
        if missed <= 0.5 * cost:
            budget = Budget.of(anatomy, sparsity, heads_kept, in_rows)
            counts = budget.counts(1.0)
            assert counts["heads"] == 12 - heads_kept
            assert abs(budget.achieved(counts) - sparsity) * anatomy.encoder_parameters == pytest.approx(missed)
        elif missed > max(0.5 * cost, TOLERANCE * anatomy.encoder_parameters):
            with pytest.raises(UnreachableTargetError, match="cannot be met"):
                Budget.of(anatomy, sparsity, heads_kept, in_rows)


@pytest.mark.parametrize("make", [tiny.bert, tiny.llama], ids=["bert", "llama"])
@given(sparsity=st.floats(0, 0.95), exponent=st.floats(1, 10))
def test_heads_are_spared_by_a_power_of_their_share(make, sparsity, exponent):
    """Of all numbers of heads with which the target is met best, the nearest to the power is taken."""
    anatomy = bind(make())
    cost, total = anatomy.mlps[0].units.cost, sum(mlp.units.count for mlp in anatomy.mlps)
    proportional = Budget.of(anatomy, sparsity)
    share = sparsity * anatomy.encoder_parameters / proportional.most
    missed = [
        max(0.5 * cost, min(abs(left - neurons * cost) for neurons in range(total + 1)))
        for left in left_to_neurons(anatomy, sparsity, 0.0)
    ]
    best = [heads for heads in range(13) if missed[heads] == min(missed)]
    budget = Budget.of(anatomy, sparsity, head_exponent=exponent)
    heads = budget.counts(1.0)["heads"]
    assert abs(heads - 12 * share**exponent) == pytest.approx(min(abs(h - 12 * share**exponent) for h in best))


def test_what_is_gone_before_counts_from_the_start():
    pruner = Case("neuroprune", "structured").pruner(tiny.bert_classifier(), 0.4, in_rows=0.25)
    train(pruner)
    further = Budget.of(bind(tiny.bert_classifier()), 0.5, in_rows=0.25, gone=pruner.masks)
    assert further.counts(0.0) == {kind: sum(pruner.masks.removed(kind)) for kind in KINDS}


def test_more_heads_than_there_are_cannot_stay():
    with pytest.raises(UnreachableTargetError, match="13 heads cannot stay: the model has 12") as caught:
        Budget.of(bind(tiny.bert()), 0.5, heads_kept=13)
    assert caught.value.param == "/method/heads_kept"


UNIFORM = {
    "bert": tiny.bert,
    "llama": tiny.llama,
    "qwen2": lambda: tiny_families.model("qwen2", "causal-lm"),
}
"""Neurons only; head groups that divide the hidden size; any number of head groups."""


class Wavering(RandomCriterion):
    """Other scores every time, and layers that matter more than others."""

    def unit_scores(self, position, kept):
        self.seed += 1
        return super().unit_scores(position, kept) + position


def test_no_more_goes_where_a_head_more_makes_fewer_neurons_due():
    """With these sizes and this schedule, and layers that are down to what they are guaranteed."""
    config = BertConfig(
        vocab_size=8, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    anatomy, schedule = bind(BertModel(config)), Schedule(250, 0.1, 0.4)
    pruner = gradual(anatomy, Wavering(anatomy, 0), schedule, 0.3, granularity="structured", layer_floor=0.8)
    due = [pruner.removal.budget.counts(schedule.reached(step))["neurons"] for step in range(0, 151, 3)]
    assert due != sorted(due)
    for step in range(0, 151, 3):
        pruner.removal.advance(schedule.reached(step), pruner.criterion)
    assert pruner.sparsity == pruner.removal.final_sparsity


@pytest.mark.parametrize("make", UNIFORM.values(), ids=UNIFORM)
@settings(max_examples=25)
@given(sparsity=st.floats(0, 0.95), reached=st.floats(0, 1))
def test_layers_of_one_width_lose_at_least_the_target_and_no_whole_width_more(make, sparsity, reached):
    anatomy = bind(make())
    mlp = anatomy.mlps[0].units
    try:
        pruner = removing(anatomy, sparsity, layer_floor=0.0, uniform=True)
    except UnreachableTargetError:
        most = 3 * (mlp.count - 1) * mlp.cost + 3 * anatomy.attentions[0].units.cost * most_heads(anatomy)
        assert sparsity * anatomy.encoder_parameters > most
        return
    for share in (reached, 1.0):
        pruner.removal.advance(share, pruner.criterion)
    assert {len(set(pruner.masks.removed(kind))) for kind in ("heads", "neurons")} == {1}
    wanted = int(sparsity * anatomy.encoder_parameters)
    assert 0 <= pruner.masks.removed_parameters() - wanted <= max(3 * mlp.cost, TOLERANCE * anatomy.encoder_parameters)
    assert pruner.sparsity == pruner.removal.final_sparsity


def test_every_layer_of_one_width_keeps_a_neuron():
    anatomy = bind(tiny.bert())
    neurons, parameters = anatomy.mlps[0].units, anatomy.encoder_parameters
    most = 3 * (neurons.count - 1) * neurons.cost
    assert Budget.of(anatomy, most / parameters, uniform=True).counts(1.0)["neurons"] == 3 * (neurons.count - 1)
    with pytest.raises(
        UnreachableTargetError, match=rf"uniform BERT model can lose gone it would be {most / parameters:.4f}"
    ):
        Budget.of(anatomy, (most + 2) / parameters, uniform=True)


def most_heads(anatomy) -> int:
    """Head groups that a layer can lose where all layers are to be alike."""
    return 0 if anatomy.family.model_type == "bert" else anatomy.attentions[0].groups - 1


def test_layers_of_one_width_keep_their_own_best():
    """Scores rise from layer to layer, and fall within each: a ranking over all would empty the first."""
    anatomy = bind(tiny_families.model("qwen2", "causal-lm"))
    pruner = removing(anatomy, 0.5, layer_floor=0.0, uniform=True)
    pruner.criterion.unit_scores = lambda position, kept: 100.0 * position - torch.arange(len(kept))
    pruner.removal.advance(1.0, pruner.criterion)
    for kind, count in (("heads", 4), ("neurons", 48)):
        first, *others = (pruner.plan().indices[i] for i in anatomy.positions(kind))
        assert 0 < len(first) < count
        assert {first, *others} == {tuple(range(len(first)))}


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
    assert sum(int(marks.sum()) for marks in chosen) == remove
    for layer, marks in zip(scores, chosen, strict=True):
        even_share = Fraction(total - remove, total) * len(layer)
        left = int((~marks).sum())
        assert left >= Fraction(floor) * even_share // 1
        assert left >= 1 or not floor or even_share < 1
        if 0 < int(marks.sum()) < len(layer):
            assert float(layer[marks].max()) <= float(layer[~marks].min())


@settings(max_examples=200)
@given(scored_layers(), st.floats(0, 1), st.data())
def test_what_is_gone_counts_even_where_a_layer_has_lost_more_than_its_share(layers, floor, data):
    scores, remove = layers
    places = [(i, j) for i, layer in enumerate(scores) for j in range(len(layer))]
    gone = data.draw(st.lists(st.sampled_from(places), unique=True, max_size=remove))
    for i, j in gone:
        scores[i][j] = -torch.inf
    chosen = allocate(scores, remove, floor)
    assert all(bool(chosen[i][j]) for i, j in gone)
    assert sum(int(marks.sum()) for marks in chosen) == remove


@settings(max_examples=200)
@given(scored_layers())
def test_without_a_floor_the_lowest_of_all_go(layers):
    scores, remove = layers
    order = sorted((float(s), i, j) for i, layer in enumerate(scores) for j, s in enumerate(layer))
    expected = {(i, j) for _, i, j in order[:remove]}
    chosen = allocate(scores, remove, 0.0)
    assert {(i, j) for i, marks in enumerate(chosen) for j in marks.nonzero().flatten().tolist()} == expected


def test_ties_go_by_layer_then_index():
    chosen = allocate([torch.zeros(3), torch.zeros(3)], 4, 0.0)
    assert [marks.tolist() for marks in chosen] == [[True] * 3, [True, False, False]]


def test_without_a_floor_the_ranking_is_global_and_with_one_it_is_even():
    scores = [torch.tensor([1.0, 2, 3, 4]), torch.tensor([5.0, 6, 7, 8])]
    assert [int(marks.sum()) for marks in allocate(scores, 4, 0.0)] == [4, 0]
    assert [int(marks.sum()) for marks in allocate(scores, 4, 1.0)] == [2, 2]


def test_a_layer_keeps_one_where_its_even_share_is_one():
    """Of 6 x 12 heads 7 stay, or 6: no layer loses all, however low its scores are; of 5 some have to."""
    scores = [torch.arange(12.0) + 100 * layer for layer in range(6)]
    assert [12 - int(marks.sum()) for marks in allocate(scores, 65, 0.8)] == [1, 1, 1, 1, 1, 2]
    assert [12 - int(marks.sum()) for marks in allocate(scores, 66, 0.1)] == [1, 1, 1, 1, 1, 1]
    assert [12 - int(marks.sum()) for marks in allocate(scores, 67, 1.0)] == [0, 0, 0, 0, 0, 5]
    assert [12 - int(marks.sum()) for marks in allocate(scores, 65, 0.0)] == [0, 0, 0, 0, 0, 7]


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(score):
    with pytest.raises(NumericalError, match="not finite"):
        allocate([torch.tensor([1.0, score])], 1, 0.5)


@pytest.mark.parametrize("method", [NeuroPrune(name="neuroprune"), Magnitude(name="magnitude")], ids=lambda m: m.name)
@pytest.mark.parametrize(("asked", "floor"), [(None, 0.8), (0.5, 0.5), (0.0, 0.0)])
def test_what_every_layer_keeps_is_as_asked_for_or_usual(method, asked, floor):
    pruner = build_pruner(bind(tiny.bert()), method.model_copy(update={"layer_floor": asked}), 0.5, AT_ONCE, 0)
    assert pruner.removal.floor == floor


@pytest.mark.parametrize("kind", [NeuroPrune, Importance, Magnitude, L1, Random])
def test_every_gradual_method_can_spare_heads(kind):
    anatomy = bind(tiny.llama())
    removed = []
    for exponent in (None, 1.0, 3.0):
        method = kind(name=kind.__name__.lower(), head_exponent=exponent)
        removed.append(build_pruner(anatomy, method, 0.5, AT_ONCE, 0).removal.budget.counts(1.0)["heads"])
    assert removed[0] == removed[1] > removed[2]
