"""A job's process, up to where the engine begins: what it stages, what it says when it fails."""

import errno
import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.errors import InvalidDataError, InvalidInputError, InvalidModelError, StorageError, StorageFullError
from core.jobs.spec import JobSpec
from core.progress import Failed, PhaseStarted, decode
from core.settings import Settings, get_settings
from core.storage import Storage
from tests.archives import model_files, write_zip
from tests.specs import DEMO
from worker import runner
from worker.assignment import Assignment, Upload
from worker.runner import failure, upload
from worker.staging import stage

ROWS, MODEL = "file_" + "1" * 32, "file_" + "2" * 32
ROW = b'{"text": "a", "label": 0}\n'


pytestmark = pytest.mark.usefixtures("logging_restored")


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "storage"))


@pytest.fixture
def assignment(tmp_path, storage):
    """An uploaded model and uploaded rows."""
    archive = write_zip(tmp_path / "model.zip", model_files())
    (tmp_path / "rows.jsonl").write_bytes(ROW)
    files = {}
    for file_id, path in ((ROWS, tmp_path / "rows.jsonl"), (MODEL, archive)):
        stored = storage.put_file(f"files/{file_id}", path)
        files[file_id] = Upload(key=f"files/{file_id}", filename=path.name, sha256=stored.sha256)
    task = {"name": "causal-lm", "data": {"source": "upload", "train": ROWS}}
    spec = JobSpec.model_validate(DEMO | {"model": {"source": "upload", "file": MODEL}, "task": task})
    return Assignment(
        job_id="job_x",
        attempt=1,
        spec=spec,
        files=files,
        storage_url=str(tmp_path / "storage"),
        artifact_prefix="artifacts/job_x/1",
        checkpoint_prefix="checkpoints/job_x/1",
        checkpoints={},
    )


def with_spec(assignment, **changes):
    spec = JobSpec.model_validate(assignment.spec.model_dump() | changes)
    return assignment.model_copy(update={"spec": spec})


def path_model(path):
    return {"source": "path", "path": str(path)}


def test_uploads_are_unpacked_and_staged_under_plain_names(assignment, tmp_path):
    staged = stage(assignment, tmp_path / "inputs", Settings())
    assert (staged.model / "config.json").is_file()
    assert staged.train is not None
    assert (staged.train.name, staged.train.read_bytes()) == ("train.jsonl", ROW)
    assert staged.names[staged.train] == "rows.jsonl"
    assert staged.names[staged.model] == "model"
    assert (staged.validation, staged.test) == (None, None)


@pytest.mark.parametrize(
    ("filename", "plain"),
    [("ROWS.CSV", "train.csv"), ("export.csv.jsonl", "train.jsonl"), ("r.JSONL.GZ", "train.jsonl.gz"),
     ("ü" * 250 + ".csv", "train.csv")],
)  # fmt: skip
def test_any_name_that_uploads_may_have_can_be_staged(assignment, tmp_path, filename, plain):
    files = assignment.files | {ROWS: assignment.files[ROWS].model_copy(update={"filename": filename})}
    staged = stage(assignment.model_copy(update={"files": files}), tmp_path / "inputs", Settings())
    assert staged.train is not None
    assert (staged.train.name, staged.names[staged.train]) == (plain, filename)


def test_paths_that_the_system_refuses_are_the_users_to_mend(assignment, tmp_path):
    root = tmp_path / "models"
    root.mkdir()
    (root / "circle").symlink_to(root / "circle")
    settings = Settings(model_roots=(root,))
    for number, name in enumerate(("a" * 300, "circle", "a/" * 1500)):
        with pytest.raises(InvalidInputError) as caught:
            stage(with_spec(assignment, model=path_model(root / name)), tmp_path / str(number), settings)
        assert caught.value.param == "/model/path"
        assert len(caught.value.message) < 300


def test_a_damaged_upload_is_not_used(assignment, storage, tmp_path):
    (tmp_path / "bad").write_bytes(b"x")
    storage.put_file(f"files/{ROWS}", tmp_path / "bad")
    with pytest.raises(StorageError, match="damaged"):
        stage(assignment, tmp_path / "inputs", Settings())


def test_archives_are_unpacked_within_their_bounds(assignment, tmp_path):
    with pytest.raises(InvalidModelError, match="more than 8 bytes"):
        stage(assignment, tmp_path / "inputs", Settings(max_unpacked_bytes=8))


def test_paths_must_lie_below_the_roots(assignment, tmp_path):
    root = tmp_path / "models"
    (root / "mine").mkdir(parents=True)
    (root / "way-out").symlink_to(tmp_path)
    settings = Settings(model_roots=(root,))
    staged = stage(with_spec(assignment, model=path_model(root / "mine")), tmp_path / "inputs", settings)
    assert staged.model == root / "mine"
    for number, path in enumerate((tmp_path, root / "..", root / "way-out", root / "absent", "/etc")):
        with pytest.raises(InvalidInputError) as caught:
            stage(with_spec(assignment, model=path_model(path)), tmp_path / str(number), settings)
        assert caught.value.param == "/model/path"


def test_an_assignment_is_read_as_it_was_written(assignment, tmp_path):
    assignment.write(tmp_path)
    assert Assignment.read(tmp_path) == assignment


def test_a_bundles_files_are_stored_with_their_digests(storage, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    (output / "sparsity-0.5").mkdir()
    for name in ("report.json", "model.safetensors", "sparsity-0.5/model.onnx"):
        (output / name).write_text(name)
    artifacts = upload(output, storage, "artifacts/job_x/1")
    assert [(a.name, a.media_type) for a in artifacts] == [
        ("model.safetensors", "application/octet-stream"),
        ("report.json", "application/json"),
        ("sparsity-0.5/model.onnx", "application/octet-stream"),
    ]
    assert artifacts[1].sha256 == hashlib.sha256(b"report.json").hexdigest()
    with storage.open("artifacts/job_x/1/report.json") as stored:
        assert stored.read() == b"report.json"


class OutOfMemoryError(RuntimeError):
    """As torch raises it."""


OutOfMemoryError.__module__ = "torch"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InvalidDataError("line 3 is not JSON", param="/task/data/train"), "invalid_input", "line 3"),
        (MemoryError(), "out_of_memory_host", "while pruning"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes"), "out_of_memory_host", "smaller"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "out_of_memory_host", "while pruning"),
        (RuntimeError("unable to mmap 9 bytes from file: Cannot allocate memory (12)"), "out_of_memory_host", "main"),
        (RuntimeError("std::bad_alloc"), "out_of_memory_host", "main"),
        (OutOfMemoryError("CUDA out of memory"), "out_of_memory_gpu", "GPU"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory_gpu", "GPU"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `it`"),
            "out_of_memory_gpu",
            "GPU",
        ),
        (OSError(errno.ENOSPC, "No space left"), "storage_full", "disk is full"),
        (ValueError("I/O error: No space left on device (os error 28)"), "storage_full", "disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "storage_full", "is full"),
        (StorageFullError("There is no room."), "storage_full", "no room"),
        (StorageError("The store does not answer."), "storage_unavailable", "not answer"),
        (KeyError("secret"), "internal", "while pruning"),
    ],
)
def test_failures_are_told_in_the_users_terms(error, code, text):
    told = failure(error, "pruning")
    assert told.code == code
    assert text in told.message
    assert "secret" not in told.message


def test_the_last_message_of_a_process_that_fails_says_why(tmp_path, capsys):
    read_end, write_end = os.pipe()
    (tmp_path / "job.json").write_text(json.dumps({"attempt": "one"}))
    assert runner.main(["--work-dir", str(tmp_path), "--progress-fd", str(write_end)]) == 1
    with os.fdopen(read_end, "rb") as pipe:
        told = decode(pipe.read())
    assert isinstance(told, Failed)
    assert told.code == "internal"
    assert "Traceback" in capsys.readouterr().err


def test_a_message_that_a_pipe_takes_in_parts_arrives_whole():
    """As it does where a signal comes while it is written."""
    arrived = bytearray()

    def write(line):
        arrived.extend(line[:7])
        return min(7, len(line))

    message = PhaseStarted(phase="loading")
    runner.Pipe(SimpleNamespace(write=write)).write(message)
    assert decode(bytes(arrived)) == message


def test_settings_are_those_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NEUROPRUNE_MODEL_ROOTS", json.dumps([str(tmp_path)]))
    get_settings.cache_clear()
    try:
        assert get_settings().model_roots == (Path(tmp_path),)
    finally:
        get_settings.cache_clear()


def test_a_job_that_cannot_even_write_its_log_still_says_how_it_failed(tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runner.traceback, "print_exc", no_room)
    messages = tmp_path / "messages"
    with messages.open("wb", buffering=0) as stream:
        assert runner.work(tmp_path, runner.Pipe(stream)) == 1  # there is no assignment
    assert isinstance(decode(messages.read_bytes().strip()), Failed)
