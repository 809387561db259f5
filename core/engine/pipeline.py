"""One pruning job, from a spec to a verified bundle.

loading → baseline → pruning → compacting → evaluating → exporting → verifying
"""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import set_seed

from core.checkpoints import Checkpoints
from core.engine.anatomy import Anatomy, bind
from core.engine.delivery import Delivery, Dense
from core.engine.evaluate import evaluate
from core.engine.inputs import Inputs
from core.engine.methods import Pruner, Schedule, build_pruner
from core.engine.preparation import Prepared, prepare
from core.engine.pruning import prune
from core.engine.report.document import summary_of
from core.engine.tracker import Tracker
from core.engine.training import total_steps, train
from core.jobs.spec import JobSpec
from core.progress import Reporter

UNTRAINED_HEAD_EPOCHS = 1.0
"""Plain fine-tuning before pruning where the task head is new and the user said nothing."""


def run(
    spec: JobSpec, inputs: Inputs, output: Path, report: Reporter, checkpoints: Checkpoints | None = None
) -> dict[str, Any]:
    """Do the job and write its bundle into `output`, flat.

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
    tracker = Tracker(report)
    with tracker.phase("loading"):
        prepared = prepare(spec, inputs, report)
        anatomy = bind(prepared.model)
        dense_steps, pruning_steps = _steps(spec, prepared)
        pruner = _pruner(spec, anatomy, pruning_steps)
    tracker.expect(dense_steps, pruning_steps)
    with TemporaryDirectory() as dense_folder:
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
            baseline = evaluate(prepared.task, prepared.model, prepared.held_out)
            dense = Dense(bind(copy.deepcopy(prepared.model)), baseline, Path(dense_folder))
        with tracker.phase("pruning"):
            prune(
                prepared.task,
                pruner,
                dense.anatomy.model,
                prepared.train,
                pruning_steps,
                tracker.training_step,
                stage="pruning",
                checkpoints=checkpoints,
            )
        document = Delivery(spec, inputs, prepared, dense, tracker, report).deliver(pruner, output)
    return summary_of(document)


def _steps(spec: JobSpec, prepared: Prepared) -> tuple[int, int]:
    """Optimiser steps of dense training and of pruning."""
    training, rows = spec.training, len(prepared.train)
    assert training.num_train_epochs is not None  # noqa: S101 resolved specs have it
    asked = training.dense_epochs
    dense_epochs = asked if asked is not None else UNTRAINED_HEAD_EPOCHS * prepared.head_is_new
    dense_steps = total_steps(rows, training, dense_epochs) if dense_epochs else 0
    epochs = training.num_train_epochs
    return dense_steps, total_steps(rows, training, epochs) if epochs else 0


def _pruner(spec: JobSpec, anatomy: Anatomy, steps: int) -> Pruner:
    """The method bound to the model; refused here, before anything is trained, where the target is out of reach."""
    training = spec.training
    schedule = Schedule(max(1, steps), training.warmup_fraction, training.recovery_fraction)
    sparsity = spec.target.sparsity if spec.target is not None else None
    uniform = spec.structure == "uniform"
    return build_pruner(anatomy, spec.method, sparsity, schedule, training.seed, uniform=uniform)
