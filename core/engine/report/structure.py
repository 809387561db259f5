"""What was removed from a model, layer by layer, and why."""

from typing import Any

import torch
from torch import Tensor, nn

from core.engine.anatomy import Anatomy, Attention, Layer
from core.engine.methods import Pruner
from core.engine.plan import Plan
from core.engine.units import Units


def describe_structure(anatomy: Anatomy, pruner: Pruner) -> list[dict[str, Any]]:
    """One entry a layer of what is kept; indices are those of the dense model. To be called before compaction."""
    plan = pruner.plan()
    names = {module: name for name, module in anatomy.model.base_model.named_modules()}
    return [
        {
            "layer": index,
            "module": names[layer.module],
            "attentions": [_attention(attention, pruner, plan) for attention in layer.attentions],
            "mlps": [{"neurons": _units(mlp.units, pruner, plan)} for mlp in layer.mlps],
            **({} if layer.mixture is None else {"experts": _units(layer.mixture.units, pruner, plan)}),
            "zero_weights_in_kept": _zero_weights(layer, plan),
        }
        for index, layer in enumerate(anatomy.layers)
    ]


def count_zeros(anatomy: Anatomy) -> int:
    """Weights that are zero in the layers' matrices."""
    return sum(int((matrix.weight == 0).sum()) for matrix in anatomy.matrices)


def _attention(attention: Attention, pruner: Pruner, plan: Plan) -> dict[str, Any]:
    merged = [(removed, into) for at, removed, into in pruner.merged if at == attention.units.position]
    return {
        "cross": attention.row.cross,
        "heads": {
            **_units(attention.units, pruner, plan),
            "query_heads_per_group": attention.queries_per_group,
            "merged": [{"removed": removed, "into": into} for removed, into in merged],
        },
        **_inputs(attention.inputs, plan.kept(attention.inputs)),
    }


def _units(units: Units, pruner: Pruner, plan: Plan) -> dict[str, Any]:
    kept = plan.kept(units)
    return {
        "dense": units.count,
        "kept": len(kept),
        "removed_parameters": (units.count - len(kept)) * units.cost,
        "kept_indices": list(kept),
        **_scores(pruner.last_scores[units.position], kept),
    }


def _scores(scores: Tensor, kept: tuple[int, ...]) -> dict[str, float | None]:
    """Mean score of what went, when it went, beside that of what stayed: the reason for the choice."""
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[list(kept)] = True
    return {"mean_score_kept": _mean(scores[mask]), "mean_score_removed": _mean(scores[~mask])}


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _inputs(units: Units, kept: tuple[int, ...]) -> dict[str, Any]:
    """The hidden dimensions that the attention still reads, unless it reads all."""
    if len(kept) == units.count:
        return {}
    return {"inputs": {"dense": units.count, "kept": len(kept), "kept_indices": list(kept)}}


def _zero_weights(layer: Layer, plan: Plan) -> int:
    """Weights that are zero in what stays: zeros are not removed, and not faster."""
    zeros: dict[nn.Module, Tensor] = {}
    for units in layer.units:
        removed = torch.ones(units.count, dtype=torch.bool)
        removed[list(plan.kept(units))] = False
        for part in units.slices:
            if part.name == "weight":
                zero = zeros.setdefault(part.module, part.parameter.detach().cpu() == 0)
                part.by_unit(zero)[removed] = False
    return sum(int(zero.sum()) for zero in zeros.values())
