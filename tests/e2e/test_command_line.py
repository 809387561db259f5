"""The `neuroprune` command as its user runs it: a service, a job, a bundle; and nothing left behind."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C; the command must not inherit that.
HEED_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
NEUROPRUNE = [sys.executable, "-c", f"{HEED_INTERRUPTS}; from client.cli import main; main()"]
PATIENCE_SECONDS = 120
KEY = "the-key-of-today"

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")


@pytest.fixture
def environment(tmp_path):
    """Every process that descends from the test carries its folder's name in its environment."""
    repository = str(Path(__file__).parents[2])
    return os.environ | {"NEUROPRUNE_TEST_MARK": str(tmp_path), "PYTHONPATH": repository}


def descendants(mark: Path) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"NEUROPRUNE_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is not ours to look at
            continue
    return found


@contextmanager
def running(arguments, tmp_path, environment):
    """The command in the background, its output in a file; killed if the test fails."""
    log = tmp_path / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*NEUROPRUNE, *arguments], cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()


def wait_for(pattern, log, process):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := re.search(pattern, log.read_text(errors="replace"))):
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.2)
    return found


def run(arguments, tmp_path, environment, *, status=0, **options):
    """Its output, or what it complains of."""
    done = subprocess.run(
        [*NEUROPRUNE, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr if status else done.stdout


def test_a_job_from_the_command_line(tmp_path, environment):
    from tests import tiny

    environment = environment | {"NEUROPRUNE_API_KEYS": f"the-key-of-yesterday {KEY}", "NEUROPRUNE_API_KEY": KEY}

    tiny.save(tiny.bert_classifier(), tmp_path / "model")
    archive = shutil.make_archive(str(tmp_path / "model"), "zip", tmp_path / "model")
    rows = [{"text": text, "label": int("good" in text)} for text in tiny.sentences(64)]
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with running(["up", "--port", "0"], tmp_path, environment) as (service, log):
        url = wait_for(r"export NEUROPRUNE_URL=(http://[\d.:]+)\n", log, service)[1]
        environment = environment | {"NEUROPRUNE_URL": url}
        strange = environment | {"NEUROPRUNE_API_KEY": "no-key-of-this-service"}
        assert "NEUROPRUNE_API_KEY has to hold one" in run(["jobs"], tmp_path, strange, status=1)
        model = run(["upload", archive, "--purpose", "model"], tmp_path, environment).strip()
        train = run(["upload", "rows.jsonl.gz", "--purpose", "dataset"], tmp_path, environment).strip()
        spec = {
            "model": {"source": "upload", "file": model},
            "task": {"name": "sequence-classification", "data": {"source": "upload", "train": train}},
            "target": {"sparsity": 0.5},
            "training": {"num_train_epochs": 2, "max_length": 16},
            "export": {"formats": ["safetensors"]},
        }
        watched = run(["submit", "-", "--watch"], tmp_path, environment, input=json.dumps(spec))
        assert "succeeded" in watched
        job_id = re.search(r"job_[0-9a-f]{32}", watched)[0]
        assert f"{job_id} is succeeded." in run(["show", job_id], tmp_path, environment)
        assert f"\n{job_id}\t\tsucceeded\t" in run(["jobs"], tmp_path, environment)
        assert "every sha256 is right" in run(["download", job_id, "bundle"], tmp_path, environment)
        (tmp_path / "bundle" / "README.md").write_text("mine")
        assert "README.md" in run(["download", job_id, "bundle"], tmp_path, environment, status=1)
        assert (tmp_path / "bundle" / "README.md").read_text() == "mine"
        assert "every sha256 is right" in run(["download", job_id, "bundle", "--force"], tmp_path, environment)
        assert f"\n{train}\trows.jsonl.gz\tdataset\t" in run(["files"], tmp_path, environment)
        for item in (job_id, train):
            assert run(["delete", item], tmp_path, environment) == f"{item} is deleted.\n"
        assert job_id not in run(["jobs"], tmp_path, environment)
        assert "There is no job" in run(["show", job_id], tmp_path, environment, status=1)
        assert model in run(["files"], tmp_path, environment)
        service.send_signal(signal.SIGINT)
        assert service.wait(30) == 130
    written = [log, *(tmp_path / ".neuroprune" / "logs").iterdir()]
    assert not [file for file in written if KEY in file.read_text(errors="replace")]
    loaded = subprocess.run(
        [sys.executable, "-m", "client.load", str(tmp_path / "bundle")], capture_output=True, text=True, check=True
    )
    assert json.loads(loaded.stdout)["max_abs_difference"] <= 1e-5
    assert descendants(tmp_path) == []


@pytest.mark.thorough
def test_an_interrupted_demo_leaves_nothing_running(tmp_path, environment):
    with running(["demo"], tmp_path, environment) as (demo, log):
        wait_for("pruning ", log, demo)
        assert any("worker.runner" in command for command in descendants(tmp_path))
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 130
    assert "Traceback" not in log.read_text()
    assert descendants(tmp_path) == []
