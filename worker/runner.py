"""The process of one job: stage, run the engine, upload the bundle, say how it ended.

It knows neither the database nor the broker, only its work folder, the store's URL and a pipe to its supervisor.
"""

import argparse
import mimetypes
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from structlog.contextvars import bind_contextvars

from core import logs
from core.checkpoints import Checkpoints, CheckpointStore
from core.errors import ErrorCode, Interrupted, NeuroPruneError, StorageError
from core.progress import AnyMessage, Artifact, Failed, Note, PhaseStarted, Stopped, Succeeded, encode
from core.resources import is_out_of_gpu_memory, is_out_of_memory, is_out_of_space
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

    def __call__(self, message: Note) -> None:
        if isinstance(message, PhaseStarted):
            if message.phase == self.phase:
                return
            self.phase = message.phase
        self.write(message)

    def write(self, message: AnyMessage) -> None:
        """One message."""
        line = memoryview(encode(message))
        while line:
            line = line[self._stream.write(line) :]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 with a `Succeeded` or `Stopped`, 1 with a `Failed` as the last message.

    SIGTERM stops the job at a state that another attempt can go on from, SIGINT at once.
    """
    parser = argparse.ArgumentParser(prog="worker.runner", description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--progress-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    logs.configure(get_settings().log_format)
    with suppress(OSError):  # where memory runs out, the job goes, not its supervisor (Linux)
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.set_inheritable(options.progress_fd, False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have let it be ignored
    with os.fdopen(options.progress_fd, "wb", buffering=0) as stream:
        return work(options.work_dir, Pipe(stream))


def work(work_dir: Path, pipe: Pipe) -> int:
    """Do the job, and say how it ended; the exit status."""
    try:
        assignment = Assignment.read(work_dir)
        bind_contextvars(job_id=assignment.job_id, attempt=assignment.attempt)
        pipe.write(run(assignment, work_dir, pipe))
    except Interrupted:
        pipe.write(Stopped())
    except Exception as error:  # whatever it is, the supervisor must learn of it
        with suppress(OSError):  # the disk that its log is on may be full
            traceback.print_exc()
        pipe.write(failure(error, pipe.phase))
        return 1
    return 0


def run(assignment: Assignment, work_dir: Path, report: Pipe) -> Succeeded:
    """Do the job.

    Raises:
        Interrupted: it was told to stop.
    """
    settings, storage = get_settings(), Storage(assignment.storage_url)
    store = CheckpointStore(
        storage, assignment.checkpoint_prefix, assignment.checkpoints, work_dir / "checkpoints", report.write
    )
    checkpoints = Checkpoints(store, settings.checkpoint_interval_seconds)
    with _stopped_by_sigterm(checkpoints):
        return _run(assignment, work_dir, report, storage, checkpoints)


@contextmanager
def _stopped_by_sigterm(checkpoints: Checkpoints) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: checkpoints.request_stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(assignment: Assignment, work_dir: Path, report: Pipe, storage: Storage, checkpoints: Checkpoints) -> Succeeded:
    report(PhaseStarted(phase="loading"))  # what is fetched can be large
    staged = stage(assignment, work_dir / "inputs", get_settings())
    # Here and not above: what is wrong with the inputs is known before torch is loaded, which takes seconds.
    from core.engine import pipeline
    from core.engine.inputs import Inputs

    output = work_dir / "output"
    output.mkdir()
    inputs = Inputs(staged.model, staged.train, staged.validation, staged.test, staged.names)
    metrics_summary = pipeline.run(assignment.spec, inputs, output, report, checkpoints)
    report(PhaseStarted(phase="uploading"))
    artifacts = upload(output, storage, assignment.artifact_prefix)
    return Succeeded(metrics_summary=metrics_summary, artifacts=artifacts)


def upload(output: Path, storage: Storage, prefix: str) -> list[Artifact]:
    """Store all files below `output`, under their paths in it."""
    artifacts = []
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        name = path.relative_to(output).as_posix()
        stored = storage.put_file(f"{prefix}/{name}", path)
        media_type = mimetypes.guess_type(path.name)[0] or _UNKNOWN_TYPE
        artifacts.append(Artifact(name=name, size=stored.size, sha256=stored.sha256, media_type=media_type))
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
    if is_out_of_space(error):
        return Failed(code="storage_full", message=f"The worker's disk is full (while {phase}).", retryable=True)
    return Failed(code="internal", message=f"An internal error ended the job while {phase}; the worker's log has it.")


def _out_of_memory(error: Exception) -> ErrorCode | None:
    if is_out_of_gpu_memory(error):
        return "out_of_memory_gpu"
    return "out_of_memory_host" if is_out_of_memory(error) else None


if __name__ == "__main__":
    status = main()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # nothing is left to do, and taking torch's modules apart takes more than a second
