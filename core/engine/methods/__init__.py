"""Pruning methods: each decides what goes; the budget decides how much and the schedule when."""

from collections.abc import Callable

from core.engine.anatomy import Anatomy
from core.engine.methods.base import Pruner
from core.engine.methods.budget import Budget
from core.engine.methods.neuroprune.pruner import NeuroPrunePruner
from core.engine.methods.schedule import Schedule
from core.jobs import spec

PRUNERS: dict[str, Callable[[Anatomy, Budget, Schedule, spec.Method], Pruner]] = {"neuroprune": NeuroPrunePruner}
"""By the `name` of the spec's method; the catalogue for users is `core.catalog`."""

__all__ = ["PRUNERS", "Budget", "Pruner", "Schedule"]
