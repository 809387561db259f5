"""Reads a job's spec for the command line."""

import json
import sys
from math import isfinite
from pathlib import Path

from client.answers import Json
from core.errors import InvalidInputError


def read_spec(source: str) -> Json:
    """The JSON object in a file, or in standard input for `-`.

    Raises:
        InvalidInputError: it cannot be read, or is none.
        RecursionError: it is nested too deeply.
    """
    try:
        text = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        spec = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except OSError as error:
        raise InvalidInputError(f"{source} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InvalidInputError(f"{source} is not JSON: {error}.") from error
    if not isinstance(spec, dict):
        raise InvalidInputError(f"{source} must hold one JSON object, the job's spec.")
    return spec


def _finite(number: str) -> float:
    if not isfinite(value := float(number)):
        raise ValueError(f"{number} is no finite number")
    return value
