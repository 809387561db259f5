"""One form of log for our own records and those of libraries."""

import json
import logging

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
