"""Datasets: files of rows, checked before they are stored, and what their readers say of them in the same words.

Importing this lifts the csv module's limit on a field for the whole process.
"""

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from core.errors import InvalidDataError, encodable, shown
from core.jobs.base import MAX_COLUMN_NAME
from core.uploads import CHUNK_BYTES, suffix_of

# Parsed, a row takes up to 32 times as much memory, where it has one letter a value. An image of 6 MB fits, in base64.
MAX_ROW_BYTES = 8 * 2**20
# A document may be one field; the module's own limit, of 131,072 characters, is for all readers of a process.
csv.field_size_limit(MAX_ROW_BYTES)
ROWS_CHECKED = 100
BYTES_CHECKED = MAX_ROW_BYTES  # of rows that are large, or of many lines, fewer are: a line takes some 3 µs
MAX_COLUMNS = 200  # that an upload's record lists
_Row = TypeVar("_Row")
PARQUET_MAGIC = b"PAR1"
PARQUET_TAIL_BYTES = 4 + len(PARQUET_MAGIC)  # the footer's length, then the magic


def check_dataset(path: Path, limit: int) -> list[str] | None:
    """The file opens, begins as its suffix promises, and is whole and below `limit` bytes once unpacked.

    Of text the first rows are parsed, up to `ROWS_CHECKED` and `BYTES_CHECKED`; of Parquet only its frame is looked at,
    since its rows need a decoder that no upload should reach in the API's process.

    Returns:
        The columns of the rows that were parsed, in their order; None of Parquet, and where there are more
        of them, or longer names, than a record keeps.

    Raises:
        InvalidDataError: it does not; the message names the line.
    """
    suffix = suffix_of(path.name, "dataset")
    check = _CHECKS[suffix.removesuffix(".gz")]
    try:
        with gzip.open(path) if suffix.endswith(".gz") else path.open("rb") as source:
            columns = check(cast(BinaryIO, source), limit)
            while source.read(CHUNK_BYTES):  # to the end, where gzip compares its checksum
                _check_size(source.tell(), limit)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidDataError(f"The file is not a whole gzip file: {error}.") from error
    if columns is None or len(columns) > MAX_COLUMNS or any(len(name) > MAX_COLUMN_NAME for name in columns):
        return None
    return columns


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise InvalidDataError(f"The file unpacks to more than {limit} bytes, the most that is accepted.")


class _Lines(Iterator[str]):
    """Lines as text, a byte order mark dropped; a row, which in CSV may be of any number of them, is bounded."""

    def __init__(self, source: BinaryIO, limit: int) -> None:
        self._source = source
        self._limit = limit
        self._number = 0
        self._size = 0
        self._row_start = 0
        self.row_number = 1
        """Of the line that the current row begins in."""

    def __next__(self) -> str:
        line = self._source.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._size += len(line)
        if self._size - self._row_start > MAX_ROW_BYTES:
            raise InvalidDataError(
                f"The row in line {self.row_number} is longer than {MAX_ROW_BYTES} bytes; Parquet takes longer ones."
            )
        _check_size(self._size, self._limit)
        try:
            return line.decode("utf-8-sig" if self._number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidDataError(f"Line {self._number} is not UTF-8 text.") from error

    def checked(self, rows: Iterator[_Row]) -> Iterator[_Row]:
        """Of the rows that are made of these lines, a header among them, the first."""
        for row in islice(rows, ROWS_CHECKED):
            yield row
            self._row_start = self._size
            self.row_number = self._number + 1
            if self._size > BYTES_CHECKED:
                return


def _check_jsonl(source: BinaryIO, limit: int) -> list[str]:
    rows = 0
    columns: dict[str, None] = {}
    lines = _Lines(source, limit)
    for line in lines.checked(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            # Its own account of the place would count this line as the first.
            reason = (
                f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            )
            raise InvalidDataError(
                f"Line {lines.row_number} is not JSON: {reason}. JSONL has one JSON object a line."
            ) from error
        if not isinstance(row, dict):
            raise InvalidDataError(f"Line {lines.row_number} is not a JSON object; JSONL has one object a line.")
        rows += 1
        if len(columns) <= MAX_COLUMNS:
            columns |= dict.fromkeys(map(encodable, islice(row, MAX_COLUMNS + 1)))
    if not rows:
        raise InvalidDataError("The file holds no rows.")
    return list(columns)


def _check_csv(source: BinaryIO, limit: int) -> list[str]:
    lines = _Lines(source, limit)
    checked = lines.checked(csv.reader(lines, strict=True))
    rows = 0
    try:
        header = next(checked, [])
        if not header or not all(name.strip() for name in header):
            raise InvalidDataError("Line 1 must name every column of the CSV.")
        if len(header) == 1 and any(separator in header[0] for separator in ";\t"):
            raise InvalidDataError(f"Line 1 names one column, {shown(header[0])}; columns must be separated by commas.")
        if twice := repeated(header):
            raise InvalidDataError(f"Line 1 names the column {shown(twice)} twice.")
        for row in checked:
            if row and len(row) != len(header):
                raise InvalidDataError(
                    f"Line {lines.row_number} has {len(row)} fields; the header names {len(header)} columns."
                )
            rows += bool(row)
    except csv.Error as error:
        raise InvalidDataError(f"Line {lines.row_number} is not CSV: {described(error)}.") from error
    if not rows:
        raise InvalidDataError("The file holds no rows below its header.")
    return header


def repeated(names: list[str]) -> str | None:
    """The first name that is there more than once; columns without a name are asked for by nobody."""
    return next((name for name, count in Counter(names).items() if name and count > 1), None)


def described(error: csv.Error) -> str:
    """What is wrong, without csv's advice to programmers on how to open the file."""
    return str(error).partition(" - ")[0]


def _check_parquet(source: BinaryIO, limit: int) -> None:
    """`PAR1` at both ends, and before the last one a footer of the length that it says (Apache Parquet format)."""
    head = source.read(len(PARQUET_MAGIC))
    tail = head
    size = len(head)
    while chunk := source.read(CHUNK_BYTES):
        size += len(chunk)
        _check_size(size, limit)
        tail = (tail + chunk)[-PARQUET_TAIL_BYTES:]
    if head != PARQUET_MAGIC or tail[4:] != PARQUET_MAGIC or len(tail) < PARQUET_TAIL_BYTES:
        raise InvalidDataError("The file is not Parquet, or is cut short: it must begin and end with PAR1.")
    if int.from_bytes(tail[:4], "little") > size - len(PARQUET_MAGIC) - PARQUET_TAIL_BYTES:
        raise InvalidDataError("The file is not Parquet: its footer would be longer than the file.")


_CHECKS: dict[str, Callable[[BinaryIO, int], list[str] | None]] = {
    ".jsonl": _check_jsonl,
    ".csv": _check_csv,
    ".parquet": _check_parquet,
}
