"""The closed list of reasons for which a job fails."""

import re
from pathlib import Path
from typing import get_args

import pytest

from core.errors import ErrorCode

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def given() -> set[str]:
    """Codes that some line of the service gives to a failure."""
    sources = [path.read_text() for folder in ("core", "worker") for path in (ROOT / folder).rglob("*.py")]
    return {code for text in sources for code in re.findall(r'(?:ErrorCode = |code=|JobFailure\()"(\w+)"', text)}


def test_the_list_holds_what_is_given_and_nothing_else(given: set[str]) -> None:
    assert given == set(get_args(ErrorCode))
