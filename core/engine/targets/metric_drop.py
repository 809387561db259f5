"""The smallest model that is hardly worse than the dense one, by bisection over sparsities that doubts what failed."""

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from core.engine.evaluate import Evaluation, evaluate
from core.engine.ladder import Ladder, Level
from core.engine.methods import Pruner
from core.engine.preparation import Prepared
from core.engine.targets.course import Course, Reached
from core.engine.tasks import Metric, Task
from core.errors import NumericalError, UnreachableTargetError
from core.jobs.targets import MOST_SPARSITY, RANGES
from core.progress import Reporter, Warned

STEPS = 20
"""Sparsities are tried in steps of one over this."""

DOUBTS = 2
"""Untried levels above the best that have to fail, one after the other, before the search ends."""

FURTHER = 4
"""Levels that are tried at most, beyond as many as one bisection may take."""

MOST_DOUBT = 0.5
"""Share of the budget that the standard error of a drop counts for at most."""

GROUPS = 20
"""Into which the validation batches are parted to tell how sure a drop is; fewer if there are fewer batches."""


class WithinDrop(Course):
    """Bisects the sparsities 0.05, 0.10 … for the highest that is within the budget on the validation rows.

    A drop is measured with an error, so that a level may fail by chance and send the bisection down for good: the next
    untried levels above the best (or from the lowest on, where none was good) are tried as well. Where one of them is
    good, bisection goes on between it and the next that failed.

    Each level is reached from the dense model, in all of `num_train_epochs`: what is found is what a job with that
    sparsity and as many epochs gives. Going on from a lower level takes less time and loses more.
    """

    def __init__(self, ladder: Ladder, most_drop: float, report: Reporter) -> None:
        every = [Level(step / STEPS) for step in range(1, int(MOST_SPARSITY * STEPS) + 1)]
        self._levels = [level for level in every if ladder.can_reach(level)]
        if not self._levels:
            ladder.check(every[-1])
        self._ladder = ladder
        self._most_drop = most_drop
        self._report = report

    @property
    def most_steps(self) -> int:
        return self._ladder.steps(self._levels[0]) * self._most_trials

    @property
    def _most_trials(self) -> int:
        bisection = math.ceil(math.log2(len(self._levels) + 1))
        return min(bisection + FURTHER, len(self._levels))

    def follow(self) -> list[Reached]:
        """Bring the model to one level after the other.

        Raises:
            UnreachableTargetError: no level that was tried is within the budget, the lowest among them.
                Or the dense model's metric is so bad that every model is within the budget; nothing is trained then.
            NumericalError: the validation rows do not define the dense model's metric; nothing is trained then.
        """
        dense = self._evaluate_dense()
        best: Pruner | None = None
        tried: dict[int, dict[str, Any]] = {}
        good = -1
        for index in islice(self._search(tried), self._most_trials):
            pruner = self._ladder.reach(self._levels[index])
            tried[index] = self._judged(dense, pruner)
            if tried[index]["is_good"]:
                good, best = index, pruner
            del pruner  # or it would take memory while the next one trains
        if best is None:
            lowest = tried[0]
            raise UnreachableTargetError(
                f"With {lowest['sparsity']:.0%} removed, {self._metric} on the validation rows is "
                f"{_described(lowest)}: not surely within {self._most_drop:g}. Allow more, train longer "
                "(num_train_epochs), or give more validation rows.",
                param="/target/max_metric_drop",
            )
        self._warn(tried[good]["standard_error"])
        validation = tried[good] | {"rows": self._ladder.prepared.validation.source_rows}
        return [Reached(best, {"validation": validation, "tried": list(tried.values())})]

    def _search(self, tried: Mapping[int, dict[str, Any]]) -> Iterator[int]:
        """Which levels to try, each but once; before the next is asked for, the last one's judgement is in `tried`.

        If each that is doubted turned out good, these would be all: whoever asks has to stop.
        """
        doubts = 0
        while doubts < DOUBTS:
            yield from self._bisection(tried)
            best, _ = self._bracket(tried)
            untried = (index for index in range(best + 1, len(self._levels)) if index not in tried)
            doubted = next(untried, None)
            if doubted is None:
                return
            yield doubted
            doubts = 0 if tried[doubted]["is_good"] else doubts + 1

    def _bisection(self, tried: Mapping[int, dict[str, Any]]) -> Iterator[int]:
        """Levels between the best and the next above it that failed, until the two are neighbours."""
        good, bad = self._bracket(tried)
        while bad - good > 1:
            yield (good + bad) // 2
            good, bad = self._bracket(tried)

    def _bracket(self, tried: Mapping[int, dict[str, Any]]) -> tuple[int, int]:
        """The best level and the next above it that failed; the ends of all levels where there is none."""
        good = max((index for index, level in tried.items() if level["is_good"]), default=-1)
        return good, min((index for index in tried if index > good), default=len(self._levels))

    @property
    def _metric(self) -> str:
        return self._ladder.prepared.task.headline

    def _evaluate_dense(self) -> Evaluation:
        prepared = self._ladder.prepared
        dense = evaluate(prepared.task, prepared.model, prepared.validation, headline_only=True)
        if not math.isfinite(dense.metrics[self._metric].value):
            raise NumericalError(f"{self._metric} is not defined by the validation rows: too few of them differ.")
        value, (worst, _) = dense.metrics[self._metric].value, RANGES.get(self._metric, (-math.inf, math.inf))
        if value - worst <= self._most_drop:
            raise UnreachableTargetError(
                f"The dense model's {self._metric} on the validation rows is {value:.4g}: every model is within "
                f"{self._most_drop:g} of it, so nothing is decided.",
                param="/target/max_metric_drop",
            )
        return dense

    def _judged(self, dense: Evaluation, pruner: Pruner) -> dict[str, Any]:
        return judge(self._ladder.prepared, dense, pruner, self._most_drop)

    def _warn(self, error: float | None) -> None:
        """Say so where the drop is less sure than what is made up for."""
        if error is None or error > MOST_DOUBT * self._most_drop:
            rows = self._ladder.prepared.validation.source_rows
            size = "unknown" if error is None else f"{error:.2g}"
            self._report(
                Warned(
                    message=f"{rows} validation rows are few to decide on a drop of {self._most_drop:g} in "
                    f"{self._metric}: its standard error is {size}."
                )
            )


def judge(prepared: Prepared, dense: Evaluation, pruner: Pruner, most_drop: float) -> dict[str, Any]:
    """How much worse a model is than dense on the validation rows, how sure that is, and whether it is good enough.

    Args:
        prepared: Has the rows.
        dense: Of the dense model, whose metric they define.
        pruner: Finished, bound to the model.
        most_drop: The budget.

    Returns:
        `sparsity`, `drop` (None where the metric is not defined, as for answers that are all the same),
        `standard_error` and `is_good`.
    """
    task = prepared.task
    pruned = evaluate(task, pruner.anatomy.model, prepared.validation, dense.summaries, headline_only=True)
    drop = drop_of(dense.metrics[task.headline], pruned.metrics[task.headline])
    error = standard_error(task, dense, pruned, task.headline)
    return {
        "sparsity": pruner.sparsity,
        "drop": drop if math.isfinite(drop) else None,
        "standard_error": error,
        "is_good": is_within(drop, error, most_drop),
    }


def _described(judgement: dict[str, Any]) -> str:
    if judgement["drop"] is None:
        return "not defined"
    error = judgement["standard_error"]
    return f"{judgement['drop']:.4g} worse than dense" + (f", give or take {error:.2g}" if error is not None else "")


def is_within(drop: float, error: float | None, most_drop: float) -> bool:
    """Whether a drop with its standard error is within the budget.

    Of the models that are tried the sparsest that passes is taken, and so the luckiest; the error makes up for that.
    It counts for `MOST_DOUBT` of the budget at most: otherwise few rows would forbid even a model as good as dense.
    """
    most_doubt = MOST_DOUBT * most_drop
    return drop + (most_doubt if error is None else min(error, most_doubt)) <= most_drop


def drop_of(dense: Metric, pruned: Metric) -> float:
    """By how much a metric is worse than the dense model's, in its unit."""
    return dense.value - pruned.value if dense.higher_is_better else pruned.value - dense.value


def standard_error(task: Task, dense: Evaluation, pruned: Evaluation, metric: str) -> float | None:
    """Of the drop of a metric, by the jackknife over groups of batches; None where that is not possible.

    It is not with a single batch, with a metric of written texts, which batches do not sum up, or where a metric is
    not defined without one of the groups.

    Both models answer the same rows, so what makes rows hard for both is not counted as doubt.
    """
    batches = len(pruned.summaries)
    groups = min(GROUPS, batches)
    if groups < 2 or metric not in task.metrics(pruned.summaries, dense.summaries):
        return None
    drops = []
    for group in range(groups):
        rest = [batch for batch in range(batches) if batch % groups != group]
        ours, reference = ([each.summaries[batch] for batch in rest] for each in (pruned, dense))
        drops.append(drop_of(task.metrics(reference, reference)[metric], task.metrics(ours, reference)[metric]))
    mean = sum(drops) / groups
    error = math.sqrt((groups - 1) / groups * sum((drop - mean) ** 2 for drop in drops))
    return error if math.isfinite(error) else None
