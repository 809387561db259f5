"""Garbage in: a problem detail out, nothing stored, nothing leaked."""

import json

import pytest

from api.app import MAX_BODY_BYTES
from tests.problems import assert_problem
from tests.specs import DEMO, upload_spec

JSON = {"Content-Type": "application/json"}


def assert_nothing_stored(service):
    assert service.http.get("/v1/jobs").json() == {"data": [], "has_more": False, "next_cursor": None}


def test_every_fault_of_a_body_is_named(service):
    answer = service.http.post("/v1/jobs", json=DEMO | {"target": {"sparsity": 2}, "colour": "red"})
    problem = assert_problem(answer, 422, "invalid_input", "/target/sparsity", "/colour")
    assert "0.95" in problem["errors"][0]["detail"]
    assert "model, task, method" in problem["errors"][1]["detail"]
    assert_nothing_stored(service)


def test_missing_upload_is_named(service):
    spec = upload_spec("file_" + "0" * 32).model_dump(mode="json")
    problem = assert_problem(service.http.post("/v1/jobs", json=spec), 422, "invalid_input", "/task/data/train")
    assert "POST /v1/files" in problem["detail"]
    assert_nothing_stored(service)


@pytest.mark.parametrize(
    ("body", "status", "code", "pointers"),
    [
        (b"", 422, "invalid_input", [""]),
        (b"null", 422, "invalid_input", [""]),
        (b"[]", 422, "invalid_input", [""]),
        (b'"x"', 422, "invalid_input", [""]),
        (b"{", 400, "invalid_input", [""]),
        (b'{"a": 1}}', 400, "invalid_input", [""]),
        (b"\xff", 400, "invalid_input", [""]),
        (b"\xff\xfe\x00", 400, "invalid_input", [""]),
        (b"[" * 60_000, 400, "invalid_input", [""]),
        (b"1" * 10_000, 400, "invalid_input", [""]),
        (json.dumps({"x" * 60_000: 1}).encode(), 422, "invalid_input", None),
        (json.dumps(DEMO | {"name": "\ud800"}).encode(), 422, "invalid_input", ["/name"]),
        (json.dumps(DEMO | {"\ud800": 1}).encode(), 422, "invalid_input", None),
        (json.dumps(DEMO | {"target": {"sparsity": float("inf")}}).encode(),
         422, "invalid_input", ["/target/sparsity"]),
        (json.dumps(DEMO | {"method": {"name": "neuroprune", "beta": 1}}).replace("1}", "1e999}").encode(),
         422, "invalid_input", ["/method/beta"]),
        (json.dumps({str(n): n for n in range(4000)}).encode(), 422, "invalid_input", None),
        (json.dumps(DEMO | {"target": {"frontier": [0.5, 2]}}).encode(), 422, "invalid_input", ["/target/frontier/1"]),
        (b" " * (MAX_BODY_BYTES + 1), 413, "content_too_large", []),
    ],
)  # fmt: skip
def test_broken_bodies(service, body, status, code, pointers):
    answer = service.http.post("/v1/jobs", content=body, headers=JSON)
    named = [error["pointer"] for error in answer.json()["errors"]] if pointers is None else pointers
    assert_problem(answer, status, code or answer.json()["code"], *named)
    assert len(answer.content) < 5000
    assert_nothing_stored(service)


@pytest.mark.parametrize(
    ("part", "detail"),
    [
        ({"export": {"formats": "onnx"}}, "/export/formats: Must be a list."),
        ({"labels": ["a"]}, "/labels: Must be an object."),
        ({"labels": None}, "/labels: Must be an object."),
    ],
)
def test_types_are_named_as_json_has_them(service, part, detail):
    answer = service.http.post("/v1/jobs", json=DEMO | part)
    assert assert_problem(answer, 422, "invalid_input", detail.partition(":")[0])["detail"] == detail


def test_a_body_that_grows_too_large_is_cut_off(service):
    answer = service.http.post("/v1/jobs", content=(b" " * 2**16 for _ in range(20)), headers=JSON)
    assert_problem(answer, 413, "content_too_large")


def test_a_list_of_the_longest_jobs_is_bounded(service):
    def submit(classes):
        names = [f"{number:0200}" for number in range(classes)]
        task = {"name": "sequence-classification", "data": {"source": "path", "train": "/x.csv"}, "label_names": names}
        return service.http.post("/v1/jobs", json=DEMO | {"task": task})

    assert submit(300).status_code == 202
    assert "larger than 65536 bytes" in assert_problem(submit(330), 413, "content_too_large")["detail"]
    # In a list, a job is there as it was posted and as it was resolved.
    assert len(service.http.get("/v1/jobs").content) < 3 * MAX_BODY_BYTES


def test_a_body_of_another_type_is_refused(service):
    answer = service.http.post("/v1/jobs", content=json.dumps(DEMO), headers={"Content-Type": "text/plain"})
    assert "application/json" in assert_problem(answer, 422, "invalid_input", "")["detail"]


def test_text_that_databases_dislike_is_stored(service):
    task = DEMO["task"] | {"text_column": "nul \0 and ünï"}
    answer = service.http.post("/v1/jobs", json=DEMO | {"task": task})
    assert answer.status_code == 202
    assert answer.json()["spec"]["task"]["text_column"] == "nul \0 and ünï"


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "tab\tbed"])
def test_bad_idempotency_keys_are_refused(service, key):
    answer = service.http.post("/v1/jobs", json=DEMO, headers={"Idempotency-Key": key})
    assert_problem(answer, 422, "invalid_input", "idempotency-key")
    assert_nothing_stored(service)


@pytest.mark.parametrize("path", ["/", "/v2/jobs", "/v1", "/v1/jobs/", "/v1/jobs/x/y/z", "/../etc/passwd"])
def test_unknown_paths(service, path):
    answer = service.http.get(path, follow_redirects=False)
    if answer.status_code != 307:
        assert_problem(answer, 404, "not_found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/files", "GET, POST"),
        (f"/v1/files/file_{'0' * 32}", "DELETE, GET"),
        (f"/v1/jobs/job_{'0' * 32}", "DELETE, GET"),
        (f"/v1/jobs/job_{'0' * 32}/cancel", "POST"),
    ],
)
def test_what_a_path_takes_is_said(service, path, allowed):
    answer = service.http.put(path)
    assert f"it takes {allowed}." in assert_problem(answer, 405, "method_not_allowed")["detail"]
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/v1/jobs/{}", "/v1/files/{}"])
def test_long_names_are_not_repeated(service, path):
    answer = service.http.get(path.format("x" * 10_000))
    assert len(assert_problem(answer, 404, "not_found")["detail"]) < 300


def test_wrong_methods_name_the_right_ones(service):
    answer = service.http.delete("/v1/jobs")
    assert "GET, POST" in assert_problem(answer, 405, "method_not_allowed")["detail"]
    assert answer.headers["allow"] == "GET, POST"


def test_request_ids_are_kept_if_they_are_sane(service):
    assert service.http.get("/healthz", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for odd in ("", "a b", "x" * 65, "<script>"):
        assert service.http.get("/healthz", headers={"X-Request-Id": odd}).headers["x-request-id"] != odd


def test_unexpected_errors_show_nothing_of_the_inside(service, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("secret detail")

    monkeypatch.setattr("core.jobs.store.JobStore.page", broken)
    answer = service.http.get("/v1/jobs")
    assert_problem(answer, 500, "internal_server_error")
    assert "secret" not in answer.text
    assert service.http.get("/healthz").status_code == 200


def test_a_database_that_is_gone_is_unavailable(service, engine):
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs RENAME TO gone")
    try:
        answer = service.http.get("/v1/jobs")
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE gone RENAME TO jobs")
    assert_problem(answer, 503, "service_unavailable")
    assert answer.headers["retry-after"]
