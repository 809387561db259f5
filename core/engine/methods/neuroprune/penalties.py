"""Preferential attachment (eq. 1) and group sparsity (eq. 2), as penalties and as proximal steps.

Both are l1 penalties whose weight differs by group: by row of an MLP matrix (the weights entering one neuron), or by
input dimension of the attention's projections. Weights are in `nn.Linear` orientation, [out, in].
"""

import torch
from torch import Tensor


def connectivity(weight: Tensor, epsilon: float) -> Tensor:
    """c_i: share of the entries of each row that are connections, |w| >= epsilon; at least 1 / row length.

    Args:
        weight: [rows, columns].

    Returns:
        [rows], without gradient.
    """
    columns = weight.shape[1]
    connections = (weight.detach().abs() >= epsilon).sum(1).to(weight.dtype)
    return connections.clamp_min(1) / columns


def preferential_attachment(weight: Tensor, epsilon: float) -> Tensor:
    """One matrix's part of R_mlp (eq. 1): sum over rows of the row's l1 norm divided by its connectivity. Scalar."""
    return (weight.abs().sum(1) / connectivity(weight, epsilon)).sum()


def group_sparsity(projections: list[Tensor]) -> Tensor:
    """R_attn (eq. 2) of A = [Q, K, V]: sum over input dimensions of the square root of their l1 norm. Scalar.

    Args:
        projections: Weights [out, h] of query, key and value; input dimension i is column i of each.
    """
    norms = sum_of_columns(projections)
    # The square root has no derivative at zero; a group that is gone stays gone.
    return torch.where(norms > 0, norms.clamp_min(torch.finfo(norms.dtype).tiny).sqrt(), 0.0).sum()


def sum_of_columns(projections: list[Tensor]) -> Tensor:
    """l1 norm of each input dimension across projections, [h]."""
    return torch.stack([weight.abs().sum(0) for weight in projections]).sum(0)


@torch.no_grad()
def shrink_(weight: Tensor, amount: Tensor) -> None:
    """Soft threshold in place, the proximal step of a weighted l1 penalty: towards zero by `amount`, and no further.

    Args:
        weight: Any shape.
        amount: Non-negative, broadcastable to `weight`.
    """
    # w - clamp(w, -amount, amount) is sign(w) * max(|w| - amount, 0) in two passes over memory.
    weight.sub_(torch.minimum(torch.maximum(weight, -amount), amount))


@torch.no_grad()
def attach_preferentially_(weight: Tensor, strength: float, epsilon: float) -> None:
    """Proximal step of `strength` * eq. 1 on one MLP matrix: poorly connected rows lose more."""
    shrink_(weight, (strength / connectivity(weight, epsilon))[:, None])


@torch.no_grad()
def sparsify_groups_(projections: list[Tensor], strength: float) -> None:
    """Proximal step of `strength` * eq. 2, linearised at the current norms: sparse groups lose more.

    The derivative of the square root is 1 / (2 sqrt(norm)).
    """
    norms = sum_of_columns(projections).clamp_min(torch.finfo(torch.float32).tiny)
    amount = strength / (2 * norms.sqrt())
    for weight in projections:
        shrink_(weight, amount)
