"""Physical removal: the pruned units' rows and columns leave the weights; what is computed stays the same."""

from typing import Any

import torch
from torch import Tensor, nn

from core.engine.anatomy import Anatomy
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
    kept = {(u.layer, u.kind): torch.tensor(plan.kept(u), dtype=torch.long) for u in anatomy.units}
    for index, (layer, widths) in enumerate(zip(anatomy.layers, description["layers"], strict=True)):
        if "inputs" not in widths:
            kept[index, "inputs"] = torch.arange(layer.attention.inputs.count)
    selected: dict[tuple[nn.Module, str], Tensor] = {}
    for units in anatomy.units:
        for part in units.slices:
            data = selected.get((part.module, part.name), part.parameter.data)
            entries = part.index(kept[units.layer, units.kind].to(data.device))
            selected[part.module, part.name] = data.index_select(part.dim, entries)
    narrow(anatomy.model, description)
    for (module, name), data in selected.items():
        getattr(module, name).data.copy_(data)
    for index, (module, widths) in enumerate(zip(anatomy.stack.children(), description["layers"], strict=True)):
        if "inputs" in widths:
            core = module.get_submodule(anatomy.family.attention.core)
            core.get_buffer(READ_DIMENSIONS).copy_(kept[index, "inputs"])
