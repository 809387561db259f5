"""Which layers' in-rows leave the weights: those where the gather costs less than it saves."""

import pytest

from core.engine.anatomy import bind
from core.engine.in_rows import GATHER_COST, gather_where_faster
from core.engine.plan import LayerPlan, Plan
from tests import tiny


@pytest.mark.parametrize("make", [tiny.bert, tiny.llama], ids=["bert", "llama"])
@pytest.mark.parametrize("heads", range(5))
def test_a_layer_gathers_only_what_saves_more_multiplications(make, heads):
    anatomy = bind(make())
    attention = anatomy.layers[0].attention
    outputs = sum(len(matrix.weight) for matrix in attention.projections) // attention.groups * heads
    for kept in range(33):
        layer = LayerPlan(tuple(range(heads)), (0, 1), tuple(range(kept)))
        found = gather_where_faster(anatomy, Plan((layer,) * 3)).layers
        assert {(each.heads, each.neurons) for each in found} == {(layer.heads, (0, 1))}
        pays = (32 - kept) * outputs > kept * GATHER_COST
        assert [each.inputs for each in found] == [layer.inputs if pays else tuple(range(32))] * 3


def test_layers_are_judged_one_by_one():
    few, many, none = (LayerPlan((0, 1, 2, 3), (0,), tuple(range(kept))) for kept in (30, 2, 32))
    found = gather_where_faster(bind(tiny.bert()), Plan((few, many, none)))
    assert [len(layer.inputs) for layer in found.layers] == [32, 2, 32]
