"""What a job needs before anything is trained: rows, tokenizer and model, tried out together."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.engine.data import Features
from core.engine.export.executorch import check_executorch, check_lowerable
from core.engine.export.gguf import check_gguf
from core.engine.footprint import check_disk
from core.engine.generation import mend_generation_config
from core.engine.inputs import Inputs
from core.engine.inspection import weight_shapes
from core.engine.loading import (
    check_architecture,
    fitting_length,
    load_config,
    load_model,
    load_tokenizer,
    move,
)
from core.engine.splits import split
from core.engine.tasks import TASKS, Task
from core.engine.trial import check_runs, check_vocabulary
from core.families import family_of
from core.jobs.spec import JobSpec
from core.jobs.targets import is_decided_on_validation
from core.progress import Reporter


@dataclass(frozen=True)
class Prepared:
    """What is loaded before anything is trained."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    head_is_new: bool
    train: Features
    validation: Features
    """What decisions are taken on."""
    held_out: Features
    """What is reported on: the test rows, or the validation rows where there are no others."""


def prepare(spec: JobSpec, inputs: Inputs, report: Reporter) -> Prepared:
    """Load rows, tokenizer and model, and try them out together.

    Raises:
        NeuroPruneError: the model, the data or both do not fit the task, or the model not an export.
    """
    if "executorch" in spec.export.formats:
        check_executorch()
    check_architecture(inputs.model, spec.task.name)
    rows = split(spec, inputs, report, needs_test=is_decided_on_validation(spec.target))
    config = load_config(inputs.model)
    if "executorch" in spec.export.formats:
        check_lowerable(family_of(config.model_type))
    tokenizer = load_tokenizer(inputs.model)
    length = fitting_length(spec.training.max_length, config, tokenizer, report)
    trains = bool(spec.training.num_train_epochs)
    check_disk(weight_shapes(inputs.model), spec.export.formats, Path(gettempdir()), trains=trains)
    task = TASKS[spec.task.name](spec.task, spec.training.model_copy(update={"max_length": length}), tokenizer)
    model, head_is_new = load_model(inputs.model, config, task, rows.everything, report)
    mend_generation_config(model, tokenizer, report)
    if "gguf" in spec.export.formats:
        check_gguf(model, tokenizer)
    train_features, validation_features = task.features(rows.train), task.features(rows.validation)
    held_out_features = validation_features if rows.test is None else task.features(rows.reported)
    check_vocabulary(tokenizer, train_features)
    check_runs(task, model, train_features, held_out_features)
    move(model, "cuda" if torch.cuda.is_available() else "cpu")
    return Prepared(task, tokenizer, model, head_is_new, train_features, validation_features, held_out_features)
