"""Jobs over HTTP: submit, look up, list; cancel, pause, resume, retry; their attempts."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial

import pytest
import sqlalchemy as sa

from api.routes.jobs import _dispatch
from core.db import jobs, utcnow
from core.jobs.defaults import TRAINING_DEFAULTS
from core.jobs.state import Status
from core.progress import Failed, PhaseStarted, StepDone, Warned
from tests.apis import LIVE_SECONDS, SILENT_SECONDS, until
from tests.problems import assert_problem
from tests.specs import DEMO

TIMESTAMPS = ("created_at", "started_at", "finished_at")


def submit(service, **changes):
    answer = service.http.post("/v1/jobs", json=DEMO | changes)
    assert answer.status_code == 202, answer.text
    return answer.json()


def test_submitted_job_is_accepted_stored_and_sent(service):
    answer = service.http.post("/v1/jobs", json=DEMO | {"name": "demo", "labels": {"team": "search"}})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert (job["object"], job["status"], job["name"], job["labels"]) == ("job", "queued", "demo", {"team": "search"})
    assert job["spec"]["training"]["learning_rate"] is None
    assert job["resolved_spec"]["training"]["learning_rate"] == TRAINING_DEFAULTS["sentence-embedding"].learning_rate
    assert job["queue"] == {"position": 1, "reason": "No worker that can take jobs is running."}
    assert job["created_at"].endswith("Z")
    assert service.http.get(answer.headers["location"]).json() == job
    until(lambda: service.store.undispatched(30) == [])
    assert service.dispatcher.sent[-1] == job["id"]


def test_job_is_accepted_while_the_broker_is_down(service):
    service.dispatcher.reachable = False
    job = submit(service)
    _dispatch(service.dispatcher, service.store, job["id"])  # that of the request may be still to come
    assert service.store.undispatched(30) == [job["id"]]


@pytest.mark.parametrize(
    ("seen_seconds_ago", "reason"),
    [(LIVE_SECONDS, "Waits for a free worker."), (SILENT_SECONDS, "No worker that can take jobs is running.")],
)
def test_only_a_worker_that_was_seen_lately_is_waited_for(service, seen_seconds_ago, reason):
    service.see_worker("w", seen_seconds_ago)
    assert submit(service)["queue"]["reason"] == reason


def test_repeated_request_makes_one_job(service):
    headers = {"Idempotency-Key": "order-1"}
    first = service.http.post("/v1/jobs", json=DEMO, headers=headers)
    again = service.http.post("/v1/jobs", json=DEMO, headers=headers)
    assert "idempotency-replayed" not in first.headers
    until(lambda: service.store.undispatched(30) == [])
    assert again.status_code == 202
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    other = service.http.post("/v1/jobs", json=DEMO | {"name": "x"}, headers=headers)
    assert "Idempotency-Key" in assert_problem(other, 422, "invalid_input")["detail"]
    assert len(service.http.get("/v1/jobs").json()["data"]) == 1
    later = submit(service)["id"]
    until(lambda: later in service.dispatcher.sent)
    assert service.dispatcher.sent.count(first.json()["id"]) == 1


def test_running_job_shows_what_it_does(service):
    job_id = submit(service)["id"]
    lease = service.store.claim(job_id, "worker")
    service.store.start(lease)
    service.store.record(lease, PhaseStarted(phase="pruning"))
    service.store.record(lease, StepDone(fraction=0.5, step=1, total_steps=2, eta_seconds=9, metrics={"loss": 1.5}))
    service.store.record(lease, Warned(message="short texts"))
    job = service.http.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["phase"], job["attempt"], job["queue"]) == ("running", "pruning", 1, None)
    assert job["progress"]["metrics"] == {"loss": 1.5}
    assert datetime.fromisoformat(job["progress"]["eta_at"]).tzinfo
    assert job["warnings"] == ["short texts"]
    assert job["durations"]["queued_seconds"] >= 0
    assert job["durations"]["run_seconds"] is None


def test_failed_job_says_why(service):
    job_id = submit(service)["id"]
    lease = service.store.claim(job_id, "worker")
    service.store.finish(lease, Failed(code="invalid_input", message="no column 'x'", param="/task/text_column"))
    job = service.http.get(f"/v1/jobs/{job_id}").json()
    assert job["status"] == "failed"
    assert job["error"] == {
        "code": "invalid_input",
        "message": "no column 'x'",
        "param": "/task/text_column",
        "retryable": False,
        "phase": None,
        "attempt": 1,
    }


def test_durations_are_told_once_they_are_known(service, engine):
    job_id = submit(service)["id"]
    assert service.http.get(f"/v1/jobs/{job_id}").json()["durations"] == {"queued_seconds": None, "run_seconds": None}
    service.succeed(job_id, {})
    times = {"created_at": utcnow(-60), "started_at": utcnow(-50), "finished_at": utcnow(-20)}
    with engine.begin() as connection:
        connection.execute(sa.update(jobs).values(**times))
    durations = service.http.get(f"/v1/jobs/{job_id}").json()["durations"]
    assert durations == {"queued_seconds": pytest.approx(10, abs=0.5), "run_seconds": pytest.approx(30, abs=0.5)}


# ---- conditional requests ------------------------------------------------------------------------------------------


def test_unchanged_job_is_not_sent_again(service):
    job_id = submit(service)["id"]
    etag = service.http.get(f"/v1/jobs/{job_id}").headers["etag"]
    assert etag.startswith('W/"')
    unchanged = service.http.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    service.store.request_cancel(job_id)
    changed = service.http.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


def test_waiting_ends_when_the_job_changes(service):
    job_id = submit(service)["id"]
    etag = service.http.get(f"/v1/jobs/{job_id}").headers["etag"]
    threading.Timer(0.4, service.store.claim, (job_id, "worker")).start()
    # The client's own patience is shorter; without waiting the answer would be that nothing has changed.
    answer = service.http.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": etag, "Prefer": "wait=60"})
    assert answer.json()["status"] == "starting"
    assert answer.headers["preference-applied"] == "wait=60"


def test_waiting_ends_when_the_time_is_up(service):
    job_id = submit(service)["id"]
    began = time.monotonic()
    assert service.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=1"}).json()["status"] == "queued"
    assert time.monotonic() - began >= 1


def test_nobody_waits_for_a_job_that_has_ended(service):
    job_id = submit(service)["id"]
    service.store.request_cancel(job_id)
    etag = service.http.get(f"/v1/jobs/{job_id}").headers["etag"]
    headers = {"If-None-Match": etag, "Prefer": "wait=60"}
    assert service.http.get(f"/v1/jobs/{job_id}", headers=headers, timeout=5).status_code == 304


def test_waits_are_capped_and_nonsense_is_ignored(service):
    job_id = submit(service)["id"]
    service.store.request_cancel(job_id)
    long = service.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "respond-async, wait=999999"})
    assert long.headers["preference-applied"] == "wait=60"
    nonsense = service.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=soon"})
    assert "preference-applied" not in nonsense.headers


def test_many_waiters_hold_up_nobody(service, monkeypatch):
    arrived = []
    monkeypatch.setattr("api.routes.jobs._wait_seconds", lambda prefer: arrived.append(prefer) or 60)
    job_id = submit(service)["id"]
    with ThreadPoolExecutor(60) as pool:
        waiters = [pool.submit(partial(service.http.get, f"/v1/jobs/{job_id}", timeout=90)) for _ in range(60)]
        try:
            until(lambda: len(arrived) == 60)
            assert service.http.get("/healthz").status_code == 200
            # Held up, it would have been answered after them.
            assert not any(waiter.done() for waiter in waiters)
        finally:
            service.store.request_cancel(job_id)
    answers = [waiter.result() for waiter in waiters]
    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(200, "cancelled")] * 60


# ---- lists ---------------------------------------------------------------------------------------------------------


def pages(service, url):
    """The ids on each page, from this one on."""
    found = []
    while url:
        answer = service.http.get(url)
        page = answer.json()
        found.append([job["id"] for job in page["data"]])
        link = answer.headers.get("link")
        assert page["has_more"] == bool(link)
        url = link and link.removeprefix("<").partition(">")[0]
    return found


def test_pages_follow_the_link(service):
    made = [submit(service)["id"] for _ in range(5)]
    assert pages(service, "/v1/jobs?limit=2") == [[made[4], made[3]], [made[2], made[1]], [made[0]]]


def test_list_by_status(service):
    made = [submit(service)["id"] for _ in range(5)]
    for cancelled in made[::2]:
        service.store.request_cancel(cancelled)
    assert pages(service, "/v1/jobs?limit=2&status=cancelled") == [[made[4], made[2]], [made[0]]]
    assert pages(service, "/v1/jobs?limit=2&status=queued") == [[made[3], made[1]]]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("cursor=%00", "cursor"),
        ("status=done", "status"),
    ],
)
def test_bad_list_parameters_are_named(service, query, parameter):
    assert_problem(service.http.get(f"/v1/jobs?{query}"), 422, "invalid_input", parameter)


# ---- cancel, pause, resume, retry ----------------------------------------------------------------------------------


def test_queued_job_is_cancelled_at_once(service):
    job_id = submit(service)["id"]
    answer = service.http.post(f"/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    problem = assert_problem(service.http.post(f"/v1/jobs/{job_id}/cancel"), 409, "conflict")
    assert "is cancelled" in problem["detail"]


@pytest.mark.parametrize(("verb", "status"), [("cancel", Status.CANCELLING), ("pause", Status.PAUSING)])
def test_running_job_is_asked_to_stop(service, verb, status):
    job_id = submit(service)["id"]
    lease = service.store.claim(job_id, "worker")
    for _ in range(2):
        answer = service.http.post(f"/v1/jobs/{job_id}/{verb}")
        assert (answer.status_code, answer.json()["status"]) == (202, status)
    assert service.store.renew(lease) is status


def test_queued_job_is_paused_at_once_and_resumed(service):
    job_id = submit(service)["id"]
    for _ in range(2):
        answer = service.http.post(f"/v1/jobs/{job_id}/pause")
        assert (answer.status_code, answer.json()["status"]) == (200, "paused")
    answer = service.http.post(f"/v1/jobs/{job_id}/resume")
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    until(lambda: service.dispatcher.sent.count(job_id) == 2)


def fail(store, job_id):
    store.finish(store.claim(job_id, "worker"), Failed(code="internal", message="broken"))


def cancel(store, job_id):
    store.request_cancel(job_id)


def expire(store, job_id):
    assert store.expire(-1) == [job_id]


@pytest.mark.parametrize("end", [fail, cancel, expire])
def test_a_job_that_ended_without_a_bundle_is_tried_again(service, end):
    job_id = submit(service)["id"]
    end(service.store, job_id)
    answer = service.http.post(f"/v1/jobs/{job_id}/retry")
    assert answer.status_code == 200
    job = answer.json()
    assert (job["status"], job["queue"]["position"], job["error"], job["finished_at"]) == ("queued", 1, None, None)
    until(lambda: service.dispatcher.sent.count(job_id) == 2)
    until(lambda: service.store.undispatched(30) == [])


@pytest.mark.parametrize("action", ["cancel", "pause", "resume", "retry"])
def test_a_job_that_succeeded_stays_as_it_is(service, action):
    job_id = submit(service)["id"]
    service.succeed(job_id, {})
    problem = assert_problem(service.http.post(f"/v1/jobs/{job_id}/{action}"), 409, "conflict")
    assert "is succeeded" in problem["detail"]


@pytest.mark.parametrize("action", ["resume", "retry"])
def test_a_queued_job_is_not_queued_again(service, action):
    job_id = submit(service)["id"]
    problem = assert_problem(service.http.post(f"/v1/jobs/{job_id}/{action}"), 409, "conflict")
    assert "is queued" in problem["detail"]


def test_a_job_is_deleted_once_it_has_ended(service):
    job = submit(service)
    path = job["links"]["self"]
    assert (
        "is queued; only a job that has ended" in assert_problem(service.http.delete(path), 409, "conflict")["detail"]
    )
    service.succeed(job["id"], {"report.json": b"{}"})
    answer = service.http.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-type" not in answer.headers
    for link in ("self", "artifacts", "events", "attempts"):
        assert_problem(service.http.get(job["links"][link]), 404, "not_found")
    assert_problem(service.http.get(f"{path}/artifacts/report.json"), 404, "not_found")
    assert service.http.get("/v1/jobs").json()["data"] == []


def test_a_job_tells_when_it_will_be_deleted(service, monkeypatch):
    job_id = submit(service)["id"]
    limited = service.settings.model_copy(update={"retention_seconds": 3600.0})
    monkeypatch.setattr("api.deps.Services.settings", limited)
    assert service.http.get(f"/v1/jobs/{job_id}").json()["kept_until"] is None
    service.succeed(job_id, {})
    job = service.http.get(f"/v1/jobs/{job_id}").json()
    kept = datetime.fromisoformat(job["kept_until"]) - datetime.fromisoformat(job["finished_at"])
    assert kept.total_seconds() == 3600
    monkeypatch.undo()
    assert service.http.get(f"/v1/jobs/{job_id}").json()["kept_until"] is None


def test_attempts_tell_whose_they_were_and_how_they_ended(service):
    job_id = submit(service)["id"]
    service.store.hand_back(service.store.claim(job_id, "first"), "its worker was shut down")
    service.store.claim(job_id, "second")
    told = service.http.get(f"/v1/jobs/{job_id}/attempts").json()["data"]
    assert all(attempt.pop("started_at") for attempt in told)
    assert told[0].pop("ended_at")
    assert told == [
        {"number": 1, "worker": "first", "outcome": "handed_back", "reason": "its worker was shut down"},
        {"number": 2, "worker": "second", "ended_at": None, "outcome": None, "reason": None},
    ]


@pytest.mark.parametrize("job_id", ["job_" + "0" * 32, "job_x", "%00", "job_%ff", "x" * 5000])
@pytest.mark.parametrize(
    ("method", "below"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("POST", "/retry"),
        ("GET", "/attempts"),
        ("GET", "/events"),
        ("GET", "/artifacts"),
        ("GET", "/artifacts/x"),
    ],
)
def test_unknown_jobs_are_not_found(service, method, below, job_id):
    assert_problem(service.http.request(method, f"/v1/jobs/{job_id}{below}"), 404, "not_found")
