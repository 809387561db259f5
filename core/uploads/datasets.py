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
from typing import BinaryIO, cast

from core.errors import InvalidDataError, shown
from core.uploads import CHUNK_BYTES, suffix_of

MAX_ROW_BYTES = 16 * 2**20
# A document may be one field; the module's own limit, of 131,072 characters, is for all readers of a process.
csv.field_size_limit(MAX_ROW_BYTES)
ROWS_CHECKED = 100
PARQUET_MAGIC = b"PAR1"
PARQUET_TAIL_BYTES = 4 + len(PARQUET_MAGIC)  # the footer's length, then the magic


def check_dataset(path: Path, limit: int) -> None:
    """The file opens, begins as its suffix promises, and is whole and below `limit` bytes once unpacked.

    Of text the first rows are parsed; of Parquet only its frame is looked at, since its rows need a decoder that no
    upload should reach in the API's process.

    Raises:
        InvalidDataError: it does not; the message names the line.
    """
    suffix = suffix_of(path.name, "dataset")
    check = _CHECKS[suffix.removesuffix(".gz")]
    try:
        with gzip.open(path) if suffix.endswith(".gz") else path.open("rb") as source:
            check(cast(BinaryIO, source), limit)
            while source.read(CHUNK_BYTES):  # to the end, where gzip compares its checksum
                _check_size(source.tell(), limit)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidDataError(f"The file is not a whole gzip file: {error}.") from error


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise InvalidDataError(f"The file unpacks to more than {limit} bytes, the most that is accepted.")


def _lines(source: BinaryIO, limit: int) -> Iterator[str]:
    """Lines as text, a byte order mark dropped."""
    for number in range(1, 2**63):
        line = source.readline(MAX_ROW_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_ROW_BYTES:
            raise InvalidDataError(f"Line {number} is longer than {MAX_ROW_BYTES} bytes.")
        _check_size(source.tell(), limit)
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidDataError(f"Line {number} is not UTF-8 text.") from error


def _check_jsonl(source: BinaryIO, limit: int) -> None:
    rows = 0
    for number, line in enumerate(islice(_lines(source, limit), ROWS_CHECKED), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            # Its own account of the place would count this line as the first.
            reason = (
                f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            )
            raise InvalidDataError(f"Line {number} is not JSON: {reason}. JSONL has one JSON object a line.") from error
        if not isinstance(row, dict):
            raise InvalidDataError(f"Line {number} is not a JSON object; JSONL has one object a line.")
        rows += 1
    if not rows:
        raise InvalidDataError("The file holds no rows.")


def _check_csv(source: BinaryIO, limit: int) -> None:
    reader = csv.reader(_lines(source, limit), strict=True)
    rows, line = 0, 1
    try:
        header = next(reader, [])
        if not header or not all(name.strip() for name in header):
            raise InvalidDataError("Line 1 must name every column of the CSV.")
        if twice := repeated(header):
            raise InvalidDataError(f"Line 1 names the column {shown(twice)} twice.")
        line = reader.line_num + 1
        for row in islice(reader, ROWS_CHECKED):
            if row and len(row) != len(header):
                raise InvalidDataError(f"Line {line} has {len(row)} fields; the header names {len(header)} columns.")
            rows += bool(row)
            line = reader.line_num + 1
    except csv.Error as error:
        raise InvalidDataError(f"Line {line} is not CSV: {described(error)}.") from error
    if not rows:
        raise InvalidDataError("The file holds no rows below its header.")


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


_CHECKS: dict[str, Callable[[BinaryIO, int], None]] = {
    ".jsonl": _check_jsonl,
    ".csv": _check_csv,
    ".parquet": _check_parquet,
}
