"""Rows from files: JSONL, CSV and Parquet."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from core.engine.data import Row, Source
from core.engine.parquet import parse_parquet
from core.errors import InvalidInputError, encodable, shown
from core.uploads import suffix_of
from core.uploads.datasets import described, repeated


def read_rows(path: Path, source: Source) -> list[Row]:
    """All rows of a .jsonl, .csv or .parquet file, optionally .gz, as the path's suffix says.

    Raises:
        InvalidInputError: no such suffix.
        InvalidDataError: unreadable, or a line is not a row; the message names file and line.
    """
    try:
        suffix = suffix_of(path.name, "dataset")
    except InvalidInputError as error:
        error.param = source.param
        raise
    parse = PARSERS[suffix.removesuffix(".gz")]
    try:
        with gzip.open(path) if suffix.endswith(".gz") else path.open("rb") as stream:
            rows = list(parse(cast(BinaryIO, stream), source))
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


def _parse_jsonl(stream: BinaryIO, source: Source) -> Iterator[Row]:
    for number, line in enumerate(_lines(stream, source), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if isinstance(values, dict):
                values = {encodable(column): _encodable(value) for column, value in values.items()}
        except json.JSONDecodeError as error:
            raise source.error(f"not JSON ({error.msg}).", number) from error
        except (ValueError, RecursionError) as error:
            raise source.error("a number has too many digits, or the nesting is too deep.", number) from error
        if not isinstance(values, dict):
            raise source.error("a row must be a JSON object.", number)
        yield Row(values, source, number)


def _encodable(value: Any) -> Any:
    """Text, in lists as well, as `encodable` has it; all else as it is."""
    if isinstance(value, list):
        return [_encodable(part) for part in value]
    return encodable(value) if isinstance(value, str) else value


def _parse_csv(stream: BinaryIO, source: Source) -> Iterator[Row]:
    """A row's number is that of its first line; a quoted text may hold further ones."""
    reader = csv.reader(_lines(stream, source), strict=True)
    header, line = None, 1
    try:
        for values in reader:
            if header is None:
                header = values
                if twice := repeated(header):
                    raise source.error(f"the header names column {shown(twice)} twice.", line)
            elif values and len(values) != len(header):
                raise source.error(f"the header has {len(header)} columns, this line another number.", line)
            elif values:
                yield Row(dict(zip(header, values, strict=True)), source, line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise source.error(f"not CSV ({described(error)}).", line) from error


PARSERS: dict[str, Callable[[BinaryIO, Source], Iterator[Row]]] = {
    ".jsonl": _parse_jsonl,
    ".csv": _parse_csv,
    ".parquet": parse_parquet,
}
"""How a file becomes rows, by its suffix."""
