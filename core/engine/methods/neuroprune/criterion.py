"""NeuroPrune to a target: the paper's principles and first-order saliency decide what goes, a budget how much.

After every optimiser step the weights shrink by the proximal form of equations 1 and 2, outside of the optimiser, so
that Adam's scaling does not distort them. When units are due:

* heads that a dominating head can stand for are merged into it (algorithms 2 and 3), least important first;
* if the budget asks for more heads, and for neurons and in-rows, the least important go;
* what stays of an attention or MLP takes over what goes of it, as well as it can (`compensation`).

Single weights go by magnitude times the connectivity of what they attach to: the rich get richer, the poor lose all
they have and can leave.
"""

from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from core.engine.anatomy import Anatomy, Attention, Mlp
from core.engine.methods.base import Criterion, by_mean, strengths
from core.engine.methods.neuroprune.compensation import Compensation
from core.engine.methods.neuroprune.penalties import attach_preferentially_, sparsify_groups_, sum_of_columns
from core.engine.methods.neuroprune.redundancy import hand_over_, representatives
from core.engine.plan import copies_like
from core.engine.units import Units
from core.jobs.methods import NeuroPrune

SALIENCY_DECAY = 0.99
"""Of the exponential average over steps; a gradient of one batch says little about a unit."""


class NeuroPruneCriterion(Criterion):
    """See the module's docstring."""

    def __init__(self, anatomy: Anatomy, options: NeuroPrune) -> None:
        super().__init__(anatomy)
        self.options = options
        self.saliency = [torch.zeros(u.count, device=anatomy.model.device) for u in anatomy.units]
        self.attentions = {attention.units.position: attention for attention in anatomy.attentions}
        """By the position of their heads."""
        self.owners = [part for layer in anatomy.layers for part in layer.parts for _ in part.matrices]
        """What each matrix is part of, by its position."""
        self.compensation = Compensation(anatomy)

    def watching(self) -> AbstractContextManager[None]:
        return self.compensation.watching() if self.options.compensation else nullcontext()

    def observe(self) -> None:
        """First-order saliency: the squared change in loss if a unit were scaled away (Molchanov 2017)."""
        if self.options.granularity != "structured" or not self.options.importance:
            return
        for units, saliency in zip(self.anatomy.units, self.saliency, strict=True):
            if not units.count or (units.kind == "inputs" and not self.options.in_rows):
                continue
            slope = units.total(attrgetter("gates"), lambda part: part.slopes)
            saliency.lerp_(slope.square(), 1 - SALIENCY_DECAY)

    def shrink(self, learning_rate: float) -> None:
        alpha, beta = self.options.strengths()
        if alpha:
            for matrix in (matrix for mlp in self.anatomy.mlps for matrix in mlp.matrices):
                attach_preferentially_(matrix.weight, learning_rate * alpha, self.options.epsilon)
        if beta:
            for readers in (readers for attention in self.anatomy.attentions for readers in attention.readers):
                sparsify_groups_([matrix.weight for matrix in readers], learning_rate * beta)

    def unit_scores(self, position: int, kept: Tensor) -> Tensor:
        units = self.anatomy.units[position]
        # Saliencies are comparable between layers as they are: all are changes of the same loss.
        saliency, importance = self.saliency[position].cpu().sqrt(), self.options.importance
        scores = saliency if importance else by_mean(self._connectivity(units), kept)
        if units.kind == "heads" and self.options.redundancy:
            successors = representatives(self.attentions[position], kept, self.options.theta)
            redundant = successors != torch.arange(len(successors))
            scores = torch.where(redundant, scores - scores.max() - 1, scores)
        return scores

    def weight_scores(self, position: int, kept: Tensor) -> Tensor:
        matrix, owner = self.anatomy.matrices[position], self.owners[position]
        weight = matrix.weight.abs()
        if isinstance(owner, Mlp):
            degree = self._degrees(owner)
            is_output = matrix == owner.output
            # Gate and up may be fused: the rows of one after those of the other.
            weight = weight * (degree if is_output else degree.repeat(len(weight) // len(degree))[:, None])
        elif matrix != owner.output:
            readers = next(readers for readers in owner.readers if matrix in readers)
            # The norm of the in-row's group, as eq. 2 has it: sparse groups lose.
            weight = weight * sum_of_columns([reader.weight for reader in readers]).sqrt()
        return by_mean(weight, kept)

    def hand_over(self, position: int, removed: Tensor, kept: Tensor) -> list[tuple[int, int]]:
        # Every layer is asked, whether or not anything of it goes, and heads are costly to compare.
        if not len(removed):
            return []
        attention = self.attentions.get(position)
        merged = [] if attention is None else self._merge(attention, removed, kept)
        alone = removed[~torch.isin(removed, torch.tensor([head for head, _ in merged], dtype=torch.long))]
        stay = kept.clone()
        stay[removed] = False
        took_over = len(alone) > 0 and self.compensation.take_over_(position, alone, kept, stay)
        if attention is not None and not took_over:
            for head in alone.tolist():
                hand_over_(attention, head, None)
        return merged

    def state_dict(self) -> dict[str, Any]:
        return {"saliency": [saliency.clone() for saliency in self.saliency]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.saliency = copies_like(self.saliency, state["saliency"])

    def _merge(self, attention: Attention, removed: Tensor, kept: Tensor) -> list[tuple[int, int]]:
        """Let each head that goes, and for which one that stays can stand, pass its output on to that."""
        if not self.options.redundancy:
            return []
        successors = representatives(attention, kept, self.options.theta)
        merged = [(head, int(successors[head])) for head in removed.tolist() if successors[head] not in removed]
        for head, successor in merged:
            hand_over_(attention, head, successor)
        return merged

    def _connectivity(self, units: Units) -> Tensor:
        """How well units are connected, without a look at the loss: in-strength times out-strength, [count]."""
        read = strengths(units, attrgetter("reads"))
        # In-rows do not write.
        return read if units.kind == "inputs" else read * strengths(units, attrgetter("writes"))

    def _degrees(self, mlp: Mlp) -> Tensor:
        """Share of its possible connections that each MLP neuron has left, in and out, [N]; a lone one still counts."""
        weights = [part.values.flatten(1) for part in mlp.units.slices if part.name == "weight"]
        connections = torch.stack([(w.abs() >= self.options.epsilon).float().mean(1) for w in weights]).mean(0)
        return connections.clamp_min(torch.finfo(connections.dtype).tiny)
