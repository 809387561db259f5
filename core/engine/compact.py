"""Physical removal: the pruned units' rows and columns leave the weights; what is computed stays the same."""

from typing import Any

import torch
from torch import Tensor, nn

from core.engine.anatomy import Anatomy, Kind, Slice, Units
from core.engine.export.modeling_neuroprune import FORMAT, READ_DIMENSIONS, narrow
from core.engine.plan import Plan


def describe(anatomy: Anatomy, plan: Plan) -> dict[str, Any]:
    """The `neuroprune` entry of the pruned model's config, read by `modeling_neuroprune.narrow`."""
    layers = []
    for layer, kept in zip(anatomy.layers, plan.layers, strict=True):
        widths = {
            "heads": len(kept.heads) * layer.attention.queries_per_group,
            "key_value_heads": len(kept.heads),
            "neurons": len(kept.neurons),
        }
        # A layer that reads every dimension needs no gather, one without heads reads none.
        if kept.heads and len(kept.inputs) < layer.attention.inputs.count:
            widths["inputs"] = len(kept.inputs)
        layers.append(widths)
    head_dim = anatomy.layers[0].attention.head_dim
    return {"format": FORMAT, "family": anatomy.family.as_dict(), "head_dim": head_dim, "layers": layers}


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
    kept: dict[tuple[int, Kind], Tensor] = {
        (u.layer, u.kind): torch.tensor(plan.kept(u), dtype=torch.long) for u in anatomy.units
    }
    for index, (layer, widths) in enumerate(zip(anatomy.layers, description["layers"], strict=True)):
        if "inputs" not in widths:
            kept[index, "inputs"] = torch.arange(layer.attention.inputs.count)
    paths = {module: path for path, module in anatomy.model.named_modules()}
    selected = {
        f"{paths[module]}.{name}": _select(parts, kept) for (module, name), parts in _by_parameter(anatomy).items()
    }
    narrow(anatomy.model, description)
    for path, data in selected.items():
        anatomy.model.get_parameter(path).copy_(data)
    for index, (module, widths) in enumerate(zip(anatomy.stack.children(), description["layers"], strict=True)):
        if "inputs" in widths:
            core = module.get_submodule(anatomy.family.attention.core)
            core.get_buffer(READ_DIMENSIONS).copy_(kept[index, "inputs"])


Held = list[tuple[Units, Slice]]
"""What of one parameter belongs to which units."""


def _by_parameter(anatomy: Anatomy) -> dict[tuple[nn.Module, str], Held]:
    held: dict[tuple[nn.Module, str], Held] = {}
    for units in anatomy.units:
        for part in units.slices:
            held.setdefault((part.module, part.name), []).append((units, part))
    return held


def _select(held: Held, kept: dict[tuple[int, Kind], Tensor]) -> Tensor:
    """The entries of one parameter, as stored, that belong to kept units along every dimension that units divide."""
    data = held[0][1].parameter.data
    for dim in sorted({part.stored_dim for _, part in held}):
        entries = [part.layout.index(kept[units.layer, units.kind]) for units, part in held if part.stored_dim == dim]
        # Fused projections share a dimension, and keep their order in it.
        data = data.index_select(dim, torch.cat(entries).sort().values.to(data.device))
    return data
