"""Gradual pruning: a criterion says what matters least, a schedule when it goes, a removal takes it away."""

from contextlib import ExitStack
from typing import Any

import torch

from core.engine.anatomy import Anatomy
from core.engine.methods.base import Criterion, Pruner
from core.engine.methods.budget import Budget
from core.engine.methods.connections import release_unconnected
from core.engine.methods.removal import PatternRemoval, Removal, UnitRemoval, WeightRemoval
from core.engine.methods.schedule import Schedule
from core.errors import VerificationError
from core.jobs.methods import pattern_of

SHRINK_EVERY = 10
"""Optimiser steps between two shrinkings, each by the learning rates of all of them: the same path in less time."""

REMOVALS = 40
"""Times at which something is removed; more would only cost time."""


class GradualPruner(Pruner):
    """Prunes along a schedule while the model trains, then holds what it removed."""

    def __init__(self, anatomy: Anatomy, criterion: Criterion, schedule: Schedule) -> None:
        super().__init__(anatomy)
        self.criterion = criterion
        self.schedule = schedule
        self.interval = max(1, (schedule.last_step - schedule.first_step) // REMOVALS)
        self.removal: Removal
        self.unshrunk = 0.0
        """Sum of the learning rates since weights last shrank."""
        self._watching = ExitStack()

    def begin_step(self, step: int) -> None:
        if self._removes_after(step):
            self._watching.enter_context(self.criterion.watching())

    @torch.no_grad()
    def observe(self) -> None:
        self.criterion.observe()

    @torch.no_grad()
    def step(self, step: int, learning_rate: float) -> None:
        """Shrink, remove what is due, hold."""
        self.unshrunk += learning_rate
        if step % SHRINK_EVERY == 0:
            self._shrink()
        if self._removes_after(step):
            self.removal.advance(self.schedule.reached(step), self.criterion)
        self._watching.close()
        self.masks.hold()
        self.removal.hold()

    def end_training(self) -> None:
        self._watching.close()

    @torch.no_grad()
    def finish(self) -> None:
        self._shrink()
        if self.removal.sparsity != self.removal.final_sparsity:
            raise VerificationError(
                f"{self.removal.sparsity:.4%} of the encoder went instead of {self.removal.final_sparsity:.4%}."
            )
        release_unconnected(self.anatomy, self.masks)

    @property
    def sparsity(self) -> float:
        return self.removal.sparsity

    def _removes_after(self, step: int) -> bool:
        """Whether it is time to remove something when this step is taken."""
        first, last = self.schedule.first_step, self.schedule.last_step
        return step == last or (first < step < last and step % self.interval == 0)

    def _shrink(self) -> None:
        self.criterion.shrink(self.unshrunk)
        self.unshrunk = 0.0

    def state_dict(self) -> dict[str, Any]:
        criterion, removal = self.criterion.state_dict(), self.removal.state_dict()
        return {**super().state_dict(), "criterion": criterion, "removal": removal, "unshrunk": self.unshrunk}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.criterion.load_state_dict(state["criterion"])
        self.removal.load_state_dict(state["removal"])
        self.unshrunk = state["unshrunk"]


def gradual(
    anatomy: Anatomy,
    criterion: Criterion,
    schedule: Schedule,
    sparsity: float | None,
    *,
    granularity: str,
    layer_floor: float,
    heads_kept: int | None = None,
    head_exponent: float = 1.0,
    in_rows: float = 0.0,
    experts: float = 0.0,
    uniform: bool = False,
    at_least: bool = False,
    previous: Pruner | None = None,
) -> GradualPruner:
    """A gradual pruner that removes at the given granularity.

    Args:
        sparsity: Share of the transformer layers' parameters; None with a pattern, from which it follows.
        uniform: Whether all layers are to end with one width, if whole units go.
        at_least: Whether no less than that share may go, if whole units do.
        previous: Has brought the same model to a lower target by the same method; this one goes on from there.

    Raises:
        UnreachableTargetError: the model cannot be pruned to this target.
    """
    pruner = GradualPruner(anatomy, criterion, schedule)
    pattern = pattern_of(granularity)
    if pattern is not None:
        pruner.removal = PatternRemoval(anatomy, *pattern)
        return pruner
    assert sparsity is not None  # noqa: S101 the contract asks for a target without a pattern
    if granularity == "structured":
        gone = previous.masks if previous is not None else None
        budget = Budget.of(
            anatomy,
            sparsity,
            heads_kept,
            in_rows,
            experts,
            head_exponent=head_exponent,
            uniform=uniform,
            at_least=at_least,
            gone=gone,
        )
        pruner.removal = UnitRemoval(pruner, budget, layer_floor)
    else:
        pruner.removal = WeightRemoval(anatomy, sparsity, layer_floor)
    if previous is not None:
        pruner.load_state_dict(previous.state_dict())
    return pruner
