"""Rows by column, where they were read, and their batches by length."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from core.errors import InvalidDataError, shown, shown_names

Feature = dict[str, Any]
Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from: what the user calls it, and the JSON pointer of the spec's field that names it."""

    name: str
    param: str
    counts: Literal["line", "row"] = "line"
    """What its numbers count: lines of text, or rows where there are no lines."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By column, the names of the classes that it numbers, where the source says them."""

    def error(self, problem: str, number: int | None = None, param: str | None = None) -> InvalidDataError:
        """What is wrong with it, or with this line or row of it; `param` where another field is to blame."""
        where = self.name if number is None else f"{self.name}, {self.counts} {number}"
        return InvalidDataError(f"{where}: {problem}", param=param or self.param)


class Row(dict[str, Any]):
    """Values by column, and where they were read: errors are found when the rows are no longer in their order."""

    __slots__ = ("number", "source")

    def __init__(self, values: Mapping[str, Any], source: Source, number: int) -> None:
        super().__init__(values)
        self.source = source
        self.number = number

    def error(self, problem: str, param: str | None = None) -> InvalidDataError:
        """What is wrong with this row; says where it is."""
        return self.source.error(problem, self.number, param)

    def lacks(self, column: str, wanted: str) -> InvalidDataError:
        """The column is missing, or does not hold what is wanted."""
        found = f"holds {shown(self[column])}" if column in self else "is missing"
        if is_empty(self.get(column)):
            found = "is empty"
        return self.error(
            f"column {shown(column)} {found}; it must hold {wanted}. The row has {shown_names(self) or 'none'}."
        )


def is_empty(value: object) -> bool:
    """Whether it is text without a word, as CSV has it where something is missing."""
    return isinstance(value, str) and not value.strip()


def text_of(row: Row, column: str) -> str:
    """The text in a column.

    Raises:
        InvalidDataError: no such column, or no text in it.
    """
    value = row.get(column)
    if not isinstance(value, str) or is_empty(value):
        raise row.lacks(column, "text")
    return value


def length_of(feature: Feature) -> int:
    """Tokens of a row; images are of one size."""
    return len(feature.get("input_ids", ()))


class Features(Dataset[Feature]):
    """Tokenised rows, each with its position as `row`, so that what was computed for it once can be found again.

    Args:
        features: What the model reads.
        source_rows: How many rows of the data they are made of, where a task packs several into one.
    """

    def __init__(self, features: list[Feature], source_rows: int | None = None) -> None:
        self.source_rows = len(features) if source_rows is None else source_rows
        self.features = [{**feature, "row": position} for position, feature in enumerate(features)]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, position: int) -> Feature:
        return self.features[position]


def batches_by_length(
    features: Features, batch_size: int, collate: Callable[[list[Feature]], Batch]
) -> DataLoader[Feature]:
    """All rows once, longest first, so that a batch holds little padding and memory peaks at the start."""
    order = sorted(range(len(features)), key=lambda i: -length_of(features[i]))
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return DataLoader(features, batch_sampler=groups, collate_fn=collate)


def pad(features: list[Feature], key: str, value: int) -> Tensor:
    """One integer column of a batch as [rows, longest], filled up with `value` on the right."""
    columns = [torch.tensor(f[key], dtype=torch.long) for f in features]
    return torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=value)
