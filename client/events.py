"""A job's history as the service sends it."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from client.answers import Json


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a job's history; `seq` counts from 1 and resumes a stream."""

    seq: int
    type: str
    data: Json


def parse_events(chunks: Iterable[str]) -> Iterator[Event]:
    """Server-sent events: fields up to an empty line make one; comments are pings."""
    fields: dict[str, list[str]] = {}
    for line in _lines(chunks):
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        elif fields:
            if "data" in fields:
                data = json.loads("\n".join(fields["data"]))
                yield Event(int(fields.get("id", ["0"])[-1]), fields.get("event", ["message"])[-1], data)
            fields = {}


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """The lines that are whole. Only \\n ends one: JSON may hold whatever else does so in Unicode."""
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from lines
