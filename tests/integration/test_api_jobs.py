"""Jobs over HTTP: submit, look up, list, cancel."""

import threading
import time
from datetime import datetime

import pytest

from core.jobs.defaults import TRAINING_DEFAULTS
from core.jobs.state import Status
from core.progress import Failed, PhaseStarted, StepDone, Warned
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
    assert job["queue"] == {"position": 1, "reason": "No worker is running."}
    assert job["created_at"].endswith("Z")
    assert service.http.get(answer.headers["location"]).json() == job
    deadline = time.monotonic() + 5
    while service.store.undispatched(30) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert service.dispatcher.sent[-1] == job["id"]
    assert service.store.undispatched(30) == []


def test_job_is_accepted_while_the_broker_is_down(service):
    service.dispatcher.reachable = False
    job = submit(service)
    assert service.store.undispatched(30) == [job["id"]]


def test_a_free_worker_is_waited_for(service):
    service.store.worker_seen("w", ["cpu"])
    assert submit(service)["queue"]["reason"] == "Waits for a free worker."


def test_repeated_request_makes_one_job(service):
    headers = {"Idempotency-Key": "order-1"}
    first = service.http.post("/v1/jobs", json=DEMO, headers=headers)
    again = service.http.post("/v1/jobs", json=DEMO, headers=headers)
    assert "idempotency-replayed" not in first.headers
    assert again.status_code == 202
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    other = service.http.post("/v1/jobs", json=DEMO | {"name": "x"}, headers=headers)
    assert "Idempotency-Key" in assert_problem(other, 422, "invalid_input")["detail"]
    assert len(service.http.get("/v1/jobs").json()["data"]) == 1


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
    began = time.monotonic()
    answer = service.http.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": etag, "Prefer": "wait=20"})
    assert answer.json()["status"] == "starting"
    assert answer.headers["preference-applied"] == "wait=20"
    assert 0.3 < time.monotonic() - began < 10


def test_waiting_ends_when_the_time_is_up(service):
    job_id = submit(service)["id"]
    began = time.monotonic()
    assert service.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=1"}).json()["status"] == "queued"
    assert 1 <= time.monotonic() - began < 5


def test_waits_are_capped_and_nonsense_is_ignored(service):
    job_id = submit(service)["id"]
    service.store.request_cancel(job_id)
    long = service.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "respond-async, wait=999999"})
    assert long.headers["preference-applied"] == "wait=60"
    nonsense = service.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=soon"})
    assert "preference-applied" not in nonsense.headers


def test_many_waiters_hold_up_nobody(service):
    job_id = submit(service)["id"]
    path, headers = f"/v1/jobs/{job_id}", {"Prefer": "wait=4"}
    waiters = [threading.Thread(target=service.http.get, args=(path,), kwargs={"headers": headers}) for _ in range(60)]
    for waiter in waiters:
        waiter.start()
    time.sleep(0.5)
    began = time.monotonic()
    assert service.http.get("/healthz").status_code == 200
    assert time.monotonic() - began < 2
    service.store.request_cancel(job_id)
    for waiter in waiters:
        waiter.join()


# ---- lists ---------------------------------------------------------------------------------------------------------


def test_pages_follow_the_link(service):
    made = [submit(service)["id"] for _ in range(5)]
    seen, url = [], "/v1/jobs?limit=2"
    while url:
        answer = service.http.get(url)
        page = answer.json()
        seen += [job["id"] for job in page["data"]]
        link = answer.headers.get("link")
        assert page["has_more"] == bool(link)
        url = link and link.removeprefix("<").partition(">")[0]
    assert seen == made[::-1]


def test_list_by_status(service):
    kept, cancelled = submit(service)["id"], submit(service)["id"]
    service.store.request_cancel(cancelled)
    listed = service.http.get("/v1/jobs", params={"status": "cancelled", "limit": 1}).json()
    assert [job["id"] for job in listed["data"]] == [cancelled]
    assert [job["id"] for job in service.http.get("/v1/jobs?status=queued").json()["data"]] == [kept]


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


# ---- cancel --------------------------------------------------------------------------------------------------------


def test_queued_job_is_cancelled_at_once(service):
    job_id = submit(service)["id"]
    answer = service.http.post(f"/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    problem = assert_problem(service.http.post(f"/v1/jobs/{job_id}/cancel"), 409, "conflict")
    assert "is cancelled" in problem["detail"]


def test_running_job_is_asked_to_stop(service):
    job_id = submit(service)["id"]
    lease = service.store.claim(job_id, "worker")
    for _ in range(2):
        answer = service.http.post(f"/v1/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
    assert service.store.renew(lease) is Status.CANCELLING


@pytest.mark.parametrize("job_id", ["job_" + "0" * 32, "job_x", "%00", "job_%ff", "x" * 5000])
@pytest.mark.parametrize(
    ("method", "below"),
    [("GET", ""), ("POST", "/cancel"), ("GET", "/events"), ("GET", "/artifacts"), ("GET", "/artifacts/x")],
)
def test_unknown_jobs_are_not_found(service, method, below, job_id):
    assert_problem(service.http.request(method, f"/v1/jobs/{job_id}{below}"), 404, "not_found")
