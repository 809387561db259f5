"""Targets: from what a job asks for to the levels that its model is brought to."""

from pathlib import Path

from core.engine.ladder import Ladder, Level
from core.engine.targets.amounts import level_of_bytes, level_of_parameters
from core.engine.targets.course import Course, Frontier, OneLevel, Reached
from core.engine.targets.metric_drop import WithinDrop
from core.engine.targets.speedup import AtSpeed
from core.jobs import targets
from core.progress import Reporter, Warned

__all__ = ["Course", "Reached", "plan_course"]


def plan_course(ladder: Ladder, target: targets.AnyTarget | None, scratch: Path, report: Reporter) -> Course:
    """The way to a job's target.

    Args:
        ladder: Brings the job's model to levels.
        target: None where the method decides how much goes.
        scratch: A folder for what is timed, as long as the course is followed.
        report: Told of warnings.

    Raises:
        UnreachableTargetError: the model cannot be pruned to it; says what is possible.
        InvalidModelError: the method or the structure is not for this model.
    """
    match target:
        case None:
            return OneLevel(ladder, Level(None))
        case targets.SparsityTarget():
            return OneLevel(ladder, Level(target.sparsity))
        case targets.ParametersTarget():
            return OneLevel(ladder, _asked(level_of_parameters(ladder, target.parameters), report))
        case targets.SizeTarget():
            return OneLevel(ladder, _asked(level_of_bytes(ladder, target.size_bytes), report))
        case targets.SpeedupTarget():
            return AtSpeed(ladder, target, scratch, report)
        case targets.MetricDropTarget():
            return WithinDrop(ladder, target.max_metric_drop, report)
        case targets.FrontierTarget():
            return Frontier(ladder, target.frontier)


def _asked(level: Level, report: Reporter) -> Level:
    """The level, with a warning where the model meets the target as it is."""
    if not level.sparsity:
        report(Warned(message="The model is as small as the target asks for already: nothing is removed."))
    return level
