"""Physical removal: the pruned units' rows and columns leave the weights; what is computed stays the same."""

from typing import Any

import torch

from core.engine.anatomy import Anatomy
from core.engine.export.modeling_neuroprune import FORMAT, narrow
from core.engine.plan import Plan


def describe(anatomy: Anatomy, plan: Plan) -> dict[str, Any]:
    """The `neuroprune` entry of the pruned model's config, read by `modeling_neuroprune.narrow`."""
    layers = []
    for layer, kept in zip(anatomy.layers, plan.layers, strict=True):
        layers.append(
            {
                "heads": len(kept.heads) * layer.attention.queries_per_group,
                "key_value_heads": len(kept.heads),
                "neurons": len(kept.neurons),
            }
        )
    head_dim = anatomy.layers[0].attention.head_dim
    return {"format": FORMAT, "family": anatomy.family.as_dict(), "head_dim": head_dim, "layers": layers}


@torch.no_grad()
def compact(anatomy: Anatomy, plan: Plan) -> None:
    """Shrink the bound model in place to what `plan` keeps, and say so in its config.

    With the removed units at zero beforehand, the outputs do not change. `anatomy` is stale afterwards: bind anew.
    """
    sliced = []
    for units in anatomy.units:
        kept = torch.tensor(plan.kept(units), dtype=torch.long)
        for part in units.slices:
            data = part.parameter.data
            sliced.append((part, data.index_select(part.dim, part.index(kept.to(data.device)))))
    description = describe(anatomy, plan)
    narrow(anatomy.model, description)
    for part, data in sliced:
        part.parameter.data.copy_(data)
    anatomy.model.config.neuroprune = description
