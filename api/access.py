"""Who is let in: whom the request takes this service for, which web page sent it, and with which key.

Middleware and no dependency of the routes: it answers before the body is read, for paths that nothing is at and event
streams too, and a route that is new is closed.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence

from fastapi import Security
from fastapi.security import HTTPBearer
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import problem
from core.errors import shown

PROBES = frozenset({"/healthz", "/readyz"})
"""Open to everybody: orchestrators and load balancers ask by address, without a key."""

WITHOUT_KEY = PROBES | {"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
DOCUMENTATION_FILES = "/docs/files"
"""Below it lies what the pages of documentation are made of; open as they are."""

DOCUMENTED = Security(
    HTTPBearer(scheme_name="key", auto_error=False, description="One of NEUROPRUNE_API_KEYS, where that is set.")
)
"""A dependency that refuses nobody: the OpenAPI document takes from it that there are keys."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d*)?", re.IGNORECASE | re.ASCII)


class Access:
    """Refuses whoever should not get in.

    Against web pages, whose requests come from the user's own browser: one that has its name resolved to this service
    (DNS rebinding) still asks for that name, and one that posts across sites says where it comes from (Origin).

    Args:
        app: the application.
        hosts: the names that the service goes by; `*` for any.
        keys: the keys of which a request needs one; none: it needs none.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], keys: Sequence[SecretStr]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._keys = [_digest(key.get_secret_value()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        is_open = scope["type"] != "http" or scope["path"] in PROBES
        refusal = None if is_open else self._refusal(Request(scope))
        answer = self._app if refusal is None else refusal
        await answer(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        asked = request.headers.get("host", "")
        host = _name(asked)
        if not self._hosts & {host, "*"}:
            detail = f"This service does not go by {shown(asked)}: NEUROPRUNE_ALLOWED_HOSTS does not name it."
            return problem(request, 421, detail)
        origin = request.headers.get("origin")
        if origin is not None and request.method not in _SAFE and self._is_foreign(origin, host):
            detail = (
                f"Pages of {shown(origin)} may change nothing here: NEUROPRUNE_ALLOWED_HOSTS does not name their host."
            )
            return problem(request, 403, detail)
        path = request.scope["path"]
        needs_key = path not in WITHOUT_KEY and not path.startswith(f"{DOCUMENTATION_FILES}/")
        return self._refusal_of_key(request) if self._keys and needs_key else None

    def _is_foreign(self, origin: str, host: str | None) -> bool:
        """Whether the page is of another host than the one asked for and those allowed, of which `*` is none."""
        name = _name(origin.partition("://")[2])
        return name is None or name not in {host, *self._hosts}

    def _refusal_of_key(self, request: Request) -> Response | None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        digest = _digest(given.strip())
        if scheme.lower() != "bearer":
            detail = "This service asks for a key: send the header Authorization: Bearer KEY."
        elif any(hmac.compare_digest(digest, key) for key in self._keys):
            return None
        else:
            detail = "The key that was sent is none of this service's."
        return problem(request, 401, detail, headers={"WWW-Authenticate": "Bearer"})


def _name(authority: str) -> str | None:
    """The host without its port; None if that is none."""
    match = _AUTHORITY.fullmatch(authority)
    return match[1].lower() if match else None


def _digest(key: str) -> bytes:
    """Of the same length for every key, so that the time of a comparison does not tell that either."""
    return hashlib.sha256(key.encode()).digest()
