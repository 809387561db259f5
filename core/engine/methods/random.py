"""Random pruning: the floor for every comparison (Blalock et al. 2020, https://arxiv.org/abs/2003.03033)."""

import torch
from torch import Tensor

from core.engine.anatomy import Anatomy
from core.engine.methods.base import Criterion


class RandomCriterion(Criterion):
    """One random score a unit or weight, drawn once, so that the order in which they go is fixed from the start."""

    def __init__(self, anatomy: Anatomy, seed: int) -> None:
        super().__init__(anatomy)
        self.seed = seed

    def unit_scores(self, position: int, kept: Tensor) -> Tensor:
        return torch.rand(len(kept), generator=self._generator(position))

    def weight_scores(self, position: int, kept: Tensor) -> Tensor:
        return torch.rand(kept.shape, generator=self._generator(position)).to(kept.device)

    def _generator(self, position: int) -> torch.Generator:
        """The same numbers every time: nothing has to be stored."""
        return torch.Generator().manual_seed(self.seed * 100_003 + position)
