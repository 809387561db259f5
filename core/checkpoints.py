"""What a job leaves in the store while it trains, so that another attempt goes on from there.

A job trains in stages, each under a name of its own. Of a stage that is over its result is kept, as later stages start
from it; of the one under way the newest state. An attempt writes below a prefix of its own and overwrites nothing:
what counts is only what its supervisor records, which a fenced one cannot.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import Interrupted, NeuroPruneError, StorageError
from core.progress import Checkpointed, CheckpointFile, Warned
from core.storage import Storage

MOST_SHARE = 0.02
"""Of the job's time that goes into writing checkpoints at intervals; slow ones are written less often."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state of one stage, in a folder on this machine."""

    folder: Path
    step: int
    finished: bool
    """Whether the stage was over."""


class CheckpointStore:
    """Where one attempt writes its checkpoints, and reads those of earlier attempts.

    Args:
        storage: The artifact store.
        prefix: Of the keys that the attempt writes.
        known: The newest checkpoint of each stage, as recorded.
        scratch: A folder for local copies.
        report: Told of every checkpoint that is whole in the store, and warned of those that are not.
    """

    def __init__(
        self,
        storage: Storage,
        prefix: str,
        known: Mapping[str, Checkpointed],
        scratch: Path,
        report: Callable[[Checkpointed | Warned], None],
    ) -> None:
        self._storage = storage
        self._prefix = prefix
        self._known = known
        self._scratch = scratch
        self._report = report

    def fetch(self, stage: str) -> Checkpoint | None:
        """The newest checkpoint of a stage; None where there is none or it is damaged, of which the user is warned."""
        known = self._known.get(stage)
        if known is None:
            return None
        folder = self._scratch / stage
        folder.mkdir(parents=True)
        for file in known.files:
            try:
                is_whole = self._storage.fetch(f"{known.key}/{file.name}", folder / file.name).sha256 == file.sha256
            except NeuroPruneError:
                is_whole = False
            if not is_whole:
                self._report(
                    Warned(message=f"The checkpoint at step {known.step} of {stage} is damaged: {stage} starts anew.")
                )
                return None
        return Checkpoint(folder, known.step, known.finished)

    def put(self, stage: str, step: int, folder: Path, *, finished: bool) -> None:
        """Store the files that lie flat in `folder`; where that fails the user is warned, and earlier ones count on."""
        try:
            self._report(self._put(stage, step, folder, finished=finished))
        except StorageError as error:
            self._report(Warned(message=f"The checkpoint at step {step} of {stage} could not be stored: {error}"))

    def _put(self, stage: str, step: int, folder: Path, *, finished: bool) -> Checkpointed:
        key = f"{self._prefix}/{stage}-{step}{'-end' if finished else ''}"
        files = []
        for path in sorted(folder.iterdir()):
            stored = self._storage.put_file(f"{key}/{path.name}", path)
            files.append(CheckpointFile(name=path.name, size=stored.size, sha256=stored.sha256))
        return Checkpointed(stage=stage, step=step, finished=finished, key=key, files=files)


class Checkpoints:
    """When a job writes checkpoints, and when it stops at one.

    Args:
        store: Where they go; None where nobody would go on from them.
        interval_seconds: Between two within a stage; more where writing would take more than `MOST_SHARE` of the time.
    """

    def __init__(self, store: CheckpointStore | None = None, interval_seconds: float = 300.0) -> None:
        self._store = store
        self._interval_seconds = interval_seconds
        self._due_at = self._begun_at = time.monotonic() + interval_seconds
        self._stop_requested = False
        self._defers_stop = False

    def fetch(self, stage: str) -> Checkpoint | None:
        """The newest checkpoint of a stage, if there is one."""
        return self._store.fetch(stage) if self._store is not None else None

    def begin_if_due(self) -> bool:
        """Whether a checkpoint of the training under way is to be written now: it is time, or the last chance."""
        self._begun_at = time.monotonic()
        return self._stop_requested or (self._store is not None and self._begun_at >= self._due_at)

    def save(self, stage: str, step: int, folder: Path) -> None:
        """Store a state of the training under way, whose files lie flat in `folder`.

        Raises:
            Interrupted: it was the last, as the job is to stop.
        """
        self._put(stage, step, folder, finished=False)
        if self._stop_requested:
            raise Interrupted
        now = time.monotonic()
        self._due_at = now + max(self._interval_seconds, (now - self._begun_at) / MOST_SHARE)

    def save_end(self, stage: str, step: int, folder: Path) -> None:
        """Store the result of a stage."""
        self._put(stage, step, folder, finished=True)

    @contextmanager
    def stop_deferred(self) -> Iterator[None]:
        """Within, a request to stop waits for the next checkpoint, or the end of the block."""
        self._defers_stop = True
        try:
            yield
        finally:
            self._defers_stop = False
        if self._stop_requested:
            raise Interrupted

    def request_stop(self) -> None:
        """End the job at a state that it can go on from; called by a signal handler.

        Raises:
            Interrupted: at once, where no training is under way.
        """
        self._stop_requested = True
        if not self._defers_stop:
            raise Interrupted

    def _put(self, stage: str, step: int, folder: Path, *, finished: bool) -> None:
        if self._store is not None:
            self._store.put(stage, step, folder, finished=finished)
