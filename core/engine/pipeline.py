"""One pruning job, from a spec to a verified bundle.

loading → baseline → pruning → compacting → evaluating → exporting → verifying
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import set_seed

from core.checkpoints import Checkpoints
from core.engine.anatomy import bind
from core.engine.delivery import Delivery, Dense
from core.engine.evaluate import evaluate
from core.engine.inputs import Inputs
from core.engine.ladder import Ladder
from core.engine.precision import round_weights
from core.engine.preparation import Prepared, prepare
from core.engine.report.document import summary_of
from core.engine.report.structure import count_zeros
from core.engine.targets import plan_course
from core.engine.tracker import Tracker
from core.engine.training import total_steps, train
from core.jobs.spec import JobSpec
from core.progress import Note, Reporter, Warned

UNTRAINED_HEAD_EPOCHS = 1.0
"""Plain fine-tuning before pruning where the task head is new and the user said nothing."""


def run(
    spec: JobSpec, inputs: Inputs, output: Path, report: Reporter, checkpoints: Checkpoints | None = None
) -> dict[str, Any]:
    """Do the job and write its bundle into `output`; a frontier's, one for each level, into folders below.

    Args:
        spec: A resolved spec.
        inputs: Its inputs, on this machine.
        output: An empty folder.
        report: Told of phases, progress and warnings.
        checkpoints: Where trainings go on from and leave their state; None to do neither.

    Returns:
        The summary of the report that belongs into the job itself.

    Raises:
        NeuroPruneError: any of the tree; nothing else is expected.
    """
    set_seed(spec.training.seed)
    warnings: list[str] = []
    report = partial(_told, report, warnings)
    tracker = Tracker(report)
    with TemporaryDirectory() as scratch:
        with tracker.phase("loading"):
            prepared = prepare(spec, inputs, report)
            ladder = Ladder(spec, prepared, tracker.training_step, checkpoints)
            course = plan_course(ladder, spec.target, Path(scratch), report)
            dense_steps = _dense_steps(spec, prepared)
        tracker.expect(dense_steps, course.most_steps, course.bundles)
        with tracker.phase("baseline"):
            if dense_steps:
                train(
                    prepared.task,
                    prepared.model,
                    prepared.train,
                    steps=dense_steps,
                    stage="dense",
                    checkpoints=checkpoints,
                    listen=tracker.training_step,
                )
            round_weights(prepared.model, prepared.dtype)
            baseline = evaluate(prepared.task, prepared.model, prepared.held_out)
            for doubt in prepared.task.doubts(prepared.train, baseline.summaries):
                report(Warned(message=doubt))
        anatomy = bind(prepared.model)
        dense = Dense(anatomy, count_zeros(anatomy), baseline, Path(scratch, "dense"))
        with tracker.phase("pruning"):
            reached = course.follow()
        delivery = Delivery(spec, inputs, prepared, dense, tracker, report, warnings)
        if len(reached) > 1:
            return summary_of(delivery.deliver_frontier(reached, output))
        return summary_of(delivery.deliver(reached[0], output))


def _told(report: Reporter, warnings: list[str], message: Note) -> None:
    """Pass a message on, and keep each warning once, for the reports."""
    if isinstance(message, Warned) and message.message not in warnings:
        warnings.append(message.message)
    report(message)


def _dense_steps(spec: JobSpec, prepared: Prepared) -> int:
    """Optimiser steps of dense training."""
    asked = spec.training.dense_epochs
    epochs = asked if asked is not None else UNTRAINED_HEAD_EPOCHS * prepared.head_is_new
    return total_steps(len(prepared.train), spec.training, epochs)
