"""Conditional and partial requests (RFC 9110): entity tags and byte ranges."""

import re
from dataclasses import dataclass

_ETAG = re.compile(r'(?:W/)?"([^"]*)"')
# Nothing is longer than 19 digits of bytes, and int() refuses thousands of them.
_RANGE = re.compile(r"bytes=(?:(\d{1,19})-(\d{0,19})|-(\d{1,19}))", re.ASCII)


def is_named(etag: str, header: str | None) -> bool:
    """Whether an If-None-Match or If-Match header names the tag; weak comparison."""
    if header is None:
        return False
    return header.strip() == "*" or _ETAG.findall(etag)[0] in _ETAG.findall(header)


@dataclass(frozen=True, slots=True)
class Slice:
    """The bytes `start` … `end` (exclusive)."""

    start: int
    end: int


class UnsatisfiableRangeError(ValueError):
    """No byte of the range exists."""


def parse_range(header: str | None, size: int) -> Slice | None:
    """The one range that is asked for; None for the whole, which is also the answer to what is not understood.

    Raises:
        UnsatisfiableRangeError: the range lies outside of the `size` bytes.
    """
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(size - int(suffix), 0), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < int(first):
            return None
    if start >= end:
        raise UnsatisfiableRangeError(header)
    return Slice(start, end)
