"""SMART: which units stay is learnt, all of them competing for one budget (Ding et al., arXiv 2403.19969).

Three stages. Initialise: for the schedule's warm-up the model trains as it is, and its units' importance is observed,
from which each gets a score. Search: a soft top-k turns the scores into gates that are worth exactly what may be kept
at this step; weights and scores learn together, through the gates, while the temperature falls. Hold: the gates become
an exact selection, and the model recovers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.engine.anatomy import Anatomy
from core.engine.methods.base import Criterion, Pruner
from core.engine.methods.budget import Budget
from core.engine.methods.connections import release_unconnected
from core.engine.methods.gates import Gateable, Gates, UnitOutputs
from core.engine.methods.importance import ImportanceCriterion
from core.engine.methods.removal import Removal, UnitRemoval, WeightRemoval
from core.engine.methods.schedule import Schedule
from core.engine.methods.topk import score_gradient, soft_top_k
from core.engine.units import Kind
from core.errors import VerificationError
from core.jobs.methods import Smart

SENSITIVITY_SHARE = 0.5
"""Of the importance that scores start from, as `importance` has it."""

GATED_KINDS: tuple[Kind, ...] = ("heads", "neurons")


class SmartPruner(Pruner):
    """See the module's docstring."""

    def __init__(
        self,
        anatomy: Anatomy,
        sparsity: float,
        schedule: Schedule,
        options: Smart,
        *,
        uniform: bool = False,
        at_least: bool = False,
    ) -> None:
        """A pruner at the start of its first stage.

        Raises:
            UnreachableTargetError: the model cannot be pruned to this target.
        """
        super().__init__(anatomy)
        self.schedule = schedule
        self.options = options
        self.stage: Literal["initialise", "search", "hold"] = "initialise"
        self.temperature = options.initial_temperature
        by_weight = options.granularity == "unstructured"
        self.importance = ImportanceCriterion(anatomy, SENSITIVITY_SHARE, by_weight=by_weight)
        self.candidates: _Candidates = (
            _Weights(anatomy, sparsity)
            if by_weight
            else _WholeUnits(self, Budget.of(anatomy, sparsity, uniform=uniform, at_least=at_least))
        )
        self.gates = Gates(self.candidates.parts, self.candidates.shapes)
        device = self.candidates.parts[0].weight.device
        self.scores = nn.Parameter(torch.zeros(sum(self.gates.counts), device=device))
        self.optimizer = torch.optim.Adam([self.scores], lr=options.score_learning_rate)

    @torch.no_grad()
    def observe(self) -> None:
        """Watch importance; while searching, open the gates for the optimiser and see which should be wider."""
        if self.stage == "initialise":
            self.importance.observe()
        elif self.stage == "search":
            gates = self.gates.values
            assert gates is not None  # noqa: S101 closed after every step of the search
            gradient = score_gradient(gates, self.gates.open(), self.temperature, self.candidates.costs)
            self.scores.grad = gradient.to(self.scores.dtype)

    @torch.no_grad()
    def step(self, step: int, learning_rate: float) -> None:
        """Move the scores and gate anew; or make the selection; or hold it."""
        if self.stage == "search":
            self.optimizer.step()
        if self.stage == "initialise" and step >= self.schedule.first_step:
            self._initialise()
        if self.stage == "search" and step >= self.schedule.last_step:
            self.candidates.select(torch.split(self.scores.detach(), self.gates.counts))
            self.stage = "hold"
        if self.stage == "search":
            self._gate(step)
        self.masks.hold()
        self.candidates.removal.hold()

    def finish(self) -> None:
        if not self.candidates.target_is_met:
            raise VerificationError(f"{self.sparsity:.4%} of the encoder went, which is not what was asked for.")
        release_unconnected(self.anatomy, self.masks)

    @property
    def sparsity(self) -> float:
        """Nothing is gone before the selection is made: until then even the narrowest gate may open again."""
        return self.candidates.removal.sparsity

    def state_dict(self) -> dict[str, Any]:
        moments = self.optimizer.state.get(self.scores, {})
        return {
            **super().state_dict(),
            "stage": self.stage,
            "temperature": self.temperature,
            "importance": self.importance.state_dict(),
            "scores": self.scores.detach().clone(),
            "moments": {name: moment.clone() for name, moment in moments.items()},
            "gates": self.gates.state_dict(),
            "removal": self.candidates.removal.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.stage = state["stage"]
        self.temperature = state["temperature"]
        self.importance.load_state_dict(state["importance"])
        self.scores.data.copy_(state["scores"])
        # The optimiser takes tensors as they are where their device fits.
        moments = {name: moment.clone() for name, moment in state["moments"].items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": {0: moments}})
        self.gates.load_state_dict(state["gates"])
        self.candidates.removal.load_state_dict(state["removal"])

    def _initialise(self) -> None:
        groups = self.candidates.scores(self.importance)
        standardised = [(group - group.mean()) / group.std(correction=0).clamp_min(1e-12) for group in groups]
        self.scores.copy_(torch.cat([group.to(self.scores.device) for group in standardised]))
        self.stage = "search"

    def _gate(self, step: int) -> None:
        """Close the gates at the step's temperature, to what may be kept by then."""
        first, last = self.schedule.first_step, self.schedule.last_step
        share = (step - first) / (last - first)
        fall = self.options.final_temperature / self.options.initial_temperature
        self.temperature = self.options.initial_temperature * fall**share
        kept = self.candidates.total_cost - self.schedule.reached(step) * self.candidates.removed_cost
        self.gates.close(soft_top_k(self.scores, kept, self.temperature, self.candidates.costs))


class _Candidates(ABC):
    """All that compete for one budget, group by group: a layer's units of one kind, or a matrix's weights."""

    parts: Sequence[Gateable]
    """The gated weights of each group."""
    shapes: list[torch.Size]
    """Each group's gates, so that they broadcast over its part."""
    costs: Tensor | None
    """Parameters of each candidate, [candidates]; None for one each."""
    total_cost: float
    removed_cost: float
    """What the target removes of it."""
    removal: Removal

    @abstractmethod
    def scores(self, criterion: Criterion) -> list[Tensor]:
        """What a criterion thinks of them, [count] a group."""

    @abstractmethod
    def select(self, scores: Sequence[Tensor]) -> None:
        """Meet the target: the lowest scored go for good; [count] a group."""

    @property
    @abstractmethod
    def target_is_met(self) -> bool:
        """Whether as much is gone as was asked for."""


class _WholeUnits(_Candidates):
    """Heads and neurons of all layers; how the budget is shared between layers and kinds is learnt."""

    def __init__(self, pruner: Pruner, budget: Budget) -> None:
        anatomy = pruner.anatomy
        self.budget = budget
        self.removal: UnitRemoval = UnitRemoval(pruner, budget, floor=0.0)
        self.anatomy = anatomy
        self.masks = pruner.masks
        kinds = GATED_KINDS if budget.heads else ("neurons",)
        self.positions = sorted(position for kind in kinds for position in anatomy.positions(kind))
        groups = [anatomy.units[position] for position in self.positions]
        self.parts = [UnitOutputs(units) for units in groups]
        self.shapes = [torch.Size((units.count, 1, 1)) for units in groups]
        self._is_head = torch.cat([torch.full((units.count,), units.kind == "heads") for units in groups])
        costs = torch.cat([torch.full((units.count,), float(units.cost), dtype=torch.float64) for units in groups])
        self.costs: Tensor = costs.to(self.parts[0].weight.device)
        self.total_cost = float(costs.sum())
        self.removed_cost = budget.sparsity * anatomy.encoder_parameters

    def scores(self, criterion: Criterion) -> list[Tensor]:
        return [criterion.unit_scores(position, self.masks.kept(position)) for position in self.positions]

    def select(self, scores: Sequence[Tensor]) -> None:
        """As many heads as are among the lowest of all units; neurons, which are finer, make up the rest exactly."""
        self.removal.budget = replace(self.budget, removed_heads=self._heads_to_remove(scores))
        by_position = {position: group.cpu() for position, group in zip(self.positions, scores, strict=True)}
        self.removal.advance(1.0, _Learnt(self.anatomy, by_position))

    @property
    def target_is_met(self) -> bool:
        return self.budget.is_met_by(self.masks.removed_parameters())

    def _heads_to_remove(self, scores: Sequence[Tensor]) -> int:
        """Heads among the units that the scores alone would remove, or the nearest number with which neurons fit."""
        order = torch.cat(list(scores)).argsort(stable=True)
        removed = order[self.costs[order].cumsum(0) <= self.removed_cost]
        return self.budget.nearest_heads(int(self._is_head[removed.cpu()].sum()))


class _Weights(_Candidates):
    """Single weights of all projections."""

    def __init__(self, anatomy: Anatomy, sparsity: float) -> None:
        self.removal: WeightRemoval = WeightRemoval(anatomy, sparsity, floor=0.0)
        self.anatomy = anatomy
        self.parts = anatomy.matrices
        self.shapes = [matrix.weight.shape for matrix in anatomy.matrices]
        self.costs = None
        self.total_cost = float(sum(shape.numel() for shape in self.shapes))
        self.removed_cost = float(self.removal.count)

    def scores(self, criterion: Criterion) -> list[Tensor]:
        kept = self.removal.masks.kept
        return [criterion.weight_scores(position, mask).flatten() for position, mask in enumerate(kept)]

    def select(self, scores: Sequence[Tensor]) -> None:
        self.removal.advance(1.0, _Learnt(self.anatomy, dict(enumerate(scores))))

    @property
    def target_is_met(self) -> bool:
        return self.removal.sparsity == self.removal.final_sparsity


class _Learnt(Criterion):
    """Scores that have been learnt, by position."""

    def __init__(self, anatomy: Anatomy, scores: dict[int, Tensor]) -> None:
        super().__init__(anatomy)
        self.scores = scores

    def unit_scores(self, position: int, kept: Tensor) -> Tensor:
        return self.scores[position]

    def weight_scores(self, position: int, kept: Tensor) -> Tensor:
        return self.scores[position].view_as(kept)
