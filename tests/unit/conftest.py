"""What unit tests share."""

import logging

import pytest
import structlog


@pytest.fixture
def logging_restored():
    """Leaves logging as it was: whoever configures it does so for the whole process, which goes on with other tests."""
    loggers = [logging.getLogger(name) for name in (None, "uvicorn", "uvicorn.error", "uvicorn.access")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
    structlog.reset_defaults()
