"""Physical removal: the pruned units' rows and columns leave the weights; what is computed stays the same."""

from typing import Any

import torch
from torch import Tensor, nn

from core.engine.anatomy import Anatomy, Attention, Layer
from core.engine.experts import drop
from core.engine.export.modeling_neuroprune import FORMAT, KEPT_HEADS, READ_DIMENSIONS, narrow
from core.engine.plan import Plan
from core.engine.units import Layout, Slice, Units


def describe(anatomy: Anatomy, plan: Plan) -> dict[str, Any]:
    """The `neuroprune` entry of the pruned model's config, read by `modeling_neuroprune.narrow`."""
    layers = [
        {
            "attentions": [_widths(attention, plan) for attention in layer.attentions],
            "mlps": [{"neurons": len(plan.kept(mlp.units))} for mlp in layer.dense_mlps],
            **_experts(layer, plan),
        }
        for layer in anatomy.layers
    ]
    family = anatomy.family if _loses_heads(anatomy, plan) else anatomy.family.with_all_heads()
    return {"format": FORMAT, "family": family.as_dict(), "layers": layers}


def _experts(layer: Layer, plan: Plan) -> dict[str, Any]:
    """The widths of the experts that a layer keeps, if it has any."""
    if layer.mixture is None:
        return {}
    kept = [layer.mixture.mlps[index] for index in plan.kept(layer.mixture.units)]
    return {"experts": [{"neurons": len(plan.kept(expert.units))} for expert in kept]}


def _loses_heads(anatomy: Anatomy, plan: Plan) -> bool:
    """Whether what a model makes for all heads is to be narrowed to those that are left."""
    return any(len(plan.kept(attention.units)) < attention.units.count for attention in anatomy.attentions)


def _widths(attention: Attention, plan: Plan) -> dict[str, int]:
    heads = len(plan.kept(attention.units))
    widths = {
        "heads": heads * attention.queries_per_group,
        "key_value_heads": heads,
        "head_dim": attention.head_dim,
    }
    if _gathers(attention, plan):
        widths["inputs"] = len(plan.kept(attention.inputs))
    return widths


def _gathers(attention: Attention, plan: Plan) -> bool:
    """Whether an attention reads a choice of the hidden dimensions: not if it reads all, nor if it has no heads."""
    return bool(plan.kept(attention.units)) and len(plan.kept(attention.inputs)) < attention.inputs.count


def compact(anatomy: Anatomy, plan: Plan) -> None:
    """Shrink the bound model in place to what `plan` keeps, and say so in its config.

    With the removed units at zero beforehand, the outputs do not change. `anatomy` is stale afterwards: bind anew.
    """
    description = describe(anatomy, plan)
    shrink(anatomy, plan, description)
    anatomy.model.config.neuroprune = description


@torch.no_grad()
def shrink(anatomy: Anatomy, plan: Plan, description: dict[str, Any]) -> None:
    """Shrink the weights of the bound model in place to what `plan` keeps; `description` is `describe`'s of it."""
    kept = [torch.tensor(indices, dtype=torch.long) for indices in plan.indices]
    for attention in anatomy.attentions:
        if not _gathers(attention, plan):
            kept[attention.inputs.position] = torch.arange(attention.inputs.count)
    for layer in anatomy.layers:
        if layer.mixture is not None:
            drop(layer.module, layer.mixture.row, plan.kept(layer.mixture.units))
    paths = {module: path for path, module in anatomy.model.named_modules()}
    selected = {
        f"{paths[module]}.{name}": _select(parts, kept)
        for (module, name), parts in _by_parameter(anatomy).items()
        if module in paths
    }
    narrow(anatomy.model, description)
    for path, data in selected.items():
        anatomy.model.get_parameter(path).copy_(data)
    for attention in anatomy.attentions:
        _note_choice(anatomy, attention, plan)


def _note_choice(anatomy: Anatomy, attention: Attention, plan: Plan) -> None:
    """Write into the narrowed attention's buffers which dimensions it reads, and which heads it kept."""
    row, layer = attention.row, anatomy.layers[attention.units.layer].module
    if _gathers(attention, plan):
        dimensions = layer.get_submodule(row.core).get_buffer(READ_DIMENSIONS)
        dimensions.copy_(torch.tensor(plan.kept(attention.inputs)))
    groups = torch.tensor(plan.kept(attention.units), dtype=torch.long)
    if not len(groups) or not _loses_heads(anatomy, plan):
        return
    queries = attention.queries_per_group
    heads = Layout(attention.groups, queries, 0, queries).index(groups)
    if row.by_head:
        layer.get_submodule(row.core).get_buffer(KEPT_HEADS).copy_(heads)
    if row.bias is not None and row.bias.table is not None:
        layer.get_submodule(row.bias.table).get_buffer(KEPT_HEADS).copy_(heads)


Held = list[tuple[Units, Slice]]
"""What of one parameter belongs to which units."""


def _by_parameter(anatomy: Anatomy) -> dict[tuple[nn.Module, str], Held]:
    held: dict[tuple[nn.Module, str], Held] = {}
    for units in anatomy.units:
        for part in units.slices:
            held.setdefault((part.module, part.name), []).append((units, part))
    return held


def _select(held: Held, kept: list[Tensor]) -> Tensor:
    """The entries of one parameter, as stored, that belong to kept units along every dimension that units divide."""
    data = held[0][1].parameter.data
    for dim in sorted({part.stored_dim for _, part in held}):
        entries = [part.layout.index(kept[units.position]) for units, part in held if part.stored_dim == dim]
        # Fused projections share a dimension, and keep their order in it.
        data = data.index_select(dim, torch.cat(entries).sort().values.to(data.device))
    return data
