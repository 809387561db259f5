"""Magnitude and sensitivity: the connections with the lowest mix of both go, little by little.

Sensitivity is the first-order change in loss when a weight is taken away, |w · dL/dw| (Molchanov et al. 2017,
https://arxiv.org/abs/1611.06440), averaged over batches.
"""

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from core.engine.anatomy import Anatomy
from core.engine.methods.base import Criterion, by_mean, strengths
from core.engine.plan import copies_like

DECAY = 0.95
"""Of the exponential average over batches."""


class ImportanceCriterion(Criterion):
    """score = (1 - share) * magnitude + share * sensitivity, each as a multiple of its mean in the layer.

    A unit's magnitude and sensitivity are the sums over its weights and biases.
    """

    def __init__(self, anatomy: Anatomy, sensitivity_share: float, *, by_weight: bool) -> None:
        """Sensitivities are kept for units, or (`by_weight`, one number a weight) for weights."""
        super().__init__(anatomy)
        self.share = sensitivity_share
        self.by_weight = by_weight
        self.sensitivity = (
            [torch.zeros_like(matrix.weight) for matrix in anatomy.matrices]
            if by_weight
            else [torch.zeros(units.count, device=anatomy.model.device) for units in anatomy.units]
        )

    def observe(self) -> None:
        if self.by_weight:
            for matrix, sensitivity in zip(self.anatomy.matrices, self.sensitivity, strict=True):
                if matrix.gradient is not None:
                    sensitivity.lerp_((matrix.weight * matrix.gradient).abs(), 1 - DECAY)
            return
        for units, sensitivity in zip(self.anatomy.units, self.sensitivity, strict=True):
            if not units.count or units.kind == "inputs":
                continue
            sensitivity.lerp_(units.total(attrgetter("slices"), lambda part: part.slopes.abs()), 1 - DECAY)

    def unit_scores(self, position: int, kept: Tensor) -> Tensor:
        magnitude = strengths(self.anatomy.units[position])
        return self._mix(magnitude, self.sensitivity[position].cpu(), kept)

    def weight_scores(self, position: int, kept: Tensor) -> Tensor:
        return self._mix(self.anatomy.matrices[position].weight.abs(), self.sensitivity[position], kept)

    def _mix(self, magnitude: Tensor, sensitivity: Tensor, kept: Tensor) -> Tensor:
        return (1 - self.share) * by_mean(magnitude, kept) + self.share * by_mean(sensitivity, kept)

    def state_dict(self) -> dict[str, Any]:
        return {"sensitivity": [sensitivity.clone() for sensitivity in self.sensitivity]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sensitivity = copies_like(self.sensitivity, state["sensitivity"])
