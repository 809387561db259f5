"""Lists that come in pages."""

from urllib.parse import urlencode

from fastapi import Response


def link_to_next(response: Response, path: str, **query: object) -> None:
    """Name the next page in the `Link` header (RFC 8288); what is None is left out of its query."""
    given = {name: value for name, value in query.items() if value is not None}
    response.headers["Link"] = f'<{path}?{urlencode(given)}>; rel="next"'
