"""The store of byte strings: one contract, on a folder, in memory and on S3."""

import errno
import hashlib
import io
import itertools
import subprocess
import sys

import httpx
import pytest

from core.errors import ConfigurationError, NotFoundError, StorageError, StorageFullError
from core.storage import CHUNK_BYTES, READ_AHEAD_BYTES, Storage
from tests.faulty import FaultyProxy
from tests.servers import s3, s3_environment

BUCKET = "store"
_prefixes = itertools.count()


@pytest.fixture(scope="module")
def object_store():
    with s3(BUCKET) as environment:
        yield environment


@pytest.fixture
def s3_url(object_store, monkeypatch):
    for name, value in object_store.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{next(_prefixes)}"


@pytest.fixture(params=["folder", "memory", "s3"])
def storage(request, tmp_path):
    match request.param:
        case "folder":
            return Storage(str(tmp_path / "storage"))
        case "memory":
            return Storage(f"memory://{next(_prefixes)}")
        case _:
            return Storage(request.getfixturevalue("s3_url"))


def test_what_is_put_can_be_read(storage):
    content = bytes(range(256)) * 5000
    stored = storage.put("artifacts/job_1/1/model.bin", io.BytesIO(content))
    assert stored.size == len(content)
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    with storage.open("artifacts/job_1/1/model.bin") as file:
        assert file.read() == content


def test_ranges_come_in_chunks(storage):
    content = bytes(3 * CHUNK_BYTES + 7)
    storage.put("a", io.BytesIO(content))
    chunks = list(storage.read_range("a", 5, len(content)))
    assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES] * 3 + [2]
    assert b"".join(storage.read_range("a", 2, 2)) == b""


def test_objects_of_many_parts_are_whole(storage):
    content = bytes(range(251)) * (3 * READ_AHEAD_BYTES // 251)
    stored = storage.put("a/large", io.BytesIO(content))
    digest = hashlib.sha256()
    for chunk in storage.read_range("a/large", 0, len(content)):
        digest.update(chunk)
    assert digest.hexdigest() == stored.sha256
    assert (
        b"".join(storage.read_range("a/large", READ_AHEAD_BYTES - 2, READ_AHEAD_BYTES + 2))
        == (content[READ_AHEAD_BYTES - 2 : READ_AHEAD_BYTES + 2])
    )


def test_put_replaces(storage):
    storage.put("a/b", io.BytesIO(b"old and longer"))
    storage.put("a/b", io.BytesIO(b"new"))
    with storage.open("a/b") as file:
        assert file.read() == b"new"


def test_empty_objects_are_objects(storage):
    assert storage.put("a/empty", io.BytesIO(b"")).size == 0
    with storage.open("a/empty") as file:
        assert file.read() == b""


def test_put_file_and_fetch_copy(storage, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"weights")
    assert storage.put_file("a/b", source) == storage.fetch("a/b", target)
    assert target.read_bytes() == b"weights"
    with pytest.raises(FileExistsError):
        storage.fetch("a/b", target)
    path = storage.local_path("a/b")
    assert path is None or path.read_bytes() == b"weights"


class _Broken(io.BytesIO):
    """A source that ends in an error."""

    def __init__(self, content, error):
        super().__init__(content)
        self._error = error

    def read(self, size=-1):
        data = super().read(size)
        if not data:
            raise self._error
        return data


@pytest.mark.parametrize("content", [b"new", bytes(60 * 2**20)], ids=["small", "several parts"])
def test_an_interrupted_put_leaves_the_old_object(storage, content):
    storage.put("a/b", io.BytesIO(b"old"))
    with pytest.raises(StorageError, match="could not handle 'a/b': cut off"):
        storage.put("a/b", _Broken(content, ConnectionError("cut off")))
    assert b"".join(storage.read_range("a/b", 0, 9)) == b"old"
    storage.delete_prefix("a/b")
    storage.put("c", io.BytesIO(b""))
    with pytest.raises(NotFoundError):
        storage.open("a/b")


DIES = """
import io, os, sys
from core.storage import Storage

class Source(io.BytesIO):
    def read(self, size=-1):
        os._exit(9)

Storage(sys.argv[1]).put("uploads/a.csv", Source())
"""


def test_what_a_killed_process_left_of_an_object_goes_with_it(tmp_path):
    folder = str(tmp_path / "[a] store")
    assert subprocess.run([sys.executable, "-c", DIES, folder], check=False).returncode == 9
    storage = Storage(folder)
    assert len(storage.names("uploads")) == 1
    storage.put("uploads/a.csv.gz", io.BytesIO(b"another"))
    storage.delete_prefix("uploads/a.csv")
    assert storage.names("uploads") == ["a.csv.gz"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_store_says_so(storage, number):
    with pytest.raises(StorageFullError, match="no room for 'a/b'"):
        storage.put("a/b", _Broken(b"new", OSError(number, "full")))


def test_an_interrupted_put_leaves_no_file(tmp_path):
    storage = Storage(str(tmp_path))
    with pytest.raises(StorageError):
        storage.put("a/b", _Broken(b"new", ConnectionError("cut off")))
    assert list((tmp_path / "a").iterdir()) == []


def test_missing_objects_are_not_found_at_once(storage, tmp_path):
    for call in (
        storage.open,
        lambda key: storage.read_range(key, 0, 1),
        lambda key: storage.fetch(key, tmp_path / "x"),
    ):
        with pytest.raises(NotFoundError):
            call("nothing/here")
    assert not (tmp_path / "x").exists()


def test_names_are_those_right_below_a_prefix(storage):
    for key in ("jobs/b/1/file", "jobs/a/file", "jobs/b/2/file", "other/c"):
        storage.put(key, io.BytesIO(b"ok"))
    assert storage.names("jobs") == ["a", "b"]
    assert storage.names("nothing") == []


def test_what_another_process_stores_is_listed(s3_url):
    ours, others = Storage(s3_url), Storage(s3_url)
    for key, names in (("jobs/a/file", ["a"]), ("jobs/b/file", ["a", "b"])):
        others.put(key, io.BytesIO(b"ok"))
        assert ours.names("jobs") == names


def test_prefixes_are_deleted_whole(storage):
    storage.put("a/1/x", io.BytesIO(b"x"))
    storage.put("a/2/y", io.BytesIO(b"y"))
    storage.delete_prefix("a/1")
    storage.delete_prefix("a/1")
    with pytest.raises(NotFoundError):
        storage.open("a/1/x")
    storage.open("a/2/y").close()


def test_what_the_bucket_does_not_let_go_is_not_taken_for_deleted(s3_url, object_store):
    storage = Storage(s3_url)
    for name in ("x", "y"):
        storage.put(f"a/{name}", io.BytesIO(b"x"))
    address = f"{object_store['AWS_ENDPOINT_URL']}/{BUCKET}?policy"
    denied = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    policy = {"Version": "2012-10-17", "Statement": [denied]}
    httpx.put(address, json=policy, trust_env=False).raise_for_status()
    try:
        with pytest.raises(StorageError, match="did not delete all of 'a'"):
            storage.delete_prefix("a")
    finally:
        httpx.delete(address, trust_env=False).raise_for_status()
    storage.delete_prefix("a")


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/.hidden", "a\\b", "a/b\n", "a b", "-rf"]
)
def test_keys_cannot_leave_the_folder(storage, key):
    for call in (
        lambda: storage.put(key, io.BytesIO(b"")),
        lambda: storage.open(key),
        lambda: storage.delete_prefix(key),
    ):
        with pytest.raises(StorageError, match="is not a key"):
            call()


def test_unwritable_store_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        Storage(str(tmp_path / "file" / "below")).check_writable()
    Storage(str(tmp_path / "fine")).check_writable()


def test_a_folders_name_may_hold_what_urls_chain_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Storage("a::b/store").put("x/y", io.BytesIO(b"z"))
    assert (tmp_path / "a::b" / "store" / "x" / "y").read_bytes() == b"z"
    assert Storage(str(tmp_path / "a::b" / "store")).local_path("x/y") == tmp_path / "a::b" / "store" / "x" / "y"


def test_a_folder_may_be_below_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("store", "a::b"):
        assert Storage(f"~/{name}").local_path("x") == tmp_path / name / "x"


@pytest.mark.parametrize("url", ["foo://bucket", "gs://bucket/prefix"])
def test_a_kind_of_store_that_is_not_known_is_a_wrong_setting(url):
    with pytest.raises(ConfigurationError, match=rf"^NEUROPRUNE_STORAGE_URL: '{url}' cannot be used"):
        Storage(url)


def test_a_bucket_that_is_not_there_is_the_stores_fault(s3_url):
    with pytest.raises(StorageError) as caught:
        Storage("s3://nowhere/at/all").put("a", io.BytesIO(b"x"))
    assert not isinstance(caught.value, NotFoundError)


def test_a_store_that_does_not_answer_says_so(monkeypatch):
    for name, value in s3_environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    for call in (Storage.check_writable, lambda storage: storage.open("a")):
        with pytest.raises(StorageError, match="Could not connect"):
            call(Storage("s3://store", attempts=1))


@pytest.mark.parametrize("fault", ["500", "503", "cut"])
def test_faults_that_pass_are_borne(s3_url, object_store, monkeypatch, fault, tmp_path):
    content = bytes(range(256)) * 1000
    with FaultyProxy(object_store["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        storage = Storage(s3_url)
        proxy.fail_next(1, fault)
        stored = storage.put("a/b", io.BytesIO(content))
        proxy.fail_next(1, fault)
        assert storage.fetch("a/b", tmp_path / "copy") == stored
        assert (tmp_path / "copy").read_bytes() == content
        assert proxy.failed == 2


def test_nothing_is_left_in_the_bucket_but_what_was_put(s3_url, object_store):
    storage, prefix = Storage(s3_url), s3_url.rpartition("/")[2]
    storage.put("a/b", io.BytesIO(b"x"))
    with pytest.raises(StorageError):
        storage.put("a/c", _Broken(bytes(60 * 2**20), ConnectionError("cut off")))
    address = f"{object_store['AWS_ENDPOINT_URL']}/{BUCKET}"
    listing = httpx.get(f"{address}?list-type=2&prefix={prefix}/", trust_env=False).text
    assert listing.count("<Key>") == 1
    assert "<Upload>" not in httpx.get(f"{address}?uploads", trust_env=False).text
