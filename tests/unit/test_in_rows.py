"""Which layers' in-rows leave the weights: those where the gather costs less than it saves."""

import pytest

from core.engine.anatomy import bind
from core.engine.in_rows import GATHER_COST, gather_where_faster
from core.engine.plan import Plan
from tests import tiny


@pytest.mark.parametrize("make", [tiny.bert, tiny.llama], ids=["bert", "llama"])
@pytest.mark.parametrize("heads", range(5))
def test_a_layer_gathers_only_what_saves_more_multiplications(make, heads):
    anatomy = bind(make())
    attention = anatomy.attentions[0]
    outputs = sum(len(matrix.weight) for matrix in attention.projections) // attention.groups * heads
    for kept in range(33):
        given = (tuple(range(heads)), (0, 1), tuple(range(kept)))
        pays = (32 - kept) * outputs > kept * GATHER_COST
        expected = given if pays else (*given[:2], tuple(range(32)))
        assert gather_where_faster(anatomy, Plan(given * 3)) == Plan(expected * 3)


def test_layers_are_judged_one_by_one():
    few, many, none = (((0, 1, 2, 3), (0,), tuple(range(kept))) for kept in (30, 2, 32))
    anatomy = bind(tiny.bert())
    found = gather_where_faster(anatomy, Plan((*few, *many, *none)))
    assert [len(found.kept(attention.inputs)) for attention in anatomy.attentions] == [32, 2, 32]
