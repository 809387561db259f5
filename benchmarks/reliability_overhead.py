"""What leases, messages and checkpoints cost a job, as a share of its time.

    python -m benchmarks.reliability_overhead DATA

A real job, half of all-MiniLM-L6-v2's encoder on 4,000 rows of SST-2, runs under a supervisor as in a worker, with the
service's default settings, SQLite and local storage. Counted are the seconds that the job's process stands still to
write checkpoints and to store them, and the CPU time of the supervisor (claim, heartbeat, messages, records). Two runs,
one with and one without all this, would differ by more than the sum on a machine that has other things to do.
DATA holds `sst2/{train,validation}.jsonl.gz`. The result goes to `benchmarks/results/reliability_overhead.jsonl`.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer

from benchmarks.trials import MINILM, Results
from core import db
from core.checkpoints import Checkpoints
from core.dispatch import Dispatcher
from core.jobs.defaults import resolve
from core.jobs.spec import JobSpec
from core.jobs.state import Status
from core.jobs.store import JobStore
from core.settings import Settings
from core.storage import Storage
from worker import runner
from worker.supervisor import Supervisor

RESULTS = Results(Path(__file__).parent / "results" / "reliability_overhead.jsonl")
NO_BROKER = "redis+socket:///nowhere/none.sock"
"""Nobody has to be told of the one job."""
_FILE = "NEUROPRUNE_OVERHEAD_FILE"
"""Environment variable: where the job's process leaves what it has measured."""


class MeasuredCheckpoints(Checkpoints):
    """Counts the seconds in which the job waits for its checkpoints."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seconds: list[float] = []
        self._since: float | None = None

    def begin(self) -> None:
        """The job stands still from now on, if it does not already."""
        self._since = time.monotonic() if self._since is None else self._since

    def begin_if_due(self) -> bool:
        """Due ones begin."""
        is_due = super().begin_if_due()
        if is_due:
            self.begin()
        return is_due

    def save(self, stage: str, step: int, folder: Path) -> None:
        """The job goes on."""
        super().save(stage, step, folder)
        self._end()

    def save_end(self, stage: str, step: int, folder: Path) -> None:
        """The job goes on."""
        super().save_end(stage, step, folder)
        self._end()

    def _end(self) -> None:
        assert self._since is not None
        self.seconds.append(time.monotonic() - self._since)
        self._since = None


def run_job() -> int:
    """`worker.runner`, measured; the exit status."""
    made: list[MeasuredCheckpoints] = []

    def make(*arguments: Any) -> MeasuredCheckpoints:
        made.append(MeasuredCheckpoints(*arguments))
        return made[-1]

    from core.engine import checkpointing  # loads torch, which the supervisor's process does without

    write = checkpointing.write

    def measured_write(*arguments: Any) -> None:
        made[-1].begin()
        write(*arguments)

    with patch.object(runner, "Checkpoints", make), patch.object(checkpointing, "write", measured_write):
        status = runner.main()
    Path(os.environ[_FILE]).write_text(json.dumps(made[-1].seconds))
    return status


def spec(data: Path) -> JobSpec:
    """The job: one epoch of plain fine-tuning, two of pruning."""
    rows = {split: str(data / "sst2" / f"{split}.jsonl.gz") for split in ("train", "validation")}
    task = {"name": "sequence-classification", "data": {"source": "path", **rows, "max_train_rows": 4_000}}
    training = {"num_train_epochs": 2, "dense_epochs": 1, "max_length": 48}
    return resolve(
        JobSpec.model_validate({"model": MINILM, "task": task, "target": {"sparsity": 0.5}, "training": training})
    )


def measure(data: Path, folder: Path) -> dict[str, Any]:
    """Do the job; seconds of everything."""
    settings = Settings(
        database_url=f"sqlite:///{folder / 'neuroprune.db'}",
        storage_url=str(folder / "store"),
        work_dir=folder / "work",
        model_roots=(data,),
    )
    os.environ |= {
        _FILE: str(folder / "seconds.json"),
        "NEUROPRUNE_MODEL_ROOTS": json.dumps([str(data)]),
        "NEUROPRUNE_STORAGE_URL": settings.storage_url,
    }
    db.upgrade(settings.database_url)
    store = JobStore(db.create_engine(settings.database_url))
    job_id = store.create(spec(data), name=None, labels={})[0].id
    supervisor = Supervisor(
        store,
        Storage(settings.storage_url),
        Dispatcher(NO_BROKER),
        settings,
        owner="benchmark",
        should_stop=lambda: False,
        runner=(sys.executable, "-m", "benchmarks.reliability_overhead"),
    )
    begun, cpu_begun = time.monotonic(), time.process_time()
    supervisor.run_next()
    seconds, supervisor_seconds = time.monotonic() - begun, time.process_time() - cpu_begun
    job = store.get(job_id)
    if job.status is not Status.SUCCEEDED:
        raise SystemExit(f"The job {job.status}: {job.error}")
    checkpoints = json.loads((folder / "seconds.json").read_text())
    return {
        "seconds": round(seconds, 1),
        "checkpoint_seconds": [round(each, 2) for each in checkpoints],
        "checkpoint_interval_seconds": settings.checkpoint_interval_seconds,
        "supervisor_cpu_seconds": round(supervisor_seconds, 2),
        "share": round((sum(checkpoints) + supervisor_seconds) / seconds, 4),
    }


def main(data: Path) -> None:
    """Measure, print, keep."""
    with tempfile.TemporaryDirectory() as folder:
        result = measure(data.absolute(), Path(folder))
    print(json.dumps(result))
    RESULTS.add(result)


if __name__ == "__main__":
    if "--work-dir" in sys.argv:
        sys.exit(run_job())
    typer.run(main)
