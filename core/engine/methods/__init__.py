"""Pruning methods: each decides what goes; the budget decides how much and the schedule when."""

from core.engine.methods.base import Criterion, Pruner
from core.engine.methods.registry import build_pruner
from core.engine.methods.schedule import Schedule

__all__ = ["Criterion", "Pruner", "Schedule", "build_pruner"]
