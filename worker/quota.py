"""Keeps one job from filling the disk that all share."""

import time
from pathlib import Path
from tempfile import TemporaryFile

from core.resources import folder_bytes

_CHECK_SECONDS = 2.0
_LEAST_ROOM_BYTES = 2**20
"""Without which not even a job's start is worth a try."""


def check_room(folder: Path) -> None:
    """Raise OSError where a job cannot be begun: the folder cannot be made, or has no room."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as probe:
        probe.write(bytes(_LEAST_ROOM_BYTES))


class DiskQuota:
    """Looks now and then at what a work folder holds.

    Args:
        limit: bytes.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._checked_at = time.monotonic()

    def is_exceeded(self) -> bool:
        """Whether the folder holds more than it may; may be asked as often as one likes."""
        now = time.monotonic()
        if now - self._checked_at < _CHECK_SECONDS:
            return False
        self._checked_at = now
        return folder_bytes(self._folder) > self._limit
