"""The protocol between the training loop and a pruning method."""

from abc import ABC, abstractmethod

import torch

from core.engine.anatomy import Anatomy
from core.engine.methods.budget import Budget
from core.engine.methods.schedule import Schedule
from core.engine.plan import Masks, Plan


class Pruner(ABC):
    """Removes units from a live model while it trains, along a schedule, until a budget is met exactly.

    The training loop calls `observe` with gradients in place and `step` after every optimiser step.
    """

    def __init__(self, anatomy: Anatomy, budget: Budget, schedule: Schedule) -> None:
        self.anatomy = anatomy
        self.budget = budget
        self.schedule = schedule
        self.masks = Masks(anatomy)
        self.last_scores = [torch.zeros(units.count) for units in anatomy.units]
        """Each unit's score when it was last judged: for a removed one, when it went."""
        self.merged: list[tuple[int, int, int]] = []
        """Heads whose outputs another took over: layer, removed, successor."""

    @abstractmethod
    def observe(self) -> None:
        """Look at the gradients of the step that is about to be taken."""

    @abstractmethod
    def step(self, step: int, learning_rate: float) -> None:
        """Remove what the schedule asks for after optimiser step `step` (from 1), and hold what was removed."""

    @property
    def sparsity(self) -> float:
        """Share of the encoder's parameters removed so far."""
        return self.masks.removed_parameters() / self.budget.encoder_parameters

    def plan(self) -> Plan:
        """What is kept now."""
        return self.masks.plan()
