"""The process of one job: stage, run the engine, upload the bundle, say how it ended.

It knows neither the database nor the broker, only its work folder, the store's URL and a pipe to its supervisor.
"""

import argparse
import errno
import mimetypes
import os
import sys
import traceback
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

from structlog.contextvars import bind_contextvars

from core import logs
from core.errors import ErrorCode, NeuroPruneError, StorageError
from core.progress import Artifact, Failed, PhaseStarted, StepDone, Succeeded, Warned, encode
from core.settings import get_settings
from core.storage import Storage
from worker.assignment import Assignment
from worker.staging import stage

_UNKNOWN_TYPE = "application/octet-stream"


class Pipe:
    """The reporter: writes messages to the supervisor, and remembers the phase for error messages."""

    def __init__(self, stream: FileIO) -> None:
        self._stream = stream
        self.phase = "staging"

    def __call__(self, message: PhaseStarted | StepDone | Warned) -> None:
        if isinstance(message, PhaseStarted):
            self.phase = message.phase
        self.write(message)

    def write(self, message: PhaseStarted | StepDone | Warned | Succeeded | Failed) -> None:
        """One message."""
        line = memoryview(encode(message))
        while line:
            line = line[self._stream.write(line) :]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 with a `Succeeded`, 1 with a `Failed` as the last message."""
    parser = argparse.ArgumentParser(prog="worker.runner", description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--progress-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    logs.configure(get_settings().log_format)
    os.set_inheritable(options.progress_fd, False)
    with os.fdopen(options.progress_fd, "wb", buffering=0) as stream:
        return work(options.work_dir, Pipe(stream))


def work(work_dir: Path, pipe: Pipe) -> int:
    """Do the job, and say how it ended; the exit status."""
    try:
        assignment = Assignment.read(work_dir)
        bind_contextvars(job_id=assignment.job_id, attempt=assignment.attempt)
        pipe.write(run(assignment, work_dir, pipe))
    except Exception as error:  # whatever it is, the supervisor must learn of it
        traceback.print_exc()
        pipe.write(failure(error, pipe.phase))
        return 1
    return 0


def run(assignment: Assignment, work_dir: Path, report: Pipe) -> Succeeded:
    """Do the job."""
    staged = stage(assignment, work_dir / "inputs", get_settings())
    # Here and not above: what is wrong with the inputs is known before torch is loaded, which takes seconds.
    from core.engine import pipeline
    from core.engine.inputs import Inputs

    output = work_dir / "output"
    output.mkdir()
    inputs = Inputs(staged.model, staged.train, staged.validation, staged.test, staged.names)
    metrics_summary = pipeline.run(assignment.spec, inputs, output, report)
    report(PhaseStarted(phase="uploading"))
    artifacts = upload(output, Storage(assignment.storage_url), assignment.artifact_prefix)
    return Succeeded(metrics_summary=metrics_summary, artifacts=artifacts)


def upload(output: Path, storage: Storage, prefix: str) -> list[Artifact]:
    """Store the bundle's files, which lie flat in `output`."""
    artifacts = []
    for path in sorted(output.iterdir()):
        stored = storage.put_file(f"{prefix}/{path.name}", path)
        media_type = mimetypes.guess_type(path.name)[0] or _UNKNOWN_TYPE
        artifacts.append(Artifact(name=path.name, size=stored.size, sha256=stored.sha256, media_type=media_type))
    return artifacts


def failure(error: Exception, phase: str) -> Failed:
    """What the user is told; of an unforeseen error no more than where it happened."""
    if isinstance(error, NeuroPruneError):
        retryable = isinstance(error, StorageError)
        return Failed(code=error.code, message=error.message, param=error.param, retryable=retryable)
    if code := _out_of_memory(error):
        where = "GPU" if code == "out_of_memory_gpu" else "main"
        advice = "a smaller per_device_train_batch_size or max_length needs less"
        return Failed(code=code, message=f"The {where} memory did not suffice while {phase}; {advice}.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed(code="storage_full", message=f"The worker's disk is full (while {phase}).", retryable=True)
    return Failed(code="internal", message=f"An internal error ended the job while {phase}; the worker's log has it.")


def _out_of_memory(error: Exception) -> ErrorCode | None:
    # By name: torch is the engine's, and is not imported here.
    if type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("torch"):
        return "out_of_memory_gpu"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return "out_of_memory_host"
    return None


if __name__ == "__main__":
    sys.exit(main())
