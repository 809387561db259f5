"""The store of byte strings."""

import hashlib
import io

import pytest

from core.errors import NotFoundError, StorageError
from core.storage import CHUNK_BYTES, Storage


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "storage"))


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


def test_put_file_and_fetch_copy(storage, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"weights")
    assert storage.put_file("a/b", source) == storage.fetch("a/b", target)
    assert target.read_bytes() == b"weights"
    assert storage.local_path("a/b").read_bytes() == b"weights"


def test_an_interrupted_put_leaves_the_old_object(storage, tmp_path):
    class Broken(io.BytesIO):
        def read(self, size=-1):
            data = super().read(size)
            if not data:
                raise ConnectionError("cut off")
            return data

    storage.put("a/b", io.BytesIO(b"old"))
    with pytest.raises(StorageError, match="could not handle 'a/b'"):
        storage.put("a/b", Broken(b"new"))
    assert b"".join(storage.read_range("a/b", 0, 9)) == b"old"
    assert [path.name for path in (tmp_path / "storage" / "a").iterdir()] == ["b"]


def test_missing_objects_are_not_found_at_once(storage, tmp_path):
    for call in (
        storage.open,
        lambda key: storage.read_range(key, 0, 1),
        lambda key: storage.fetch(key, tmp_path / "x"),
    ):
        with pytest.raises(NotFoundError):
            call("nothing/here")
    assert not (tmp_path / "x").exists()


def test_prefixes_are_deleted_whole(storage):
    storage.put("a/1/x", io.BytesIO(b"x"))
    storage.put("a/2/y", io.BytesIO(b"y"))
    storage.delete_prefix("a/1")
    storage.delete_prefix("a/1")
    with pytest.raises(NotFoundError):
        storage.open("a/1/x")
    storage.open("a/2/y").close()


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


def test_a_store_in_memory_works_too(tmp_path):
    storage = Storage("memory://bucket")
    storage.put("a/b", io.BytesIO(b"xyz"))
    assert b"".join(storage.read_range("a/b", 1, 3)) == b"yz"
    assert storage.local_path("a/b") is None
    storage.delete_prefix("a")
