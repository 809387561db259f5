"""The protocol of a task.

Shapes: B rows in a batch, L tokens in the longest of them, V vocabulary, C classes, E embedding.
"""

import math
from abc import ABC, abstractmethod
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from core.engine.data import Batch, Feature, Features, Row, pad, text_of
from core.jobs import spec

Processor = PreTrainedTokenizerBase | BaseImageProcessor
"""What makes a model's inputs."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured quality of a model."""

    value: float
    unit: str
    higher_is_better: bool


class Task(ABC):
    """What a model is for. One instance serves one job; it holds no model."""

    name: ClassVar[str]
    auto_class: ClassVar[Any]
    """The transformers Auto class that builds a model for this task."""
    outputs_per_row: ClassVar[bool]
    """Whether the outputs are small enough to be kept for all rows (a vector a row, not one a token)."""
    reads_images: ClassVar[bool] = False
    """Whether rows hold images, not texts."""
    pads: ClassVar[bool] = True
    """Whether rows of a batch may differ in length, so that a token has to stand for padding."""
    dropout: ClassVar[bool] = True
    """Whether to train with the model's dropout; exact targets without label noise are better fitted without."""

    def __init__(self, task: Any, training: spec.Training, processor: Processor) -> None:
        self.spec = task
        self.training = training
        self.processor = processor
        """As it is delivered."""
        self.tokenizer = cast(PreTrainedTokenizerBase, deepcopy(processor))
        """What makes a model's inputs, of tasks that read texts; each call's truncation becomes its own setting."""

    @property
    def headline(self) -> str:
        """The metric that budgets are set in, and that is shown where there is room for one."""
        metric: str = self.spec.metric
        return metric

    @staticmethod  # noqa: B027 most tasks ask nothing more than the config says
    def check_folder(folder: Path) -> None:
        """Refuse a model whose files say that it is for another use. Raises `InvalidModelError`."""

    def model_options(self, config: PreTrainedConfig, rows: list[Row]) -> dict[str, Any]:
        """Changes to the model's config that follow from the data; if there are any, its task head starts anew.

        Args:
            config: The model's own.
            rows: All rows that training and hold-out are drawn from.
        """
        return {}

    def start_head(self, model: PreTrainedModel, rows: list[Row]) -> None:  # noqa: B027 most heads start well as they are
        """Fit an untrained task head to the rows that `model_options` saw, in place."""

    def encode(
        self, rows: list[Row], text_column: str, text_pair_column: str | None = None, prefix: str = ""
    ) -> list[Feature]:
        """Tokenise a text of each row after a prefix, or a pair of them together, cut to `max_length`.

        Raises:
            InvalidDataError: a row lacks a text.
        """
        first = [prefix + text_of(row, text_column) for row in rows]
        second = [text_of(row, text_pair_column) for row in rows] if text_pair_column else None
        encoded = self.tokenizer(first, second, truncation=True, max_length=self.training.max_length, padding=False)
        return [{key: encoded[key][i] for key in encoded} for i in range(len(rows))]

    @abstractmethod
    def features(self, rows: list[Row]) -> Features:
        """Tokenise rows. Raises `InvalidDataError` where a row lacks what the task needs."""

    def collate(self, features: list[Feature]) -> Batch:
        """Rows as tensors: `input_ids` and `attention_mask` [B, L], `row` [B], `labels` where there are any."""
        batch = {
            "input_ids": pad(features, "input_ids", self.tokenizer.pad_token_id or 0),
            "attention_mask": pad(features, "attention_mask", 0),
            "row": torch.tensor([f["row"] for f in features]),
        }
        if "token_type_ids" in features[0]:
            batch["token_type_ids"] = pad(features, "token_type_ids", 0)
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([f["labels"] for f in features])
        return batch

    @staticmethod
    def inputs(model: PreTrainedModel, batch: Batch) -> Batch:
        """What the model reads of a batch."""
        return model_inputs(batch)

    @staticmethod
    def real_tokens(batch: Batch, *, is_target: bool) -> Tensor | None:
        """Which tokens are no padding, [B, L]; None if all are.

        Args:
            is_target: Whether it is about what a decoder reads, of a model that has an encoder besides.
        """
        return batch["attention_mask"].bool()

    @staticmethod
    @abstractmethod
    def outputs(model: PreTrainedModel, batch: Batch) -> Tensor:
        """What the model is used for: the tensor that is distilled, compared and exported, in fp32."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch, teacher: Tensor | None) -> Tensor:
        """Scalar training loss; `teacher` is what the dense model answers to the same batch."""

    @abstractmethod
    def summarise(self, outputs: Tensor, batch: Batch) -> Tensor:
        """What `metrics` needs of one evaluated batch, small enough to keep for all of them."""

    @abstractmethod
    def metrics(self, summaries: list[Tensor], reference: list[Tensor]) -> dict[str, Metric]:
        """Quality of a model on the held-out rows; NaN where they do not define it.

        Args:
            summaries: The model's, of every batch.
            reference: The dense model's, of the same batches.
        """

    def doubts(self, train: Features, summaries: list[Tensor]) -> list[str]:
        """Why the dense model's metrics may say little, a sentence or two each.

        Args:
            train: The training rows.
            summaries: The dense model's, of every held-out batch.
        """
        return []

    def writing_metrics(self, model: PreTrainedModel, features: Features) -> dict[str, Metric]:
        """Quality of what a model writes by itself, for tasks in which it does."""
        return {}


NO_LABEL = -100
"""At positions that are not to be predicted; PyTorch's losses skip it."""

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "pixel_values")


def model_inputs(batch: Batch) -> Batch:
    """The part of a batch that a model reads."""
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


def soft_cross_entropy(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distillation loss (Hinton et al. 2015): KL divergence at a temperature, times its square.

    Both [..., classes]; the mean over all but the last dimension.
    """
    student = torch.log_softmax(outputs / temperature, dim=-1)
    target = torch.softmax(teacher / temperature, dim=-1)
    divergence = torch.xlogy(target, target) - target * student
    return divergence.sum(-1).mean() * temperature**2


def same_answer(answer: str) -> str:
    """What is to be said where a model gives one answer to everything."""
    return (
        f"The dense model answers every held-out row with {answer}: what pruning costs cannot be seen. Train it longer "
        "(training.dense_epochs), or check label_column."
    )


def token_metrics(nats: float, tokens: float) -> dict[str, Metric]:
    """How well a model predicts so many tokens, from their total cross entropy; NaN where there are none."""
    each = share_of(nats, tokens)
    return {
        "nats_per_token": Metric(each, "nats", False),
        "perplexity": Metric(math.exp(min(each, 700.0)), "1", False),
    }


def text_metrics(nats: float, tokens: float, characters: float) -> dict[str, Metric]:
    """The same of tokens that stand for so many characters."""
    return token_metrics(nats, tokens) | {"nats_per_character": Metric(share_of(nats, characters), "nats", False)}


def share_of(total: float, count: float) -> float:
    """The mean of so many; NaN of none, which a part of the held-out rows may hold."""
    return total / count if count else math.nan
