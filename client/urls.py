"""A service's URL, which may hold a password: where it leads, and how a message repeats it."""

import re

import httpx

from core.errors import InvalidInputError, shown


def host_of(url: str) -> str:
    """The host that the URL leads to.

    Raises:
        InvalidInputError: it is none.
    """
    try:
        return httpx.URL(url).host
    except httpx.InvalidURL as error:
        if "@" not in url:
            raise InvalidInputError(f"{shown(url)} is no URL: {error}.") from error
    # The reason is left out: where a password is taken for a port, it quotes that.
    raise InvalidInputError(
        f"{shown(without_userinfo(url))} is no URL, or what stands before its @ is not percent-encoded."
    )


def without_userinfo(url: str) -> str:
    """The URL without all that may be a user and a password: up to the last @, for not everybody encodes theirs."""
    return re.sub(r"^(\w+://)?.*@", r"\1", url, flags=re.DOTALL)
