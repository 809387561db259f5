"""One training run under a pruner: calibrate, train while it removes, recover, finish."""

from contextlib import ExitStack, closing
from functools import partial

import torch
from transformers import PreTrainedModel

from core.checkpoints import Checkpoints
from core.engine.anatomy import bind
from core.engine.data import Features
from core.engine.evaluate import HiddenTeacher, Teacher
from core.engine.methods import Pruner
from core.engine.tasks import Task
from core.engine.training import StepListener, train


def prune(
    task: Task,
    pruner: Pruner,
    dense: PreTrainedModel,
    features: Features,
    steps: int,
    listen: StepListener,
    *,
    recovery_steps: int = 0,
    stage: str = "pruning",
    checkpoints: Checkpoints | None = None,
    teacher: Teacher | None = None,
) -> None:
    """Calibrate, train while the pruner removes, recover, and finish.

    Recovery is a training of its own, whose learning rate rises anew (rewinding, Renda et al. 2020,
    https://arxiv.org/abs/2003.02389).

    Args:
        task: What the model is for.
        pruner: Bound to the model that is pruned, in place.
        dense: What that model learns from.
        features: The training rows.
        steps: Optimiser steps; 0 for methods that need none.
        recovery_steps: Further ones, in which nothing more goes.
        listen: Hears of every step.
        stage: Names the training within the job.
        checkpoints: Where it goes on from and leaves its state; None to do neither.
        teacher: The dense model's answers to the training rows, if they are known already.
    """
    model, training = pruner.anatomy.model, task.training
    pruner.calibrate(partial(_run_calibration, task, model, features))
    if steps or recovery_steps:
        learns_from_teacher = training.distillation is None or training.distillation > 0
        if learns_from_teacher and teacher is None:
            teacher = Teacher(task, dense, features)
        with ExitStack() as stack:
            hidden_teacher = None
            if training.hidden_distillation:
                hidden_teacher = stack.enter_context(closing(HiddenTeacher(task, bind(dense), pruner.anatomy)))
            for name, count, before in ((stage, steps, 0), (f"{stage}-recovery", recovery_steps, steps)):
                if count:
                    train(
                        task,
                        model,
                        features,
                        steps=count,
                        steps_before=before,
                        stage=name,
                        checkpoints=checkpoints,
                        teacher=teacher,
                        hidden_teacher=hidden_teacher,
                        pruner=pruner,
                        listen=listen,
                    )
    pruner.finish()


@torch.no_grad()
def _run_calibration(task: Task, model: PreTrainedModel, features: Features, rows: int) -> None:
    """Pass so many rows, drawn with the seed, through the model in eval mode."""
    was_training = model.training
    model.train(False)
    drawn = torch.randperm(len(features), generator=torch.Generator().manual_seed(task.training.seed))[:rows]
    for chunk in torch.split(drawn, task.training.per_device_eval_batch_size):
        batch = task.collate([features[i] for i in chunk.tolist()])
        task.outputs(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
    model.train(was_training)
