"""NeuroPrune as published: its penalty against loops over a whole model, and when which heads go."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.engine.anatomy import bind
from core.engine.compact import compact
from core.engine.methods import Schedule, build_pruner
from core.engine.methods.neuroprune.redundancy import representatives
from core.jobs.methods import NeuroPrune
from tests import tiny
from tests.pruning import adamw, every_storage, plant_twins, take_step

ALPHA, BETA, EPSILON = 1e-3, 1e-2, 0.05


def faithful(model, **options):
    method = NeuroPrune(name="neuroprune", mode="faithful", alpha=ALPHA, beta=BETA, epsilon=EPSILON, **options)
    return build_pruner(bind(model), method, None, Schedule(10, 0.1, 0.4), seed=0)


def preferential_attachment(weight):
    """Equation 1 and its gradient, row by row."""
    total, gradient = 0.0, np.zeros(weight.shape)
    for i, row in enumerate(weight):
        connections = sum(abs(w) >= EPSILON for w in row)
        share = max(connections, 1) / len(row)
        for j, w in enumerate(row):
            total += abs(w) / share
            gradient[i, j] = np.sign(w) / share
    return total, gradient


def group_sparsity(matrices):
    """Equation 2 and its gradient, group by group."""
    total, gradients = 0.0, [np.zeros(matrix.shape) for matrix in matrices]
    for i in range(matrices[0].shape[1]):
        norm = sum(abs(w) for matrix in matrices for w in matrix[:, i])
        total += norm**0.5
        for matrix, gradient in zip(matrices, gradients, strict=True):
            gradient[:, i] = np.sign(matrix[:, i]) / (2 * norm**0.5)
    return total, gradients


@every_storage
def test_the_penalty_and_its_gradient_equal_the_loops(make):
    model = make()
    pruner = faithful(model)
    pruner.anatomy.layers[0].mlps[0].output.weight.data[3] = 1e-3
    penalty = pruner.penalty()
    penalty.backward()
    expected, gradients = 0.0, {}
    for layer in pruner.anatomy.layers:
        for matrix in (*layer.mlps[0].inputs, layer.mlps[0].output):
            value, gradient = preferential_attachment(matrix.weight.double().numpy())
            expected += ALPHA * value
            gradients[matrix] = ALPHA * gradient
        matrices = layer.attentions[0].projections
        value, found = group_sparsity([matrix.weight.double().numpy() for matrix in matrices])
        expected += BETA * value
        gradients |= {matrix: BETA * gradient for matrix, gradient in zip(matrices, found, strict=True)}
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    for matrix, gradient in gradients.items():
        np.testing.assert_allclose(matrix.gradient.numpy(), gradient, rtol=1e-4, atol=1e-9)
    penalised = {matrix.parameter for matrix in gradients}
    assert all(parameter.grad is None for parameter in model.parameters() if parameter not in penalised)


@every_storage
def test_equal_heads_are_merged_after_an_epoch_and_the_logits_do_not_move(make):
    model, ids = make(), torch.arange(4, 24).view(2, 10)
    pruner = faithful(model, theta=1e-4)
    plant_twins(pruner.anatomy, 0, [1, 2])
    plant_twins(pruner.anatomy, 2, [0, 1, 3])
    with torch.no_grad():
        before = model(ids).logits
        pruner.end_epoch()
        after = model(ids).logits
        compact(pruner.anatomy, pruner.plan())
        compacted = model(ids).logits
    assert pruner.masks.removed("heads") == [1, 0, 2]
    assert pruner.merged == [(0, 1, 2), (6, 0, 3), (6, 1, 3)]
    assert float((after - before).abs().max()) <= 1e-6
    assert float((compacted - before).abs().max()) <= 1e-6


@every_storage
def test_heads_go_at_the_ends_of_epochs_and_at_no_other_time(make):
    model = make()
    pruner = faithful(model, theta=100.0)
    optimizer = adamw(model)
    for step in range(1, 4):
        take_step(pruner, optimizer, step)
        assert pruner.masks.removed("heads") == [0, 0, 0]
    pruner.end_epoch()
    assert pruner.masks.removed("heads") == [3, 3, 3]
    for step in range(4, 7):
        take_step(pruner, optimizer, step)
        for layer in range(3):
            position = pruner.anatomy.positions("heads")[layer]
            gone = ~pruner.masks.kept(position)
            parts = pruner.anatomy.units[position].slices
            assert int(gone.sum()) == 3
            assert not any(part.by_unit(part.parameter.detach())[gone].any() for part in parts)
    pruner.end_epoch()
    assert pruner.masks.removed("heads") == [3, 3, 3]


@every_storage
def test_in_the_end_what_is_below_epsilon_is_zero_and_nothing_else_is(make):
    model = make()
    pruner = faithful(model, theta=0.0)
    before = [matrix.weight.clone() for matrix in pruner.anatomy.matrices]
    pruner.finish()
    for old, matrix in zip(before, pruner.anatomy.matrices, strict=True):
        assert torch.equal(matrix.weight, torch.where(old.abs() >= EPSILON, old, 0.0))
    zeros = sum(int((matrix.weight == 0).sum()) for matrix in pruner.anatomy.matrices)
    assert pruner.sparsity == zeros / pruner.anatomy.encoder_parameters > 0


def planted(similar):
    """A tiny attention whose heads differ by at most theta = 1 exactly where `similar` says so.

    Of the entries of two heads that are to differ, one has 0 and the other 2 somewhere; all others lie at 1 between.
    """
    k = len(similar)
    config = tiny.bert_config()
    config.num_attention_heads, config.hidden_size = k, 8 * k
    attention = bind(type(tiny.bert())(config)).layers[0].attentions[0]
    for matrix in attention.projections:
        matrix.weight.fill_(1.0)
        matrix.bias.fill_(1.0)
    rows = attention.query.weight.values.flatten(1)
    different = [(i, j) for i in range(k) for j in range(i) if not similar[i, j]]
    for place, (i, j) in enumerate(different):
        rows[i, place], rows[j, place] = 0.0, 2.0
    return attention


@st.composite
def graphs(draw):
    k = draw(st.integers(1, 7))
    similar = torch.eye(k, dtype=torch.bool)
    for i in range(k):
        for j in range(i):
            similar[i, j] = similar[j, i] = draw(st.booleans())
    return similar, torch.tensor(draw(st.lists(st.booleans(), min_size=k, max_size=k)))


def dominating_by_hand(similar, kept):
    """Algorithm 3 on the kept heads, with sets of neighbours."""
    heads = [i for i in range(len(similar)) if kept[i]]
    neighbours = {i: {j for j in heads if similar[i, j]} for i in heads}
    found = list(range(len(similar)))
    for i in heads:
        best = i
        for j in heads:
            if neighbours[best] < neighbours[j] or (neighbours[best] == neighbours[j] and best < j):
                best = j
        found[i] = best
    return found


@settings(max_examples=150)
@given(graphs())
def test_the_heads_that_stay_dominate_and_are_not_dominated(graph):
    similar, kept = graph
    found = representatives(planted(similar), kept, theta=1.0).tolist()
    assert found == dominating_by_hand(similar, kept)
    for head in kept.nonzero().flatten().tolist():
        stands_in = found[head]
        assert found[stands_in] == stands_in
        assert kept[stands_in]
        assert similar[head, stands_in]
    staying = {head for head in kept.nonzero().flatten().tolist() if found[head] == head}
    assert all(any(similar[head, other] for other in staying) for head in kept.nonzero().flatten().tolist())
