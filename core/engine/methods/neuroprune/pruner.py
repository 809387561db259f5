"""NeuroPrune with an exact target: the paper's principles and first-order saliency decide what goes, a budget how much.

After every optimiser step the weights shrink by the proximal form of equations 1 and 2, outside of the optimiser, so
that Adam's scaling does not distort them. At regular steps along the schedule units are removed:

* heads that a dominating head can stand for are merged into it (algorithms 2 and 3), least salient first;
* if the budget asks for more heads, and for neurons, the least salient go.
"""

import torch
from torch import Tensor

from core.engine.anatomy import Anatomy, Kind
from core.engine.methods.allocation import allocate
from core.engine.methods.base import Pruner
from core.engine.methods.budget import Budget
from core.engine.methods.neuroprune.penalties import attach_preferentially_, sparsify_groups_
from core.engine.methods.neuroprune.redundancy import distances, find_dominating, hand_over_, head_matrix
from core.engine.methods.schedule import Schedule
from core.jobs import spec

SALIENCY_DECAY = 0.95
REMOVALS = 40
"""Times at which units are removed; more would only cost time."""


class NeuroPrunePruner(Pruner):
    """See the module's docstring."""

    def __init__(self, anatomy: Anatomy, budget: Budget, schedule: Schedule, options: spec.NeuroPrune) -> None:
        super().__init__(anatomy, budget, schedule)
        self.options = options
        self.interval = max(1, (schedule.last_step - schedule.first_step) // REMOVALS)
        self.saliency = [torch.zeros(u.count) for u in anatomy.units]

    @torch.no_grad()
    def observe(self) -> None:
        """First-order saliency: the squared change in loss if a unit's output were scaled away (Molchanov 2017)."""
        for units, saliency in zip(self.anatomy.units, self.saliency, strict=True):
            parameter = units.writes.parameter
            if parameter.grad is None:
                continue
            slope = units.writes.by_unit(parameter.data * parameter.grad).flatten(1).sum(1)
            saliency.lerp_(slope.square().cpu(), 1 - SALIENCY_DECAY)

    def step(self, step: int, learning_rate: float) -> None:
        """Shrink, remove what is due, hold."""
        self._shrink(learning_rate)
        if step == self.schedule.last_step or (step < self.schedule.last_step and step % self.interval == 0):
            counts = self.budget.counts(self.schedule.reached(step))
            self._remove("heads", counts["heads"])
            self._remove("neurons", counts["neurons"])
        self.masks.hold()

    def _shrink(self, learning_rate: float) -> None:
        for layer in self.anatomy.layers:
            for module in (*layer.mlp.inputs, layer.mlp.output):
                attach_preferentially_(module.weight.data, learning_rate * self.options.alpha, self.options.epsilon)
            attention = layer.attention
            sparsify_groups_(
                [m.weight.data for m in (attention.query, attention.key, attention.value)],
                learning_rate * self.options.beta,
            )

    def _remove(self, kind: Kind, count: int) -> None:
        positions = [i for i, units in enumerate(self.anatomy.units) if units.kind == kind]
        chosen = allocate([self._scores(i) for i in positions], count, self.options.layer_floor)
        for position, indices in zip(positions, chosen, strict=True):
            kept = self.masks.kept(position)
            new = indices[kept[indices]]
            if kind == "heads":
                self._hand_over(position, new)
            self.masks.remove(position, new)

    def _scores(self, position: int) -> Tensor:
        saliency = self.saliency[position].sqrt()
        scores = saliency / saliency.mean().clamp_min(torch.finfo(saliency.dtype).tiny)
        kept = self.masks.kept(position)
        self.last_scores[position] = torch.where(kept, scores, self.last_scores[position])
        if self.anatomy.units[position].kind == "heads":
            representative = self._representatives(position)
            redundant = representative != torch.arange(len(representative))
            scores = torch.where(redundant, scores - scores.max() - 1, scores)
        return torch.where(kept, scores, -torch.inf)

    def _representatives(self, position: int) -> Tensor:
        """For each head of a layer the kept head that can stand for it; itself if none can."""
        attention = self.anatomy.layers[self.anatomy.units[position].layer].attention
        kept = self.masks.kept(position).nonzero().flatten()
        similar = distances(head_matrix(attention).cpu()[kept]) <= self.options.theta
        representative = torch.arange(attention.groups)
        representative[kept] = kept[find_dominating(similar)]
        return representative

    def _hand_over(self, position: int, removed: Tensor) -> None:
        layer = self.anatomy.units[position].layer
        representative = self._representatives(position)
        for head in removed.tolist():
            successor = int(representative[head])
            is_merged = successor != head and successor not in removed
            hand_over_(self.anatomy.layers[layer].attention, head, successor if is_merged else None)
            if is_merged:
                self.merged.append((layer, head, successor))
