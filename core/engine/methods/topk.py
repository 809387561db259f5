"""A differentiable top-k: soft gates whose number, or whose cost, is exact (Ding et al., https://arxiv.org/abs/2403.19969).

Every one of n units has a score m_i and gets the gate f_i = sigmoid(m_i / tau + t). The shift t, the same for all, is
what makes sum c_i f_i = B hold. As the temperature tau falls, the gates become the 0 and 1 of the plain top-k.
"""

import math

import torch
from scipy.special import expit
from torch import Tensor

from core.errors import NumericalError

SATURATION = 40.0
"""sigmoid(40) differs from 1 by less than fp64 can tell: no shift beyond this, from the pivot, changes the sum."""

ITERATIONS = 200
"""Bisection alone needs 60; Newton's steps are fewer, but each may shorten the bracket by less than half."""

PRECISION = 1e-14
"""The sum is as exact as this share of all costs, which is next to the rounding of an fp64 sum."""


@torch.no_grad()
def soft_top_k(scores: Tensor, budget: float, temperature: float, costs: Tensor | None = None) -> Tensor:
    """Gates that keep units worth exactly `budget`, the higher scored ones more than the others.

    Args:
        scores: [n], finite, any scale.
        budget: Cost of what is kept, B; below 0 is as 0, above the sum of all costs as that sum.
        temperature: tau > 0; the lower, the nearer the gates are to 0 and 1.
        costs: [n], positive; None for one each, so that B is the k of top-k.

    Returns:
        fp64 [n], each 0 … 1. Equal scores get equal gates.

    Raises:
        NumericalError: a score is NaN or infinite.
    """
    if not bool(scores.isfinite().all()):
        raise NumericalError("The scores of the soft top-k are not finite: the gradients were not.")
    if costs is not None:
        costs = costs.double()
    total = float(len(scores) if costs is None else costs.sum())
    if budget <= 0:
        return torch.zeros_like(scores, dtype=torch.float64)
    if budget >= total:
        return torch.ones_like(scores, dtype=torch.float64)
    # Relative to the pivot, ties there are ties at zero, however large the scores are beside the temperature.
    logits = (scores.double() - _pivot(scores, budget, costs).double()) / temperature
    return _sigmoid(logits + _shift(logits, budget, costs, PRECISION * total))


def _sigmoid(logits: Tensor) -> Tensor:
    """The same for the same logit wherever it stands: of torch's on a CPU, the last few entries can be an ulp off."""
    if logits.device.type != "cpu":
        return torch.sigmoid(logits)
    return torch.from_numpy(expit(logits.numpy()))


@torch.no_grad()
def score_gradient(gates: Tensor, slopes: Tensor, temperature: float, costs: Tensor | None = None) -> Tensor:
    """dL/dm through `soft_top_k`, with the budget held: by the implicit function theorem,

        dL/dm_i = v_i / tau * (u_i - c_i * sum(v u) / sum(c v)),   v_i = f_i (1 - f_i).

    A unit's score rises exactly when the loss falls more, for its cost, by opening its gate than by opening all of
    those that are undecided.

    Args:
        gates: f as `soft_top_k` returned it, [n].
        slopes: u = dL/df, [n].
        temperature: The one that the gates were made with.
        costs: The ones that the gates were made with.

    Returns:
        fp64 [n]; zeros where every gate is decided.
    """
    undecided = gates * (1 - gates)
    slopes = slopes.double()
    weight = undecided.sum() if costs is None else undecided.dot(costs.double())
    if not weight > 0:
        return torch.zeros_like(gates)
    mean = undecided.dot(slopes) / weight
    surplus = slopes - (mean if costs is None else mean * costs)
    return undecided.mul_(surplus).div_(temperature)


def _pivot(scores: Tensor, budget: float, costs: Tensor | None) -> Tensor:
    """The score at which the budget is used up by units in descending order; 0 < budget < sum of all costs."""
    if costs is None:
        return scores.kthvalue(len(scores) - math.ceil(budget) + 1).values
    ranked, order = scores.sort(descending=True)
    place = int((costs[order].cumsum(0) < budget).sum())
    return ranked[min(place, len(ranked) - 1)]


def _shift(logits: Tensor, budget: float, costs: Tensor | None, tolerance: float) -> float:
    """t, by bisection with Newton's steps wherever they stay inside the bracket: large models have many weights."""
    low, high, shift = -SATURATION, SATURATION, 0.0
    for _ in range(ITERATIONS):
        gates = torch.sigmoid(logits + shift)
        weighted = gates if costs is None else gates * costs
        kept = float(weighted.sum())
        excess = kept - budget
        if abs(excess) <= tolerance or not low < shift < high:
            break
        low, high = (low, shift) if excess > 0 else (shift, high)
        slope = kept - float(weighted.dot(gates))
        newton = shift - excess / slope if slope > 0 else math.inf
        shift = newton if low < newton < high else (low + high) / 2
    return shift
