"""Logging of every process: one line an event, to read (console) or to parse (json), with its context bound."""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_SERVER = ("uvicorn", "uvicorn.access")
"""Loggers to which uvicorn gives handlers of its own before it loads the application."""


def configure(log_format: str, level: int = logging.INFO) -> None:
    """Send structlog's and the standard library's records, libraries' included, to stderr in one form."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _without_colours,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        rendered: list[Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # The plain traceback: the default one prints local variables, users' data among them.
        plain = structlog.dev.plain_traceback
        rendered = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for logger in map(logging.getLogger, _SERVER):
        if logger.handlers:  # none: uvicorn was told to keep that log silent
            logger.handlers.clear()
            logger.propagate = True
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _without_colours(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Without uvicorn's second copy of its messages, which is for terminals."""
    event.pop("color_message", None)
    return event
