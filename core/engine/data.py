"""Rows of text: read from files or taken from Python's own documentation, split, and batched by length."""

import csv
import gzip
import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from core.errors import InvalidDataError

Row = dict[str, Any]
Feature = dict[str, Any]
Batch = dict[str, Tensor]


def read_rows(path: Path, param: str) -> list[Row]:
    """All rows of a .jsonl or .csv file, optionally .gz.

    Args:
        path: The file; its suffixes decide the format.
        param: JSON pointer of the spec's field that names the file, for errors.

    Raises:
        InvalidDataError: unreadable, or a line is not a row; the message names file and line.
    """
    parse = _parse_csv if ".csv" in path.suffixes else _parse_jsonl
    try:
        with _open_text(path) as stream:
            rows = list(parse(stream, path.name, param))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InvalidDataError(f"{path.name} cannot be read: {error}", param=param) from error
    if not rows:
        raise InvalidDataError(f"{path.name} holds no rows.", param=param)
    return rows


def _open_text(path: Path) -> IO[str]:
    """UTF-8, with or without a byte order mark; line ends as they are, as csv wants them."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _parse_jsonl(stream: IO[str], name: str, param: str) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidDataError(f"{name}, line {number}: not JSON ({error.msg}).", param=param) from error
        if not isinstance(row, dict):
            raise InvalidDataError(f"{name}, line {number}: a row must be a JSON object.", param=param)
        yield row


def _parse_csv(stream: IO[str], name: str, param: str) -> Iterator[Row]:
    reader = csv.DictReader(stream, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InvalidDataError(
                    f"{name}, line {reader.line_num}: the header has {len(reader.fieldnames or [])} columns, "
                    "this line another number.",
                    param=param,
                )
            yield row
    except csv.Error as error:
        raise InvalidDataError(f"{name}, line {reader.line_num}: {error}.", param=param) from error


def text_of(row: Row, column: str, number: int) -> str:
    """The text in a column of the row with this number (from 1).

    Raises:
        InvalidDataError: no such column, or no text in it.
    """
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        found = "is missing" if value is None else f"holds {value!r}, not text"
        columns = ", ".join(sorted(map(str, row)))
        raise InvalidDataError(f"Row {number}: column {column!r} {found}; it has {columns}.", param="/task/data")
    return value


def hold_out(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split into training and held-out rows at random; both get at least one."""
    if len(rows) < 2:
        raise InvalidDataError("At least two rows are needed to hold some out.", param="/task/data/train")
    shuffled = rows.copy()
    random.Random(seed).shuffle(shuffled)  # noqa: S311
    count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    return shuffled[count:], shuffled[:count]


def sample(rows: list[Row], limit: int | None, seed: int) -> list[Row]:
    """At most `limit` rows drawn at random, in their original order."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]  # noqa: S311


def python_docs() -> tuple[list[Row], list[Row]]:
    """Text of the language reference that CPython ships, as (training, held-out) rows.

    Every eighth topic in alphabetical order is held out, whole, as sentences. The other topics give sentences, pairs
    of neighbouring sentences, and clauses, so that there is enough to learn from; a sentence that a held-out topic
    has too is left out of all three.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    held_out = {s: None for name in names[::8] for paragraph in _paragraphs(topics[name]) for s in paragraph}
    train: dict[str, None] = {}
    for name in (name for i, name in enumerate(names) if i % 8):
        for paragraph in _paragraphs(topics[name]):
            kept = [sentence for sentence in paragraph if sentence not in held_out]
            train |= dict.fromkeys(kept)
            train |= dict.fromkeys(f"{one} {next_one}" for one, next_one in pairwise(kept))
            train |= dict.fromkeys(clause for sentence in kept for clause in _clauses(sentence))
    return [{"text": text} for text in train if text not in held_out], [{"text": text} for text in held_out]


def _paragraphs(topic: str) -> Iterator[list[str]]:
    """The prose sentences of each paragraph; grammar and code are mostly not letters, and left out."""
    for paragraph in re.split(r"\n\s*\n", topic):
        sentences = re.split(r"(?<=[.!?:;]) (?=[A-Z\"*`])", " ".join(paragraph.split()))
        yield [s for s in sentences if len(s) >= 30 and sum(c.isalpha() for c in s) > 0.65 * len(s)]


def _clauses(sentence: str) -> list[str]:
    """Parts between commas that say something on their own; none for a sentence without commas."""
    parts = re.split(r"(?<=,) ", sentence)
    return [part for part in parts if len(part) >= 25] if len(parts) > 1 else []


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
