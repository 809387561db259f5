"""The command line: what it prints, and how it fails."""

import io
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from client import cli, demo, local, sdk
from client.comparison import comparison
from client.display import progress_display, time_left
from client.sdk import Event
from core.errors import InvalidInputError

SUMMARY = {
    "metrics": {"cosine_to_dense": {"dense": 1.0, "pruned": 0.95, "unit": "", "higher_is_better": True}},
    "parameters": {
        "encoder": {"dense": 10_000_000, "pruned": 5_000_000},
        "total": {"dense": 20_000_000, "pruned": 15_000_000},
    },
    "size_bytes": {"dense": 80_000_000, "pruned": 60_000_000},
    "latency_ms": {"onnxruntime": {"dense": {"median": 20.0}, "pruned": {"median": 10.0}}},
}
EVENTS = [
    Event(1, "status", {"status": "queued", "reason": "accepted"}),
    Event(2, "phase", {"phase": "pruning"}),
    Event(
        3,
        "progress",
        {"fraction": 0.5, "step": 1, "total_steps": 2, "eta_at": None, "metrics": {"loss": 0.25}, "message": ""},
    ),
    Event(4, "warning", {"message": "mind [the] gap"}),
    Event(5, "status", {"status": "failed", "reason": "x", "error": {"message": "no such column"}}),
]


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs a command: exit status, output, errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["neuroprune", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def service(monkeypatch):
    """A function that puts a handler in the place of the service."""

    def install(handler):
        client = httpx.Client
        transport = httpx.MockTransport(handler)
        monkeypatch.setattr(sdk.httpx, "Client", lambda **options: client(**options | {"transport": transport}))

    return install


def test_the_catalogue_needs_no_service(run):
    status, out, _ = run("methods", "--json")
    assert status == 0
    assert json.loads(out)[0]["options"]["properties"]["theta"]["default"] == 0.15
    status, out, _ = run("families", "--json")
    assert {family["model_type"] for family in json.loads(out)} >= {"bert", "llama"}
    assert run("families")[0] == run("methods")[0] == 0


def test_a_service_that_is_not_there_is_one_line(run):
    status, out, err = run("jobs", "--url", "http://127.0.0.1:9")
    assert (status, out) == (1, "")
    assert err.startswith("Error: No NeuroPrune service answers at http://127.0.0.1:9")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["jobs", "--url", "http://[::1"], "Error: 'http://[::1' is no URL: "),
        (["show", "job_1\r"], "Error: Invalid non-printable ASCII character in URL"),
        (["up", "--state-dir", "file/state"], "Error: [Errno 20] Not a directory: "),
    ],
)
def test_what_url_or_file_system_refuse_is_one_line(run, monkeypatch, tmp_path, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_exit_on_termination", lambda: None)  # which is for the rest of the process
    Path("file").touch()
    status, _, err = run(*arguments)
    assert status == 1
    assert err.startswith(complaint)
    assert err.count("\n") == 1


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_that_is_none_is_refused(run, port):
    status, out, err = run("up", "--port", port)
    assert (status, out) == (2, "")
    assert "--port" in err


@pytest.mark.parametrize(("content", "complaint"), [("{", "is not JSON"), ("[]", "one JSON object"), (None, "read")])
def test_a_spec_that_is_none_is_refused_before_it_is_sent(run, tmp_path, content, complaint):
    spec = tmp_path / "spec.json"
    if content is not None:
        spec.write_text(content)
    status, _, err = run("submit", str(spec))
    assert status == 1
    assert complaint in err


def test_a_spec_is_read_from_standard_input_and_problems_are_shown(run, service, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"target": [1]}'))
    sent = []

    def handler(request):
        sent.append(json.loads(request.content))
        return httpx.Response(422, json={"detail": "/target: [must] be an object"})

    service(handler)
    status, _, err = run("submit", "-", "--name", "mine")
    assert (status, err) == (1, "Error: /target: [must] be an object\n")
    assert sent == [{"target": [1], "name": "mine"}]


def test_watch_fails_where_the_job_does(run, service):
    def handler(request):
        if request.url.path.endswith("/events"):
            lines = [f"id: {e.seq}\nevent: {e.type}\ndata: {json.dumps({'data': e.data})}\n\n" for e in EVENTS]
            return httpx.Response(200, text="".join(lines) + "event: done\ndata: {}\n\n")
        return httpx.Response(200, json={"status": "failed", "finished_at": "2026-01-01T00:00:00Z"})

    service(handler)
    status, out, _ = run("watch", "job_x")
    assert status == 1
    assert "failed: no such column" in out
    status, out, _ = run("watch", "job_x", "--json")
    assert status == 1
    assert [json.loads(line)["seq"] for line in out.splitlines()] == [1, 2, 3, 4, 5]


def test_watch_ends_with_what_came_of_the_job(run, service):
    def handler(request):
        if request.url.path.endswith("/events"):
            return httpx.Response(200, text="event: done\ndata: {}\n\n")
        job = {"id": "job_x", "name": "my [first] job", "status": "succeeded", "finished_at": "2026-01-01T00:00:00Z"}
        return httpx.Response(200, json=job | {"metrics_summary": SUMMARY})

    service(handler)
    status, out, _ = run("watch", "job_x")
    assert status == 0
    assert "my [first] job" in out
    assert "-0.0500" in out
    assert run("watch", "job_x", "--json")[:2] == (0, "")


@pytest.mark.parametrize(
    ("verb", "status"), [("cancel", "cancelled"), ("pause", "pausing"), ("resume", "queued"), ("retry", "queued")]
)
def test_jobs_are_steered_by_verbs(run, service, verb, status):
    asked = []

    def handler(request):
        asked.append((request.method, request.url.path))
        return httpx.Response(202, json={"id": "job_1", "status": status})

    service(handler)
    assert run(verb, "job_1")[:2] == (0, f"job_1 is {status}.\n")
    assert json.loads(run(verb, "job_1", "--json")[1]) == {"id": "job_1", "status": status}
    assert asked == [("POST", f"/v1/jobs/job_1/{verb}")] * 2


def test_a_verb_that_a_job_does_not_allow_is_one_line(run, service):
    problem = {"title": "Conflict", "status": 409, "code": "illegal_transition", "detail": "It has succeeded."}
    service(lambda _: httpx.Response(409, json=problem))
    status, out, err = run("pause", "job_1")
    assert (status, out) == (1, "")
    assert "It has succeeded." in err
    assert "Traceback" not in err


@pytest.mark.parametrize("is_terminal", [True, False])
def test_events_are_shown_on_terminals_and_in_logs(is_terminal):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120)
    with progress_display(console) as show:
        for event in EVENTS:
            show(event)
    shown = console.file.getvalue()
    for text in ("queued: accepted", "pruning", "50%", "step 1/2, loss 0.25", "mind [the] gap", "no such column"):
        assert text in shown


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("kind", ["checkpoint", "unheard-of"])
def test_events_that_say_nothing_to_a_person_are_passed_over(is_terminal, kind):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120)
    with progress_display(console) as show:
        show(Event(1, kind, {"stage": "pruning"}))
    assert "pruning" not in console.file.getvalue()


def test_the_time_left_is_minutes_and_seconds():
    def in_seconds(seconds):
        return (datetime.now(UTC) + timedelta(seconds=seconds, milliseconds=200)).isoformat()

    assert [time_left(in_seconds(s)) for s in (-5, 61, 3723)] == ["0:00 left", "1:01 left", "1:02:03 left"]
    assert time_left(None) == ""


def test_a_summary_sets_dense_beside_pruned():
    shown = printed(SUMMARY)
    for text in ("title", "0.9500", "-0.0500", "5.00M", "-50.0%", "60.00 MB", "-25.0%", "ONNX Runtime", "2.00x faster"):
        assert text in shown


def level(folder, sparsity, pearson, *, is_dominated):
    return {
        "folder": folder,
        "is_dominated": is_dominated,
        "metrics": {"pearson": {"dense": 0.9, "pruned": pearson, "unit": "", "higher_is_better": True}},
        "parameters": {"encoder": {"dense": 10_000_000, "pruned": round(10_000_000 * (1 - sparsity))}},
        "latency_ms": {"torch": {"dense": {"median": 20.0}, "pruned": {"median": 20.0 * (1 - sparsity)}}},
    }


def test_a_frontier_is_a_row_a_level():
    levels = [
        level("sparsity-0.5", 0.5, 0.88, is_dominated=True),
        level("sparsity-0.75", 0.75, 0.89, is_dominated=False),
    ]
    lines = printed({"headline_metric": "pearson", "frontier": levels}).splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows == [
        ["dense", "0.9000", "10.00M", "20.00 ms"],
        ["(sparsity-0.5)", "0.8800", "5.00M", "10.00 ms, 2.00x faster"],
        ["sparsity-0.75", "0.8900", "2.50M", "5.00 ms, 4.00x faster"],
    ]


def test_a_level_without_the_metric_has_an_empty_cell():
    without = level("sparsity-0.5", 0.5, 0.88, is_dominated=False) | {"metrics": {}}
    assert "0.8800" not in printed({"headline_metric": "pearson", "frontier": [without]})


def test_show_tells_where_a_job_stands_and_what_came_of_it(run, service):
    job = {"id": "job_1", "name": "mine", "status": "running", "phase": "pruning", "error": None}
    job["metrics_summary"] = None
    service(lambda _: httpx.Response(200, json=job))
    assert run("show", "job_1")[:2] == (0, "job_1 is running (pruning).\n")
    job |= {"status": "succeeded", "phase": "uploading", "metrics_summary": SUMMARY}
    _, out, _ = run("show", "job_1")
    assert out.startswith("job_1 is succeeded.\n")
    assert "mine" in out
    assert "-0.0500" in out
    assert json.loads(run("show", "job_1", "--json")[1])["metrics_summary"] == SUMMARY
    job |= {"status": "failed", "phase": "loading", "error": {"message": "no [such] column"}, "metrics_summary": None}
    assert run("show", "job_1")[1] == "job_1 is failed (loading): no [such] column\n"


def printed(summary):
    console = Console(file=io.StringIO(), width=120)
    console.print(comparison(summary, "title"))
    return console.file.getvalue()


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
        return httpx.Response(200, json={"id": "j", "status": "succeeded", "finished_at": "2026-01-01T00:00:00Z"})

    with sdk.NeuroPruneClient("http://service", transport=httpx.MockTransport(handler)) as client:
        assert demo.do_job(Console(file=io.StringIO()), stack, client)["status"] == "succeeded"
    worker.stop()


def test_the_demo_removes_its_own_bundle_and_nothing_else(tmp_path):
    bundle, other = tmp_path / "bundle", tmp_path / "other"
    for folder, name in ((bundle, "manifest.json"), (other, "thesis.txt")):
        folder.mkdir()
        (folder / name).touch()
    demo._make_way(tmp_path / "new")
    demo._make_way(bundle)
    assert not bundle.exists()
    with pytest.raises(InvalidInputError, match="is no bundle"):
        demo._make_way(other)
    assert (other / "thesis.txt").exists()
