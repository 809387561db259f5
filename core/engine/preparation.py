"""What a job needs before anything is trained: rows, tokenizer and model, tried out together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.engine.data import Features, Row, Source, hold_out, python_docs, read_rows, sample
from core.engine.export.executorch import check_executorch
from core.engine.export.gguf import check_gguf
from core.engine.generation import mend_generation_config
from core.engine.loading import (
    check_architecture,
    fitting_length,
    load_config,
    load_model,
    load_tokenizer,
    move,
)
from core.engine.tasks import TASKS, Task
from core.engine.trial import check_runs, check_vocabulary
from core.jobs.spec import BuiltinData, JobSpec
from core.progress import Reporter


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where the job's inputs lie on this machine; `train` is None for builtin data."""

    model: Path
    train: Path | None = None
    validation: Path | None = None
    names: Mapping[Path, str] = field(default_factory=dict)
    """What the user calls those that lie here under another name."""

    def source(self, path: Path, param: str) -> Source:
        """Where the rows of a file come from, in the user's terms."""
        return Source(self.names.get(path, path.name), param)


@dataclass(frozen=True)
class Prepared:
    """What is loaded before anything is trained."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    head_is_new: bool
    train: Features
    held_out: Features


def prepare(spec: JobSpec, inputs: Inputs, report: Reporter) -> Prepared:
    """Load rows, tokenizer and model, and try them out together.

    Raises:
        NeuroPruneError: the model, the data or both do not fit the task, or the model not an export.
    """
    if "executorch" in spec.export.formats:
        check_executorch()
    check_architecture(inputs.model, spec.task.name)
    all_rows, train_rows, held_out_rows = _rows(spec, inputs)
    config = load_config(inputs.model)
    tokenizer = load_tokenizer(inputs.model)
    length = fitting_length(spec.training.max_length, config, tokenizer, report)
    task = TASKS[spec.task.name](spec.task, spec.training.model_copy(update={"max_length": length}), tokenizer)
    model, head_is_new = load_model(inputs.model, config, task, all_rows, report)
    mend_generation_config(model, tokenizer, report)
    if "gguf" in spec.export.formats:
        check_gguf(model, tokenizer)
    train_features, held_out_features = task.features(train_rows), task.features(held_out_rows)
    check_vocabulary(tokenizer, train_features)
    check_runs(task, model, train_features, held_out_features)
    move(model, "cuda" if torch.cuda.is_available() else "cpu")
    return Prepared(task, tokenizer, model, head_is_new, train_features, held_out_features)


def _rows(spec: JobSpec, inputs: Inputs) -> tuple[list[Row], list[Row], list[Row]]:
    """All rows that training is drawn from, those that are drawn, and the held-out ones."""
    data, seed = spec.task.data, spec.training.seed
    if isinstance(data, BuiltinData):
        everything, held_out = python_docs()
        train = everything
    else:
        assert inputs.train is not None  # noqa: S101 only builtin data has no file
        train = everything = read_rows(inputs.train, inputs.source(inputs.train, "/task/data/train"))
        if inputs.validation is not None:
            held_out = read_rows(inputs.validation, inputs.source(inputs.validation, "/task/data/validation"))
        else:
            train, held_out = hold_out(train, data.validation_fraction, seed)
    return everything, sample(train, data.max_train_rows, seed), held_out[: data.max_validation_rows]
