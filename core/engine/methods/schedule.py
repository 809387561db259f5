"""When how much is gone: dense at first, then along a cubic, then held."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """Gradual pruning (Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878) between two of the training steps.

    Steps count optimiser steps, from 1. Of a model that was pruned before, the share `start` of the target is gone at
    first.
    """

    total_steps: int
    warmup_fraction: float
    recovery_fraction: float
    start: float = 0.0

    @property
    def first_step(self) -> int:
        """The last step before anything goes."""
        return min(int(self.total_steps * self.warmup_fraction), self.last_step - 1)

    @property
    def last_step(self) -> int:
        """The step after which the target is reached."""
        return max(1, self.total_steps - int(self.total_steps * self.recovery_fraction))

    def reached(self, step: int) -> float:
        """Share of the target that is gone after `step`, `start` … 1; exactly 1 from `last_step` on."""
        if step >= self.last_step:
            return 1.0
        if step <= self.first_step:
            return self.start
        left = 1 - (step - self.first_step) / (self.last_step - self.first_step)
        return 1 - (1 - self.start) * left**3
