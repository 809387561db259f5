"""How good a model is on the held-out rows, beside the dense model on the same rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from core.engine.anatomy import Anatomy
from core.engine.data import Batch, Features, batches_by_length
from core.engine.tasks import Metric, Task
from core.errors import NumericalError


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one model, and what they were computed from."""

    metrics: dict[str, Metric]
    summaries: list[Tensor]


@torch.inference_mode()
def evaluate(
    task: Task,
    model: PreTrainedModel,
    features: Features,
    reference: list[Tensor] | None = None,
    *,
    headline_only: bool = False,
) -> Evaluation:
    """Measure a model in eval mode, fp32, and leave its mode as it was.

    Args:
        reference: The dense model's summaries; None where the model is the dense one.
        headline_only: Whether the other metrics may be left out: to write texts takes longer than all else.

    Raises:
        NumericalError: the model's answers are not finite.
    """
    was_training = model.training
    model.train(False)
    summaries = []
    for batch in _batches(task, model, features):
        outputs = task.outputs(model, batch)
        summary = task.summarise(outputs, batch).cpu()
        # A class is the highest logit's even among NaN.
        if not bool(summary.isfinite().all() & ~outputs.isnan().any().cpu()):
            raise NumericalError(
                f"{task.headline} is not finite: the model answers held-out rows with NaN or infinity."
            )
        summaries.append(summary)
    metrics = task.metrics(summaries, summaries if reference is None else reference)
    if not (headline_only and task.headline in metrics):
        metrics |= task.writing_metrics(model, features)
    model.train(was_training)
    return Evaluation(metrics, summaries)


def _batches(task: Task, model: PreTrainedModel, features: Features) -> Iterator[Batch]:
    for batch in batches_by_length(features, task.training.per_device_eval_batch_size, task.collate):
        yield {name: tensor.to(model.device) for name, tensor in batch.items()}


class Teacher:
    """The dense model's answers to training batches; it never changes.

    Where an answer is a vector a row, all are computed once, so that the teacher costs one forward pass over the data
    and no memory beside them; otherwise it answers batch by batch.
    """

    def __init__(self, task: Task, model: PreTrainedModel, features: Features) -> None:
        self._task = task
        self._model: PreTrainedModel | None = model.train(False)
        self._answers: Tensor | None = None
        if task.outputs_per_row:
            self._answers = self._answer_all(model, features)
            self._model = None

    @torch.no_grad()
    def answer(self, batch: Batch) -> Tensor:
        """The dense model's outputs for this batch."""
        if self._model is not None:
            return self._task.outputs(self._model, batch)
        assert self._answers is not None  # noqa: S101 one of both is there
        return self._answers.to(batch["row"].device)[batch["row"]]

    @torch.no_grad()
    def _answer_all(self, model: PreTrainedModel, features: Features) -> Tensor:
        answered = [(batch["row"], self._task.outputs(model, batch)) for batch in _batches(self._task, model, features)]
        rows, answers = (torch.cat(column) for column in zip(*answered, strict=True))
        return answers[rows.argsort()]


_States = tuple[Tensor, bool]
"""Hidden states [B, L, h] after a layer, and whether they are of a decoder that reads an encoder's."""


class HiddenTeacher:
    """How far a model's hidden states are from the dense model's, after every layer.

    Pruning leaves the hidden size as it is, so states are compared as they are. The student's states are those of its
    last forward pass, which must have been of the same batch.
    """

    def __init__(self, task: Task, teacher: Anatomy, student: Anatomy) -> None:
        self._task = task
        self._model = teacher.model
        self._model.train(False)
        self._teacher_states: list[_States] = []
        self._student_states: list[_States] = []
        self._handles = [
            *_record(teacher, self._teacher_states),
            *_record(student, self._student_states),
        ]

    def distance(self, batch: Batch) -> Tensor:
        """Mean squared difference over real tokens, in units of the teacher's mean square; averaged over layers."""
        # The dense model may have answered this batch before, for its outputs.
        self._teacher_states.clear()
        with torch.no_grad():
            self._task.outputs(self._model, batch)
        distances = []
        for (ours, is_target), (dense, _) in zip(self._student_states, self._teacher_states, strict=True):
            real = self._task.real_tokens(batch, is_target=is_target)
            ours, dense = (states if real is None else states[real] for states in (ours, dense))
            target = dense.float()
            distances.append((ours.float() - target).square().mean() / target.square().mean())
        self._student_states.clear()
        return torch.stack(distances).mean()

    def close(self) -> None:
        """Stop recording."""
        for handle in self._handles:
            handle.remove()


def _record(anatomy: Anatomy, states: list[_States]) -> list[RemovableHandle]:
    """Let every layer add its hidden states to `states` whenever it is called; a shared one is several times a pass."""

    def keep(is_target: bool, _: nn.Module, __: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output, is_target))

    return [layer.module.register_forward_hook(partial(keep, layer.reads_target)) for layer in anatomy.layers]
