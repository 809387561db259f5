"""Rows from Parquet files.

Columns may have any type that has a Python value, lists and structures included: text as str, bytes as bytes. Those
that a task does not name do no harm; one that it names and cannot use is refused where a row is read.
"""

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from core.engine.data import Row, Source

MAX_TABLE_BYTES = 8 * 2**30
"""Most that a file may hold unpacked: a few bytes can stand for any number of equal values."""

BATCH_BYTES = 64 * 2**20
ROWS_A_BATCH = 1024

OF_ANY_LENGTH = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
DICTIONARY_PAGE = 2
PAGE_HEADER = re.compile(rb"\x15([\x80-\xff]*[\x00-\x7f])" * 3)
"""Three integers as Thrift's compact protocol has them: which kind of page, its bytes, and its compressed bytes."""


def parse_parquet(stream: BinaryIO, source: Source) -> Iterator[Row]:
    """The rows, numbered from 1; class names come along where the `datasets` library left them in the schema.

    Raises:
        InvalidDataError: no Parquet, damaged, or too large once unpacked.
    """
    with TemporaryFile() as file:
        if isinstance(stream, gzip.GzipFile):  # which goes back only by starting over
            shutil.copyfileobj(stream, file)
            stream = file
        source = replace(source, counts="row")
        number = 0
        try:
            opened = pq.ParquetFile(stream, memory_map=False)
            source = replace(source, class_names=_class_names(opened.schema_arrow.metadata or {}))
            unpacked = 0
            for batch in opened.iter_batches(_rows_a_batch(opened.metadata, stream)):
                unpacked += batch.nbytes
                if unpacked > MAX_TABLE_BYTES:
                    raise source.error(f"unpacks to more than {MAX_TABLE_BYTES} bytes, the most that is accepted.")
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, source, number)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise source.error(f"cannot be read as Parquet ({_first_line(error)}).", number + 1) from error


def _rows_a_batch(metadata: pq.FileMetaData, stream: BinaryIO) -> int:
    """So many that they stay small even if every one of them repeats the largest value that costs little to repeat."""
    largest = 1
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            mean = chunk.total_uncompressed_size // max(1, group.num_rows)
            largest = max(largest, mean, _repeatable_bytes(chunk, stream))
    return max(1, min(ROWS_A_BATCH, BATCH_BYTES // largest))


def _repeatable_bytes(chunk: pq.ColumnChunkMetaData, stream: BinaryIO) -> int:
    """No value of the chunk is larger of those that a few bytes can stand for, wherever they come again."""
    if chunk.physical_type not in OF_ANY_LENGTH:
        return 0
    whole: int = chunk.total_uncompressed_size
    # Such values may begin as the one before them, however long that is.
    if whole * ROWS_A_BATCH <= BATCH_BYTES or "DELTA_BYTE_ARRAY" in chunk.encodings:
        return whole
    stream.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
    header = PAGE_HEADER.match(stream.read(32))
    if header is None:
        return whole
    kind, *sizes = map(_number, header.groups())
    return max(sizes) if kind == DICTIONARY_PAGE else 0


def _number(encoded: bytes) -> int:
    """What seven bits of each byte make, the lowest first; the lowest of all is a sign, which is always plus."""
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded)) >> 1


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Of the columns that `datasets` calls ClassLabel; none where the note is not what it writes."""
    try:
        features: dict[str, Any] = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: tuple(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
