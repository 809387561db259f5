"""The command line: what it prints, and how it fails."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from client import catalog, cli, sdk
from client.comparison import comparison
from client.display import progress_display, time_left
from client.events import Event
from client.output import complain, say
from client.spec_file import read_spec
from core.settings import Settings
from core.version import VERSION

SUMMARY = {
    "sparsity": {"achieved": 0.5, "removed": 0.5, "zero": 0.0, "zero_in_dense": 0.0},
    "target": {"name": "sparsity", "requested": 0.5, "achieved": 0.5004, "unit": "share"},
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
JOB_ID = f"job_{'1' * 32}"
DONE = "event: done\ndata: {}\n\n"


def job(**changes):
    """One as the service shows it."""
    standing = {"id": JOB_ID, "object": "job", "name": "mine", "status": "queued", "phase": None, "progress": None}
    times = {"created_at": "2026-01-01T10:20:30.400000Z", "started_at": None, "finished_at": None}
    outcome = {"warnings": [], "error": None, "metrics_summary": None}
    return standing | {"queue": None} | times | outcome | changes


def ended(**changes):
    return job(finished_at="2026-01-01T11:20:30Z") | changes


def refusal(status, detail):
    problem = {"type": "urn:neuroprune:problem:x", "title": "Refused", "status": status, "detail": detail}
    return httpx.Response(status, json=problem, headers={"Content-Type": "application/problem+json"})


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
    assert (status, json.loads(out)) == (0, catalog.methods())
    status, out, _ = run("families", "--json")
    assert (status, json.loads(out)) == (0, catalog.families())


def test_families_are_lines_of_their_own(run):
    status, out, _ = run("families")
    headings, *rows = [line.split("\t") for line in out.splitlines()]
    assert (status, headings) == (0, ["model_type", "family", "tasks", "uniform", "export"])
    assert ["gpt2", "GPT-2", "causal-lm, sequence-classification, regression", "neurons"] in [row[:4] for row in rows]
    assert {row[0]: row[4] for row in rows}["llama"] == "safetensors, onnx, executorch, gguf"


def test_methods_name_their_options_and_what_those_are_by_default(run):
    status, out, err = run("methods")
    headings, *rows = [line.split("\t") for line in out.splitlines()]
    assert (status, headings) == (0, ["method", "summary", "options", "paper"])
    smart = dict(zip(headings, next(row for row in rows if row[0] == "smart"), strict=True))
    assert smart["paper"] == "https://arxiv.org/abs/2403.19969"
    assert smart["options"] == (
        'granularity="structured", score_learning_rate=0.01, initial_temperature=1.0, final_temperature=0.01'
    )
    assert err == (
        "null: chosen by task, mode or target. Each option's meaning and limits: neuroprune methods --json\n"
    )


def test_the_version_is_told(run):
    assert run("--version") == (0, f"neuroprune {VERSION}\n", "")


def test_a_service_that_is_not_there_is_one_line(run):
    status, out, err = run("jobs", "--url", "http://127.0.0.1:9")
    assert (status, out) == (1, "")
    assert err.startswith("Error: No NeuroPrune service answers at http://127.0.0.1:9")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["jobs", "--url", "http://[::1"], "Error: 'http://[::1' is no URL: "),
        (["jobs", "--status", "\udcff"], "Error: '\\udcff' cannot be written as utf-8."),
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


def test_a_file_whose_url_is_none_is_one_line(run, service, tmp_path):
    file = {"name": "manifest.json", "bytes": 1, "sha256": "0" * 64, "url": "/v1/\r"}
    service(lambda _: httpx.Response(200, json={"data": [file]}))
    status, _, err = run("download", JOB_ID, str(tmp_path))
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("Error: Invalid non-printable ASCII character in URL")


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_that_is_none_is_refused(run, port):
    status, out, err = run("up", "--port", port)
    assert (status, out) == (2, "")
    assert "--port" in err


class _Started:
    """Stands for the embedded service, and ends at once."""

    def __init__(self, state_dir, *, port):
        self.state_dir = state_dir
        self.url = f"http://127.0.0.1:{port or 8000}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def tend(self):
        raise SystemExit(130)


@pytest.mark.parametrize(
    ("arguments", "is_told"), [([], False), (["--port", "8000"], False), (["--port", "8001"], True)]
)
def test_up_tells_where_the_log_is_and_how_the_commands_find_another_port(run, monkeypatch, arguments, is_told):
    monkeypatch.setattr(cli, "_exit_on_termination", lambda: None)
    monkeypatch.setattr(cli, "_TEND_SECONDS", 0)
    monkeypatch.setattr(cli, "EmbeddedStack", _Started)
    status, out, _ = run("up", *arguments)
    assert status == 130
    assert f"The worker's log is {Path('.neuroprune/logs/worker.log')}, " in out
    assert ("  export NEUROPRUNE_URL=http://127.0.0.1:8001" in out.splitlines()) is is_told
    assert ("NEUROPRUNE_URL" in out) is is_told


@pytest.mark.parametrize("keys", [None, "the-key-of-today,the-key-of-tomorrow"])
def test_up_tells_who_needs_a_key_and_not_which(run, monkeypatch, keys):
    monkeypatch.setattr(cli, "_exit_on_termination", lambda: None)
    monkeypatch.setattr(cli, "_TEND_SECONDS", 0)
    monkeypatch.setattr(cli, "EmbeddedStack", _Started)
    monkeypatch.setattr(cli, "get_settings", lambda: Settings(api_keys=keys.split(",") if keys else ()))
    _, out, _ = run("up")
    assert ('-H "Authorization: Bearer $NEUROPRUNE_API_KEY"' in out) is bool(keys)
    assert ("It asks for a key" in out) is bool(keys)
    assert "the-key" not in out


def test_a_refused_key_is_two_lines_that_say_where_it_comes_from(run, service, monkeypatch):
    monkeypatch.setenv("NEUROPRUNE_API_KEY", "no-key-of-that-service")
    service(lambda _: refusal(401, "The key that was sent is none of this service's."))
    status, out, err = run("jobs")
    assert (status, out) == (1, "")
    assert err == (
        "Error: The key that was sent is none of this service's.\nNEUROPRUNE_API_KEY has to hold one of its keys.\n"
    )


def test_no_option_takes_the_key_as_others_would_see_it(run):
    _, out, _ = run("jobs", "--help")
    assert "key" not in out.lower()
    assert "NEUROPRUNE_API_KEY" in run("--help")[1]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON"),
        ("[]", "one JSON object"),
        (None, "read"),
        ('{"target": {"sparsity": NaN}}', "is not JSON: NaN is no finite number."),
        ('{"target": {"sparsity": -1e999}}', "is not JSON: -1e999 is no finite number."),
        ('{"name": "\\ud800"}', "holds '\\ud800', which is no character."),
        ("[" * 100_000, "is nested too deeply for a job's spec."),
    ],
)
def test_a_spec_that_is_none_is_refused_before_it_is_sent(run, tmp_path, content, complaint):
    spec = tmp_path / "spec.json"
    if content is not None:
        spec.write_text(content)
    status, _, err = run("submit", str(spec))
    assert status == 1
    assert complaint in err
    assert (err.startswith(f"Error: {spec}"), err.count("\n")) == (True, 1)


def test_a_spec_that_can_be_read_but_is_too_deep_to_be_written_is_refused(run, monkeypatch, tmp_path):
    def submit(*_, **__):
        raise RecursionError

    monkeypatch.setattr(sdk.NeuroPruneClient, "submit", submit)
    (tmp_path / "spec.json").write_text("{}")
    status, _, err = run("submit", str(tmp_path / "spec.json"))
    assert (status, err) == (1, f"Error: {tmp_path / 'spec.json'} is nested too deeply for a job's spec.\n")


def test_a_spec_is_read_from_standard_input_and_problems_are_shown(run, service, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"target": [1]}')))
    sent = []

    def handler(request):
        sent.append(json.loads(request.content))
        return refusal(422, "/target: [must] be an object")

    service(handler)
    status, _, err = run("submit", "-", "--name", "mine")
    assert (status, err) == (1, "Error: /target: [must] be an object\n")
    assert sent == [{"target": [1], "name": "mine"}]


def test_watch_fails_where_the_job_does(run, service):
    def handler(request):
        if request.url.path.endswith("/events"):
            lines = [f"id: {e.seq}\nevent: {e.type}\ndata: {json.dumps({'data': e.data})}\n\n" for e in EVENTS]
            return httpx.Response(200, text="".join(lines) + DONE)
        return httpx.Response(200, json=ended(status="failed"))

    service(handler)
    status, out, _ = run("watch", JOB_ID)
    assert status == 1
    assert "failed: no such column" in out
    status, out, _ = run("watch", JOB_ID, "--json")
    assert status == 1
    assert [json.loads(line)["seq"] for line in out.splitlines()] == [1, 2, 3, 4, 5]


def test_watch_ends_with_what_came_of_the_job(run, service):
    def handler(request):
        if request.url.path.endswith("/events"):
            return httpx.Response(200, text=DONE)
        return httpx.Response(200, json=ended(name="my [first] job", status="succeeded", metrics_summary=SUMMARY))

    service(handler)
    status, out, _ = run("watch", JOB_ID)
    assert status == 0
    assert "my [first] job" in out
    assert "-0.0500" in out
    assert run("watch", JOB_ID, "--json")[:2] == (0, "")


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_who_stops_watching_is_told_that_the_job_goes_on(run, service, monkeypatch, tmp_path):
    service(lambda _: httpx.Response(200, json=job(queue={"position": 2, "reason": "No worker is running."})))
    monkeypatch.setattr(sdk.NeuroPruneClient, "watch", interrupt)
    (tmp_path / "spec.json").write_text("{}")
    advice = f"The job goes on. Follow it: neuroprune watch {JOB_ID}; end it: neuroprune cancel {JOB_ID}\n"
    for command in (["watch", JOB_ID], ["watch", JOB_ID, "--json"], ["submit", str(tmp_path / "spec.json"), "--watch"]):
        status, out, err = run(*command)
        assert (status, err.lstrip("\n")) == (130, advice)
        assert ("Number 2 in the queue. No worker is running.\n" in out) is ("--json" not in command)


def test_a_submitted_job_that_is_watched_by_a_program_comes_first(run, service, tmp_path):
    def handler(request):
        if request.url.path.endswith("/events"):
            lines = [f"id: {e.seq}\nevent: {e.type}\ndata: {json.dumps({'data': e.data})}\n\n" for e in EVENTS[:2]]
            return httpx.Response(200, text="".join(lines) + DONE)
        return httpx.Response(200, json=job() if request.method == "POST" else ended(status="succeeded"))

    service(handler)
    (tmp_path / "spec.json").write_text("{}")
    status, out, _ = run("submit", str(tmp_path / "spec.json"), "--watch", "--json")
    first, *events = [json.loads(line) for line in out.splitlines()]
    assert (status, first) == (0, job())
    assert [event["seq"] for event in events] == [1, 2]
    assert json.loads(run("submit", str(tmp_path / "spec.json"), "--json")[1]) == job()
    assert run("submit", str(tmp_path / "spec.json"))[1] == f"{JOB_ID} is queued.\n"


def test_a_job_is_submitted_under_a_key_of_ones_own(run, service, tmp_path):
    (tmp_path / "job.json").write_text("{}")
    keys = []

    def handler(request):
        keys.append(request.headers["idempotency-key"])
        return httpx.Response(202, json=job())

    service(handler)
    for options in ([], [], ["--idempotency-key", "order-7"]):
        assert run("submit", str(tmp_path / "job.json"), *options)[0] == 0
    assert len(set(keys)) == 3
    assert keys[2] == "order-7"
    status, _, err = run("submit", str(tmp_path / "job.json"), "--idempotency-key", "two words")
    assert (status, err) == (1, "Error: 'two words' is no idempotency key: 1 to 255 visible ASCII characters.\n")


def test_jobs_are_whole_lines_and_the_next_page_is_named_beside_them(run, service):
    asked = []
    found = [
        job(status="cancelling", phase="pruning", name="a [long] name of a job " * 9),
        ended(status="succeeded", phase="uploading", name=None),
    ]

    def handler(request):
        asked.append(dict(request.url.params))
        return httpx.Response(200, json={"data": found, "has_more": len(asked) == 1, "next_cursor": JOB_ID})

    service(handler)
    status, out, err = run("jobs", "--status", "cancelling", "--limit", "2")
    assert status == 0
    assert [line.split("\t") for line in out.splitlines()] == [
        ["job", "name", "status", "created (UTC)"],
        [JOB_ID, found[0]["name"], "cancelling (pruning)", "2026-01-01 10:20:30"],
        [JOB_ID, "", "succeeded", "2026-01-01 10:20:30"],
    ]
    assert err == f"There are more; for the next page repeat this with --cursor {JOB_ID}\n"
    status, _, err = run("jobs", "--cursor", JOB_ID)
    assert (status, err) == (0, "")
    assert asked == [{"status": "cancelling", "limit": "2"}, {"limit": "20", "cursor": JOB_ID}]


@pytest.mark.parametrize(("options", "overwrites"), [([], False), (["--force"], True)])
def test_a_download_overwrites_by_force_only(run, monkeypatch, options, overwrites):
    asked = []

    def download(_, job_id, folder, *, overwrite):
        asked.append((job_id, folder, overwrite))
        return [folder / "model.onnx"]

    monkeypatch.setattr(sdk.NeuroPruneClient, "download", download)
    assert run("download", JOB_ID, "a [b]", *options) == (0, "1 files in a [b], every sha256 is right.\n", "")
    assert asked == [(JOB_ID, Path("a [b]"), overwrites)]


@pytest.mark.parametrize(
    ("verb", "status"), [("cancel", "cancelled"), ("pause", "pausing"), ("resume", "queued"), ("retry", "queued")]
)
def test_jobs_are_steered_by_verbs(run, service, verb, status):
    asked = []

    def handler(request):
        asked.append((request.method, request.url.path))
        return httpx.Response(202, json=job(status=status))

    service(handler)
    assert run(verb, JOB_ID)[:2] == (0, f"{JOB_ID} is {status}.\n")
    assert json.loads(run(verb, JOB_ID, "--json")[1]) == job(status=status)
    assert asked == [("POST", f"/v1/jobs/{JOB_ID}/{verb}")] * 2


FILE = {
    "id": f"file_{'2' * 32}",
    "object": "file",
    "filename": "train [1].csv",
    "purpose": "dataset",
    "bytes": 1_562_943,
    "created_at": "2026-01-01T10:20:30.400000Z",
}


def test_files_are_whole_lines_and_the_next_page_is_named_beside_them(run, service):
    asked = []

    def handler(request):
        asked.append((request.url.path, dict(request.url.params)))
        return httpx.Response(200, json={"data": [FILE], "has_more": True, "next_cursor": "next"})

    service(handler)
    status, out, err = run("files", "--purpose", "dataset", "--limit", "1", "--cursor", "this")
    assert status == 0
    assert [line.split("\t") for line in out.splitlines()] == [
        ["file", "name", "purpose", "size", "created (UTC)"],
        [FILE["id"], "train [1].csv", "dataset", "1.6 MB", "2026-01-01 10:20:30"],
    ]
    assert err == "There are more; for the next page repeat this with --cursor next\n"
    assert asked == [("/v1/files", {"purpose": "dataset", "limit": "1", "cursor": "this"})]
    assert json.loads(run("files", "--json")[1])["data"] == [FILE]


@pytest.mark.parametrize(("item", "path"), [(JOB_ID, f"/v1/jobs/{JOB_ID}"), (FILE["id"], f"/v1/files/{FILE['id']}")])
def test_jobs_and_files_are_deleted_by_their_id(run, service, item, path):
    asked = []

    def handler(request):
        asked.append((request.method, request.url.path))
        return httpx.Response(204) if len(asked) == 1 else refusal(409, "It is still to be read.")

    service(handler)
    assert run("delete", item) == (0, f"{item} is deleted.\n", "")
    status, out, err = run("delete", item)
    assert (status, out) == (1, "")
    assert "still to be read" in err
    assert asked == [("DELETE", path)] * 2


def test_a_verb_that_a_job_does_not_allow_is_one_line(run, service):
    service(lambda _: refusal(409, "It has succeeded."))
    status, out, err = run("pause", JOB_ID)
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
    assert "left" not in shown, "no time is told that is not known"


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

    assert [time_left(in_seconds(s)) for s in (5, 61, 3723)] == ["0:05 left", "1:01 left", "1:02:03 left"]
    assert [time_left(eta) for eta in (None, in_seconds(-5))] == ["", ""]


def test_a_summary_sets_dense_beside_pruned():
    shown = printed(SUMMARY)
    texts = ("title", "0.9500", "-0.0500", "5,000,000", "-50.0%", "60.00 MB", "-25.0%", "ONNX Runtime", "2.00x faster")
    for text in texts:
        assert text in shown


def test_a_summary_says_what_became_zero_and_what_was_asked_for():
    assert "zeros" not in printed(SUMMARY)
    assert "Asked for: sparsity 0.5; achieved: 0.5004 (share)." in printed(SUMMARY)
    sparsity = {"achieved": 0.6, "removed": 0.0, "zero": 0.6, "zero_in_dense": 0.01}
    rows = [line.split("│")[1:5] for line in printed(SUMMARY | {"sparsity": sparsity}).splitlines() if "zeros" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["zeros in the encoder", "1.0%", "60.0%", "+59.0 points"]
    ]
    del sparsity["zero_in_dense"]
    assert "60.0%" in printed(SUMMARY | {"sparsity": sparsity})


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
        ["dense", "0.9000", "10,000,000", "20.00 ms"],
        ["(sparsity-0.5)", "0.8800", "5,000,000", "10.00 ms, 2.00x faster"],
        ["sparsity-0.75", "0.8900", "2,500,000", "5.00 ms, 4.00x faster"],
    ]


def test_a_level_without_the_metric_has_an_empty_cell():
    without = level("sparsity-0.5", 0.5, 0.88, is_dominated=False) | {"metrics": {}}
    assert "0.8800" not in printed({"headline_metric": "pearson", "frontier": [without]})


PROGRESS = {"fraction": 0.49, "step": 389, "total_steps": 1000, "eta_at": None, "message": "", "metrics": {"loss": 0.1}}


@pytest.mark.parametrize(
    ("shown", "lines"),
    [
        (
            job(queue={"position": 2, "reason": "No worker is running."}),
            [f"{JOB_ID} is queued.", "Number 2 in the queue. No worker is running."],
        ),
        (
            job(status="running", phase="pruning", progress=PROGRESS, warnings=["mind [the] gap"]),
            [f"{JOB_ID} is running (pruning).", "49% done, step 389/1000, loss 0.1.", "warning: mind [the] gap"],
        ),
        (
            ended(status="failed", phase="loading", error={"message": "no [such] column"}, progress=PROGRESS),
            [f"{JOB_ID} is failed (loading): no [such] column"],
        ),
        (
            ended(status="cancelled", phase="pruning", warnings=["one", "two"]),
            [f"{JOB_ID} is cancelled (pruning).", "warning: one", "warning: two"],
        ),
        (
            ended(status="cancelled", phase=None, kept_until="2026-01-08T11:20:30Z"),
            [f"{JOB_ID} is cancelled.", "It is kept until 2026-01-08 11:20:30 (UTC)."],
        ),
    ],
)
def test_show_tells_where_a_job_stands(run, service, shown, lines):
    service(lambda _: httpx.Response(200, json=shown))
    status, out, _ = run("show", JOB_ID)
    assert (status, out.splitlines()) == (0, lines)


def test_show_tells_when_a_job_will_be_done(run, service):
    eta = datetime.now(UTC) + timedelta(hours=2, seconds=30)
    service(lambda _: httpx.Response(200, json=job(status="running", progress=PROGRESS | {"eta_at": eta.isoformat()})))
    assert re.search(r"loss 0\.1, 2:00:\d\d left\.$", run("show", JOB_ID)[1])


def test_show_tells_what_came_of_a_job(run, service):
    service(lambda _: httpx.Response(200, json=ended(status="succeeded", phase="uploading", metrics_summary=SUMMARY)))
    _, out, _ = run("show", JOB_ID)
    assert out.startswith(f"{JOB_ID} is succeeded.\n")
    assert "mine" in out
    assert "-0.0500" in out
    assert json.loads(run("show", JOB_ID, "--json")[1])["metrics_summary"] == SUMMARY


def printed(summary):
    console = Console(file=io.StringIO(), width=120)
    console.print(comparison(summary, "title"))
    return console.file.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_spec_is_read_as_json_is_written_whatever_the_locale(encoding, monkeypatch, tmp_path):
    (tmp_path / "spec.json").write_bytes('{"name": "süß"}'.encode(encoding))
    monkeypatch.setattr("locale.getencoding", lambda: "latin-1")
    assert read_spec(str(tmp_path / "spec.json")) == {"name": "süß"}


def test_names_are_printed_as_they_are(capsys):
    say("runs:on:1")
    complain("sp:key:ec.json")
    assert capsys.readouterr() == ("runs:on:1\n", "Error: sp:key:ec.json\n")


def test_lists_are_lines_away_from_a_terminal_even_if_colours_are_asked_for():
    program = "from client.output import console; from client.tables import print_table; "
    program += "print_table(console, ['a', 'b'], [['1', '2']])"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | {"FORCE_COLOR": "1"}, capture_output=True, text=True, check=True)
    assert done.stdout == "a\tb\n1\t2\n"


def test_what_the_locale_cannot_spell_is_no_error():
    program = "from client.output import *; speak_in_any_locale(); say('0 … 1'); print_json('ü …')"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert done.stdout == b'0 ? 1\n"\\u00fc \\u2026"\n'


def test_whoever_had_a_closing_terminal_ignored_outlives_it():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        cli._exit_on_termination()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_stream_that_is_closed_is_no_traceback(closed):
    command = f"{shlex.quote(sys.executable)} -m client.cli --help {closed}"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stdout + done.stderr) == (0, False)
