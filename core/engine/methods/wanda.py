"""Wanda: weights and activations (Sun et al., ICLR 2024, https://arxiv.org/abs/2306.11695)."""

import torch
from torch import Tensor

from core.engine.methods.one_shot import OneShotPruner, shares
from core.engine.methods.removal import lowest_of_each


class WandaPruner(OneShotPruner):
    """In each output the weights with the smallest |weight| times input norm go; what stays is not changed."""

    @staticmethod
    def statistic(inputs: Tensor) -> Tensor:
        """Squared l2 norm of each input, [in]."""
        return inputs.square().sum(0)

    def prune(self, weight: Tensor, statistic: Tensor, count: int) -> Tensor:
        scores = wanda_scores(weight, statistic.sqrt())
        if self.pattern is None:
            return lowest_of_rows(scores, count)
        stay, of = self.pattern
        return lowest_of_each(scores, of - stay, of)


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """|W_ij| * ||X_j||_2, [out, in] (the paper's equation 1).

    Args:
        weight: [out, in].
        norms: l2 norm of each input over all tokens, [in].
    """
    return weight.abs() * norms


def lowest_of_rows(scores: Tensor, count: int) -> Tensor:
    """Bool like `scores` [out, in]: `count` entries in all, in each row the same number of its lowest, ties by index.

    Where `count` cannot be divided by the rows, some rows lose one more than others.
    """
    rows, columns = scores.shape
    counts = torch.tensor(shares(count, [columns] * rows), device=scores.device)
    ranks = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < counts[:, None]
