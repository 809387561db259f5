"""The process that does a job, as its supervisor sees it: messages, an exit, a log."""

import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from core import processes, progress
from core.resources import kills_for_memory

_CHUNK_BYTES = 65536
_LONGEST_LINE_BYTES = 4 * 2**20
_LOG_TAIL_BYTES = 65536
_LOG_TAIL_LINES = 50

logger = logging.getLogger(__name__)


class Lines:
    """Cuts a byte stream into lines; a line too long to be a message is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._dropping = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that `chunk` completes, without their newlines."""
        *complete, self._rest = (self._rest + chunk).split(b"\n")
        for line in complete:
            if not self._dropping:
                yield line
            self._dropping = False
        if len(self._rest) > _LONGEST_LINE_BYTES:
            self._rest, self._dropping = b"", True


class Child:
    """A running `worker.runner`. As a context manager it is gone on exit, with all that it started."""

    def __init__(self, command: Sequence[str], work_dir: Path, env: Mapping[str, str], grace_seconds: float) -> None:
        self._log = work_dir / "child.log"
        self._kills_before = kills_for_memory()
        self._grace_seconds = grace_seconds
        self._lines = Lines()
        self._pipe, write_end = os.pipe()
        os.set_blocking(self._pipe, False)
        try:
            with self._log.open("wb") as log:
                arguments = [*command, "--work-dir", str(work_dir), "--progress-fd", str(write_end)]
                self._process = processes.spawn(arguments, log=log, env=env, pass_fds=(write_end,))
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(write_end)
        self._pipe_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        os.close(self._pipe)

    @property
    def pid(self) -> int:
        """Also its process group."""
        return self._process.pid

    def returncode(self) -> int | None:
        """Exit status, minus the signal that ended it, or None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Let it write a checkpoint and end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def was_killed_for_memory(self) -> bool:
        """Whether the kernel has ended it because memory ran out, as far as can be told."""
        return self.returncode() == -signal.SIGKILL and kills_for_memory() > self._kills_before

    def stop(self) -> None:
        """End it, and all that it started, without a checkpoint."""
        processes.stop(self._process, self._grace_seconds, signal.SIGINT)

    def messages(self, timeout: float) -> Iterator[progress.AnyMessage]:
        """What it said, waiting up to `timeout` seconds for it to say something; anything else is logged."""
        if not self._pipe_open:
            time.sleep(timeout)
            return
        if not select.select([self._pipe], [], [], timeout)[0]:
            return
        for line in self._lines.feed(self._read()):
            try:
                yield progress.decode(line)
            except ValidationError:
                logger.warning("process %d wrote no message: %.200r", self.pid, line)

    def remaining_messages(self) -> Iterator[progress.AnyMessage]:
        """What is left in the pipe of a process that has ended."""
        while self._pipe_open and select.select([self._pipe], [], [], 0)[0]:
            yield from self.messages(0)

    def wait(self, seconds: float) -> None:
        """Let it end by itself, for so long."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            logger.warning("process %d still runs %g s after its last message", self.pid, seconds)

    def log_tail(self) -> str:
        """The last lines it wrote to stdout and stderr."""
        with self._log.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-_LOG_TAIL_LINES:])

    def _read(self) -> bytes:
        chunk = os.read(self._pipe, _CHUNK_BYTES)
        self._pipe_open = bool(chunk)
        return chunk
