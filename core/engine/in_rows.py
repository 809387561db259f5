"""In-rows leave a layer's weights where reading the others by a gather is faster than multiplying with zeros."""

from dataclasses import replace

from core.engine.anatomy import Anatomy, Attention
from core.engine.plan import LayerPlan, Plan

GATHER_COST = 320
"""Reading a dimension by a gather takes as long as so many multiplications: measured by layer, docs/speed.md."""


def gather_where_faster(anatomy: Anatomy, plan: Plan) -> Plan:
    """The plan, but that layers where a gather does not pay keep all in-rows; the removed ones stay there, as zeros."""
    pairs = [(layer.attention, kept) for layer, kept in zip(anatomy.layers, plan.layers, strict=True)]
    return Plan(tuple(kept if _pays(attention, kept) else _with_all(attention, kept) for attention, kept in pairs))


def _pays(attention: Attention, kept: LayerPlan) -> bool:
    """Whether multiplications with the removed in-rows would take longer than the gather of the others."""
    outputs = attention.inputs.cost * len(kept.heads) / attention.units.count
    return (attention.inputs.count - len(kept.inputs)) * outputs > len(kept.inputs) * GATHER_COST


def _with_all(attention: Attention, kept: LayerPlan) -> LayerPlan:
    return replace(kept, inputs=tuple(range(attention.inputs.count)))
