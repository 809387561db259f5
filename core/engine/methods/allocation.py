"""How the budget is shared between layers: a ranking over all of them that starves none."""

import torch
from torch import Tensor

from core.errors import NumericalError


def allocate(scores: list[Tensor], remove: int, floor: float) -> list[Tensor]:
    """Choose exactly `remove` units, lowest score first, with a guaranteed rest for every layer.

    A plain global ranking collapses: on SST-2 at 70 % it left some layers without a head and lost four points, where
    the same scores with equal shares lost one. Here every layer keeps at least `floor` of its even share.

    Args:
        scores: One [units] tensor a layer, comparable between layers; -inf for units that are gone already.
        remove: How many go in all, those that are gone already included.
        floor: 0 … 1; 0 ranks over all layers, 1 gives every layer the same share (up to rounding).

    Returns:
        The chosen indices of each layer, ascending. Ties go by layer, then by index.

    Raises:
        NumericalError: a score is NaN.
    """
    flat = torch.cat(scores)
    if bool(flat.isnan().any()):
        raise NumericalError("The pruning scores contain NaN: the weights or gradients are not finite.")
    total = len(flat)
    keep_share = 1 - remove / total if total else 0.0
    spare = [len(layer) - int(floor * keep_share * len(layer)) for layer in scores]
    owner = torch.cat([torch.full((len(layer),), i) for i, layer in enumerate(scores)])
    offsets = torch.tensor([0, *torch.tensor([len(layer) for layer in scores]).cumsum(0).tolist()[:-1]])
    chosen: list[list[int]] = [[] for _ in scores]
    left = remove
    for position in torch.argsort(flat, stable=True).tolist():
        layer = int(owner[position])
        if left and spare[layer]:
            chosen[layer].append(position - int(offsets[layer]))
            spare[layer] -= 1
            left -= 1
    return [torch.tensor(sorted(indices), dtype=torch.long) for indices in chosen]
