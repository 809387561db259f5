"""The whole service for tests: real processes on a private folder, with clocks that run fast."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.events import Event
from client.local import EmbeddedStack
from client.sdk import NeuroPruneClient

FAST = {
    "NEUROPRUNE_LEASE_SECONDS": "3",
    "NEUROPRUNE_REAPER_INTERVAL_SECONDS": "0.5",
    "NEUROPRUNE_REDISPATCH_SECONDS": "2",
    "NEUROPRUNE_CANCEL_GRACE_SECONDS": "1",
    "NEUROPRUNE_MAX_ATTEMPTS": "2",
    "NEUROPRUNE_CHECKPOINT_INTERVAL_SECONDS": "1",
    "NEUROPRUNE_TORCH_THREADS": "1",
}
HUB_HOME = "hub"
"""Where a stack has the caches of the Hub, below its own folder."""
ENDED = {"succeeded", "failed", "cancelled"}
PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Service:
    """A running stack, and what tests do with it."""

    stack: EmbeddedStack
    client: NeuroPruneClient

    def submit(self, spec: dict[str, Any]) -> str:
        return self.client.submit(spec)["id"]

    def until(self, job_id: str, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The job, once the condition holds; meanwhile the stack is tended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            job = self.client.job(job_id)
            if condition(job):
                return job
            assert time.monotonic() < deadline, f"{job_id} is {job['status']} in phase {job['phase']}: {job['error']}"
            assert job["status"] not in ENDED, f"{job_id} has ended: {job['error']}"
            self.stack.tend()
            time.sleep(0.1)

    def finished(self, job_id: str) -> dict[str, Any]:
        return self.until(job_id, lambda job: job["status"] in ENDED)

    def training(self, job_id: str, attempt: int = 1) -> dict[str, Any]:
        """The job, once this attempt has done a step of its training."""

        def has_begun(job: dict[str, Any]) -> bool:
            return job["attempt"] == attempt and bool(job["progress"] and job["progress"]["step"])

        return self.until(job_id, has_begun)

    def history(self, job_id: str) -> list[Event]:
        return list(self.client.watch(job_id))

    def runner_pid(self, job_id: str, attempt: int = 1) -> int:
        """The process that does the job now."""
        (pid,) = runners(f"{job_id}-{attempt}")
        return pid


def runners(work_folder: str) -> list[int]:
    """Processes that work in this folder."""
    return [pid for pid, command in _commands() if "worker.runner" in command and work_folder in command]


def parent_of(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1])


def _commands() -> list[tuple[int, str]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found.append((int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
        except OSError:  # it has just ended
            continue
    return found
