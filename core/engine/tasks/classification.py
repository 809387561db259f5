"""One of several labels for a row: what texts and images have in common."""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from core.engine.data import Batch, Features, Row, is_empty
from core.engine.tasks.base import Metric, Task, model_inputs, same_answer, soft_cross_entropy
from core.errors import shown
from core.wording import some_of

Label = int | str
DISTILLATION_TEMPERATURE = 2.0

MOST_STRAYS = 0.01
"""Share of the rows up to which labels that are no integers, where all others are, are taken for mistakes."""

INTEGER = re.compile("0|-?[1-9][0-9]{0,17}")
"""As integers are written; `01` is a code."""


class ClassificationTask(Task):
    """Logits [B, C]."""

    outputs_per_row = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._classes: dict[Label, int] = {}
        self._are_integers = False
        """Whether the training rows' labels are, so that text which reads as one is one."""
        self._data_names: tuple[str, ...] = ()

    def model_options(self, config: PreTrainedConfig, rows: list[Row]) -> dict[str, Any]:
        """The classes: named by the spec or the data, else the model's own where the labels are its names or ids, else
        the sorted labels of the rows.

        A head that was trained for as many classes as are named stays if its names are the same in any order, or none:
        those are written into the config then.
        """
        labels = self._labels(rows)
        self._data_names = rows[0].source.class_names.get(self.spec.label_column, ())
        if named := self.spec.label_names or self._data_names:
            return self._name_classes(config, named, labels)
        own = {int(i): str(name) for i, name in (config.id2label or {}).items()}
        self._classes = self._known({name: i for i, name in own.items()}, {i: i for i in own}, labels)
        if labels <= set(self._classes):
            return {}
        self._classes = {label: i for i, label in enumerate(sorted(labels))}
        return _head_for([str(label) for label in self._classes])

    def _labels(self, rows: list[Row]) -> set[Label]:
        """The different labels.

        Raises:
            InvalidDataError: they are not of one type, or only one.
        """
        column, param = shown(self.spec.label_column), "/task/label_column"
        # Decided by all of them: CSV and a config's class names know no integers.
        texts = [(label, row) for row in rows if isinstance(label := self._written(row), str)]
        others = [row for label, row in texts if not INTEGER.fullmatch(label)]
        self._are_integers = not others
        if others and not self.spec.label_names and len(others) <= MOST_STRAYS * len(rows):
            problem = f"column {column} holds {shown(self._written(others[0]))}, and integers in nearly all other rows"
            raise others[0].error(f"{problem}; if it is the name of a class, give all of them in label_names.", param)
        first, labels = self._label(rows[0]), set[Label]()
        for row in rows:
            label = self._label(row)
            if type(label) is not type(first):
                problem = f"column {column} holds {shown(label)}, but {shown(first)} before"
                raise row.error(f"{problem}; labels must be all integers or all strings.", param)
            labels.add(label)
        if len(labels) < 2:
            problem = f"column {column} must hold at least two classes; it holds {shown(first)} in every row."
            raise rows[0].source.error(problem, param=param)
        return labels

    def _name_classes(self, config: PreTrainedConfig, names: tuple[str, ...], labels: set[Label]) -> dict[str, Any]:
        """Changes to the config for classes of these names."""
        own = {str(name).casefold(): int(i) for i, name in (config.id2label or {}).items()}
        named = [own[name.casefold()] for name in names if name.casefold() in own]
        classes, changes = list(range(len(names))), _head_for(names)
        if sorted(named) == list(range(len(own))) and len(named) == len(names):
            classes, changes = named, {}
        elif set(own) == {f"label_{i}" for i in classes}:
            config.update({"id2label": changes["id2label"], "label2id": changes["label2id"]})
            changes = {}
        by_name, by_place = dict(zip(names, classes, strict=True)), dict(enumerate(classes))
        # Data that names its classes means places by its integers.
        self._classes = self._known(by_name, by_place, labels if self.spec.label_names else None)
        return changes

    def _known(self, by_name: dict[str, int], by_place: dict[int, int], labels: set[Label] | None) -> dict[Label, int]:
        """What labels stand for: integers are names if all labels are, and else places; None are never names."""
        named = {self._read(name): number for name, number in by_name.items()}
        if labels is not None and labels <= set(named) and any(isinstance(name, int) for name in named):
            return named
        return {name: number for name, number in named.items() if isinstance(name, str)} | by_place

    @staticmethod
    def outputs(model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(**model_inputs(batch)).logits
        return logits.float()

    def loss(self, outputs: Tensor, batch: Batch, teacher: Tensor | None) -> Tensor:
        hard = F.cross_entropy(outputs, batch["labels"])
        share = self.training.distillation
        if teacher is None or share is None:
            return hard
        return (1 - share) * hard + share * soft_cross_entropy(outputs, teacher, DISTILLATION_TEMPERATURE)

    def summarise(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The class that each row was given, and its label, [B, 2]."""
        return torch.stack([outputs.argmax(-1), batch["labels"]], dim=1)

    def metrics(self, summaries: list[Tensor], reference: list[Tensor]) -> dict[str, Metric]:
        return classification_metrics(torch.cat(summaries))

    def doubts(self, train: Features, summaries: list[Tensor]) -> list[str]:
        """One class for all rows, though their labels differ; classes that are in no training row."""
        given, labels = (set(column) for column in torch.cat(summaries).T.tolist())
        found = []
        if len(given) == 1 < len(labels):
            found.append(same_answer(f"the class {self._name_of(*given)}"))
        if unknown := labels - {feature["labels"] for feature in train.features}:
            names = some_of([self._name_of(number) for number in sorted(unknown)])
            found.append(f"The held-out rows have classes that no training row has: {names}.")
        return found

    def _name_of(self, number: int) -> str:
        """What the labels call a class, rather than its number."""
        labels = [label for label, known in self._classes.items() if known == number]
        return shown(max(labels, key=lambda label: isinstance(label, str)))

    def _label(self, row: Row) -> Label:
        return self._read(self._written(row))

    def _written(self, row: Row) -> Label:
        label = row.get(self.spec.label_column)
        if isinstance(label, bool) or not isinstance(label, int | str) or is_empty(label):
            raise row.lacks(self.spec.label_column, "an integer or a string")
        return label

    def _read(self, label: Label) -> Label:
        """Text as an integer, where it is one and labels are."""
        return int(label) if isinstance(label, str) and self._are_integers and INTEGER.fullmatch(label) else label

    def class_of(self, row: Row) -> int:
        """The label's number. Raises `InvalidDataError` where training knows no such label."""
        label = self._as_in_training(self._label(row), row)
        if label not in self._classes:
            known = _listed(list(self._classes)[:20])
            raise row.error(f"the label is {shown(label)}, which is none of the classes; known are {known}.")
        return self._classes[label]

    def _as_in_training(self, label: Label, row: Row) -> Label:
        """The label as the training rows have it: another file may number the same names in another order."""
        names = row.source.class_names.get(self.spec.label_column, ())
        if self.spec.label_names or names == self._data_names or not isinstance(label, int):
            return label
        if not 0 <= label < len(names):
            return label
        name = names[label]
        if name in self._data_names:
            return self._data_names.index(name)
        if self._data_names:
            return name
        read = self._read(name)
        return read if read in self._classes else label


def classification_metrics(answers: Tensor) -> dict[str, Metric]:
    """Accuracy, F1 averaged over the classes, and Matthews' correlation, which is NaN where all labels are the same.

    Args:
        answers: The class that each row was given, and its label, [rows, 2].
    """
    # Here and not above: the import takes seconds, and a process that verifies a bundle needs no metrics.
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    given, labels = answers.numpy().T
    is_defined = len(set(labels.tolist())) > 1
    matthews = float(matthews_corrcoef(labels, given)) if is_defined else math.nan
    return {
        "accuracy": Metric(float(accuracy_score(labels, given)), "share of rows, 0 … 1", True),
        "macro_f1": Metric(float(f1_score(labels, given, average="macro", zero_division=0)), "F1, 0 … 1", True),
        "matthews": Metric(matthews, "correlation, -1 … 1", True),
    }


def _head_for(names: Sequence[str]) -> dict[str, Any]:
    """The part of a config that describes a head for these classes."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }


def _listed(labels: list[Label]) -> str:
    return ", ".join(map(shown, labels))
