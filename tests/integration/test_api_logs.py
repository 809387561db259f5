"""The API's process writes one form of log, the server's own lines included."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from core.db import upgrade
from tests.servers import START_SECONDS, free_port

DOCKERFILE = Path(__file__).parents[2] / "docker" / "api.Dockerfile"


@pytest.fixture
def environment(tmp_path):
    url = f"sqlite:///{tmp_path}/neuroprune.db"
    upgrade(url)
    return os.environ | {
        "NEUROPRUNE_LOG_FORMAT": "json",
        "NEUROPRUNE_DATABASE_URL": url,
        "NEUROPRUNE_STORAGE_URL": str(tmp_path / "storage"),
        "NEUROPRUNE_BROKER_URL": f"redis+socket://{tmp_path}/r.sock",
    }


def image_command(port):
    """What the image starts, on another port."""
    lines_joined = DOCKERFILE.read_text().replace("\\\n", "")
    command = re.search(r'^CMD (\["uvicorn".*\])$', lines_joined, re.MULTILINE)
    arguments = json.loads(command[1])
    arguments[arguments.index("--port") + 1] = str(port)
    return [sys.executable, "-m", *arguments]


def logged(command, environment, port, log):
    """What the server writes from its start, over one request, to its end."""
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as server:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not answers(port):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        finally:
            server.terminate()
    return log.read_text().splitlines()


def answers(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("options", [[], ["--no-access-log"]], ids=["as the image", "as neuroprune up"])
def test_every_line_is_an_object(environment, tmp_path, options):
    port = free_port()
    lines = logged([*image_command(port), *options], environment, port, tmp_path / "log")
    records = [json.loads(line) for line in lines]
    assert any(record["event"].startswith("Uvicorn running") for record in records)
    assert not any("color_message" in record for record in records)
    requests = [record for record in records if record["logger"] == "uvicorn.access"]
    assert bool(requests) is not bool(options)
    assert all(record["request_id"] for record in requests)
