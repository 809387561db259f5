"""How long to wait for a service that went away."""

import time
from http import HTTPStatus
from types import TracebackType

import httpx

from client.errors import ApiError, UnreachableError

_PAUSE_SECONDS = 0.5


class Patience:
    """As a context manager, swallows a lost connection, after a pause, until it has lasted too long."""

    def __init__(self, seconds: float, url: str) -> None:
        self._seconds = seconds
        self._url = url
        self._ends_at: float | None = None
        """None while the service answers, however long it has nothing to say."""

    def renew(self) -> None:
        """The service answers."""
        self._ends_at = None

    def pause(self) -> None:
        """Wait a moment before the service is asked again."""
        time.sleep(_PAUSE_SECONDS)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        is_passing = isinstance(error, httpx.TransportError | UnreachableError) or (
            isinstance(error, ApiError) and error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        )
        if not is_passing:
            return False
        now = time.monotonic()
        if self._ends_at is None:
            self._ends_at = now + self._seconds
        if now > self._ends_at:
            raise UnreachableError(f"{self._url} has not answered for {self._seconds:g} s: {error}") from error
        self.pause()
        return True
