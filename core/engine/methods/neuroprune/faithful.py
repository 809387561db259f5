"""NeuroPrune exactly as published (algorithm 1): penalties in the loss, redundant heads out after every epoch.

No target is met: the sparsity is what comes out of alpha, beta, theta and epsilon. A weight below epsilon is no
connection, so it is set to zero in the end; units left without connections leave.
"""

import torch
from torch import Tensor

from core.engine.anatomy import Anatomy
from core.engine.methods.base import Pruner
from core.engine.methods.connections import release_unconnected
from core.engine.methods.neuroprune.penalties import group_sparsity, preferential_attachment
from core.engine.methods.neuroprune.redundancy import hand_over_, representatives
from core.engine.units import Matrix
from core.jobs.methods import NeuroPrune


class FaithfulNeuroPrune(Pruner):
    """See the module's docstring."""

    def __init__(self, anatomy: Anatomy, options: NeuroPrune) -> None:
        super().__init__(anatomy)
        self.options = options

    def penalty(self) -> Tensor:
        """alpha * sum of R_mlp + beta * sum of R_attn over the layers, with gradients."""
        alpha, beta = self.options.strengths()
        parts = []
        for mlp in self.anatomy.mlps:
            rows = [preferential_attachment(m.differentiable, self.options.epsilon) for m in mlp.matrices]
            parts.append(alpha * torch.stack(rows).sum())
        for attention in self.anatomy.attentions:
            for readers in attention.readers:
                parts.append(beta * group_sparsity([matrix.differentiable for matrix in readers]))
        return torch.stack(parts).sum()

    def step(self, step: int, learning_rate: float) -> None:
        """Hold the heads that earlier epochs removed."""
        self.masks.hold()

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Algorithms 2 and 3 on every attention: each dominated head hands its output over and goes."""
        for attention in self.anatomy.attentions:
            position = attention.units.position
            successors = representatives(attention, self.masks.kept(position), self.options.theta)
            removed = (successors != torch.arange(len(successors))).nonzero().flatten()
            for head in removed.tolist():
                hand_over_(attention, head, int(successors[head]))
                self.merged.append((position, head, int(successors[head])))
            self.masks.remove(position, removed)

    @torch.no_grad()
    def finish(self) -> None:
        """Zero what is no connection, and let go of what has none left."""
        for matrix in self.anatomy.matrices:
            matrix.weight.mul_(~self._unconnected(matrix))
        release_unconnected(self.anatomy, self.masks)

    @property
    def sparsity(self) -> float:
        """Weights that are no connection, those of removed heads included."""
        below = sum(int(self._unconnected(matrix).sum()) for matrix in self.anatomy.matrices)
        return below / self.anatomy.encoder_parameters

    def _unconnected(self, matrix: Matrix) -> Tensor:
        """Bool [out, in]; zeros are no connections whatever epsilon is."""
        magnitude = matrix.weight.abs()
        return magnitude < max(self.options.epsilon, torch.finfo(magnitude.dtype).tiny)
