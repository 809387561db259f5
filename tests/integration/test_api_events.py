"""A job's history over HTTP: pages and live streams."""

import json
import threading
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from core.db import jobs
from core.jobs.records import Job
from core.progress import Failed, PhaseStarted, StepDone
from tests.databases import SQLITE_ONLY
from tests.problems import assert_problem
from tests.specs import demo_spec

pytestmark = SQLITE_ONLY

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def job_id(service):
    return service.store.create(demo_spec(), name=None, labels={})[0].id


def parse(text):
    """Server-sent events as dicts; comments left out."""
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    return [dict(line.split(": ", 1) for line in block if not line.startswith(":")) for block in blocks]


def work(store, job_id):
    lease = store.claim(job_id, "worker")
    store.start(lease)
    store.record(lease, PhaseStarted(phase="pruning"))
    store.record(lease, StepDone(fraction=0.5))
    store.finish(lease, Failed(code="internal", message="broken"))


def test_pages_follow_the_link(service, job_id):
    work(service.store, job_id)
    seqs, url = [], f"/v1/jobs/{job_id}/events?limit=4"
    while url:
        answer = service.http.get(url)
        seqs += [event["seq"] for event in answer.json()["data"]]
        url = answer.headers.get("link", "").removeprefix("<").partition(">")[0]
    assert seqs == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("query", ["after=-1", "after=x", "after=99999999999999999999", "limit=0"])
def test_bad_page_parameters_are_named(service, job_id, query):
    answer = service.http.get(f"/v1/jobs/{job_id}/events?{query}")
    assert_problem(answer, 422, "invalid_input", query.partition("=")[0])


def test_stream_shows_a_job_as_it_goes_and_ends(service, job_id):
    threading.Timer(0.5, work, (service.store, job_id)).start()
    with service.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-request-id"]
        events = parse(answer.read().decode())
    assert [event["event"] for event in events] == [
        "status", "status", "status", "phase", "progress", "status", "done",
    ]  # fmt: skip
    assert [event.get("id") for event in events] == ["1", "2", "3", "4", "5", "6", None]
    assert json.loads(events[-1]["data"]) == {"status": "failed"}
    assert json.loads(events[5]["data"])["data"]["error"]["message"] == "broken"


@pytest.mark.parametrize(
    "resume",
    [
        {"headers": {"Last-Event-ID": "4"}},
        {"params": {"after": 4}},
        # As an EventSource that comes back: it keeps the address that it began with.
        {"headers": {"Last-Event-ID": "4"}, "params": {"after": 2}},
    ],
)
def test_stream_resumes(service, job_id, resume):
    work(service.store, job_id)
    headers = STREAM | resume.get("headers", {})
    answer = service.http.get(f"/v1/jobs/{job_id}/events", headers=headers, params=resume.get("params"))
    assert [event.get("id") for event in parse(answer.text)] == ["5", "6", None]


def test_a_long_history_is_streamed_to_its_end(service, job_id, monkeypatch):
    """In batches, of which the last may be full."""
    monkeypatch.setattr("api.routes.events.BATCH", 2)
    work(service.store, job_id)
    answer = service.http.get(f"/v1/jobs/{job_id}/events", headers=STREAM)
    assert [event.get("id") for event in parse(answer.text)] == ["1", "2", "3", "4", "5", "6", None]


def test_finished_stream_is_not_started_again(service, job_id):
    work(service.store, job_id)
    answer = service.http.get(f"/v1/jobs/{job_id}/events", headers=STREAM | {"Last-Event-ID": "6"})
    assert (answer.status_code, answer.content) == (204, b"")


def test_stream_of_a_running_job_is_started_again_where_nothing_is_new(service, job_id):
    headers = STREAM | {"Last-Event-ID": "1"}
    with service.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        work(service.store, job_id)
        assert [event.get("id") for event in parse(answer.read().decode())] == ["2", "3", "4", "5", "6", None]


def test_a_stream_ends_where_its_job_is_deleted(service, job_id, monkeypatch):
    monkeypatch.setattr("api.routes.events.POLL_SECONDS", 0.1)
    with service.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: status"
        with service.store._writer.begin() as connection:
            connection.execute(sa.delete(jobs))
        assert not [line for line in lines if line.startswith("event: ")]


def test_a_job_that_is_watched_is_not_read_again_and_again(service, job_id, monkeypatch):
    reads = []

    def count(row):
        reads.append(row["id"])
        return Job.of(row)

    monkeypatch.setattr("api.routes.events.POLL_SECONDS", 0.05)
    monkeypatch.setattr("api.routes.jobs.POLL_SECONDS", 0.05)
    lease = service.store.claim(job_id, "worker")
    monkeypatch.setattr("core.jobs.store.Job", SimpleNamespace(of=count))
    assert service.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=1"}).json()["status"] == "starting"
    threading.Timer(1, service.store.finish, (lease, Failed(code="internal", message="broken"))).start()
    assert "event: done" in service.http.get(f"/v1/jobs/{job_id}/events", headers=STREAM).text
    assert len(reads) <= 3


def test_stream_of_no_job_is_a_problem(service):
    answer = service.http.get(f"/v1/jobs/job_{'0' * 32}/events", headers=STREAM)
    assert_problem(answer, 404, "not_found")


def test_bad_resume_point_is_a_problem(service, job_id):
    answer = service.http.get(f"/v1/jobs/{job_id}/events", headers=STREAM | {"Last-Event-ID": "last"})
    assert_problem(answer, 422, "invalid_input", "last-event-id")


def test_silent_stream_is_kept_alive(service, job_id, monkeypatch):
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.2)
    with service.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as answer:
        assert any(line.startswith(":") for line in answer.iter_lines())
        # leaving the block hangs up on an endless stream; the server must take that well
    assert service.http.get("/healthz").status_code == 200


def test_many_streams_hold_up_nobody(service, job_id):
    done = []

    def follow():
        done.append(parse(service.http.get(f"/v1/jobs/{job_id}/events", headers=STREAM).text)[-1]["event"])

    followers = [threading.Thread(target=follow) for _ in range(60)]
    for follower in followers:
        follower.start()
    assert service.http.get("/healthz").status_code == 200
    work(service.store, job_id)
    for follower in followers:
        follower.join(20)
    assert done == ["done"] * 60
