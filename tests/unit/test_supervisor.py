"""The supervisor with real child processes: small scripts in place of the runner."""

import io
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import InternalError, OperationalError

from core import logs
from core.db import create_engine, jobs, metadata
from core.dispatch import Dispatcher
from core.errors import LeaseLostError, NotFoundError
from core.jobs.records import Job, Lease
from core.jobs.spec import JobSpec
from core.jobs.state import Status
from core.jobs.store import JobStore
from core.settings import Settings
from core.storage import Storage
from worker import child as child_module
from worker.supervisor import Heartbeat, Supervisor, child_environment

SPEC = JobSpec.model_validate(
    {
        "model": {"source": "builtin", "name": "all-MiniLM-L6-v2"},
        "task": {"name": "sentence-embedding", "data": {"source": "builtin", "name": "python-docs"}},
        "target": {"sparsity": 0.5},
    }
)
PREAMBLE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
work_dir, fd = Path(sys.argv[2]), int(sys.argv[4])
job = json.loads((work_dir / "job.json").read_text())
def say(**message):
    os.write(fd, json.dumps(message).encode() + b"\\n")
def succeed():
    say(type="succeeded", metrics_summary={"a": 1}, artifacts=[])
def keep(step):
    key = f"{job['checkpoint_prefix']}/pruning-{step}"
    (Path(job["storage_url"]) / key).mkdir(parents=True)
    say(type="checkpoint", stage="pruning", step=step, finished=False, key=key, files=[])
"""


@dataclass
class Bench:
    """A store, a job in it, and a way to supervise that job with a script as the child."""

    store: JobStore
    storage: Storage
    settings: Settings
    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    dispatcher: Any = field(default_factory=lambda: Dispatcher("redis+socket:///nowhere/r.sock"))

    def create(self) -> str:
        return self.store.create(SPEC, name=None, labels={})[0].id

    def supervise(self, job_id: str, script: str, **settings: Any) -> Job:
        """Do the job that has waited longest; what became of this one."""
        child = self.folder / "child.py"
        child.write_text(PREAMBLE + dedent(script))
        supervisor = Supervisor(
            self.store,
            self.storage,
            self.dispatcher,
            self.settings.model_copy(update=settings),
            owner="test",
            should_stop=self.stop.is_set,
            runner=(sys.executable, str(child)),
        )
        supervisor.run_next()
        assert not list(self.settings.work_dir.glob("*")), "the work folder is not empty"
        return self.store.get(job_id)

    def execute(self, statement: str) -> None:
        """As another process does, on a connection of its own."""
        engine = create_engine(f"sqlite:///{self.folder}/jobs.db")
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def reasons(self, job_id: str) -> list[str]:
        events = self.store.events(job_id, 0, 100)
        return [e.data["reason"] for e in events if e.type == "status"]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    engine = create_engine(f"sqlite:///{tmp_path}/jobs.db")
    metadata.create_all(engine)
    settings = Settings(
        work_dir=tmp_path / "work", storage_url=str(tmp_path / "storage"), cancel_grace_seconds=0.3, lease_seconds=3
    )
    store = JobStore(engine, lease_seconds=settings.lease_seconds, max_attempts=2)
    yield Bench(store, Storage(settings.storage_url), settings, tmp_path)
    engine.dispose()


def when(condition: Callable[[], bool], action: Callable[[], object]) -> threading.Thread:
    """Act from another thread as soon as the condition holds."""

    def wait() -> None:
        while not condition():
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def end_soon(*pids: int) -> bool:
    """Whether the processes are gone long before they would end by themselves."""
    deadline = time.monotonic() + 20
    while any(map(is_alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_job_succeeds_and_its_progress_is_recorded(bench: Bench) -> None:
    job = bench.supervise(
        bench.create(),
        """
        assert job["attempt"] == 1 and job["artifact_prefix"] == f"artifacts/{job['job_id']}/1"
        say(type="phase", phase="loading")
        for step in range(100):
            say(type="progress", fraction=step / 100, step=step)
            time.sleep(0.015)
        say(type="warning", message="mind the gap")
        say(type="phase", phase="pruning")
        say(type="succeeded", metrics_summary={"speedup": 2}, artifacts=[
            {"name": "report.json", "size": 3, "sha256": "0" * 64, "media_type": "application/json"}])
        """,
    )
    assert job.status is Status.SUCCEEDED
    assert job.metrics_summary == {"speedup": 2}
    assert job.warnings == ("mind the gap",)
    assert job.phase == "pruning"
    assert job.progress is not None
    assert job.progress.step == 99, "the newest progress before a warning is kept"
    assert [a.name for a in bench.store.artifacts(job.id)] == ["report.json"]
    events = bench.store.events(job.id, 0, 1000)
    recorded = [e.created_at for e in events if e.type == "progress"]
    pauses = [later - earlier for earlier, later in itertools.pairwise(recorded)]
    assert all(pause > timedelta(seconds=0.9) for pause in pauses[:-1]), "only the warning hurries the newest"
    assert [e.data["phase"] for e in events if e.type == "phase"] == ["loading", "pruning"]


def test_the_childs_own_failure_is_the_jobs(bench: Bench) -> None:
    job = bench.supervise(
        bench.create(),
        """
        say(type="failed", code="invalid_input", message="no such column", param="/task/text_column")
        sys.exit(1)
        """,
    )
    assert job.status is Status.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.message, job.error.param) == (
        "invalid_input",
        "no such column",
        "/task/text_column",
    )


def test_what_earlier_attempts_stored_is_removed(bench: Bench) -> None:
    job_id = bench.create()
    lost = bench.store.claim(job_id, "killed before it could clean up")
    assert lost is not None
    bench.storage.put(f"artifacts/{job_id}/1/model.safetensors", io.BytesIO(b"half a bundle"))
    bench.store.release(lost, "it was killed")
    bench.storage.put(f"artifacts/{job_id}/2/report.json", io.BytesIO(b"{}"))
    assert bench.supervise(job_id, "succeed()").status is Status.SUCCEEDED
    with pytest.raises(NotFoundError):
        bench.storage.open(f"artifacts/{job_id}/1/model.safetensors")
    bench.storage.open(f"artifacts/{job_id}/2/report.json").close()


def test_a_job_that_fills_the_disk_is_ended(bench: Bench) -> None:
    job = bench.supervise(
        bench.create(),
        """
        (work_dir / "large").write_bytes(bytes(3000))
        time.sleep(60)
        """,
        job_disk_bytes=2000,
    )
    assert job.error is not None
    assert (job.status, job.error.code) == (Status.FAILED, "storage_full")
    assert "2000 bytes" in job.error.message


@pytest.mark.parametrize(("kills", "status"), [([7, 8], Status.FAILED), ([7, 7], Status.QUEUED)])
def test_what_the_kernel_killed_for_memory_is_not_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kills: list[int], status: Status
) -> None:
    monkeypatch.setattr(child_module, "kills_for_memory", iter(kills).__next__)
    job = bench.supervise(bench.create(), "os.kill(os.getpid(), signal.SIGKILL)")
    assert job.status is status
    assert (job.error.code if job.error else None) == ("out_of_memory_host" if status is Status.FAILED else None)


def test_a_store_that_does_not_answer_costs_an_attempt_and_not_the_job(bench: Bench) -> None:
    script = """
        say(type="failed", code="storage_unavailable", message="The store does not answer.", retryable=True)
        sys.exit(1)
        """
    job = bench.supervise(bench.create(), script)
    assert job.status is Status.QUEUED
    job = bench.supervise(job.id, script)
    assert job.error is not None
    assert (job.status, job.error.code) == (Status.FAILED, "worker_lost")
    assert "does not answer" in job.error.message


def test_an_exit_without_a_word_is_an_internal_error_without_a_traceback(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    job = bench.supervise(bench.create(), "raise RuntimeError('secret detail')")
    assert job.error is not None
    assert job.error.code == "internal"
    assert "exit status 1" in job.error.message
    assert "secret" not in job.error.message
    assert "secret detail" in caplog.text, "the worker's log has the traceback"


@pytest.mark.usefixtures("logging_restored")
def test_all_that_is_logged_of_a_job_names_it_and_its_attempt(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    job_id = bench.create()
    for attempt in (1, 2):
        bench.supervise(job_id, "os.kill(os.getpid(), signal.SIGKILL)")
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        assert {(line.get("job_id"), line.get("attempt")) for line in lines} == {(job_id, attempt)}


def test_garbage_on_the_pipe_is_borne(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    job = bench.supervise(
        bench.create(),
        r"""
        os.write(fd, b"\x00\xff garbage\n{}\n" + b'{"type": "progress", "fraction": 7}\n\n')
        for _ in range(6 * 16):
            os.write(fd, b"x" * 65536)  # one line of 6 MiB
        os.write(fd, b"\n")
        succeed()
        os.write(fd, b"after the end")
        """,
    )
    assert job.status is Status.SUCCEEDED
    assert "wrote no message" in caplog.text


@pytest.mark.parametrize("manners", ["signal.SIG_DFL", "signal.SIG_IGN"])
def test_cancel_ends_the_child_and_all_it_started(bench: Bench, manners: str) -> None:
    job_id = bench.create()
    pids = bench.folder / "pids"
    survived = bench.folder / "survived"
    cancelling = when(pids.exists, lambda: bench.store.request_cancel(job_id))
    job = bench.supervise(
        job_id,
        f"""
        signal.signal(signal.SIGINT, {manners})
        other = subprocess.Popen(["sleep", "60"])
        Path({str(pids)!r} + "~").write_text(f"{{os.getpid()}} {{other.pid}}")
        Path({str(pids)!r} + "~").rename({str(pids)!r})
        time.sleep(30)
        Path({str(survived)!r}).touch()
        """,
    )
    cancelling.join()
    assert job.status is Status.CANCELLED
    assert not survived.exists()
    assert end_soon(*map(int, pids.read_text().split()))


def test_a_job_cancelled_between_claim_and_start_is_cancelled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = bench.create()
    claim = bench.store.claim

    def claim_and_cancel(*args: str) -> Any:
        lease = claim(*args)
        bench.store.request_cancel(job_id)
        return lease

    monkeypatch.setattr(bench.store, "claim", claim_and_cancel)
    assert bench.supervise(job_id, "time.sleep(60)").status is Status.CANCELLED


def test_a_killed_child_gives_the_job_back_until_it_fails(bench: Bench) -> None:
    job_id = bench.create()
    script = "os.kill(os.getpid(), signal.SIGKILL)"
    assert bench.supervise(job_id, script).status is Status.QUEUED
    assert "SIGKILL" in bench.reasons(job_id)[-1]
    job = bench.supervise(job_id, script)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == "worker_lost"
    assert "SIGKILL" in job.error.message


def test_a_job_that_is_given_back_is_sent_again_and_one_that_failed_is_not(bench: Bench) -> None:
    sent: list[str] = []
    bench.dispatcher = SimpleNamespace(job_ready=lambda job_id: sent.append(job_id) or True)
    job_id = bench.create()
    for _ in range(2):
        bench.supervise(job_id, "os.kill(os.getpid(), signal.SIGKILL)")
        assert sent == [job_id]
        assert bench.store.undispatched(30) == []


def test_a_shutdown_gives_the_job_back(bench: Bench) -> None:
    job_id = bench.create()
    running = bench.folder / "running"
    when(running.exists, bench.stop.set)
    job = bench.supervise(job_id, f"Path({str(running)!r}).touch(); time.sleep(60)")
    assert job.status is Status.QUEUED
    assert "shut down" in bench.reasons(job_id)[-1]


STOPS_AT_A_CHECKPOINT = """
def stop(*_):
    keep(7)
    say(type="stopped")
    sys.exit()
signal.signal(signal.SIGTERM, stop)
(work_dir.parents[1] / "running").touch()
time.sleep(60)
"""


def test_a_shutdown_waits_for_a_checkpoint_and_costs_no_attempt(bench: Bench) -> None:
    job_id = bench.create()
    running = bench.folder / "running"
    for _ in range(3):
        bench.stop.clear()
        when(running.exists, bench.stop.set)
        assert bench.supervise(job_id, STOPS_AT_A_CHECKPOINT).status is Status.QUEUED
        running.unlink()
    assert {attempt.outcome for attempt in bench.store.attempts(job_id)} == {"handed_back"}
    assert bench.store.checkpoints(job_id)["pruning"].step == 7


def test_a_pause_waits_for_a_checkpoint_from_which_the_next_attempt_goes_on(bench: Bench) -> None:
    job_id = bench.create()
    when((bench.folder / "running").exists, lambda: bench.store.request_pause(job_id))
    assert bench.supervise(job_id, STOPS_AT_A_CHECKPOINT).status is Status.PAUSED
    bench.store.resume(job_id)
    script = 'assert job["checkpoints"]["pruning"]["key"] == f"checkpoints/{job[\'job_id\']}/1/pruning-7"; succeed()'
    assert bench.supervise(job_id, script).status is Status.SUCCEEDED
    assert [attempt.outcome for attempt in bench.store.attempts(job_id)] == ["paused", "succeeded"]


@pytest.mark.parametrize(
    ("request_stop", "status", "outcome"),
    [
        (lambda bench, _job_id: bench.stop.set(), Status.QUEUED, "handed_back"),
        (lambda bench, job_id: bench.store.request_pause(job_id), Status.PAUSED, "paused"),
    ],
    ids=["shutdown", "pause"],
)
def test_a_child_that_does_not_stop_is_ended_when_the_grace_is_over(
    bench: Bench, request_stop: Callable[[Bench, str], object], status: Status, outcome: str
) -> None:
    job_id = bench.create()
    when((bench.folder / "running").exists, lambda: request_stop(bench, job_id))
    job = bench.supervise(
        job_id,
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (work_dir.parents[1] / "running").touch()
        time.sleep(30)
        succeed()
        """,
        shutdown_grace_seconds=0.3,
    )
    assert job.status is status
    assert [attempt.outcome for attempt in bench.store.attempts(job_id)] == [outcome]


def test_a_child_that_was_told_to_stop_by_others_gives_the_job_back(bench: Bench) -> None:
    job_id = bench.create()
    assert bench.supervise(job_id, 'say(type="stopped")').status is Status.QUEUED
    assert bench.store.attempts(job_id)[0].outcome == "handed_back"


def test_only_the_newest_checkpoint_is_kept(bench: Bench) -> None:
    job_id = bench.create()
    bench.supervise(job_id, "keep(1); keep(2); os.kill(os.getpid(), signal.SIGKILL)")
    bench.supervise(job_id, "keep(3); succeed()")
    assert bench.store.checkpoints(job_id)["pruning"].key == f"checkpoints/{job_id}/2/pruning-3"
    assert bench.store.deletions() == [f"checkpoints/{job_id}/1/pruning-{step}" for step in (1, 2)]


def test_a_fenced_attempts_checkpoint_does_not_count(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # The checkpoint is to find it out, and not the heartbeat, which comes first where the machine is busy.
    monkeypatch.setattr("worker.supervisor._HEARTBEAT_SECONDS", 60)
    job_id = bench.create()
    running = bench.folder / "running"

    def take_over() -> None:
        bench.execute("UPDATE jobs SET owner = 'another'")
        (bench.folder / "fenced").touch()

    thread = when(running.exists, take_over)
    bench.supervise(
        job_id,
        """
        keep(1)
        time.sleep(1)
        top = work_dir.parents[1]
        (top / "running").touch()
        while not (top / "fenced").exists():
            time.sleep(0.02)
        keep(2)
        time.sleep(60)
        """,
        lease_seconds=600,
    )
    thread.join()
    assert bench.store.checkpoints(job_id)["pruning"].step == 1
    assert bench.store.deletions() == []


def test_what_was_written_for_a_job_since_its_deletion_is_discarded(bench: Bench) -> None:
    job_id = bench.create()
    running = bench.folder / "running"

    when(running.exists, lambda: bench.execute("DELETE FROM jobs"))
    with pytest.raises(NotFoundError):
        bench.supervise(job_id, f"keep(1); time.sleep(1); Path({str(running)!r}).touch(); time.sleep(60)")
    assert list((bench.folder / "storage").glob("checkpoints/*")) == []


def test_an_upload_that_is_gone_fails_the_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = bench.create()
    monkeypatch.setattr(JobSpec, "file_ids", lambda _: {"/task/data/train": "file_gone"})
    job = bench.supervise(job_id, "succeed()")
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("invalid_input", "There is no file 'file_gone'.")


def test_a_fenced_attempt_changes_nothing(bench: Bench) -> None:
    job_id = bench.create()
    running = bench.folder / "running"

    when(running.exists, lambda: bench.execute("UPDATE jobs SET attempt = 9, owner = 'another'"))
    job = bench.supervise(job_id, f"Path({str(running)!r}).touch(); time.sleep(2.5); succeed()")
    assert (job.status, job.attempt) == (Status.RUNNING, 9)
    assert bench.reasons(job_id)[-1] == "process started"


def test_a_run_that_takes_too_long_fails(bench: Bench) -> None:
    job = bench.supervise(bench.create(), "time.sleep(60)", run_timeout_seconds=0.5)
    assert job.error is not None
    assert job.error.code == "timeout"


def test_a_child_that_stays_after_its_success_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.supervisor._EXIT_SECONDS", 0.2)
    assert bench.supervise(bench.create(), "succeed(); time.sleep(60)").status is Status.SUCCEEDED


def test_a_grandchild_that_holds_the_pipe_does_not_hold_the_job(bench: Bench) -> None:
    script = "subprocess.Popen(['sleep', '60'], pass_fds=(fd,)); sys.exit(3)"
    job = bench.supervise(bench.create(), script)
    assert job.error is not None
    assert "exit status 3" in job.error.message


def test_the_lease_outlasts_its_length_while_the_job_runs(bench: Bench) -> None:
    job_id = bench.create()
    reaped: list[str] = []
    watching = threading.Event()

    def reap() -> None:
        while not watching.wait(0.1):
            reaped.extend(bench.store.reap())

    thread = threading.Thread(target=reap)
    thread.start()
    job = bench.supervise(job_id, "time.sleep(4); succeed()")
    watching.set()
    thread.join()
    assert job.status is Status.SUCCEEDED
    assert not reaped


def silent_database(*_: Any) -> Any:
    raise OperationalError("UPDATE", {}, Exception("connection refused"))


def read_only_database(*_: Any) -> Any:
    """One that was a PostgreSQL's standby until just now."""
    raise InternalError("UPDATE", {}, Exception("cannot execute UPDATE in a read-only transaction"))


@pytest.mark.parametrize("fault", [silent_database, read_only_database])
def test_a_database_that_is_away_for_a_while_costs_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any]
) -> None:
    away_until = time.monotonic() + 1.5

    def flaky(method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: fault() if time.monotonic() < away_until else method(*args)

    job_id = bench.create()
    for name in ("renew", "record", "keep_checkpoint", "finish"):
        monkeypatch.setattr(bench.store, name, flaky(getattr(bench.store, name)))
    job = bench.supervise(job_id, "say(type='phase', phase='loading'); keep(1); succeed()")
    assert (job.status, len(bench.store.attempts(job_id))) == (Status.SUCCEEDED, 1)


def test_a_lease_counts_from_its_last_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the job has run, the database may be silent for as long as a lease, and no longer."""
    clock = SimpleNamespace(now=0, database_is_silent=False)
    monkeypatch.setattr("worker.supervisor.time", SimpleNamespace(monotonic=lambda: clock.now))
    store = SimpleNamespace(renew=lambda _: silent_database() if clock.database_is_silent else Status.RUNNING)
    heartbeat = Heartbeat(cast(JobStore, store), Lease("job", 1, "worker"), lease_seconds=60)

    def beat_until(end: int) -> None:
        while clock.now < end:
            clock.now += 1
            assert heartbeat.status() is Status.RUNNING

    for end, clock.database_is_silent in ((100, False), (150, True), (200, False), (260, True)):
        beat_until(end)
    with pytest.raises(LeaseLostError):
        beat_until(261)


def test_an_attempt_ends_soon_after_its_lease_where_the_database_is_silent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, heartbeat = 4, 0.1
    bench.store = JobStore(bench.store._engine, lease_seconds=lease)
    monkeypatch.setattr("worker.supervisor._HEARTBEAT_SECONDS", heartbeat)
    monkeypatch.setattr(bench.store, "renew", silent_database)
    alive = bench.folder / "alive"
    script = f"""
        while True:
            Path({str(alive)!r}).touch()
            time.sleep(0.02)
        """
    job = bench.supervise(bench.create(), script, lease_seconds=lease)
    assert job.status is Status.RUNNING, "it is the reaper's now"
    with bench.store._engine.begin() as connection:
        expired = connection.execute(sa.select(jobs.c.lease_expires_at)).scalar_one()
    delay = 1  # by a busy machine; half a lease would be twice that
    assert alive.stat().st_mtime - expired.timestamp() < heartbeat + bench.settings.cancel_grace_seconds + delay


def test_what_a_failed_attempt_stored_is_discarded(bench: Bench) -> None:
    job = bench.supervise(
        bench.create(),
        """
        folder = Path(job["storage_url"], job["artifact_prefix"])
        folder.mkdir(parents=True)
        (folder / "half.bin").write_bytes(b"x")
        sys.exit(1)
        """,
    )
    assert not (bench.folder / "storage" / "artifacts" / job.id / "1").exists()


def test_a_job_that_is_not_waiting_is_left_alone(bench: Bench) -> None:
    job_id = bench.create()
    bench.store.request_cancel(job_id)
    assert bench.supervise(job_id, "succeed()").status is Status.CANCELLED
    assert bench.store.attempts(job_id) == []


def test_the_job_that_has_waited_longest_goes_first(bench: Bench) -> None:
    first, second = bench.create(), bench.create()
    assert bench.supervise(second, "succeed()").status is Status.QUEUED
    assert bench.supervise(first, "succeed()").status is Status.SUCCEEDED
    assert bench.store.get(second).status is Status.SUCCEEDED


@pytest.mark.parametrize("missing", ["disk", "store"])
def test_a_worker_that_cannot_work_loses_no_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("worker.supervisor._UNFIT_SECONDS", 0.05)
    broken = bench.settings.work_dir if missing == "disk" else bench.folder / "storage"
    broken.write_text("not a folder")
    job_id = bench.create()
    thread = when(lambda: "takes no job" in caplog.text, broken.unlink)
    assert bench.supervise(job_id, "succeed()").status is Status.SUCCEEDED
    thread.join()
    assert len(bench.store.attempts(job_id)) == 1


def test_a_worker_that_cannot_work_stops_when_it_is_told_to(bench: Bench) -> None:
    bench.stop.set()
    assert bench.supervise(bench.create(), "succeed()").status is Status.QUEUED


@pytest.mark.parametrize("name", ["get", "checkpoints", "start"])
def test_a_job_that_could_not_be_started_for_the_database_is_handed_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    job_id = bench.create()
    with monkeypatch.context() as silence:
        silence.setattr(bench.store, name, silent_database)
        with suppress(OperationalError):  # the bench's own look at the job
            bench.supervise(job_id, "time.sleep(60)")
    job = bench.store.get(job_id)
    assert (job.status, bench.store.attempts(job_id)[0].outcome) == (Status.QUEUED, "handed_back")


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_the_child_dies_with_its_supervisor(bench: Bench) -> None:
    job_id = bench.create()
    pid_file = bench.folder / "pid"
    supervisor = os.fork()
    if supervisor == 0:
        try:
            bench.supervise(job_id, f"Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(60)")
        finally:
            os._exit(0)
    while not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.02)
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    assert end_soon(int(pid_file.read_text()))


@pytest.mark.parametrize("prefix", ["NEUROPRUNE_", "neuroprune_"])
def test_the_child_is_told_of_neither_database_nor_broker_nor_keys(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setenv(f"{prefix}DATABASE_URL", "postgresql+psycopg://database/neuroprune")
    monkeypatch.setenv(f"{prefix}BROKER_URL", "redis://broker/0")
    monkeypatch.setenv(f"{prefix}API_KEYS", "the-key-of-today,the-key-of-tomorrow")
    monkeypatch.setenv(f"{prefix}API_KEY", "the-key-of-today")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    job = bench.supervise(
        bench.create(), 'say(type="succeeded", metrics_summary={"told": sorted(os.environ)}, artifacts=[])'
    )
    assert job.metrics_summary is not None
    told = job.metrics_summary["told"]
    assert "HF_TOKEN" in told
    assert not {f"{prefix}{name}" for name in ("DATABASE_URL", "BROKER_URL", "API_KEYS", "API_KEY")} & set(told)


@pytest.mark.parametrize(("threads", "given"), [(2, "2"), (None, "8")])
def test_the_setting_of_threads_goes_before_the_workers_environment(threads: int | None, given: str) -> None:
    environment = child_environment({"OMP_NUM_THREADS": "8"}, Settings(torch_threads=threads))
    assert environment["OMP_NUM_THREADS"] == given


def test_a_job_that_this_version_would_not_accept_fails_at_once(bench: Bench) -> None:
    job_id = bench.create()
    spec = bench.store.get(job_id).resolved_spec | {"structure": "of an earlier version"}
    with bench.store._engine.begin() as connection:
        connection.execute(sa.update(jobs).values(resolved_spec=spec))
    job = bench.supervise(job_id, "")
    assert (job.status, job.attempt) == (Status.FAILED, 1)
    assert job.error is not None
    assert job.error.code == "invalid_input"
    assert "structure: Input should be" in job.error.message
