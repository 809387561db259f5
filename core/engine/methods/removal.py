"""What a gradual method removes at a time: whole units, single weights, or single weights by a pattern."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from core.engine.anatomy import Anatomy
from core.engine.methods.allocation import allocate, check_scores
from core.engine.methods.base import Criterion, Pruner
from core.engine.methods.budget import Budget
from core.engine.plan import WeightMasks
from core.engine.units import KINDS, Kind
from core.errors import UnreachableTargetError


class Removal(ABC):
    """Takes away the least important of a model until a target is met exactly."""

    @abstractmethod
    def advance(self, reached: float, criterion: Criterion) -> None:
        """Remove until this share (0 … 1) of the target is gone."""

    def hold(self) -> None:  # noqa: B027 whole units are held by the pruner's masks
        """Zero again the single weights that were removed."""

    @property
    @abstractmethod
    def sparsity(self) -> float:
        """Share of the transformer layers' parameters that is gone so far."""

    @property
    @abstractmethod
    def final_sparsity(self) -> float:
        """That share once the target is met."""

    def state_dict(self) -> dict[str, Any]:
        """What is gone, beside the pruner's own masks."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 counterpart of the empty state
        """Go on from a state."""


class UnitRemoval(Removal):
    """Heads, experts, neurons and in-rows, ranked over all layers with a guaranteed rest for each.

    An expert is ranked by all that belongs to it, among the experts; the neurons of one that is left, among neurons.
    """

    def __init__(self, pruner: Pruner, budget: Budget, floor: float) -> None:
        self.pruner = pruner
        self.budget = budget
        self.floor = floor

    def advance(self, reached: float, criterion: Criterion) -> None:
        for kind in KINDS:
            self._remove(kind, self.budget.counts(reached)[kind], criterion)

    @property
    def sparsity(self) -> float:
        return self.pruner.masks.removed_parameters() / self.budget.encoder_parameters

    @property
    def final_sparsity(self) -> float:
        return self.budget.achieved(self.budget.counts(1.0))

    def _remove(self, kind: Kind, count: int, criterion: Criterion) -> None:
        masks, anatomy = self.pruner.masks, self.pruner.anatomy
        if count <= sum(masks.removed(kind)):
            # Fewer neurons may be due than before, when a head more is; what is gone stays gone.
            return
        gone = masks.gone_members()
        count -= sum(anatomy.units[position].count for position in gone if anatomy.units[position].kind == kind)
        positions = [position for position in anatomy.positions(kind) if position not in gone]
        # In-rows have the same number in every layer: only so are their parameters known beforehand.
        floor = 1.0 if kind == "inputs" or self.budget.uniform else self.floor
        least = self.budget.experts_per_token if kind == "experts" else 0
        scores = [self._scores(position, criterion) for position in positions]
        for position, chosen in zip(positions, allocate(scores, count, floor, least), strict=True):
            kept = masks.kept(position)
            new = (chosen & kept).nonzero().flatten()
            self.pruner.merged += [(position, *pair) for pair in criterion.hand_over(position, new, kept)]
            masks.remove(position, new)

    def _scores(self, position: int, criterion: Criterion) -> Tensor:
        kept = self.pruner.masks.kept(position)
        scores = criterion.unit_scores(position, kept)
        self.pruner.last_scores[position] = torch.where(kept, scores, self.pruner.last_scores[position])
        return torch.where(kept, scores, -torch.inf)


class _MaskedWeights(Removal):
    """What removals of single weights have in common: their masks."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.masks = WeightMasks(anatomy)
        self.encoder_parameters = anatomy.encoder_parameters

    def hold(self) -> None:
        self.masks.hold()

    @property
    def sparsity(self) -> float:
        return self.masks.removed / self.encoder_parameters

    def state_dict(self) -> dict[str, Any]:
        return self.masks.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks.load_state_dict(state)


class WeightRemoval(_MaskedWeights):
    """Single weights, ranked over all matrices with a guaranteed rest for each."""

    def __init__(self, anatomy: Anatomy, sparsity: float, floor: float) -> None:
        super().__init__(anatomy)
        self.floor = floor
        self.count = weights_to_remove(anatomy, sparsity)

    def advance(self, reached: float, criterion: Criterion) -> None:
        count = self.count if reached >= 1 else int(reached * self.count)
        if count <= self.masks.removed:
            return
        scores = []
        for position, kept in enumerate(self.masks.kept):
            score = criterion.weight_scores(position, kept)
            scores.append(torch.where(kept, score, -torch.inf).flatten())
        for position, chosen in enumerate(allocate(scores, count, self.floor)):
            kept = self.masks.kept[position]
            self.masks.remove(position, chosen.view_as(kept))

    @property
    def final_sparsity(self) -> float:
        return self.count / self.encoder_parameters


class PatternRemoval(_MaskedWeights):
    """Single weights, so that of each M consecutive inputs of a row N stay; on the way there, one more of each M goes.

    Raises:
        UnreachableTargetError: a projection's inputs cannot be divided by M.
    """

    def __init__(self, anatomy: Anatomy, stay: int, of: int) -> None:
        check_pattern(anatomy, of)
        super().__init__(anatomy)
        self.stay, self.of = stay, of

    def advance(self, reached: float, criterion: Criterion) -> None:
        gone = int(reached * (self.of - self.stay))
        if gone * sum(kept.numel() for kept in self.masks.kept) // self.of == self.masks.removed:
            return
        for position, kept in enumerate(self.masks.kept):
            scores = torch.where(kept, criterion.weight_scores(position, kept), -torch.inf)
            check_scores(scores)
            self.masks.remove(position, lowest_of_each(scores, gone, self.of))

    @property
    def final_sparsity(self) -> float:
        weights = sum(kept.numel() for kept in self.masks.kept)
        return weights * (self.of - self.stay) // self.of / self.encoder_parameters


def weights_to_remove(anatomy: Anatomy, sparsity: float) -> int:
    """How many single weights of the projections make up this share of the transformer layers' parameters.

    Raises:
        UnreachableTargetError: the projections have fewer.
    """
    count = int(sparsity * anatomy.encoder_parameters + 0.5)
    weights = sum(matrix.weight.numel() for matrix in anatomy.matrices)
    if count > weights:
        raise UnreachableTargetError(
            f"A sparsity of {sparsity:.4f} cannot be met; with all weights of the projections gone it would be "
            f"{weights / anatomy.encoder_parameters:.4f}.",
            param="/target",
        )
    return count


def check_pattern(anatomy: Anatomy, of: int) -> None:
    """Refuse a pattern that does not divide every projection's inputs."""
    for matrix in anatomy.matrices:
        inputs = matrix.weight.shape[1]
        if inputs % of:
            raise UnreachableTargetError(
                f"A pattern of {of} cannot be laid over a projection with {inputs} inputs.", param="/method/granularity"
            )


def lowest_of_each(scores: Tensor, count: int, of: int) -> Tensor:
    """Bool like `scores` [out, in]: in each `of` consecutive entries of a row the `count` lowest, ties by index."""
    groups = scores.reshape(-1, of)
    chosen = torch.zeros_like(groups, dtype=torch.bool)
    chosen.scatter_(1, groups.argsort(dim=1, stable=True)[:, :count], True)
    return chosen.view_as(scores)
