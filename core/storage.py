"""Where uploads and artifacts lie: named byte strings in a folder, or on anything that fsspec speaks.

A key is a relative path such as `artifacts/<job>/1/report.json`. An object appears under its key whole or not at all.
"""

import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from core.errors import NotFoundError, StorageError

CHUNK_BYTES = 2**20
_KEY_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=-]*")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What was written: its length in bytes, and the hex digest of the bytes."""

    size: int
    sha256: str


class Storage:
    """One store.

    Args:
        url: a folder, or an fsspec URL.
    """

    def __init__(self, url: str) -> None:
        self._files: Any
        self._files, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._files, LocalFileSystem)

    def put(self, key: str, source: BinaryIO) -> StoredObject:
        """Store everything from where `source` stands, hashing on the way; replaces what was there.

        Raises:
            StorageError: it could not be written; the key is as it was before.
        """
        path = self._path(key)
        temporary = f"{path}.{secrets.token_hex(8)}.partial"
        with _as_storage_error(key):
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                stored = self._write(temporary, source)
                self._files.mv(temporary, path)
            except BaseException:
                with suppress(OSError):
                    self._files.rm(temporary)
                raise
        return stored

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Store a file."""
        with path.open("rb") as source:
            return self.put(key, source)

    def open(self, key: str) -> BinaryIO:
        """The object's bytes, seekable.

        Raises:
            NotFoundError: no such object.
        """
        with _as_storage_error(key):
            return cast(BinaryIO, self._files.open(self._path(key), "rb"))

    def read_range(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes `start` … `end` (exclusive) in chunks.

        Raises:
            NotFoundError: no such object; at the call, not at the first chunk.
        """
        return _chunks(self.open(key), key, start, end)

    def check_writable(self) -> None:
        """Write, and so raise StorageError if that is impossible."""
        self.put("write-probe", io.BytesIO(b"ok"))

    def fetch(self, key: str, path: Path) -> StoredObject:
        """Copy the object into a new file; the digest tells whether it is the one that was put."""
        with self.open(key) as source, path.open("xb") as target:
            return _copy(source, target)

    def delete_prefix(self, prefix: str) -> None:
        """Delete an object, or all below a prefix; nothing there is fine."""
        with _as_storage_error(prefix), suppress(FileNotFoundError):
            self._files.rm(self._path(prefix), recursive=True)

    def local_path(self, key: str) -> Path | None:
        """Where the object lies on this machine's disk; None if it does not."""
        return Path(self._path(key)) if self._is_local else None

    def _path(self, key: str) -> str:
        parts = key.split("/")
        if not all(_KEY_PART.fullmatch(part) for part in parts):
            raise StorageError(f"{key!r} is not a key: letters, digits, '.', '_', '-' in parts separated by '/'.")
        return "/".join([self._root, *parts])

    def _write(self, path: str, source: BinaryIO) -> StoredObject:
        with self._files.open(path, "wb") as target:
            stored = _copy(source, target)
            if self._is_local:
                target.flush()
                os.fsync(target.fileno())
        return stored


def _chunks(source: BinaryIO, key: str, start: int, end: int) -> Iterator[bytes]:
    with source, _as_storage_error(key):
        source.seek(start)
        left = end - start
        while left > 0 and (chunk := source.read(min(left, CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk


def _copy(source: BinaryIO, target: BinaryIO) -> StoredObject:
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
        target.write(chunk)
    return StoredObject(size, digest.hexdigest())


@contextmanager
def _as_storage_error(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"There is nothing stored under {key!r}.") from error
    except OSError as error:
        raise StorageError(f"The store could not handle {key!r}: {error.strerror or error}.") from error
