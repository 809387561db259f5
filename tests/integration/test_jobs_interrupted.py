"""Jobs that are cancelled, killed or orphaned, on SQLite and on PostgreSQL."""

import os
import signal
import sys
from contextlib import suppress

import httpx
import pytest

from client.sdk import ApiError
from tests.apis import until
from tests.integration.conftest import POSTGRESQL, SQLITE
from tests.integration.stack import ENDED, PATIENCE_SECONDS, parent_of, runners

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

on_both = pytest.mark.parametrize("stack", [SQLITE, POSTGRESQL], indirect=True, scope="session")
on_sqlite = pytest.mark.parametrize(
    "stack", [SQLITE, pytest.param(POSTGRESQL, marks=pytest.mark.thorough)], indirect=True, scope="session"
)
"""Where the database has no part in it that the store's own tests leave open, the other one is for `make thorough`."""


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def assert_worker_does_a_job(stack):
    """It is a job that ends at once, in an error that only a job's process finds."""
    spec = {
        "model": {"source": "path", "path": "/"},
        "task": {"name": "sentence-embedding", "data": {"source": "builtin", "name": "python-docs"}},
        "target": {"sparsity": 0.5},
    }
    assert stack.finished(stack.submit(spec))["error"]["code"] == "invalid_input"


def checkpoints_of(stack, job_id):
    url = f"{stack.stack.url}/v1/jobs/{job_id}/events"
    answer = httpx.get(url, params={"limit": 500}, trust_env=False).raise_for_status()
    return [event["data"] for event in answer.json()["data"] if event["type"] == "checkpoint"]


def assert_goes_on(stack, job_id, attempt):
    """The attempt's training begins behind the newest checkpoint of the one before."""
    reached = checkpoints_of(stack, job_id)[-1]["step"]
    assert stack.training(job_id, attempt)["progress"]["step"] > reached >= 1


@pytest.fixture(autouse=True)
def _cancel_what_is_left(stack):
    """Whatever a test leaves running would keep the only worker from the next one's jobs."""
    yield
    for job in stack.client.jobs(limit=100)["data"]:
        if job["status"] not in ENDED:
            with suppress(ApiError):  # it has just ended
                stack.client.cancel(job["id"])
            stack.finished(job["id"])


@on_sqlite
def test_cancel_ends_a_running_job(stack, endless):
    job_id = stack.submit(endless)
    stack.training(job_id)
    pid = stack.runner_pid(job_id)
    assert stack.client.cancel(job_id)["status"] == "cancelling"
    assert stack.finished(job_id)["status"] == "cancelled"
    assert is_gone(pid)
    assert not list((stack.stack.state_dir / "work").iterdir())
    assert_worker_does_a_job(stack)


@on_both
def test_a_waiting_job_is_cancelled_at_once(stack, endless):
    running, waiting = stack.submit(endless), stack.submit(endless)
    stack.until(running, lambda job: job["status"] == "running")
    assert stack.client.job(waiting)["queue"]["position"] == 1
    assert stack.client.cancel(waiting)["status"] == "cancelled"
    stack.client.cancel(running)
    assert stack.finished(running)["status"] == "cancelled"


@on_sqlite
def test_a_killed_child_is_tried_again_and_the_worker_lives(stack, endless):
    job_id = stack.submit(endless)
    worker = stack.stack.service("worker").pid
    for attempt in (1, 2):
        stack.training(job_id, attempt)
        os.kill(stack.runner_pid(job_id, attempt), signal.SIGKILL)
    job = stack.finished(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "worker_lost")
    assert "SIGKILL" in job["error"]["message"]
    reasons = [e.data["reason"] for e in stack.history(job_id) if e.type == "status" and e.data["status"] == "queued"]
    assert "SIGKILL" in reasons[1]
    assert stack.stack.service("worker").pid == worker
    assert_worker_does_a_job(stack)


@on_both
def test_a_job_whose_worker_is_killed_is_taken_over(stack, endless):
    job_id = stack.submit(endless)
    stack.training(job_id)
    worker, runner = stack.stack.service("worker").pid, stack.runner_pid(job_id)
    assert parent_of(runner) == worker
    os.kill(runner, signal.SIGSTOP)  # which keeps it from ending by itself, as nobody reads its messages any more
    os.kill(worker, signal.SIGKILL)
    until(lambda: not runners(job_id), PATIENCE_SECONDS)
    job = stack.training(job_id, attempt=2)
    assert job["status"] == "running"
    stack.client.cancel(job_id)
    assert stack.finished(job_id)["status"] == "cancelled"
    work = stack.stack.state_dir / "work"
    until(lambda: not list(work.iterdir()), PATIENCE_SECONDS)


@on_sqlite
def test_jobs_wait_for_a_broker_that_was_killed(stack):
    os.kill(stack.stack.service("broker").pid, signal.SIGKILL)
    until(lambda: not stack.stack.service("broker").is_running, PATIENCE_SECONDS)
    assert_worker_does_a_job(stack)


@on_sqlite
def test_a_worker_that_is_stopped_gives_its_job_back(stack, endless):
    job_id = stack.submit(endless)
    stack.training(job_id)
    stack.stack.service("worker").stop()
    job = stack.client.job(job_id)
    assert (job["status"], job["attempt"]) == ("queued", 1)
    assert [attempt["outcome"] for attempt in stack.client.attempts(job_id)] == ["handed_back"]
    assert not runners(job_id)
    assert_goes_on(stack, job_id, attempt=2)
    stack.client.cancel(job_id)
    assert stack.finished(job_id)["status"] == "cancelled"


@on_sqlite
def test_a_paused_job_goes_on_where_it_was(stack, endless):
    job_id = stack.submit(endless)
    stack.training(job_id)
    assert stack.client.pause(job_id)["status"] == "pausing"
    stack.until(job_id, lambda job: job["status"] == "paused")
    assert not runners(job_id)
    assert stack.client.resume(job_id)["status"] == "queued"
    assert_goes_on(stack, job_id, attempt=2)
    stack.client.cancel(job_id)
    assert stack.finished(job_id)["status"] == "cancelled"
    assert [attempt["outcome"] for attempt in stack.client.attempts(job_id)] == ["paused", "cancelled"]
