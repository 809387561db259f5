"""What a job needs before anything is trained: rows, tokenizer and model, tried out together."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from core.engine.data import Features, length_of
from core.engine.export.executorch import check_executorch, check_lowerable
from core.engine.export.gguf import check_gguf
from core.engine.footprint import activation_bytes, check_disk, check_memory, tokens_of_images
from core.engine.generation import mend_generation_config
from core.engine.inputs import Inputs
from core.engine.inspection import weight_shapes
from core.engine.loading import (
    check_architecture,
    fitting_length,
    load_config,
    load_image_processor,
    load_model,
    load_tokenizer,
    move,
)
from core.engine.precision import saved_dtype
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
    model: PreTrainedModel
    """In fp32."""
    dtype: torch.dtype
    """What its weights came in, and are delivered in."""
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
    TASKS[spec.task.name].check_folder(inputs.model)
    rows = split(spec, inputs, report, needs_test=is_decided_on_validation(spec.target))
    config = load_config(inputs.model)
    if "executorch" in spec.export.formats:
        check_lowerable(family_of(config.model_type))
    task = _task(spec, inputs, config, report)
    shapes, dtype = weight_shapes(inputs.model), saved_dtype(inputs.model, family_of(config.model_type))
    check_disk(shapes, dtype, spec.export.formats, Path(gettempdir()), trains=spec.training.trains)
    model, head_is_new = load_model(inputs.model, config, task, rows.everything, report)
    if model.can_generate():
        mend_generation_config(model, task.tokenizer, report)
    if "gguf" in spec.export.formats:
        check_gguf(model, task.tokenizer)
    train_features, validation_features = task.features(rows.train), task.features(rows.validation)
    held_out_features = validation_features if rows.test is None else task.features(rows.reported)
    if not task.reads_images:
        check_vocabulary(task.tokenizer, train_features)
    if spec.training.trains:
        activations = _largest_activations(task, config, train_features)
        check_memory(shapes, trains=True, activations=activations, is_loaded=True)
    check_runs(task, model, train_features, held_out_features)
    move(model, "cuda" if torch.cuda.is_available() else "cpu")
    return Prepared(task, model, dtype, head_is_new, train_features, validation_features, held_out_features)


def _task(spec: JobSpec, inputs: Inputs, config: PreTrainedConfig, report: Reporter) -> Task:
    """The task with what makes the model's inputs; `max_length` is as much as the model takes."""
    kind, training = TASKS[spec.task.name], spec.training
    if kind.reads_images:
        return kind(spec.task, training, load_image_processor(inputs.model))
    tokenizer = load_tokenizer(inputs.model, pads=kind.pads)
    length = fitting_length(training.max_length, config, tokenizer, report)
    return kind(spec.task, training.model_copy(update={"max_length": length}), tokenizer)


def _largest_activations(task: Task, config: PreTrainedConfig, train: Features) -> int:
    """Bytes of them in a batch of the longest rows: batches are padded no further, and there may be few rows."""
    rows = min(task.training.per_device_train_batch_size, len(train))
    longest = tokens_of_images(config) if task.reads_images else max(map(length_of, train.features))
    return activation_bytes(config, rows, longest)
