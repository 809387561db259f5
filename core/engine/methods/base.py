"""The protocol between the training loop and a pruning method, and what methods that rank have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from core.engine.anatomy import Anatomy
from core.engine.plan import Masks, Plan
from core.engine.units import Slice, Units


class Pruner(ABC):
    """Removes parts of a live model, before or while it trains, and holds what is removed at zero.

    The order of calls: `calibrate` once; for every optimiser step `begin_step`, the loss with `penalty`, `observe` with
    the gradients in place, the optimiser's own step, `step`; `end_epoch` after every pass over the data; `end_training`
    when a training is over, of which there may be several; `finish` once.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.masks = Masks(anatomy)
        """Units that are gone altogether."""
        self.last_scores = [torch.zeros(units.count) for units in anatomy.units]
        """Each unit's score when it was last judged: for a removed one, when it went. Zeros if units have no scores."""
        self.merged: list[tuple[int, int, int]] = []
        """Heads whose outputs another took over: position in `anatomy.units`, removed, successor."""

    def calibrate(self, run: Callable[[int], None]) -> None:  # noqa: B027 most methods need no calibration
        """Look at the model's activations: `run(rows)` passes so many training rows through it, the same every time."""

    def begin_step(self, step: int) -> None:  # noqa: B027 few methods look at what the model computes
        """Optimiser step `step` (from 1) is about to be taken."""

    def penalty(self) -> Tensor | None:
        """A scalar to add to the loss."""
        return None

    def observe(self) -> None:  # noqa: B027 not every method looks at gradients
        """Look at the gradients of the step that is about to be taken; those of all accumulated batches."""

    @abstractmethod
    def step(self, step: int, learning_rate: float) -> None:
        """Remove what is due after optimiser step `step` (from 1), and hold what was removed."""

    def end_training(self) -> None:  # noqa: B027 few methods have anything open
        """A training is over, or broke off."""

    def end_epoch(self) -> None:  # noqa: B027 few methods care
        """A pass over the training rows is over."""

    def finish(self) -> None:  # noqa: B027 few methods have something left to do
        """Training is over.

        Raises:
            VerificationError: the target was not met.
        """

    @property
    @abstractmethod
    def sparsity(self) -> float:
        """Share of the transformer layers' parameters that is gone so far, be it removed or zero."""

    def plan(self) -> Plan:
        """The units that are kept now."""
        return self.masks.plan()

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on as if nothing had happened."""
        return {
            "masks": self.masks.state_dict(),
            "last_scores": [scores.clone() for scores in self.last_scores],
            "merged": list(self.merged),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the model's weights are to be restored before."""
        self.masks.load_state_dict(state["masks"])
        self.last_scores = [scores.clone() for scores in state["last_scores"]]
        self.merged = list(state["merged"])


class Criterion(ABC):
    """Which units or weights matter least: the part in which the gradual methods differ."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy

    def watching(self) -> AbstractContextManager[None]:
        """Around a step after which something goes, and its removal: a chance to see what the model computes."""
        return nullcontext()

    def observe(self) -> None:  # noqa: B027 not every method looks at gradients
        """Look at the gradients of the step that is about to be taken, without leaving the device: a GPU would idle."""

    def shrink(self, learning_rate: float) -> None:  # noqa: B027 not every method regularises
        """Move weights towards zero after the optimiser's step."""

    @abstractmethod
    def unit_scores(self, position: int, kept: Tensor) -> Tensor:
        """How much each unit at this position of `anatomy.units` matters, [count]; kept ones are marked in `kept`.

        Both are on the CPU, where units are ranked.

        Comparable between layers as far as the method means them to be; the scores of removed units are not looked at.
        """

    @abstractmethod
    def weight_scores(self, position: int, kept: Tensor) -> Tensor:
        """How much each weight of the matrix at this position of `anatomy.matrices` matters, [out, in]."""

    def hand_over(self, position: int, removed: Tensor, kept: Tensor) -> list[tuple[int, int]]:
        """Let units pass on what they do before they are removed.

        Args:
            position: Of `anatomy.units`.
            removed: Indices of those that go now.
            kept: Bool [count], those that go now included.

        Returns:
            Pairs of a removed unit and the one that took over.
        """
        return []

    def state_dict(self) -> dict[str, Any]:
        """What was observed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 counterpart of the empty state
        """Go on from a state."""


def strengths(units: Units, slices: Callable[[Units], tuple[Slice, ...]] = attrgetter("slices")) -> Tensor:
    """l1 norm of all that belongs to each unit, or of what `slices` names of it, [count] on the CPU."""
    return units.total(slices, lambda part: part.values.abs()).cpu()


def by_mean(scores: Tensor, kept: Tensor) -> Tensor:
    """Scores as multiples of the mean of those that are kept, so that layers can be compared; zeros stay zeros."""
    mean = scores[kept].mean() if bool(kept.any()) else scores.new_ones(())
    return scores / mean if mean > 0 else scores
