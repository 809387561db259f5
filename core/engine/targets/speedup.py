"""So many times as fast as dense: found on stand-ins before training, made sure of on the trained model."""

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from core.engine.anatomy import bind
from core.engine.data import Batch
from core.engine.export.onnx import export_onnx
from core.engine.ladder import Ladder, Level
from core.engine.loading import move
from core.engine.measure import Side, speedup
from core.engine.methods import Pruner
from core.engine.probe import probe_inputs
from core.engine.structures import give_structure, join_experts
from core.engine.targets.amounts import removable_share
from core.engine.targets.course import Course, Reached
from core.errors import UnreachableTargetError
from core.jobs.targets import MOST_SPARSITY, SpeedupTarget
from core.progress import Reporter, Warned

TOLERANCE = 0.05
"""Share of the target by which the delivered model may be slower."""

NEAR = 0.02
"""Share of the target by which a stand-in may miss it; timing is no more certain."""

LEVELS = 20
"""Tried to find between which sparsities the model can be brought at all."""

MOST_STAND_INS = 6
MOST_CORRECTIONS = 3
LEAST_CORRECTION, MOST_CORRECTION = 0.01, 0.1
"""Sparsity that a correction adds: what is gone never comes back, and a slow minute must not cost half the model."""


def _bounds(ladder: Ladder) -> tuple[float, float]:
    """The least and the greatest sparsity that the model can be brought to.

    The method's options may ask for more than nothing, and leave less than everything: so many heads, for instance.

    Raises:
        UnreachableTargetError: there is none.
    """
    most = min(MOST_SPARSITY, removable_share(ladder))
    levels = [level / LEVELS for level in range(LEVELS) if level / LEVELS < most]
    reachable = [level for level in (*levels, most) if ladder.can_reach(Level(level))]
    if not reachable:
        ladder.check(Level(most))
    return reachable[0], reachable[-1]


class AtSpeed(Course):
    """Looks for the sparsity at which a stand-in is as fast as asked for; if the trained model is not, takes more.

    The time of a call falls nearly linearly with what is removed, so false position needs few stand-ins. Layers of
    other widths are not quite as fast, nor is a machine from one minute to the next: hence the corrections.
    """

    def __init__(self, ladder: Ladder, target: SpeedupTarget, scratch: Path, report: Reporter) -> None:
        """Time stand-ins.

        Raises:
            UnreachableTargetError: even the sparsest stand-in is slower.
        """
        self._ladder = ladder
        self._target = target
        self._report = report
        self._least, self._most = _bounds(ladder)
        self._scratch = scratch
        dense = ladder.dense_copy()
        # As it is delivered, and not as it is pruned.
        join_experts(bind(dense))
        self._dense = self._side(dense, "dense")
        self._level, self._expected = self._search()

    @property
    def most_steps(self) -> int:
        """Without corrections, which are rare."""
        return self._ladder.steps(self._level)

    def follow(self) -> list[Reached]:
        level, wanted = self._level, self._target.speedup
        pruner = self._ladder.reach(level)
        tried = [self._timed(pruner)]
        while (
            tried[-1]["speedup"] < (1 - TOLERANCE) * wanted
            and len(tried) <= MOST_CORRECTIONS
            and pruner.sparsity + LEAST_CORRECTION <= self._most
        ):
            level = Level(self._corrected(**tried[-1]))
            pruner = self._ladder.reach(level, pruner)
            tried.append(self._timed(pruner))
        if abs(tried[-1]["speedup"] - wanted) > TOLERANCE * wanted:
            self._report(
                Warned(
                    message=f"The pruned model is {tried[-1]['speedup']:.2f} times as fast as dense, "
                    f"not within {TOLERANCE:.0%} of {wanted:g}."
                )
            )
        return [Reached(pruner, {"runtime": self._target.runtime, "expected": self._expected, "tried": tried})]

    def _search(self) -> tuple[Level, float]:
        """The level at which a stand-in is as fast as asked for, and how fast it is."""
        wanted = 1 / self._target.speedup
        slow = self._least
        slow_time = self._time(self._ladder.stand_in(Level(slow))) if slow else 1.0
        if slow_time <= wanted:
            return Level(slow), 1 / slow_time
        fast, fast_time = self._most, self._time(self._ladder.stand_in(Level(self._most)))
        if fast_time > wanted:
            raise UnreachableTargetError(
                f"A speedup of {self._target.speedup:g} cannot be met in {self._target.runtime}: with {fast:.0%} of "
                f"the transformer layers removed the model is {1 / fast_time:.2f} times as fast as dense here.",
                param="/target/speedup",
            )
        sparsity, time = fast, fast_time
        for _ in range(MOST_STAND_INS):
            if abs(time / wanted - 1) <= NEAR:
                break
            sparsity = slow + (fast - slow) * (slow_time - wanted) / (slow_time - fast_time)
            time = self._time(self._ladder.stand_in(Level(sparsity)))
            if time > wanted:
                slow, slow_time = sparsity, time
            else:
                fast, fast_time = sparsity, time
        return Level(sparsity), 1 / time

    def _corrected(self, sparsity: float, speedup: float) -> float:
        """The sparsity at which the target is met if time goes on falling as it does for stand-ins."""
        assert self._level.sparsity is not None  # noqa: S101 found by timing
        slope = (1 - 1 / self._expected) / self._level.sparsity
        more = (1 / speedup - 1 / self._target.speedup) / slope
        return min(self._most, sparsity + min(MOST_CORRECTION, max(LEAST_CORRECTION, more)))

    def _timed(self, pruner: Pruner) -> dict[str, Any]:
        return {"sparsity": pruner.sparsity, "speedup": 1 / self._time(copy.deepcopy(pruner))}

    def _time(self, pruner: Pruner) -> float:
        """Time of a call as a share of the dense model's; the pruner's model is compacted."""
        give_structure(self._ladder.spec.structure, pruner.anatomy, pruner.plan())
        sides = {"dense": self._dense, "pruned": self._side(pruner.anatomy.model, "pruned")}
        return 1 / speedup(type(self._ladder.prepared.task), sides, self._inputs(sides["pruned"]), self._target.runtime)

    def _side(self, model: PreTrainedModel, name: str) -> Side:
        """A model as it is timed, on the CPU, written down where the runtime reads files."""
        move(model, "cpu")
        model.train(False)
        side = Side(model, self._scratch / f"timed-{name}")
        side.folder.mkdir(exist_ok=True)
        if self._target.runtime == "onnxruntime":
            task = type(self._ladder.prepared.task)
            export_onnx(task, model, self._inputs(side), side.folder / "model.onnx")
        return side

    def _inputs(self, side: Side) -> Batch:
        prepared = self._ladder.prepared
        return probe_inputs(prepared.task, side.model, prepared.held_out)
