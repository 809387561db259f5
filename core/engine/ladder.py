"""The levels that a model is brought to: each is a run of training under a pruner, from dense or from a lower level."""

import copy
from dataclasses import dataclass

from transformers import PreTrainedModel

from core.checkpoints import Checkpoints
from core.engine.anatomy import bind
from core.engine.evaluate import Teacher
from core.engine.loading import move
from core.engine.methods import Pruner, Schedule, build_pruner
from core.engine.preparation import Prepared
from core.engine.pruning import prune
from core.engine.training import StepListener, total_steps
from core.errors import UnreachableTargetError
from core.jobs.spec import JobSpec

LEAST_SHARE = 0.5
"""Of `num_train_epochs` that a further level takes; its model has recovered once already."""

AT_ONCE = Schedule(1, 0.0, 0.0)
"""For pruners that are not trained."""


@dataclass(frozen=True, slots=True)
class Level:
    """How much is to go: a share of the transformer layers' parameters; None where the method decides."""

    sparsity: float | None
    at_least: bool = False
    """Whether no less may go, where whole units do not meet it exactly."""

    def share_of_epochs(self, before: float = 0.0) -> float:
        """Share of `num_train_epochs` that this level takes after one of sparsity `before`.

        The first takes all. A further one takes what it removes of what was left: the sparser, the longer.
        """
        if self.sparsity is None or not before:
            return 1.0
        return max(LEAST_SHARE, (self.sparsity - before) / (1 - before))


class Ladder:
    """Brings copies of a job's model to levels; the model itself stays dense, and teaches them.

    A job brings its model to no level twice, so a level's sparsity names its training for checkpoints.
    """

    def __init__(
        self, spec: JobSpec, prepared: Prepared, listen: StepListener, checkpoints: Checkpoints | None = None
    ) -> None:
        self.spec = spec
        self.prepared = prepared
        self._listen = listen
        self._checkpoints = checkpoints
        self._teacher: Teacher | None = None

    def check(self, level: Level, previous: Pruner | None = None) -> None:
        """Refuse a level that the model cannot be brought to.

        Args:
            level: Where to.
            previous: A stand-in at a lower level, to go on from.

        Raises:
            UnreachableTargetError: says what is possible.
            InvalidModelError: the method or the structure is not for this model.
        """
        # What is gone before would leave the dense model, too.
        model = self.prepared.model if previous is None else previous.anatomy.model
        self._pruner(model, level, AT_ONCE, previous)

    def can_reach(self, level: Level) -> bool:
        """Whether the model can be brought to a level."""
        try:
            self.check(level)
        except UnreachableTargetError:
            return False
        return True

    def steps(self, level: Level, before: float = 0.0) -> int:
        """Optimiser steps to a level from one of sparsity `before`, those of its recovery included."""
        return sum(self._steps(level, before))

    def _steps(self, level: Level, before: float) -> tuple[int, int]:
        """Optimiser steps of a level's pruning and of its recovery."""
        training = self.spec.training
        assert training.num_train_epochs is not None  # noqa: S101 resolved specs have it
        rows, share = len(self.prepared.train), level.share_of_epochs(before)
        pruning = total_steps(rows, training, training.num_train_epochs * share)
        return pruning, total_steps(rows, training, training.recovery_epochs * share)

    def reach(self, level: Level, previous: Pruner | None = None) -> Pruner:
        """Train a copy of the model to a level.

        Args:
            level: Where to.
            previous: Of a lower level, to go on from; neither it nor its model is changed.

        Returns:
            The finished pruner, bound to the copy; what is gone is at zero.
        """
        prepared, training = self.prepared, self.spec.training
        start, before = (prepared.model, 0.0) if previous is None else (previous.anatomy.model, previous.sparsity)
        steps, recovery_steps = self._steps(level, before)
        gone = before / level.sparsity if level.sparsity else 0.0
        schedule = Schedule(max(1, steps), training.warmup_fraction, training.recovery_fraction, min(1.0, gone))
        pruner = self._pruner(copy.deepcopy(start), level, schedule, previous)
        if training.trains and self._teacher is None and training.distillation != 0:
            self._teacher = Teacher(prepared.task, prepared.model, prepared.train)
        prune(
            prepared.task,
            pruner,
            prepared.model,
            prepared.train,
            steps,
            self._listen,
            recovery_steps=recovery_steps,
            stage="pruning" if level.sparsity is None else f"pruning-{level.sparsity:g}",
            checkpoints=self._checkpoints,
            teacher=self._teacher,
        )
        return pruner

    def stand_in(self, level: Level, previous: Pruner | None = None) -> Pruner:
        """An untrained copy on the CPU from which as much is gone as at a level; which units is left to chance.

        Args:
            level: Where to.
            previous: A stand-in at a lower level, to go on from.
        """
        pruner = self._pruner(self.dense_copy(), level, AT_ONCE, previous)
        pruner.step(1, 0.0)
        return pruner

    def dense_copy(self) -> PreTrainedModel:
        """The dense model once more, on the CPU."""
        model = copy.deepcopy(self.prepared.model)
        move(model, "cpu")
        return model

    def _pruner(self, model: PreTrainedModel, level: Level, schedule: Schedule, previous: Pruner | None) -> Pruner:
        return build_pruner(
            bind(model),
            self.spec.method,
            level.sparsity,
            schedule,
            self.spec.training.seed,
            uniform=self.spec.structure == "uniform",
            at_least=level.at_least,
            previous=previous,
        )
