"""What unit tests share."""

import logging

import pytest
import structlog


@pytest.fixture
def logging_restored():
    """Leaves logging as it was: whoever configures it does so for the whole process, which goes on with other tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
