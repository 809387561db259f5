"""Rows from Parquet files.

Columns may have any type that has a Python value, lists and structures included: text as str, bytes as bytes. Those
that a task does not name do no harm; one that it names and cannot use is refused where a row is read.
"""

import gzip
import json
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
            for batch in opened.iter_batches(_rows_a_batch(opened.metadata)):
                unpacked += batch.nbytes
                if unpacked > MAX_TABLE_BYTES:
                    raise source.error(f"unpacks to more than {MAX_TABLE_BYTES} bytes, the most that is accepted.")
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, source, number)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise source.error(f"cannot be read as Parquet ({_first_line(error)}).", number + 1) from error


def _rows_a_batch(metadata: pq.FileMetaData) -> int:
    """So many that they stay small even if every one of them repeats the largest value there can be."""
    chunks = (
        metadata.row_group(group).column(column).total_uncompressed_size
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )
    return max(1, min(ROWS_A_BATCH, BATCH_BYTES // max(1, max(chunks, default=1))))


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
