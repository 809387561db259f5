"""One number for a text or a pair of texts."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from core.engine.data import Batch, Features, Row
from core.engine.tasks.base import Metric, Task, model_inputs, same_answer
from core.errors import shown

EQUAL_ANSWERS = 1e-5
"""Answers that differ by less than this share of the largest differ by rounding."""

RIDGE = 0.1
"""Of that regression, as a share of the mean squared length of what is read."""

ROWS_CENTRED_ON = 64
"""At most, where a head without a bias is started."""


class RegressionTask(Task):
    """One logit a row, [B], in the labels' own units: what transformers loads as `problem_type="regression"`."""

    name = "regression"
    auto_class = AutoModelForSequenceClassification
    outputs_per_row = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._mean, self._deviation = 0.0, 1.0

    def model_options(self, config: PreTrainedConfig, rows: list[Row]) -> dict[str, Any]:
        """A head with one output, unless the model has one; mean and standard deviation of the rows' labels.

        Raises:
            InvalidDataError: a label is no number, or all are equal.
        """
        labels = np.array([self._label(row) for row in rows])
        if np.ptp(labels) == 0:
            raise rows[0].source.error(
                f"column {shown(self.spec.label_column)} must hold at least two different numbers; it holds "
                f"{labels[0]:g} in every row.",
                param="/task/label_column",
            )
        self._mean, self._deviation = float(labels.mean()), float(labels.std())
        if config.num_labels == 1 and config.problem_type in (None, self.name):
            return {}
        return {"num_labels": 1, "problem_type": self.name}

    def start_head(self, model: PreTrainedModel, rows: list[Row]) -> None:
        """Let the answers start around the labels' mean: what is far is far in steps, too.

        They spread as the labels do; where the last layer has no bias, as much as what it reads makes them.
        """
        body = set(model.base_model.modules())
        for module in model.modules():
            # Not the layers that some heads have before the last.
            if module not in body and isinstance(module, nn.Linear) and module.out_features == 1:
                module.weight.data.mul_(self._deviation)
                if module.bias is not None:
                    module.bias.data.fill_(self._mean)
                else:
                    self._centre(model, module.weight, rows)

    def _centre(self, model: PreTrainedModel, weight: nn.Parameter, rows: list[Row]) -> None:
        """Move the answers' mean to the labels' in a direction in which answers differ little: the layer has no bias.

        Ridge regression of a constant on what the layer reads.
        """
        was_training = model.training
        model.train(False)
        sample = self.features(rows[:: math.ceil(len(rows) / ROWS_CENTRED_ON)])
        answers, reads = [], []
        for row in sample.features:
            answer = self.outputs(model, self.collate([row]))[0]
            answers.append(answer.item())
            # An answer is linear in the weights: its slope is what they read.
            reads.append(torch.autograd.grad(answer, weight)[0].flatten())
        model.train(was_training)
        read = torch.stack(reads).double()
        products = read @ read.T
        damped = products + RIDGE * products.diagonal().mean() * torch.eye(len(products))
        shares = torch.linalg.solve(damped, torch.ones(len(products), dtype=torch.double))
        missing = self._mean - sum(answers) / len(answers)
        change = read.T @ shares * missing / (products @ shares).mean()
        weight.data.add_(change.view_as(weight).to(weight.dtype))

    def features(self, rows: list[Row]) -> Features:
        encoded = self.encode(rows, self.spec.text_column, self.spec.text_pair_column)
        return Features([{**feature, "labels": self._label(row)} for feature, row in zip(encoded, rows, strict=True)])

    @staticmethod
    def outputs(model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(**model_inputs(batch)).logits
        return logits.float()[:, 0]

    def loss(self, outputs: Tensor, batch: Batch, teacher: Tensor | None) -> Tensor:
        """Mean squared error in units of the labels' variance: 1 is what the mean as the only answer costs."""
        hard = F.mse_loss(outputs, batch["labels"]) / self._deviation**2
        share = self.training.distillation
        if teacher is None or share is None:
            return hard
        return (1 - share) * hard + share * F.mse_loss(outputs, teacher) / self._deviation**2

    def summarise(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Answer and label of each row, [B, 2]."""
        return torch.stack([outputs, batch["labels"]], dim=1)

    def metrics(self, summaries: list[Tensor], reference: list[Tensor]) -> dict[str, Metric]:
        """Correlation of answers and labels; NaN where all answers, or all labels, are the same."""
        from scipy.stats import pearsonr, spearmanr  # slow to import, as all metrics are

        answers, labels = torch.cat(summaries).double().numpy().T
        is_defined = _differ(answers) and _differ(labels)
        pearson = float(pearsonr(answers, labels).statistic) if is_defined else math.nan
        spearman = float(spearmanr(answers, labels).statistic) if is_defined else math.nan
        return {
            "pearson": Metric(pearson, "correlation, -1 … 1", True),
            "spearman": Metric(spearman, "rank correlation, -1 … 1", True),
        }

    def doubts(self, train: Features, summaries: list[Tensor]) -> list[str]:
        """One number for all rows, though their labels differ."""
        answers, labels = torch.cat(summaries).double().numpy().T
        return [same_answer(f"{answers[0]:g}")] if _differ(labels) and not _differ(answers) else []

    def _label(self, row: Row) -> float:
        """A number that fp32 can hold; CSV has them as text."""
        value = row.get(self.spec.label_column)
        try:
            label = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            label = math.nan
        if not abs(label) <= torch.finfo(torch.float32).max:
            raise row.lacks(self.spec.label_column, "a finite number")
        return label


def _differ(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) > EQUAL_ANSWERS * np.abs(values).max())
