"""What became of the jobs: read from the database, and from the bundles as a client downloads them."""

import hashlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from client.sdk import NeuroPruneClient
from core.errors import NeuroPruneError
from core.jobs.records import Event, Job
from core.jobs.state import TERMINAL, TRANSITIONS, Status
from core.jobs.store import JobStore

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Verdict:
    """Counts of jobs; all but `outcomes` and `attempts` must be zero.

    Attributes:
        outcomes: how many ended in which status, or error code.
        attempts: starts of all jobs together.
        lost: accepted, but gone, doubled or not ended.
        completed_twice: more than one attempt was recorded as the one that succeeded.
        wrong_states: an illegal history, one that disagrees with the job, or an end that the scenario does not allow.
        broken_artifacts: a bundle that is missing, damaged, or there without success.
        other_weights: bundles of the same spec whose weights differ from those of most.
    """

    outcomes: Mapping[str, int]
    attempts: int
    lost: int
    completed_twice: int
    wrong_states: int
    broken_artifacts: int
    other_weights: int

    @property
    def is_clean(self) -> bool:
        """Whether everything is as promised."""
        return not any((self.lost, self.completed_twice, self.wrong_states, self.broken_artifacts, self.other_weights))


def judge(store: JobStore, client: NeuroPruneClient, accepted: Mapping[str, str], allowed: frozenset[str]) -> Verdict:
    """Look at every job that was accepted, by the key under which it was submitted."""
    known, _ = store.page(10_000, None, None)
    jobs = {job.id: job for job in known}
    ended = [jobs[job_id] for job_id in accepted.values() if job_id in jobs and jobs[job_id].status in TERMINAL]
    histories = {job.id: store.events(job.id, 0, 100_000) for job in ended}
    weights = [_weights(client, job) for job in ended]
    digests = Counter(digest for digest in weights if digest)
    most_common = max(digests.values(), default=0)
    return Verdict(
        outcomes=dict(Counter(_outcome(job) for job in ended)),
        attempts=sum(job.attempt for job in ended),
        lost=len(accepted) - len(ended) + abs(len(jobs) - len(set(accepted.values()))),
        completed_twice=sum(_successes(history) > 1 for history in histories.values()),
        wrong_states=sum(not _is_legal(job, histories[job.id], allowed) for job in ended),
        broken_artifacts=sum(digest == "" for digest in weights),
        other_weights=digests.total() - most_common,
    )


def _outcome(job: Job) -> str:
    return job.error.code if job.error is not None else job.status


def _statuses(history: list[Event]) -> list[Status]:
    return [Status(event.data["status"]) for event in history if event.type == "status"]


def _successes(history: list[Event]) -> int:
    return _statuses(history).count(Status.SUCCEEDED)


def _is_legal(job: Job, history: list[Event], allowed: frozenset[str]) -> bool:
    statuses = _statuses(history)
    return (
        [event.seq for event in history] == list(range(1, len(history) + 1))
        and statuses[0] is Status.QUEUED
        and statuses[-1] is job.status
        and all(after in TRANSITIONS[before] for before, after in itertools.pairwise(statuses))
        and _outcome(job) in allowed
    )


def _weights(client: NeuroPruneClient, job: Job) -> str | None:
    """Digest of the bundle's weights once every file was checked; empty if it is broken; None where none is due."""
    if job.status is not Status.SUCCEEDED:
        return "" if client.artifacts(job.id) else None
    with tempfile.TemporaryDirectory() as folder:
        try:
            client.download(job.id, Path(folder))
            return hashlib.sha256((Path(folder) / WEIGHTS).read_bytes()).hexdigest()
        except (NeuroPruneError, OSError):
            return ""
