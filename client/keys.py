"""Idempotency keys: by them a service knows a request that it has had before."""

import re
import uuid

from core.errors import InvalidInputError, shown

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
"""What a service takes for one."""


def key_of(own: str | None) -> str:
    """The user's own, or a new one.

    Raises:
        InvalidInputError: it is none.
    """
    if own is None:
        return str(uuid.uuid4())
    if not _KEY.fullmatch(own):
        raise InvalidInputError(f"{shown(own)} is no idempotency key: 1 to 255 visible ASCII characters.")
    return own
