"""Redundant heads: similarity, dominating set, merging (algorithms 2 and 3).

Heads that compute the same from the same weights are meant, so none is redundant where each has a bias of its own.

Shapes: k heads of a layer, n entries of a head's concatenated query, key and value.
"""

import torch
from torch import Tensor

from core.engine.anatomy import Attention

FIRST_ENTRIES = 2048
"""Of each head, at least so many are compared before all are; with fewer, all."""


def head_matrix(attention: Attention) -> Tensor:
    """A_H of every head (group): its query, key and value weights and biases in one row, [k, n]."""
    return torch.cat([part.values.flatten(1) for part in attention.units.reads], dim=1)


def distances(heads: Tensor) -> Tensor:
    """Largest difference between any two entries of two heads (l_inf), [k, k]."""
    return torch.stack([(heads - head).abs().amax(1) for head in heads]) if len(heads) else heads.new_zeros(0, 0)


def similar_heads(heads: Tensor, theta: float) -> Tensor:
    """Which heads differ by no more than theta in any entry, bool [k, k].

    Where some of the entries differ by more, the largest difference does, too: only heads that are alike in those are
    compared in all, pair by pair. Heads that hold NaN or infinity are not even similar to themselves.
    """
    similar = distances(heads[:, :: max(1, heads.shape[1] // FIRST_ENTRIES)]) <= theta
    for i, j in similar.triu().nonzero().tolist():
        similar[i, j] = similar[j, i] = (heads[i] - heads[j]).abs().amax() <= theta
    return similar


def similarity(attention: Attention, kept: Tensor, theta: float) -> Tensor:
    """Which of a layer's heads may stand for one another, bool [n, n] for the n of them that are `kept` (bool [k])."""
    if _have_own_bias(attention):
        return torch.eye(int(kept.sum()), dtype=torch.bool)
    return similar_heads(head_matrix(attention).cpu()[kept], theta)


def _have_own_bias(attention: Attention) -> bool:
    """Whether heads with the same weights may differ, as by the bias that each has for positions."""
    row = attention.row
    return bool(row.by_head) or (row.bias is not None and row.bias.table is not None)


def find_dominating(similar: Tensor) -> Tensor:
    """FIND_DOMINATING (algorithm 3): for each head, the head that stands for it.

    Head j may stand for i where everything similar to i's current representative is also similar to j and j has more,
    or has the same and comes later. Quadratic in k; an approximation of the minimum dominating set.

    Args:
        similar: Bool [k, k], symmetric, true on the diagonal.

    Returns:
        Integer [k]; the heads that stand for themselves or for others form a dominating set.
    """
    count = len(similar)
    # [i, j]: whether i has neighbours that j lacks, and the other way round.
    surplus = (similar[:, None] & ~similar[None]).any(-1)
    index = torch.arange(count)
    dominates = (~surplus & (surplus.T | (index[:, None] < index))).tolist()
    representative = []
    for i in range(count):
        best = i
        for j in range(count):
            if dominates[best][j]:
                best = j
        representative.append(best)
    return torch.tensor(representative, dtype=torch.long)


def representatives(attention: Attention, kept: Tensor, theta: float) -> Tensor:
    """For each head of a layer the kept head that stands for it; itself where none does.

    A representative stands for itself: algorithm 3 only ever moves on to more neighbours, or as many and a later head,
    so where it stops nothing dominates.

    Args:
        attention: Of one layer.
        kept: Bool [k], the heads that are still there; the others stand for themselves.
        theta: Heads that differ by no more than this are similar.

    Returns:
        Integer [k].
    """
    indices = kept.nonzero().flatten()
    representative = torch.arange(attention.groups)
    representative[indices] = indices[find_dominating(similarity(attention, kept, theta))]
    return representative


@torch.no_grad()
def hand_over_(attention: Attention, removed: int, successor: int | None) -> None:
    """Let a head's output pass on before the head is removed, in place.

    A successor takes over the removed head's output weights, so that with equal heads nothing changes. The removed
    value bias reaches the output as a constant, because attention weights sum to one: what of it the successor does
    not supply goes into the output's bias, where there is one.
    """
    writes = attention.units.writes[0].values
    values = _value_bias(attention)
    if attention.output.bias is not None and values is not None:
        missing = values[removed] - (values[successor] if successor is not None else 0)
        attention.output.bias.add_(writes[removed] @ missing)
    if successor is not None:
        writes[successor] += writes[removed]


def _value_bias(attention: Attention) -> Tensor | None:
    """The value bias as each head group's outputs see it, [groups, queries * head_dim]."""
    bias = attention.value.bias
    if bias is None:
        return None
    return bias.values[:, None].expand(-1, attention.queries_per_group, -1).flatten(1)
