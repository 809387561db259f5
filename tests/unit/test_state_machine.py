"""The store against a model of it: random operations by users, workers and reapers, with crashes between them.

Crashes are operations that do not come: a worker that never renews again, a reaper that is late, a worker that comes
back after it was given up. After each operation the store must say what the model says, and refuse what the model does
not know.

Chosen by `random` and not by hypothesis, whose rules left transitions unmade in as many operations, and which shrank a
failure for longer than a test may take.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from core.db import deletions, jobs, utcnow
from core.errors import ConflictError, LeaseLostError, NotFoundError
from core.jobs.records import Cancelled, Lease
from core.jobs.state import ACTIVE, TERMINAL, TRANSITIONS, Status
from core.jobs.store import JobStore
from core.progress import Artifact, Checkpointed, Failed, StepDone, Succeeded
from tests.checkpoints import checkpoint
from tests.specs import demo_spec

RUNS = 20
OPERATIONS = 25
"""Of each run."""
JOBS = 2
MAX_LOSSES = 2
LONG_SECONDS = 3600
"""How long a lease holds and a job may wait: longer than all runs, so that only an operation lets the time pass."""

WAITING = (Status.QUEUED, Status.PAUSED)
PAUSABLE = (Status.STARTING, Status.RUNNING, Status.PAUSING)
TARGETS: dict[str, dict[Status, Status]] = {
    "cancel": dict.fromkeys(WAITING, Status.CANCELLED) | dict.fromkeys(ACTIVE, Status.CANCELLING),
    "pause": dict.fromkeys(WAITING, Status.PAUSED) | dict.fromkeys(PAUSABLE, Status.PAUSING),
    "resume": {Status.PAUSED: Status.QUEUED},
    "retry": dict.fromkeys((Status.FAILED, Status.CANCELLED, Status.EXPIRED), Status.QUEUED),
    "start": {Status.STARTING: Status.RUNNING},
    "succeed": dict.fromkeys((Status.RUNNING, Status.PAUSING, Status.CANCELLING), Status.SUCCEEDED),
    "fail": dict.fromkeys(ACTIVE, Status.FAILED),
    "stop": {Status.CANCELLING: Status.CANCELLED},
}
"""Where a request brings a job from where it is allowed."""
OF_WORKERS = {"start", "renew", "record", "keep", "succeed", "fail", "stop", "hand back", "release"}


@dataclass
class Twin:
    """A job as the model has it."""

    id: str
    status: Status = Status.QUEUED
    lease: Lease | None = None
    earlier_lease: Lease | None = None
    outcomes: list[str | None] = field(default_factory=list)
    """Of its attempts; None while one is under way."""
    losses: int = 0
    checkpoint: Checkpointed | None = None
    is_overdue: bool = False
    """It has waited too long, or its lease has ended."""
    version: int = 0
    """The last that was compared with the store's."""

    def moves(self, status: Status, outcome: str | None = None) -> None:
        """If that ends an attempt, it ends with `outcome`, or as the job itself."""
        if self.status is Status.QUEUED or status not in ACTIVE:
            self.is_overdue = False
        self.status = status
        if self.lease and status not in ACTIVE:
            self.outcomes[-1] = outcome or status
            self.lease, self.earlier_lease = None, self.lease

    def is_given_up(self, outcome: str) -> None:
        """By its worker, who is lost, or hands it back in good order."""
        self.losses += outcome == "lost"
        if self.status is Status.CANCELLING:
            self.moves(Status.CANCELLED)
        elif self.losses >= MAX_LOSSES:
            self.moves(Status.FAILED, outcome)
        elif self.status is Status.PAUSING:
            self.moves(Status.PAUSED, "paused" if outcome == "handed_back" else outcome)
        else:
            self.moves(Status.QUEUED, outcome)


@dataclass
class Seen:
    """What happened in all runs together."""

    transitions: set[tuple[Status, Status]] = field(default_factory=set)
    reaped: set[Status] = field(default_factory=set)
    """What became of jobs whose worker fell silent."""
    deleted: set[Status] = field(default_factory=set)
    """How jobs had ended that were deleted while an earlier worker could come back."""
    fenced_off: set[tuple[str, Status]] = field(default_factory=set)
    """What an earlier worker asked when he came back, and where the job stood then."""


Requests = dict[str, Callable[[], object]]


class Service:
    """Jobs that move through the store and the model side by side."""

    def __init__(self, engine: Engine, seen: Seen, random: Random) -> None:
        self.engine = engine
        self.seen = seen
        self.random = random
        self.store = JobStore(engine, lease_seconds=LONG_SECONDS, max_attempts=MAX_LOSSES)
        self.jobs: list[Twin] = []
        self.kept = 0
        """Checkpoints."""
        self.replaced: set[str] = set()
        """Keys of checkpoints that newer ones took the place of."""
        with engine.begin() as connection:
            connection.execute(sa.delete(jobs))
            connection.execute(sa.delete(deletions))

    def run(self) -> None:
        for _ in range(OPERATIONS):
            while sum(job.status is not Status.SUCCEEDED for job in self.jobs) < JOBS:
                self.jobs.append(Twin(self.store.create(demo_spec(), name=None, labels={})[0].id))
            number, job, operation = self.random.choice(
                [(number, job, possible) for number, job in enumerate(self.jobs) for possible in self.possible(job)]
            )
            print(f"job {number}, which is {job.status}: {operation.__name__}")
            operation(job)
            for each in self.jobs:
                self.compare(each)

    def possible(self, job: Twin) -> list[Callable[[Twin], None]]:
        """What stands there more than once comes more often."""
        if job.status is Status.QUEUED:
            return [self.user_asks, self.nobody_answers] + 4 * [self.is_taken]
        if job.status in ACTIVE:
            work = [self.worker_goes_on, self.worker_ends, self.worker_ends]
            return [self.user_asks, self.nobody_answers, self.is_lost_and_taken_again, *work]
        if job.status is Status.PAUSED:
            return [self.user_asks]
        return [self.is_deleted] if job.status is Status.SUCCEEDED else 3 * [self.user_asks] + [self.is_deleted]

    def happens(self) -> bool:
        return self.random.random() < 0.5

    # ---- users -----------------------------------------------------------------------------------------------------

    def of_users(self, job: Twin) -> Requests:
        store = self.store
        return {
            "cancel": partial(store.request_cancel, job.id),
            "pause": partial(store.request_pause, job.id),
            "resume": partial(store.resume, job.id),
            "retry": partial(store.retry, job.id),
        }

    def user_asks(self, job: Twin) -> None:
        requests = self.of_users(job)
        request = self.random.choice([name for name in requests if job.status in TARGETS[name]])
        requests[request]()
        job.moves(TARGETS[request][job.status])
        if request == "retry":
            job.losses = 0

    def is_deleted(self, job: Twin) -> None:
        self.store.delete_job(job.id)
        self.jobs.remove(job)
        with pytest.raises(NotFoundError):
            self.store.get(job.id)
        assert self.store.claim(job.id, "third") is None
        if job.earlier_lease:
            for request in self.of_workers(job.earlier_lease).values():
                with pytest.raises(LeaseLostError):
                    request()
            self.seen.deleted.add(job.status)

    # ---- workers ---------------------------------------------------------------------------------------------------

    def of_workers(self, lease: Lease) -> Requests:
        store = self.store
        artifact = Artifact(name="report.json", size=2, sha256="00", media_type="application/json")
        return {
            "start": partial(store.start, lease),
            "renew": partial(store.renew, lease),
            "record": partial(store.record, lease, StepDone(fraction=0.5)),
            "keep": partial(store.keep_checkpoint, lease, self.next_checkpoint(lease)),
            "succeed": partial(store.finish, lease, Succeeded(metrics_summary={}, artifacts=[artifact])),
            "fail": partial(store.finish, lease, Failed(code="internal", message="broken")),
            "stop": partial(store.finish, lease, Cancelled()),
            "hand back": partial(store.hand_back, lease, "worker shut down"),
            "release": partial(store.release, lease, "process killed"),
        }

    def next_checkpoint(self, lease: Lease) -> Checkpointed:
        return checkpoint("dense", self.kept, lease.attempt, lease.job_id)

    def is_taken(self, job: Twin) -> None:
        worker = self.random.choice(["first", "second"])
        job.lease = self.store.claim(job.id, worker)
        job.outcomes.append(None)
        assert job.lease == Lease(job.id, len(job.outcomes), worker)
        job.moves(Status.STARTING)
        if self.happens():
            self.store.start(job.lease)
            job.moves(Status.RUNNING)
        if self.happens():
            self.user_asks(job)

    def worker_goes_on(self, job: Twin) -> None:
        """Sometimes late, but before the reaper."""
        if self.happens():
            self.time_passes(job)
        requests = self.of_workers(job.lease)
        assert requests["renew"]() is job.status
        job.is_overdue = False
        self.reaper_comes()
        requests["record"]()
        requests["keep"]()
        if job.checkpoint:
            self.replaced.add(job.checkpoint.key)
        job.checkpoint = self.next_checkpoint(job.lease)
        self.kept += 1

    def worker_ends(self, job: Twin) -> None:
        requests = self.of_workers(job.lease)
        allowed = [name for name in ("succeed", "fail", "stop") if job.status in TARGETS[name]]
        ending = self.random.choice([*allowed, "hand back", "release"])
        answer = requests[ending]()
        if ending in allowed:
            job.moves(TARGETS[ending][job.status])
        else:
            job.is_given_up("lost" if ending == "release" else "handed_back")
            assert answer is job.status

    # ---- time ------------------------------------------------------------------------------------------------------

    def time_passes(self, job: Twin) -> None:
        """And no worker takes the job, or the one who has it says nothing."""
        column = jobs.c.queued_at if job.status is Status.QUEUED else jobs.c.lease_expires_at
        with self.engine.begin() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values({column: utcnow(-LONG_SECONDS - 1)}))
        job.is_overdue = True

    def nobody_answers(self, job: Twin) -> None:
        self.time_passes(job)
        if self.happens():
            self.reaper_comes()

    def reaper_comes(self) -> None:
        late = [job for job in self.jobs if job.is_overdue and job.status is Status.QUEUED]
        silent = [job for job in self.jobs if job.is_overdue and job.status in ACTIVE]
        for job in late:
            job.moves(Status.EXPIRED)
        for job in silent:
            job.is_given_up("lost")
            self.seen.reaped.add(job.status)
        assert sorted(self.store.expire(LONG_SECONDS)) == sorted(job.id for job in late)
        assert sorted(self.store.reap()) == sorted(job.id for job in silent if job.status is Status.QUEUED)

    def is_lost_and_taken_again(self, job: Twin) -> None:
        self.time_passes(job)
        self.reaper_comes()
        if job.status is Status.QUEUED:
            self.is_taken(job)

    # ---- comparison ------------------------------------------------------------------------------------------------

    def compare(self, twin: Twin) -> None:
        job = self.store.get(twin.id)
        assert (job.status, job.attempt) == (twin.status, len(twin.outcomes))
        if job.version == twin.version:
            return
        twin.version = job.version
        assert (job.finished_at is not None) == (job.status in TERMINAL)
        assert (job.error is not None) == (job.status is Status.FAILED)
        attempts = [(attempt.number, attempt.outcome) for attempt in self.store.attempts(job.id)]
        assert attempts == list(enumerate(twin.outcomes, start=1))
        assert self.store.checkpoints(job.id) == ({"dense": twin.checkpoint} if twin.checkpoint else {})
        assert self.replaced <= set(self.store.deletions())
        bundles = [artifact.attempt for artifact in self.store.artifacts(job.id)]
        assert bundles == ([job.attempt] if job.status is Status.SUCCEEDED else [])
        events = self.store.events(job.id, 0, 1000)
        assert [event.seq for event in events] == list(range(1, job.version + 1))
        history = [Status(event.data["status"]) for event in events if event.type == "status"]
        assert (history[0], history[-1]) == (Status.QUEUED, job.status)
        self.seen.transitions |= set(itertools.pairwise(history))
        self.refuses(twin)
        assert self.store.get(job.id) == job, "what was refused has changed it"

    def refuses(self, job: Twin) -> None:
        """Some of what is not allowed now."""
        if job.status not in TERMINAL:
            with pytest.raises(ConflictError):
                self.store.delete_job(job.id)
        if job.status is not Status.QUEUED:
            assert self.store.claim(job.id, "third") is None, "its message came twice, or late"
        requests = self.of_users(job) | (self.of_workers(job.lease) if job.lease else {})
        illegal = [name for name in requests if name in TARGETS and job.status not in TARGETS[name]]
        for name in self.random.sample(illegal, min(2, len(illegal))):
            with pytest.raises(ConflictError):
                requests[name]()
        if job.earlier_lease:
            fenced = self.of_workers(job.earlier_lease)
            for name in self.random.sample(list(fenced), 3):
                with pytest.raises(LeaseLostError):
                    fenced[name]()
                self.seen.fenced_off.add((name, job.status))


def test_the_store_does_what_its_model_does(engine, capsys):
    if engine.dialect.name == "sqlite":  # waits for no disk: no machine crashes here
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        engine.dispose()
    seen = Seen()
    for seed in range(RUNS):
        capsys.readouterr()  # of a failure, only its own run is shown
        Service(engine, seen, Random(seed)).run()
    assert seen.transitions == {(before, after) for before, following in TRANSITIONS.items() for after in following}
    assert seen.reaped == {Status.QUEUED, Status.PAUSED, Status.CANCELLED, Status.FAILED}
    assert seen.deleted == TERMINAL
    assert {status for _, status in seen.fenced_off} >= ACTIVE
    assert {request for request, status in seen.fenced_off if status in ACTIVE} == OF_WORKERS
