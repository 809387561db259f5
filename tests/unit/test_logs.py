"""One form of log for our own records and those of libraries."""

import json
import logging
import subprocess
import sys

import pytest
import structlog

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


SERVER = """
import logging, sys, uvicorn
from core import logs

uvicorn.Config("api.app:create_app", access_log=sys.argv[2] == "access_log")
logs.configure(sys.argv[1])
logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\\x1b[36mStarted"})
logging.getLogger("uvicorn.access").info('%s - "GET"', "host")
"""


def server_logs(*arguments):
    """What a server logs, of whose loggers uvicorn has taken hold.

    In a process of its own: uvicorn closes all handlers there are, and some of them close the stream they write to.
    """
    server = subprocess.run([sys.executable, "-c", SERVER, *arguments], capture_output=True, text=True, check=True)
    assert server.stdout == ""
    return server.stderr


@pytest.mark.parametrize(("log_format", "start"), [("json", "{"), ("console", "2")])
def test_the_servers_loggers_are_taken_over(log_format, start):
    logged = server_logs(log_format, "access_log")
    assert "\x1b" not in logged
    assert [line[0] for line in logged.splitlines()] == [start, start]


def test_the_servers_log_of_requests_stays_silent_where_it_was_silenced():
    (started,) = server_logs("json", "no access_log").splitlines()
    assert json.loads(started)["event"] == "Started"
