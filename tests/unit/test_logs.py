"""One form of log for our own records and those of libraries."""

import json
import logging
import logging.config

import pytest
import structlog
import uvicorn

from core import logs

pytestmark = pytest.mark.usefixtures("logging_restored")


def test_json_has_one_object_a_line_with_its_context(capfd):
    logs.configure("json")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("ours").info("accepted", job="j1")
        logging.getLogger("library").warning("disk %s", "full")
    ours, theirs = map(json.loads, capfd.readouterr().err.splitlines())
    assert (ours["event"], ours["job"], ours["request_id"], ours["level"]) == ("accepted", "j1", "r1", "info")
    assert (theirs["event"], theirs["request_id"], theirs["logger"]) == ("disk full", "r1", "library")
    assert ours["timestamp"].endswith("Z")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_tracebacks_show_no_variables(capfd, log_format):
    logs.configure(log_format)
    secret = "pass" + "word"
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger("ours").exception("failed")
    logged = capfd.readouterr().err
    assert "ValueError: broken" in logged
    assert secret not in logged


@pytest.mark.parametrize(("log_format", "start"), [("json", "{"), ("console", "2")])
def test_the_servers_loggers_are_taken_over(capfd, log_format, start):
    logging.config.dictConfig(uvicorn.config.LOGGING_CONFIG)
    logs.configure(log_format)
    logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\x1b[36mStarted"})
    logging.getLogger("uvicorn.access").info('%s - "GET"', "host")
    out, err = capfd.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert [line[0] for line in err.splitlines()] == [start, start]


def test_the_servers_log_of_requests_stays_silent_where_it_was_silenced(capfd):
    uvicorn.Config("api.app:create_app", access_log=False)
    logs.configure("json")
    assert not logging.getLogger("uvicorn.access").hasHandlers()
