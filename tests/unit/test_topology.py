"""A network's topology against loops over single weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.engine.anatomy import bind
from core.engine.compact import compact
from core.engine.plan import Masks, Plan
from core.engine.topology import (
    HISTOGRAM_BINS,
    MATRIX_KINDS,
    Degrees,
    head_graph,
    head_importance,
    neuron_degrees,
    removed_importance,
    row_degrees,
    together,
    zero_shares,
)
from tests import tiny, tiny_families

EPSILON = 0.1
"""Half of the standard deviation of the tiny models' weights: many count, many do not."""
MODELS = pytest.mark.parametrize(
    "make",
    [tiny.bert, tiny.llama, tiny_families.gpt2, tiny_families.gpt_neox, tiny_families.phi3],
    ids=lambda make: make.__name__,
)


def numpy_of(matrix) -> np.ndarray:
    return matrix.weight.numpy()


@MODELS
def test_a_neurons_degree_counts_what_it_reads_and_what_it_writes(make):
    mlp = bind(make()).layers[1].mlps[0]
    found = neuron_degrees(mlp, EPSILON)
    for neuron in range(mlp.units.count):
        read = [w for matrix in mlp.inputs for row in numpy_of(matrix)[neuron :: mlp.units.count] for w in row]
        written = [row[neuron] for row in numpy_of(mlp.output)]
        assert found.connections[neuron] == sum(abs(w) >= EPSILON for w in read + written)
        assert found.possible[neuron] == len(read) + len(written)


@MODELS
def test_a_rows_degree_counts_what_enters_an_output(make):
    mlp = bind(make()).layers[1].mlps[0]
    found = row_degrees(mlp, EPSILON)
    rows = [row for matrix in (*mlp.inputs, mlp.output) for row in numpy_of(matrix)]
    assert found.connections.tolist() == [sum(abs(w) >= EPSILON for w in row) for row in rows]
    assert found.possible.tolist() == [len(row) for row in rows]


def test_a_weight_of_epsilon_is_a_connection():
    mlp = bind(tiny.bert()).layers[0].mlps[0]
    for matrix in (*mlp.inputs, mlp.output):
        matrix.weight.fill_(-0.25)
    assert neuron_degrees(mlp, 0.25).mean == 100
    assert neuron_degrees(mlp, 0.26).mean == 0


def test_a_neuron_with_half_its_inputs_and_no_output_has_a_quarter():
    mlp = bind(tiny.bert()).layers[0].mlps[0]
    mlp.inputs[0].weight[5, ::2] = 0
    mlp.output.weight[:, 5] = 0
    assert neuron_degrees(mlp, 1e-30).fractional[5] == 0.25


def test_a_layer_without_neurons_has_no_degrees():
    model = tiny.bert()
    masks = Masks(bind(model))
    masks.remove(bind(model).positions("neurons")[1], torch.arange(64))
    compact(bind(model), masks.plan())
    degrees = neuron_degrees(bind(model).layers[1].mlps[0], EPSILON)
    assert (degrees.mean, degrees.standard_deviation, sum(degrees.histogram)) == (0, 0, 0)
    assert row_degrees(bind(model).layers[1].mlps[0], EPSILON).connections.tolist() == [0] * 32


entries = st.lists(st.tuples(st.integers(0, 96), st.integers(96, 128)), min_size=1, max_size=50)


@given(entries, entries)
def test_moments_and_histogram(first, second):
    both = together([Degrees(*map(np.array, zip(*part, strict=True))) for part in (first, second)])
    shares = [count / of for count, of in first + second]
    mean = sum(shares) / len(shares)
    assert both.mean == pytest.approx(100 * mean)
    assert both.standard_deviation == pytest.approx(
        100 * (sum((x - mean) ** 2 for x in shares) / len(shares)) ** 0.5, abs=1e-6
    )
    assert 0 <= both.standard_deviation <= 50 + 1e-9
    assert sum(both.histogram) == len(shares)
    for place, count in enumerate(both.histogram):
        low, high = place / HISTOGRAM_BINS, (place + 1) / HISTOGRAM_BINS
        inside = [x for x in shares if low + 1e-9 < x < high - 1e-9]
        touching = [x for x in shares if low - 1e-9 <= x <= high + 1e-9]
        assert len(inside) <= count <= len(touching)


@MODELS
@pytest.mark.parametrize("removed", [[], [1], [0, 3]])
def test_the_graph_of_similar_heads(make, removed):
    attention = bind(make()).layers[0].attentions[0]
    kept = torch.tensor([head not in removed for head in range(4)])
    parts = [part.values.reshape(4, -1).numpy() for part in attention.units.reads]
    heads = {head: np.concatenate([part[head] for part in parts]) for head in range(4) if head not in removed}
    distances = sorted(abs(a - b).max() for i, a in heads.items() for j, b in heads.items() if i < j)
    for theta in (distances[0] * 0.999, *(d * 1.001 for d in distances)):
        graph = head_graph(attention, kept, float(theta))
        assert graph.heads == len(heads)
        assert graph.edges == sum(d <= theta for d in distances)
        assert 1 <= graph.dominating <= len(heads)
    assert head_graph(attention, kept, 0.0).dominating == len(heads)
    assert head_graph(attention, kept, 100.0).dominating == 1


def test_a_layer_without_heads_has_an_empty_graph():
    graph = head_graph(bind(tiny.bert()).layers[0].attentions[0], torch.zeros(4, dtype=torch.bool), 0.15)
    assert (graph.heads, graph.edges, graph.dominating) == (0, 0, 0)


@MODELS
def test_a_heads_importance_is_what_leaves_it(make):
    attention = bind(make()).layers[2].attentions[0]
    output = numpy_of(attention.output)
    width = output.shape[1] // 4
    expected = [abs(output[:, head * width : (head + 1) * width]).sum() for head in range(4)]
    np.testing.assert_allclose(head_importance(attention).numpy(), expected, rtol=1e-5)


def plan_keeping(*heads: tuple[int, ...]) -> Plan:
    return Plan(tuple(indices for kept in heads for indices in (kept, (), ())))


def test_removed_over_kept_importance():
    dense = bind(tiny.bert())
    stays = (0, 1, 2), (), (3,)
    plan = plan_keeping(*stays)
    removed, kept = [], []
    for layer, heads in zip(dense.layers, stays, strict=True):
        for head, importance in enumerate(head_importance(layer.attentions[0]).tolist()):
            (kept if head in heads else removed).append(importance)
    expected = (sum(removed) / len(removed)) / (sum(kept) / len(kept))
    assert removed_importance(dense, plan) == pytest.approx(expected, rel=1e-5)


def test_no_ratio_where_one_side_is_empty_or_zero():
    dense = bind(tiny.bert())
    assert removed_importance(dense, plan_keeping(*[(0, 1, 2, 3)] * 3)) is None
    assert removed_importance(dense, plan_keeping((), (), ())) is None
    for layer in dense.layers:
        layer.attentions[0].output.weight.zero_()
    assert removed_importance(dense, plan_keeping((0,), (0,), (0,))) is None


@MODELS
def test_zeros_by_kind_of_matrix(make):
    layer = bind(make()).layers[0]
    generator = torch.Generator().manual_seed(0)
    attention, mlp = layer.attentions[0], layer.mlps[0]
    parts = [[attention.query.weight], [attention.key.weight], [attention.value.weight], attention.units.writes]
    parts += [[factor.weight for factor in mlp.factors], mlp.units.writes]
    groups = dict(zip(MATRIX_KINDS, parts, strict=True))
    for share, slices in enumerate(groups.values()):
        for place, part in enumerate(slices):
            drop = torch.rand(part.values.shape, generator=generator) < (share + place) / 8
            part.values[drop] = 0
    found = zero_shares(layer)
    assert list(found) == list(MATRIX_KINDS)
    for kind, slices in groups.items():
        weights = [w for part in slices for w in part.values.flatten().tolist()]
        assert found[kind] == sum(w == 0 for w in weights) / len(weights)
    assert len(set(found.values())) == len(MATRIX_KINDS)
