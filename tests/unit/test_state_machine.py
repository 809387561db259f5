"""The store against a model of it: random operations by users, workers and reapers, with crashes between them.

Crashes are operations that do not come: a worker that never renews again, a reaper that is late, a worker that comes
back after it was given up.
"""

import itertools
import tempfile
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from core.db import create_engine, jobs, metadata, utcnow
from core.errors import ConflictError, LeaseLostError
from core.jobs.records import Cancelled, Lease
from core.jobs.state import ACTIVE, TERMINAL, TRANSITIONS, Status
from core.jobs.store import JobStore
from core.progress import Artifact, Failed, StepDone, Succeeded
from tests.specs import demo_spec

MAX_LOSSES = 2
WORKERS = ("first", "second")


def bundle_of(lease: Lease) -> Succeeded:
    """A bundle that tells which attempt made it."""
    artifact = Artifact(name="report.json", size=lease.attempt, sha256="00", media_type="application/json")
    return Succeeded(metrics_summary={"attempt": lease.attempt}, artifacts=[artifact])


class ServiceMachine(RuleBasedStateMachine):
    """Jobs move through the store and the model side by side."""

    ids = Bundle("ids")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.engine = create_engine(f"sqlite:///{self.folder.name}/db")
        metadata.create_all(self.engine)
        self.store = JobStore(self.engine, lease_seconds=60, max_attempts=MAX_LOSSES)
        self.status: dict[str, Status] = {}
        self.attempt: dict[str, int] = {}
        self.losses: dict[str, int] = {}
        self.holder: dict[str, Lease | None] = {}
        self.expired: set[str] = set()
        self.delivered: dict[str, int] = {}

    def teardown(self) -> None:
        self.engine.dispose()
        self.folder.cleanup()

    def moves(self, job_id: str, status: Status) -> None:
        assert status in TRANSITIONS[self.status[job_id]]
        self.status[job_id] = status
        if status not in ACTIVE:
            self.holder[job_id] = None
            self.expired.discard(job_id)

    def gives_up(self, job_id: str, *, lost: bool) -> None:
        """What becomes of a job without its worker, which is lost or gave it back in good order."""
        self.losses[job_id] += lost
        if self.status[job_id] is Status.CANCELLING:
            self.moves(job_id, Status.CANCELLED)
        elif self.losses[job_id] >= MAX_LOSSES:
            self.moves(job_id, Status.FAILED)
        elif self.status[job_id] is Status.PAUSING:
            self.moves(job_id, Status.PAUSED)
        else:
            self.moves(job_id, Status.QUEUED)

    def asks(self, request: Callable[[str], object], job_id: str, target: Status | None) -> None:
        """A user's request, which the store refuses where the model knows no `target`."""
        if target is None:
            with pytest.raises(ConflictError):
                request(job_id)
            return
        request(job_id)
        if target is not self.status[job_id]:
            self.moves(job_id, target)

    def holds(self, lease: Lease) -> bool:
        return self.holder[lease.job_id] == lease

    @rule(target=ids)
    def submit(self):
        job_id = self.store.create(demo_spec(), name=None, labels={})[0].id
        self.status[job_id], self.holder[job_id] = Status.QUEUED, None
        self.attempt[job_id] = self.losses[job_id] = 0
        return job_id

    @rule(target=leases, job_id=ids, worker=st.sampled_from(WORKERS), deliveries=st.sampled_from([1, 5]))
    def message_arrives(self, job_id, worker, deliveries):
        """Any number of times: the job is taken once, and only while it waits."""
        claimed = [lease for _ in range(deliveries) if (lease := self.store.claim(job_id, worker))]
        if self.status[job_id] is not Status.QUEUED:
            assert not claimed
            return multiple()
        (lease,) = claimed
        self.attempt[job_id] += 1
        assert lease.attempt == self.attempt[job_id]
        self.moves(job_id, Status.STARTING)
        self.holder[job_id] = lease
        return lease

    @rule(lease=leases)
    def process_starts(self, lease):
        if not self.holds(lease):
            with pytest.raises(LeaseLostError):
                self.store.start(lease)
        elif self.status[lease.job_id] is Status.STARTING:
            self.store.start(lease)
            self.moves(lease.job_id, Status.RUNNING)
        else:
            with pytest.raises(ConflictError):
                self.store.start(lease)

    @rule(lease=leases)
    def heartbeat(self, lease):
        if self.holds(lease):
            assert self.store.renew(lease) is self.status[lease.job_id]
            self.expired.discard(lease.job_id)
        else:
            with pytest.raises(LeaseLostError):
                self.store.renew(lease)

    @rule(lease=leases)
    def progress(self, lease):
        message = StepDone(fraction=0.5, step=lease.attempt)
        if self.holds(lease):
            self.store.record(lease, message)
        else:
            with pytest.raises(LeaseLostError):
                self.store.record(lease, message)

    @rule(lease=leases, outcome=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def ends(self, lease, outcome):
        """Also by a worker that was given up long ago, and comes back with a result."""
        made = {"succeeded": bundle_of(lease), "failed": Failed(code="internal", message="x"), "cancelled": Cancelled()}
        target = Status(outcome)
        if not self.holds(lease):
            with pytest.raises(LeaseLostError):
                self.store.finish(lease, made[outcome])
        elif target in TRANSITIONS[self.status[lease.job_id]]:
            self.store.finish(lease, made[outcome])
            self.moves(lease.job_id, target)
            if target is Status.SUCCEEDED:
                self.delivered[lease.job_id] = lease.attempt
        else:
            with pytest.raises(ConflictError):
                self.store.finish(lease, made[outcome])

    @rule(lease=consumes(leases), lost=st.booleans())
    def is_given_back(self, lease, lost):
        give_back = self.store.release if lost else self.store.hand_back
        if self.holds(lease):
            give_back(lease, "worker shut down")
            self.gives_up(lease.job_id, lost=lost)
        else:
            with pytest.raises(LeaseLostError):
                give_back(lease, "worker shut down")

    @rule(job_id=ids)
    def user_cancels(self, job_id):
        waits = {Status.QUEUED: Status.CANCELLED, Status.PAUSED: Status.CANCELLED} | dict.fromkeys(TERMINAL)
        self.asks(self.store.request_cancel, job_id, waits.get(self.status[job_id], Status.CANCELLING))

    @rule(job_id=ids)
    def user_pauses(self, job_id):
        targets = {
            Status.QUEUED: Status.PAUSED,
            Status.STARTING: Status.PAUSING,
            Status.RUNNING: Status.PAUSING,
            Status.PAUSING: Status.PAUSING,
            Status.PAUSED: Status.PAUSED,
        }
        self.asks(self.store.request_pause, job_id, targets.get(self.status[job_id]))

    @rule(job_id=ids)
    def user_resumes(self, job_id):
        self.asks(self.store.resume, job_id, {Status.PAUSED: Status.QUEUED}.get(self.status[job_id]))

    @rule(job_id=ids)
    def user_tries_again(self, job_id):
        again = dict.fromkeys((Status.FAILED, Status.CANCELLED, Status.EXPIRED), Status.QUEUED)
        target = again.get(self.status[job_id])
        self.asks(self.store.retry, job_id, target)
        if target is not None:
            self.losses[job_id] = 0

    @rule(job_id=ids)
    def worker_falls_silent(self, job_id):
        if self.status[job_id] in ACTIVE:
            with self.engine.begin() as connection:
                lapse = sa.update(jobs).where(jobs.c.id == job_id).values(lease_expires_at=utcnow(-1))
                connection.execute(lapse)
            self.expired.add(job_id)

    @rule()
    def reaper_comes(self):
        queued = []
        for job_id in sorted(self.expired):
            self.gives_up(job_id, lost=True)
            if self.status[job_id] is Status.QUEUED:
                queued.append(job_id)
        assert sorted(self.store.reap()) == queued

    @invariant()
    def store_and_model_agree(self):
        for job_id, status in self.status.items():
            job = self.store.get(job_id)
            assert (job.status, job.attempt) == (status, self.attempt[job_id])
            assert (job.finished_at is not None) == (status in TERMINAL)
            assert (job.error is not None) == (status is Status.FAILED)
            assert len(self.store.attempts(job_id)) == job.attempt
            bundles = [artifact.attempt for artifact in self.store.artifacts(job_id)]
            assert bundles == ([self.delivered[job_id]] if status is Status.SUCCEEDED else [])

    @invariant()
    def histories_are_legal_and_gapless(self):
        for job_id in self.status:
            events = self.store.events(job_id, 0, 1000)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            history = [Status(event.data["status"]) for event in events if event.type == "status"]
            assert all(after in TRANSITIONS[before] for before, after in itertools.pairwise(history))
            assert sum(status is Status.SUCCEEDED for status in history) <= 1


TestService = ServiceMachine.TestCase
TestService.settings = settings(max_examples=15, stateful_step_count=25, deadline=None, derandomize=True)
