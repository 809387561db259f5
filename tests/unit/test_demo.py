"""The demo: what it keeps running, what it leaves alone, and what it says in the end."""

import hashlib
import io
import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from client import demo, local, sdk
from core.errors import InvalidInputError, NeuroPruneError
from core.settings import Settings
from tests.folders import content_of

JOB = {
    "object": "job",
    "id": "j",
    "name": "demo",
    "status": "succeeded",
    "finished_at": "2026-01-01T00:00:00Z",
    "error": None,
    "metrics_summary": {
        "metrics": {},
        "sparsity": {"achieved": 0.5, "removed": 0.5, "zero": 0.0, "zero_in_dense": 0.0},
        "target": {"name": "sparsity", "requested": 0.5, "achieved": 0.5, "unit": "share"},
        "parameters": {},
        "size_bytes": {"dense": 2, "pruned": 1},
        "latency_ms": {},
    },
}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def bundle_of(files):
    """The files with their manifest."""
    manifest = {"format": 1, "files": {name: {"sha256": sha256(data)} for name, data in files.items()}}
    return files | {"manifest.json": json.dumps(manifest).encode()}


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def deliver(folder, files):
    """As if a demo had put them there."""
    write(folder, files)
    (folder.parent / "state").mkdir(exist_ok=True)
    (folder.parent / "state" / "demo-bundles").write_text(f"{sha256(b'another')}\n{sha256(files['manifest.json'])}\n")


OLD = bundle_of({"model.safetensors": b"old", "model.onnx": b"old"})
NEW = bundle_of({"model.safetensors": b"new", "report.json": b"{}"})


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function that runs the demo with another service in the place of its own; it returns what was printed."""

    class Stack:
        url = "http://service"
        state_dir = tmp_path

        def tend_during(self, work):
            return work()

    @contextmanager
    def stack(state_dir):
        yield Stack()

    def run(output, service):
        client = sdk.NeuroPruneClient(Stack.url, transport=httpx.MockTransport(service))
        monkeypatch.setattr(demo, "EmbeddedStack", stack)
        monkeypatch.setattr(demo, "NeuroPruneClient", lambda url, *, api_key: client)
        monkeypatch.setattr(demo, "load_in_clean_process", lambda folder: {"max_abs_difference": 0.0})
        (tmp_path / "state").mkdir(exist_ok=True)
        console = Console(file=io.StringIO(), width=100)
        demo.run(console, tmp_path / "state", output)
        return console.file.getvalue()

    return run


def service_of(job, files, watched=lambda: None):
    """A service that does the job and delivers the files; `watched` is called when somebody follows it."""

    def handler(request):
        path = request.url.path
        if request.method == "GET" and path == "/v1/jobs":
            return httpx.Response(200, json={"data": []})
        if path.endswith("/events"):
            watched()
            return httpx.Response(200, text="event: done\ndata: {}\n\n")
        if path.endswith("/artifacts"):
            listed = [
                {"name": name, "bytes": len(data), "sha256": sha256(data), "url": f"{path}/{name}"}
                for name, data in files.items()
            ]
            return httpx.Response(200, json={"data": listed})
        if "/artifacts/" in path:
            return httpx.Response(200, content=files[path.rpartition("/")[2]])
        return httpx.Response(200, json=job)

    return handler


@pytest.mark.parametrize(
    ("keys", "own"), [((), None), (("the-key-of-today", "the-key-of-tomorrow"), "the-key-of-today")]
)
def test_the_demo_has_a_key_of_its_own_service(monkeypatch, keys, own):
    monkeypatch.setenv("NEUROPRUNE_API_KEY", "of-another-service")
    monkeypatch.setattr(demo, "get_settings", lambda: Settings(api_keys=keys))
    assert demo._own_key() == own


def test_the_demo_restarts_what_dies_while_it_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_LONGEST_PAUSE_SECONDS", 0.0)
    stack, log = local.EmbeddedStack(tmp_path), tmp_path / "log"
    worker = local.Service("worker", ["sleep", "60"], log=log, environment=os.environ, stop_seconds=1)
    stack._services.append(worker)
    worker.start()

    def handler(request):
        if request.method == "GET" and request.url.path == "/v1/jobs":
            return httpx.Response(200, json={"data": []})
        if request.url.path.endswith("/events"):
            os.kill(first := worker.pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while worker.pid in (first, None):  # no event comes before there is a worker
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return httpx.Response(200, text="event: done\ndata: {}\n\n")
        return httpx.Response(200, json=JOB)

    with sdk.NeuroPruneClient("http://service", transport=httpx.MockTransport(handler)) as client:
        assert demo.do_job(Console(file=io.StringIO()), stack, client)["status"] == "succeeded"
    worker.stop()


def test_the_demo_cancels_what_an_earlier_one_left_and_nothing_else(tmp_path):
    mine = {"object": "job", "id": "mine", "name": "demo", "labels": {"team": "search"}}
    unfinished, submitted = {"mine": mine}, []

    def handler(request):
        path = request.url.path
        if path.endswith("/events"):
            return httpx.Response(204)
        if path.endswith("/cancel"):
            unfinished.pop(path.split("/")[3])
        elif request.method == "POST":
            submitted.append(json.loads(request.content))
        elif path == "/v1/jobs":
            found = list(unfinished.values()) if request.url.params["status"] == "running" else []
            return httpx.Response(200, json={"data": found})
        return httpx.Response(200, json=JOB)

    with sdk.NeuroPruneClient("http://service", transport=httpx.MockTransport(handler)) as client:
        for _ in range(2):
            demo.do_job(Console(file=io.StringIO()), local.EmbeddedStack(tmp_path), client)
            assert unfinished == {"mine": mine}
            unfinished["old"] = JOB | {"id": "old", "labels": submitted[-1]["labels"]}


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"manifest.json": b'{"name": "app", "icons": []}', "src/thesis.txt": b"mine"}, id="a web app"),
        pytest.param({"manifest.json": b'{"name": "app", "icons": []}'}, id="a manifest of something else"),
        pytest.param({"manifest.json": b""}, id="a manifest of nothing"),
        pytest.param({"thesis.partial": b"mine", ".thesis.partial": b"mine"}, id="partial files of another program"),
        pytest.param({"torrents.partial/film": b"mine"}, id="a partial folder"),
        pytest.param({"thesis.txt": b"mine"}, id="a folder of the user's"),
        pytest.param(OLD | {"thesis.txt": b"mine"}, id="a bundle and a file"),
        pytest.param(OLD | {".thesis.partial": b"mine"}, id="a bundle and a hidden file"),
        pytest.param(OLD | {"src/thesis.txt": b"mine"}, id="a bundle and a folder"),
        pytest.param(
            {"manifest.json": bundle_of({"src": b""})["manifest.json"], "src/thesis.txt": b"mine"},
            id="a folder that the manifest names",
        ),
        pytest.param(OLD | {"model.safetensors": b"trained on"}, id="a bundle that was changed"),
    ],
)
def test_the_demo_leaves_alone_what_is_no_bundle(run, tmp_path, files):
    output = tmp_path / "output"
    if "manifest.json" in files:
        deliver(output, files)
    else:
        write(output, files)
    before = content_of(output)
    with pytest.raises(InvalidInputError, match=r"holds what no demo has put there: \S+.* Move it away, or choose"):
        run(output, lambda request: pytest.fail("it was started"))
    assert content_of(output) == before


def test_the_demo_leaves_alone_the_bundle_of_another_job(run, tmp_path):
    deliver(tmp_path / "output", NEW)
    write(tmp_path / "output", OLD)
    with pytest.raises(InvalidInputError, match=r"there: manifest\.json, model\.onnx, model\.safe.* and 1 more\. "):
        run(tmp_path / "output", lambda request: pytest.fail("it was started"))


def test_the_demo_names_some_of_what_is_in_its_way(run, tmp_path):
    deliver(tmp_path / "output", OLD | {f"{letter}.txt": b"mine" for letter in "abcde"})
    with pytest.raises(InvalidInputError, match=r"there: a\.txt, b\.txt, c\.txt and 2 more\. "):
        run(tmp_path / "output", lambda request: pytest.fail("it was started"))


def test_the_demo_needs_a_folder(run, tmp_path):
    (tmp_path / "output").write_text("mine")
    with pytest.raises(InvalidInputError, match="is no folder"):
        run(tmp_path / "output", lambda request: pytest.fail("it was started"))
    assert (tmp_path / "output").read_text() == "mine"


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(None, id="nothing"),
        pytest.param({}, id="an empty folder"),
        pytest.param(OLD, id="a bundle"),
        pytest.param({"manifest.json": OLD["manifest.json"], ".model.onnx.partial": b"o"}, id="a part of a bundle"),
    ],
)
def test_the_demo_replaces_an_earlier_bundle_once_it_has_another(run, tmp_path, files):
    output, seen = tmp_path / "output", []
    if files:
        deliver(output, files)
    elif files is not None:
        output.mkdir()
    run(output, service_of(JOB, NEW, watched=lambda: seen.append(content_of(output))))
    assert seen == [files or {}]
    assert content_of(output) == NEW
    run(output, service_of(JOB, OLD))
    assert content_of(output) == OLD


def test_a_job_that_fails_costs_no_earlier_bundle(run, tmp_path):
    output = tmp_path / "output"
    deliver(output, OLD)
    job = JOB | {"status": "failed", "error": {"message": "no room"}}
    with pytest.raises(NeuroPruneError, match="no room"):
        run(output, service_of(job, NEW))
    assert content_of(output) == OLD


def test_the_demo_ends_with_a_command_that_works_in_any_shell(run, tmp_path, monkeypatch):
    python = tmp_path / "an environment" / "python"
    write(python.parent, {"python": b"#!/bin/sh\nprintf '%s|' \"$@\""})
    python.chmod(0o755)
    monkeypatch.setattr(demo.sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    output = Path("it's [/mine]")
    command = run(output, service_of(JOB, NEW)).rpartition("Use it: ")[2]
    ran = subprocess.run(command, shell=True, cwd="/", capture_output=True, text=True, check=True)
    *options, code, _ = ran.stdout.split("|")
    assert options == ["-P", "-c"]  # what lies in the working directory is none of it
    loaded = []
    exec(code.removeprefix("from client.load import load; "), {"load": Path, "print": loaded.append})
    assert loaded == [tmp_path / output]
