"""Downloads: whole, in parts, conditional."""

import base64
import hashlib

import pytest

from tests.databases import SQLITE_ONLY
from tests.problems import assert_problem
from tests.specs import demo_spec

pytestmark = SQLITE_ONLY

CONTENT = bytes(range(256)) * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def job_id(service):
    job_id = service.store.create(demo_spec(), name=None, labels={})[0].id
    service.succeed(job_id, {"model.safetensors": CONTENT, "empty.txt": b""})
    return job_id


@pytest.fixture
def get(service, job_id):
    return lambda method="GET", **headers: service.http.request(
        method,
        f"/v1/jobs/{job_id}/artifacts/model.safetensors",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


def test_bundle_is_listed(service, job_id):
    empty, model = service.http.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    assert empty["bytes"] == 0
    assert model == {
        "name": "model.safetensors",
        "bytes": len(CONTENT),
        "sha256": SHA256,
        "media_type": "application/octet-stream",
        "url": f"/v1/jobs/{job_id}/artifacts/model.safetensors",
    }
    assert service.http.get(empty["url"]).content == b""
    assert_problem(service.http.get(empty["url"], headers={"Range": "bytes=0-"}), 416, "range_not_satisfiable")


def test_a_file_in_a_folder_is_listed_and_downloaded_by_its_path(service):
    job_id = service.store.create(demo_spec(), name=None, labels={})[0].id
    service.succeed(job_id, {"sparsity-0.5/report.json": b"{}"})
    (found,) = service.http.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    assert found["url"] == f"/v1/jobs/{job_id}/artifacts/sparsity-0.5/report.json"
    answer = service.http.get(found["url"])
    assert answer.content == b"{}"
    assert answer.headers["content-disposition"] == "attachment; filename*=utf-8''report.json"


def test_whole_download_can_be_checked(get):
    answer = get()
    assert answer.status_code == 200
    assert answer.content == CONTENT
    assert answer.headers["etag"] == f'"{SHA256}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(SHA256)).decode()}:"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"] == "attachment; filename*=utf-8''model.safetensors"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_head_tells_the_same_without_the_bytes(get):
    head, whole = get("HEAD"), get()
    assert head.content == b""
    assert head.headers["content-length"] == str(len(CONTENT))
    same = ("etag", "repr-digest", "content-type", "accept-ranges", "content-disposition")
    assert [head.headers[name] for name in same] == [whole.headers[name] for name in same]


@pytest.mark.parametrize(("header", "part"), [("bytes=100-199", slice(100, 200)), ("bytes=-5", slice(-5, None))])
def test_parts(get, header, part):
    answer = get(Range=header)
    assert answer.status_code == 206
    assert answer.content == CONTENT[part]
    start = part.indices(len(CONTENT))[0]
    assert answer.headers["content-range"] == f"bytes {start}-{start + len(answer.content) - 1}/{len(CONTENT)}"
    assert get("HEAD", Range=header).status_code == 206


def test_a_broken_download_resumes(get):
    answer = get(Range="bytes=1000-", If_Range=f'"{SHA256}"')
    assert CONTENT[:1000] + answer.content == CONTENT
    changed = get(Range="bytes=1000-", If_Range='"other"')
    assert (changed.status_code, changed.content) == (200, CONTENT)


def test_parts_that_do_not_exist(get):
    answer = get(Range=f"bytes={len(CONTENT)}-")
    assert_problem(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize(
    "header",
    ["bytes=9-1", "bytes=x", "bytes=0-1,3-4", "lines=1-2", pytest.param(f"bytes=0-{'9' * 5000}", id="endless")],
)
def test_ranges_that_are_not_understood_give_the_whole(get, header):
    assert get(Range=header).status_code == 200


def test_conditional_downloads(get):
    unchanged = get(If_None_Match=f'"x", "{SHA256}"')
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["etag"] == f'"{SHA256}"'
    assert get(If_None_Match='"x"').status_code == 200
    assert get(If_Match=f'"{SHA256}"').status_code == 200
    assert_problem(get(If_Match='"x"'), 412, "precondition_failed")


@pytest.mark.parametrize("name", ["other.bin", "..%2f..%2fx", "%00", "model.safetensors%0a", "x" * 10_000])
def test_unknown_artifacts_name_those_there_are(service, job_id, name):
    problem = assert_problem(service.http.get(f"/v1/jobs/{job_id}/artifacts/{name}"), 404, "not_found")
    assert "%2f" in name or "empty.txt, model.safetensors" in problem["detail"]
    assert len(problem["detail"]) < 300


def test_unfinished_jobs_have_none(service):
    job_id = service.store.create(demo_spec(), name=None, labels={})[0].id
    assert service.http.get(f"/v1/jobs/{job_id}/artifacts").json() == {"data": []}
    problem = assert_problem(service.http.get(f"/v1/jobs/{job_id}/artifacts/report.json"), 404, "not_found")
    assert "is queued" in problem["detail"]


def test_a_store_that_does_not_answer_is_unavailable(get, refuse_to_open):
    refuse_to_open()
    for headers in ({}, {"Range": "bytes=0-9"}):
        assert "Connection refused" in assert_problem(get(**headers), 503, "storage_unavailable")["detail"]


def test_bytes_that_are_gone_are_not_found(service, job_id, get):
    service.storage.delete_prefix(f"artifacts/{job_id}")
    assert_problem(get(), 404, "not_found")
