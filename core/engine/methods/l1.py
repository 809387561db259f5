"""Plain l1 regularisation, then the smallest go (Han et al. 2015, https://arxiv.org/abs/1506.02626)."""

from torch import Tensor

from core.engine.anatomy import Anatomy
from core.engine.methods.base import Criterion, by_mean, strengths
from core.engine.methods.neuroprune.penalties import shrink_


class L1Criterion(Criterion):
    """Every weight shrinks by the same amount a step; units are ranked by the l1 norm of their weights and biases."""

    def __init__(self, anatomy: Anatomy, strength: float) -> None:
        super().__init__(anatomy)
        self.strength = strength

    def shrink(self, learning_rate: float) -> None:
        """The proximal step of the l1 norm, outside of the optimiser."""
        for matrix in self.anatomy.matrices:
            weight = matrix.weight
            shrink_(weight, weight.new_tensor(learning_rate * self.strength))

    def unit_scores(self, position: int, kept: Tensor) -> Tensor:
        return by_mean(strengths(self.anatomy.units[position]), kept)

    def weight_scores(self, position: int, kept: Tensor) -> Tensor:
        return by_mean(self.anatomy.matrices[position].weight.abs(), kept)
