"""Rows of text: read from files or taken from Python's own documentation, split, and batched by length."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from core.errors import InvalidDataError, InvalidInputError, shown
from core.uploads import suffix_of

Feature = dict[str, Any]
Batch = dict[str, Tensor]

COLUMNS_SHOWN = 10
"""Names of columns that a message lists."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from: what the user calls it, and the JSON pointer of the spec's field that names it."""

    name: str
    param: str

    def error(self, problem: str, line: int | None = None) -> InvalidDataError:
        """What is wrong with it, or with this line of it."""
        where = self.name if line is None else f"{self.name}, line {line}"
        return InvalidDataError(f"{where}: {problem}", param=self.param)


class Row(dict[str, Any]):
    """Values by column, and where they were read: errors are found when the rows are no longer in their order."""

    __slots__ = ("line", "source")

    def __init__(self, values: Mapping[str, Any], source: Source, line: int) -> None:
        super().__init__(values)
        self.source = source
        self.line = line

    def error(self, problem: str) -> InvalidDataError:
        """What is wrong with this row; says where it is."""
        return self.source.error(problem, self.line)

    def lacks(self, column: str, wanted: str) -> InvalidDataError:
        """The column is missing, or does not hold what is wanted."""
        found = f"holds {shown(self[column])}" if column in self else "is missing"
        columns = ", ".join(map(shown, islice(self, COLUMNS_SHOWN)))
        return self.error(f"column {shown(column)} {found}; it must hold {wanted}. The row has {columns or 'none'}.")


def read_rows(path: Path, source: Source) -> list[Row]:
    """All rows of a .jsonl or .csv file, optionally .gz, as the path's suffix says.

    Raises:
        InvalidInputError: no such suffix.
        InvalidDataError: unreadable, or a line is not a row; the message names file and line.
    """
    try:
        suffix = suffix_of(path.name, "dataset")
    except InvalidInputError as error:
        error.param = source.param
        raise
    parse = _parse_csv if suffix.startswith(".csv") else _parse_jsonl
    try:
        with gzip.open(path) if suffix.endswith(".gz") else path.open("rb") as stream:
            rows = list(parse(_lines(cast(BinaryIO, stream), source), source))
    except (OSError, EOFError, zlib.error) as error:
        raise source.error(f"cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if not rows:
        raise source.error("holds no rows.")
    return rows


def _lines(stream: BinaryIO, source: Source) -> Iterator[str]:
    """UTF-8, with or without a byte order mark; line ends as they are, as csv wants them."""
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise source.error("cannot be read as UTF-8 text.", number) from error


def _parse_jsonl(lines: Iterator[str], source: Source) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise source.error(f"not JSON ({error.msg}).", number) from error
        except (ValueError, RecursionError) as error:
            raise source.error("a number has too many digits, or the nesting is too deep.", number) from error
        if not isinstance(values, dict):
            raise source.error("a row must be a JSON object.", number)
        yield Row({_encodable(column): _encodable(value) for column, value in values.items()}, source, number)


def _encodable(value: Any) -> Any:
    """Text without lone surrogates, which JSON can spell and nothing can encode; anything else as it is."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _parse_csv(lines: Iterator[str], source: Source) -> Iterator[Row]:
    reader = csv.DictReader(lines, strict=True)
    try:
        for values in reader:
            if None in values or None in values.values():
                columns = len(reader.fieldnames or [])
                raise source.error(f"the header has {columns} columns, this line another number.", reader.line_num)
            yield Row(values, source, reader.line_num)
    except csv.Error as error:
        raise source.error(f"{error}.", reader.line_num) from error


def text_of(row: Row, column: str) -> str:
    """The text in a column.

    Raises:
        InvalidDataError: no such column, or no text in it.
    """
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise row.lacks(column, "text")
    return value


class Features(Dataset[Feature]):
    """Tokenised rows, each with its position as `row`, so that what was computed for it once can be found again."""

    def __init__(self, features: list[Feature]) -> None:
        self.features = [{**feature, "row": position} for position, feature in enumerate(features)]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, position: int) -> Feature:
        return self.features[position]


def batches_by_length(
    features: Features, batch_size: int, collate: Callable[[list[Feature]], Batch]
) -> DataLoader[Feature]:
    """All rows once, longest first, so that a batch holds little padding and memory peaks at the start."""
    order = sorted(range(len(features)), key=lambda i: -len(features[i]["input_ids"]))
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return DataLoader(features, batch_sampler=groups, collate_fn=collate)


def pad(features: list[Feature], key: str, value: int) -> Tensor:
    """One integer column of a batch as [rows, longest], filled up with `value` on the right."""
    columns = [torch.tensor(f[key], dtype=torch.long) for f in features]
    return torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=value)
