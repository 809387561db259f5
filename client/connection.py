"""How the client reaches its service: past the proxies of the environment or not, and with which key."""

import os
import re
from collections.abc import Callable

import httpx

from client.urls import host_of
from core.errors import ConfigurationError, InvalidInputError

KEY_VARIABLE = "NEUROPRUNE_API_KEY"

_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_KEY = re.compile(r"[\x21-\x7e]+")


def connect(base_url: str, api_key: str | None, transport: httpx.BaseTransport | None) -> httpx.Client:
    """A client of the service at the URL; it follows no redirect, so that nobody else gets the key.

    Args:
        api_key: By default what NEUROPRUNE_API_KEY holds, if anything.

    Raises:
        InvalidInputError: the URL is none, or the key.
        ConfigurationError: the environment names a proxy that cannot be used.
    """
    key = os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key
    is_local = host_of(base_url) in _LOOPBACK
    try:
        return httpx.Client(
            base_url=base_url,
            auth=_bearer(key) if key else None,
            timeout=_TIMEOUT,
            transport=transport,
            trust_env=not is_local,  # a proxy from the environment cannot reach this machine's own services
        )
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f"A proxy that the environment names cannot be used: {error}") from error


def _bearer(key: str) -> Callable[[httpx.Request], httpx.Request]:
    if not _KEY.fullmatch(key):  # the value itself is nothing to print
        raise InvalidInputError(f"The API key ({KEY_VARIABLE}) is none: it holds other characters than visible ASCII.")

    def sign(request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {key}"
        return request

    return sign
