"""In-rows leave a layer's weights where reading the others by a gather is faster than multiplying with zeros."""

from core.engine.anatomy import Anatomy, Attention
from core.engine.plan import Plan

GATHER_COST = 320
"""Reading a dimension by a gather takes as long as so many multiplications: measured by layer, docs/speed.md."""


def gather_where_faster(anatomy: Anatomy, plan: Plan) -> Plan:
    """The plan, but that layers where a gather does not pay keep all in-rows; the removed ones stay there, as zeros."""
    indices = list(plan.indices)
    for attention in anatomy.attentions:
        if not _pays(attention, plan):
            indices[attention.inputs.position] = tuple(range(attention.inputs.count))
    return Plan(tuple(indices))


def _pays(attention: Attention, plan: Plan) -> bool:
    """Whether multiplications with the removed in-rows would take longer than the gather of the others."""
    outputs = attention.inputs.cost * len(plan.kept(attention.units)) / attention.units.count
    read = len(plan.kept(attention.inputs))
    return (attention.inputs.count - read) * outputs > read * GATHER_COST
