"""Gradual magnitude pruning (GMP*, Kurtic & Alistarh 2022, https://arxiv.org/abs/2210.06384)."""

from operator import attrgetter

from torch import Tensor

from core.engine.methods.base import Criterion, by_mean


class MagnitudeCriterion(Criterion):
    """The smallest go: weights by absolute value, units by the l2 norm of all their weights and biases.

    Norms are compared between layers as multiples of the layer's mean.
    """

    def unit_scores(self, position: int, kept: Tensor) -> Tensor:
        squares = self.anatomy.units[position].total(attrgetter("slices"), lambda part: part.values.square()).cpu()
        return by_mean(squares.sqrt(), kept)

    def weight_scores(self, position: int, kept: Tensor) -> Tensor:
        return by_mean(self.anatomy.matrices[position].weight.abs(), kept)
