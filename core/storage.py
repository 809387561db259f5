"""Where uploads and artifacts lie: named byte strings in a folder, or in a bucket on S3.

A key is a relative path such as `artifacts/<job>/1/report.json`. An object appears under its key whole or not at all:
it is written under a temporary name first. What S3 needs (endpoint, region, credentials) it takes from the `AWS_…`
variables of the environment, as everything that speaks to S3 does.
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

from core.errors import ConfigurationError, NeuroPruneError, NotFoundError, StorageError, StorageFullError, shown
from core.resources import is_out_of_space

CHUNK_BYTES = 2**20
UNFINISHED = ".partial"
"""Ends the name of what is being written."""
READ_AHEAD_BYTES = 8 * 2**20
"""Of a remote object at once; each costs a request."""
ATTEMPTS = 6
"""Times a request to a remote store is sent; the pauses between them double, up to about 20 s in all."""

_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 30
_BROKEN_TRANSFERS = 3
"""Times a request is repeated, with all its attempts, whose answer was cut off or whose connection broke."""
_KEY_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=-]*")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What was written: its length in bytes, and the hex digest of the bytes."""

    size: int
    sha256: str


class Storage:
    """One store.

    Args:
        url: a folder, `s3://bucket/prefix`, or another URL of fsspec's.
        attempts: times a request to a remote store is sent before it counts as failed.
    """

    def __init__(self, url: str, *, attempts: int = ATTEMPTS) -> None:
        """Open it; what is reached over a network is not asked yet.

        Raises:
            ConfigurationError: no such kind of store is known here.
        """
        is_s3 = url.startswith("s3://")
        self._files: Any
        self._files, root = _opened(url, _s3_options(attempts) if is_s3 else {})
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._files, LocalFileSystem)
        self._failures = _s3_failures() if is_s3 else (OSError,)
        if is_s3:
            self._files.retries = min(attempts, _BROKEN_TRANSFERS)

    def put(self, key: str, source: BinaryIO) -> StoredObject:
        """Store everything from where `source` stands, hashing on the way; replaces what was there.

        Raises:
            StorageFullError: there is no room for it.
            StorageError: it could not be written; the key is as it was before.
        """
        path = self._path(key)
        temporary = f"{path}.{secrets.token_hex(8)}{UNFINISHED}"
        with self._as_storage_error(key, missing=StorageError):
            if self._is_local:
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                stored = self._write(temporary, source)
                self._files.mv(temporary, path)
            except BaseException:
                with suppress(*self._failures):
                    self._files.rm_file(temporary)
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
        with self._as_storage_error(key):
            return cast(BinaryIO, self._files.open(self._path(key), "rb", block_size=READ_AHEAD_BYTES))

    def read_range(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes `start` … `end` (exclusive) in chunks.

        Raises:
            NotFoundError: no such object; at the call, not at the first chunk.
        """
        return self._chunks(self.open(key), key, start, end)

    def check_writable(self) -> None:
        """Write, and so raise StorageError if that is impossible."""
        self.put("write-probe", io.BytesIO(b"ok"))

    def fetch(self, key: str, path: Path) -> StoredObject:
        """Copy the object into a new file; the digest tells whether it is the one that was put."""
        with self.open(key) as source, path.open("xb") as target, self._as_storage_error(key):
            return _copy(source, target)

    def delete_prefix(self, prefix: str) -> None:
        """Delete an object, or all below a prefix; nothing there is fine.

        In a folder, what a killed process left of writing the object goes, too.

        Raises:
            StorageError: something stays.
        """
        path = self._path(prefix)
        with self._as_storage_error(prefix):
            for found in [path, *self._unfinished(path)]:
                with suppress(FileNotFoundError):
                    self._files.rm(found, recursive=True)
            # S3 refuses single objects of many, and s3fs does not tell; in a folder two may get into each other's way.
            stays = self._files.exists(path)
        if stays:
            raise StorageError(f"The store did not delete all of {prefix!r}.")

    def names(self, prefix: str) -> list[str]:
        """What lies right below a prefix, sorted: the next part of the keys; none where nothing is."""
        with self._as_storage_error(prefix), suppress(FileNotFoundError):
            paths = self._files.ls(self._path(prefix), detail=False)
            return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)
        return []

    def local_path(self, key: str) -> Path | None:
        """Where the object lies on this machine's disk; None if it does not."""
        return Path(self._path(key)) if self._is_local else None

    def _path(self, key: str) -> str:
        parts = key.split("/")
        if not all(_KEY_PART.fullmatch(part) for part in parts):
            raise StorageError(f"{key!r} is not a key: letters, digits, '.', '_', '-' in parts separated by '/'.")
        return "/".join([self._root, *parts])

    def _unfinished(self, path: str) -> list[str]:
        """Files in which an object was to be written that never got its name."""
        if not self._is_local:
            return []
        target = Path(path)
        return [str(file) for file in target.parent.glob(f"{target.name}.*{UNFINISHED}")]

    def _write(self, path: str, source: BinaryIO) -> StoredObject:
        with self._files.open(path, "wb") as target:
            stored = _copy(source, target)
            if self._is_local:
                target.flush()
                os.fsync(target.fileno())
        return stored

    def _chunks(self, source: BinaryIO, key: str, start: int, end: int) -> Iterator[bytes]:
        with source, self._as_storage_error(key):
            source.seek(start)
            left = end - start
            while left > 0 and (chunk := source.read(min(left, CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk

    @contextmanager
    def _as_storage_error(self, key: str, missing: type[NeuroPruneError] = NotFoundError) -> Iterator[None]:
        """Translate what the file system raises; `missing` is what a missing file or bucket means."""
        try:
            yield
        except FileNotFoundError as error:
            raise missing(f"There is nothing stored under {key!r}.") from error
        except self._failures as error:
            if is_out_of_space(error):
                raise StorageFullError(f"There is no room for {key!r}.") from error
            reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
            raise StorageError(f"The store could not handle {key!r}: {reason}.") from error


def _opened(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """The file system of a URL, and where in it the URL leads."""
    if "::" in url and "://" not in url:  # in a folder's name it is nothing special
        return LocalFileSystem(), str(Path(url).expanduser().absolute())
    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url, **options))
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f"NEUROPRUNE_STORAGE_URL: {shown(url)} cannot be used ({error}); it has to be a folder or s3://bucket/prefix."
        ) from error


def _s3_options(attempts: int) -> dict[str, Any]:
    """No listings from memory: other processes write, too. A slow answer is none, and a failed request is repeated."""
    return {
        "use_listings_cache": False,
        "skip_instance_cache": True,
        "config_kwargs": {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _ANSWER_SECONDS,
            "retries": {"mode": "standard", "total_max_attempts": attempts},
        },
    }


def _s3_failures() -> tuple[type[Exception], ...]:
    """What s3fs lets through; imported here because they take long, and only S3 needs them."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError

    return (OSError, BotoCoreError, ClientError)


def _copy(source: BinaryIO, target: BinaryIO) -> StoredObject:
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
        target.write(chunk)
    return StoredObject(size, digest.hexdigest())
