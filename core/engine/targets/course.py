"""How a target is reached: which levels the model is brought to, and which of them are delivered."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from core.engine.ladder import Ladder, Level
from core.engine.methods import Pruner
from core.jobs.methods import removes_units


@dataclass(frozen=True)
class Reached:
    """A model that is to be delivered."""

    pruner: Pruner
    """Finished; bound to the model."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the report's `target` says beside what was asked for and what was achieved."""
    folder: str | None = None
    """Where its bundle lies within the job's; None for a job that has one bundle."""


class Course(ABC):
    """The way to one target. Whatever can be refused is refused when it is made, before anything is trained."""

    bundles = 1
    """How many models are delivered."""

    @property
    @abstractmethod
    def most_steps(self) -> int:
        """Optimiser steps, at most, of all levels together."""

    @abstractmethod
    def follow(self) -> list[Reached]:
        """Train; from the least pruned to the most."""


class OneLevel(Course):
    """The target says how much is to go."""

    def __init__(self, ladder: Ladder, level: Level) -> None:
        ladder.check(level)
        self._ladder = ladder
        self._level = level

    @property
    def most_steps(self) -> int:
        return self._ladder.steps(self._level)

    def follow(self) -> list[Reached]:
        return [Reached(self._ladder.reach(self._level))]


class Frontier(Course):
    """Several sparsities, each going on from the one before, and each delivered."""

    def __init__(self, ladder: Ladder, sparsities: tuple[float, ...]) -> None:
        self._levels = [Level(sparsity) for sparsity in sparsities]
        previous = None
        for level in self._levels:
            ladder.check(level, previous)
            # Of whole units, a level that is within reach from dense may not be within reach from the one before.
            if removes_units(ladder.spec.method) and level is not self._levels[-1]:
                previous = ladder.stand_in(level, previous)
        self._ladder = ladder
        self.bundles = len(self._levels)

    @property
    def most_steps(self) -> int:
        further = pairwise(level.sparsity or 0.0 for level in self._levels)
        return self._ladder.steps(self._levels[0]) + sum(
            self._ladder.steps(Level(sparsity), before) for before, sparsity in further
        )

    def follow(self) -> list[Reached]:
        reached: list[Reached] = []
        for level in self._levels:
            pruner = self._ladder.reach(level, reached[-1].pruner if reached else None)
            reached.append(Reached(pruner, {"requested": level.sparsity}, f"sparsity-{level.sparsity:g}"))
        return reached
