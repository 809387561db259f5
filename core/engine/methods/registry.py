"""From the contract's method to the pruner that does it; what users see of the methods is in `core.catalog`."""

from core.engine.anatomy import Anatomy
from core.engine.methods.base import Criterion, Pruner
from core.engine.methods.gradual import gradual
from core.engine.methods.importance import ImportanceCriterion
from core.engine.methods.l1 import L1Criterion
from core.engine.methods.magnitude import MagnitudeCriterion
from core.engine.methods.neuroprune.criterion import NeuroPruneCriterion
from core.engine.methods.neuroprune.faithful import FaithfulNeuroPrune
from core.engine.methods.random import RandomCriterion
from core.engine.methods.schedule import Schedule
from core.engine.methods.smart import SmartPruner
from core.engine.methods.sparsegpt import SparseGPTPruner
from core.engine.methods.wanda import WandaPruner
from core.jobs import methods


def build_pruner(
    anatomy: Anatomy,
    method: methods.Method,
    sparsity: float | None,
    schedule: Schedule,
    seed: int,
    *,
    uniform: bool = False,
    at_least: bool = False,
    previous: Pruner | None = None,
) -> Pruner:
    """The pruner of a job.

    Args:
        anatomy: The model to prune.
        method: With its options.
        sparsity: Share of the transformer layers' parameters; None where the method takes no target.
        schedule: When what goes.
        seed: Of random choices.
        uniform: Whether all layers are to end with one width; only for methods that remove whole units.
        at_least: Whether no less than that share may go, where whole units do not meet it exactly.
        previous: Has brought the same model to a lower target; this one goes on from there. Only for gradual methods.

    Raises:
        UnreachableTargetError: the model cannot be pruned to this target.
        InvalidModelError: all layers cannot have one width in this family's stock class.
    """
    match method:
        case methods.NeuroPrune(mode="faithful"):
            return FaithfulNeuroPrune(anatomy, method)
        case methods.Smart():
            assert sparsity is not None  # noqa: S101 the contract asks for a target
            return SmartPruner(anatomy, sparsity, schedule, method, uniform=uniform, at_least=at_least)
        case methods.Wanda():
            return WandaPruner(anatomy, sparsity, method)
        case methods.SparseGPT():
            return SparseGPTPruner(anatomy, sparsity, method)
        case _:
            return gradual(
                anatomy,
                _criterion(anatomy, method, seed),
                schedule,
                sparsity,
                granularity=method.granularity,
                layer_floor=method.floor,
                head_exponent=method.exponent,
                experts=method.experts,
                heads_kept=method.heads_kept if isinstance(method, methods.NeuroPrune) else None,
                in_rows=method.in_rows if isinstance(method, methods.NeuroPrune) else 0.0,
                uniform=uniform,
                at_least=at_least,
                previous=previous,
            )


def _criterion(
    anatomy: Anatomy,
    method: methods.NeuroPrune | methods.Importance | methods.Magnitude | methods.L1 | methods.Random,
    seed: int,
) -> Criterion:
    match method:
        case methods.NeuroPrune():
            return NeuroPruneCriterion(anatomy, method)
        case methods.Importance():
            return ImportanceCriterion(anatomy, method.sensitivity_share, by_weight=method.granularity != "structured")
        case methods.Magnitude():
            return MagnitudeCriterion(anatomy)
        case methods.L1():
            return L1Criterion(anatomy, method.strength)
        case methods.Random():
            return RandomCriterion(anatomy, seed)
