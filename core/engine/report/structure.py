"""What was removed from a model, layer by layer, and why."""

from typing import Any

import torch
from torch import Tensor, nn

from core.engine.anatomy import Anatomy, Layer, Units
from core.engine.methods import Pruner
from core.engine.plan import Plan


def describe_structure(anatomy: Anatomy, pruner: Pruner) -> list[dict[str, Any]]:
    """One entry a layer of what is kept; indices are those of the dense model. To be called before compaction."""
    plan = pruner.plan()
    layers = []
    for index, (layer, kept) in enumerate(zip(anatomy.layers, plan.layers, strict=True)):
        attention, mlp = layer.attention, layer.mlp
        layers.append(
            {
                "layer": index,
                "heads": {
                    **_counts(attention.units, kept.heads),
                    "kept_indices": list(kept.heads),
                    "query_heads_per_group": attention.queries_per_group,
                    "merged": [
                        {"removed": removed, "into": into} for at, removed, into in pruner.merged if at == index
                    ],
                    **_scores(pruner.last_scores[anatomy.position(index, "heads")], kept.heads),
                },
                "neurons": {
                    **_counts(mlp.units, kept.neurons),
                    "kept_indices": list(kept.neurons),
                    **_scores(pruner.last_scores[anatomy.position(index, "neurons")], kept.neurons),
                },
                **_inputs(attention.inputs, kept.inputs),
                "zero_weights_in_kept": _zero_weights(layer, plan),
            }
        )
    return layers


def _counts(units: Units, kept: tuple[int, ...]) -> dict[str, int]:
    return {"dense": units.count, "kept": len(kept), "removed_parameters": (units.count - len(kept)) * units.cost}


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
