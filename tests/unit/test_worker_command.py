"""`python -m worker`: what it says and how it ends, as far as it does not begin to work."""

import os
import subprocess
import sys

import pytest


def worker(*arguments, **environment):
    command = [sys.executable, "-m", "worker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "said"),
    [
        (["--bogus"], {}, 2, "No such option '--bogus'"),
        ([], {"NEUROPRUNE_MAX_ATTEMPTS": "x"}, 1, "NEUROPRUNE_MAX_ATTEMPTS: Input should be a valid integer"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(arguments, environment, code, said):
    ended = worker(*arguments, **environment)
    assert ended.returncode == code
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
