"""Uploads over HTTP: stored and checked, or refused and gone."""

import errno
import gzip
import hashlib
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from api.routes.files import UPLOADS_AT_ONCE
from core.db import deletions
from core.errors import StorageError
from core.jobs.store import JobStore
from core.storage import Storage
from tests.apis import MAX_UPLOAD_BYTES, PATIENCE_SECONDS, on_every_store, on_remote_store, until
from tests.archives import model_files, write_tar, write_zip
from tests.databases import SQLITE_ONLY
from tests.problems import assert_problem
from tests.specs import upload_spec

pytestmark = SQLITE_ONLY

ROWS = b'{"text": "one", "label": 1}\n' * 100


def upload(service, name, content, purpose="dataset"):
    return service.http.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose})


def notes(service):
    """What is to leave the store, now or later."""
    with service.store._engine.begin() as connection:
        return list(connection.scalars(sa.select(deletions.c.prefix)))


def assert_nothing_kept(service):
    assert service.storage.names("uploads") == []
    assert notes(service) == []
    assert_no_copy_kept(service)


def assert_no_copy_kept(service):
    assert list(service.settings.work_dir.glob("*")) == []


@on_every_store
@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("train.jsonl.gz", gzip.compress(ROWS, mtime=0), ["text", "label"]),
        ("t.csv", b"label,text\n1,one\n", ["label", "text"]),
        ("t.parquet", b"PAR1pagesfooter\x06\0\0\0PAR1", None),
    ],
)
def test_dataset_is_stored_and_usable(service, name, content, columns):
    answer = upload(service, name, content)
    assert answer.status_code == 201, answer.text
    file = answer.json()
    assert answer.headers["location"] == f"/v1/files/{file['id']}"
    assert (file["object"], file["filename"], file["purpose"], file["bytes"]) == ("file", name, "dataset", len(content))
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert file["columns"] == columns
    assert service.http.get(answer.headers["location"]).json() == file
    with service.storage.open(service.store.get_file(file["id"]).key) as stored:
        assert stored.read() == content
    assert_no_copy_kept(service)
    assert notes(service) == []
    job = service.http.post("/v1/jobs", json=upload_spec(file["id"]).model_dump(mode="json"))
    assert job.status_code == 202


def test_a_job_that_names_a_column_which_is_not_there_is_refused_at_once(service):
    file = upload(service, "reviews.csv", b"review,label\nfine,1\n").json()
    answer = service.http.post("/v1/jobs", json=upload_spec(file["id"]).model_dump(mode="json"))
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error == {
        "pointer": "/task/text_column",
        "detail": "reviews.csv, the file of /task/data/train, has no column 'text'; it has 'review', 'label'.",
    }


@on_every_store
def test_a_full_store_is_said_and_nothing_is_kept(service, monkeypatch):
    def full(source, target):
        target.write(source.read(5))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("core.storage._copy", full)
    assert_problem(upload(service, "t.csv", b"text\none\n"), 507, "storage_full")
    assert_nothing_kept(service)


@on_every_store
def test_a_store_that_does_not_answer_is_unavailable(service, refuse_to_open):
    refuse_to_open()
    answer = upload(service, "t.csv", b"text\none\n")
    assert "Connection refused" in assert_problem(answer, 503, "storage_unavailable")["detail"]
    assert int(answer.headers["Retry-After"]) > 0
    assert_nothing_kept(service)


@on_remote_store
def test_no_room_to_check_a_file_is_said(service, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("api.routes.files.TemporaryDirectory", full)
    assert_problem(upload(service, "t.csv", b"text\none\n"), 507, "storage_full")
    assert_nothing_kept(service)


def test_why_a_file_is_refused_is_said_even_if_it_cannot_be_deleted(service, monkeypatch):
    def refuse(*_args, **_options):
        raise StorageError("The store is away.")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete_prefix", refuse)
        assert_problem(upload(service, "t.csv", b""), 422, "invalid_input", "/file")
    [left] = service.storage.names("uploads")
    assert notes(service) == [f"uploads/{left}"]


@pytest.mark.parametrize("step", ["put", "add_file"])
def test_an_upload_that_is_cut_off_is_not_forgotten(service, monkeypatch, step):
    """Whatever it is that ends it: a process that is killed comes no further than where an exception is raised here."""
    seen = []

    def cut_off(*_args, **_options):
        seen.extend(notes(service))
        raise sa.exc.OperationalError("INSERT", {}, Exception("connection lost"))

    monkeypatch.setattr(*((Storage, "put") if step == "put" else (JobStore, "add_file")), cut_off)
    upload(service, "t.csv", b"text\none\n")
    assert len(seen) == 1
    if step == "add_file":  # its row may be there after all
        assert [f"uploads/{name}" for name in service.storage.names("uploads")] == notes(service) == seen


def test_without_a_database_nothing_is_stored(service, monkeypatch):
    def refuse(*_args):
        raise sa.exc.OperationalError("INSERT", {}, Exception("refused"))

    monkeypatch.setattr(JobStore, "expect_file", refuse)
    assert_problem(upload(service, "t.csv", b"text\none\n"), 503, "service_unavailable")
    assert_nothing_kept(service)


@on_remote_store
def test_a_store_that_takes_a_file_and_does_not_give_it_back_is_unavailable(service, refuse_to_open):
    refuse_to_open(after=1)
    assert_problem(upload(service, "t.csv", b"text\none\n"), 503, "storage_unavailable")
    assert_nothing_kept(service)


def test_no_room_for_the_body_is_said(service, monkeypatch):
    def full(self, _content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", full)
    assert_problem(upload(service, "t.csv", b"text\none\n"), 507, "storage_full")


@on_every_store
@pytest.mark.parametrize(("name", "write"), [("m.zip", write_zip), ("m.tar.gz", write_tar), ("M.TGZ", write_tar)])
def test_model_is_stored(service, tmp_path, name, write):
    archive = write(tmp_path / name, model_files())
    answer = upload(service, name, archive.read_bytes(), "model")
    assert answer.status_code == 201, answer.text


@on_every_store
@pytest.mark.parametrize(
    ("name", "content", "purpose", "message"),
    [
        ("m.bin", b"x", "model", ".zip, .tar.gz, .tgz"),
        ("m.zip", b"not a zip", "model", "cannot be read"),
        ("m.zip", b"", "model", "cannot be read"),
        ("m.tar.gz", gzip.compress(b"not a tar", mtime=0), "model", "cannot be read"),
        ("d.txt", b"x", "dataset", ".jsonl, .csv"),
        ("d.jsonl", b"", "dataset", "no rows"),
        ("d.jsonl", b"{]", "dataset", "Line 1"),
        ("d.jsonl.gz", gzip.compress(ROWS, mtime=0)[:-9], "dataset", "not a whole gzip"),
        ("d.csv", b"a,b\n1\n", "dataset", "Line 2"),
    ],
)
def test_broken_files_are_refused_and_gone(service, name, content, purpose, message):
    problem = assert_problem(upload(service, name, content, purpose), 422, "invalid_input", "/file")
    assert message in problem["detail"]
    assert_nothing_kept(service)


def test_uploads_hold_up_nothing_else(service, monkeypatch):
    arrived, answer = [], threading.Event()

    def hang(path, limit):
        arrived.append(path)
        answer.wait(PATIENCE_SECONDS)

    monkeypatch.setattr("api.routes.files.check_dataset", hang)
    with ThreadPoolExecutor(60) as pool:
        try:
            waiters = [pool.submit(upload, service, "t.csv", b"text\none\n") for _ in range(60)]
            until(lambda: len(arrived) >= UPLOADS_AT_ONCE)
            assert service.http.get("/v1/files", timeout=5).status_code == 200
            assert len(arrived) == UPLOADS_AT_ONCE
        finally:
            answer.set()
    assert {waiter.result().status_code for waiter in waiters} == {201}


@pytest.mark.parametrize("hostile", ["../../etc/passwd.csv", "C:\\data\\x.csv", "a\nb\x00.csv", "ü" * 400 + ".csv"])
def test_names_are_only_names(service, hostile):
    answer = upload(service, hostile, b"text\none\n")
    assert answer.status_code == 201, answer.text
    name = answer.json()["filename"]
    assert name.endswith(".csv")
    assert len(name.encode()) <= 255
    assert not set(name) & set("/\\\n\0")


def test_too_large_files_are_refused(service):
    answer = upload(service, "d.jsonl", ROWS * (MAX_UPLOAD_BYTES // len(ROWS) * 3))
    assert "larger than" in assert_problem(answer, 413, "content_too_large")["detail"]
    assert_nothing_kept(service)


def test_files_a_little_too_large_are_refused_too(service):
    answer = upload(service, "d.jsonl", ROWS + b" " * MAX_UPLOAD_BYTES)
    assert str(MAX_UPLOAD_BYTES) in assert_problem(answer, 413, "content_too_large")["detail"]
    assert_nothing_kept(service)


def test_forms_that_lack_something(service):
    assert_problem(service.http.post("/v1/files", data={"purpose": "dataset"}), 422, "invalid_input", "/file")
    assert_problem(
        service.http.post("/v1/files", files={"file": ("d.csv", b"a\n1\n")}), 422, "invalid_input", "/purpose"
    )
    problem = assert_problem(upload(service, "d.csv", b"a\n1\n", "both"), 422, "invalid_input", "/purpose")
    assert "'model' or 'dataset'" in problem["detail"]


def test_a_file_that_is_sent_as_text_is_named(service):
    """As curl does with -F file=train.csv, without the @."""
    form = {"purpose": (None, "dataset"), "file": (None, "train.csv"), "note": (None, "for us")}
    problem = assert_problem(service.http.post("/v1/files", files=form), 422, "invalid_input", "/file")
    assert problem["detail"] == "/file: Must be a file with its name; with curl: -F file=@NAME."


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"garbage", "multipart/form-data; boundary=x"),
        (b"garbage", "multipart/form-data"),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="d.csv"\r\n\r\na',
            "multipart/form-data; boundary=x",
        ),
        (b"{}", "application/json"),
        (b"", "text/plain"),
    ],
)
# Starlette forgets to close the part that a broken body leaves unfinished.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_forms_that_are_none(service, content, kind):
    answer = service.http.post("/v1/files", content=content, headers={"Content-Type": kind})
    body = answer.json()
    assert answer.status_code in (400, 422)
    assert_problem(answer, answer.status_code, body["code"], *(error["pointer"] for error in body["errors"]))


def test_several_files_at_once_are_refused(service):
    files = [("file", ("a.csv", b"a\n1\n")), ("file", ("b.csv", b"a\n1\n"))]
    answer = service.http.post("/v1/files", files=files, data={"purpose": "dataset"})
    assert_problem(answer, 400, "bad_request")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("file_id", ["file_" + "0" * 32, "x", "%00"])
def test_unknown_files_are_not_found(service, method, file_id):
    assert_problem(service.http.request(method, f"/v1/files/{file_id}"), 404, "not_found")


def test_pages_follow_the_link(service):
    made = [upload(service, f"{number}.csv", b"text\none\n").json() for number in range(3)]
    first = service.http.get("/v1/files?limit=2&purpose=dataset")
    page = first.json()
    assert (page["data"], page["has_more"]) == ([made[2], made[1]], True)
    second = service.http.get(first.links["next"]["url"]).json()
    assert (second["data"], second["has_more"], second["next_cursor"]) == ([made[0]], False, None)
    assert page["next_cursor"] in first.links["next"]["url"]
    assert "purpose=dataset" in first.links["next"]["url"]
    assert service.http.get("/v1/files?purpose=model").json()["data"] == []


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("cursor=job_1", "cursor"),
        (f"cursor=0_file_{'0' * 32}", "cursor"),
        ("purpose=both", "purpose"),
    ],
)
def test_bad_list_parameters_are_named(service, query, parameter):
    assert_problem(service.http.get(f"/v1/files?{query}"), 422, "invalid_input", parameter)


def test_the_last_cursor_that_there_can_be_names_an_end(service):
    upload(service, "t.csv", b"text\none\n")
    for digit, found in (("9", 1), ("0", 0)):
        assert len(service.http.get(f"/v1/files?cursor={digit * 16}_file_{'0' * 32}").json()["data"]) == found


def test_a_file_is_deleted_unless_a_job_will_read_it(service):
    file = upload(service, "t.csv", b"text,label\none,1\n").json()
    path = f"/v1/files/{file['id']}"
    job = service.http.post("/v1/jobs", json=upload_spec(file["id"]).model_dump(mode="json")).json()
    assert job["id"] in assert_problem(service.http.delete(path), 409, "conflict")["detail"]
    service.http.post(job["links"]["cancel"])
    answer = service.http.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-type" not in answer.headers
    assert_problem(service.http.get(path), 404, "not_found")
    assert service.http.get("/v1/files").json()["data"] == []
    assert file["id"] in assert_problem(service.http.post(job["links"]["retry"]), 409, "conflict")["detail"]
