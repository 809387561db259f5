"""The table of transitions, and that the store obeys it whatever is asked in whatever order."""

import itertools
import tempfile

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from core.db import create_engine, jobs, upgrade
from core.errors import ConflictError, LeaseLostError
from core.jobs.records import Cancelled
from core.jobs.state import ACTIVE, TERMINAL, TRANSITIONS, Status, sources
from core.jobs.store import JobStore
from core.jobs.transitions import transition
from core.progress import Artifact, Failed, Succeeded
from tests.checkpoints import checkpoint
from tests.specs import demo_spec


def test_every_status_has_a_row():
    assert set(TRANSITIONS) == set(Status)


def test_from_an_ending_a_job_can_only_be_queued_again():
    assert {status: TRANSITIONS[status] for status in TERMINAL} == {
        Status.SUCCEEDED: frozenset(),
        **{status: {Status.QUEUED} for status in (Status.CANCELLED, Status.FAILED, Status.EXPIRED)},
    }
    assert not TERMINAL & ACTIVE


def test_sources_invert_the_table():
    for source, target in itertools.product(Status, Status):
        assert (source in sources(target)) == (target in TRANSITIONS[source])


def test_database_refuses_every_illegal_transition(store, engine):
    job, _ = store.create(demo_spec(), name=None, labels={})
    for source, target in itertools.product(Status, Status):
        with engine.begin() as connection:
            connection.execute(sa.update(jobs).values(status=source))
            row = transition(connection, job.id, target, reason="test")
            assert (row is not None) == (target in TRANSITIONS[source]), f"{source} → {target}"
            status = connection.execute(sa.select(jobs.c.status)).scalar_one()
            assert status == (target if target in TRANSITIONS[source] else source)
    legal = sum(len(following) for following in TRANSITIONS.values())
    assert store.get(job.id).version == 1 + legal, "a refused transition must leave no event"


OF_THE_USER = ("cancel", "pause", "resume", "retry")
OF_THE_WORKER = ("claim", "start", "renew", "keep", "succeed", "fail", "confirm", "hand_back", "release")
OPERATIONS = (*OF_THE_USER, *OF_THE_WORKER, "lose", "expire", "stale")
MOST_ATTEMPTS = 2
BUNDLE = Succeeded(
    metrics_summary={"cosine": 0.9},
    artifacts=[Artifact(name="report.json", size=2, sha256="00", media_type="application/json")],
)


class _Walk:
    """One job, its present lease and one of an attempt that is over."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.job_id = store.create(demo_spec(), name=None, labels={})[0].id
        self.lease = None
        self.old_lease = None

    def do(self, operation: str) -> None:
        store, lease = self.store, self.lease
        if operation == "claim":
            claimed = store.claim(self.job_id, "worker")
            if claimed:
                self.old_lease, self.lease = lease, claimed
        elif operation == "cancel":
            store.request_cancel(self.job_id)
        elif operation == "lose":
            with store._writer.begin() as connection:
                connection.execute(sa.update(jobs).values(lease_expires_at=sa.text("'2000-01-01 00:00:00.000000'")))
            store.reap()
        elif operation == "stale" and self.old_lease:
            with pytest.raises(LeaseLostError):
                store.finish(self.old_lease, BUNDLE)
            with pytest.raises(LeaseLostError):
                store.keep_checkpoint(self.old_lease, checkpoint("dense", 1))
        elif operation == "expire":
            store.expire(-1.0)
        elif operation in OF_THE_USER:
            {"pause": store.request_pause, "resume": store.resume, "retry": store.retry}[operation](self.job_id)
        elif lease:
            {
                "start": lambda: store.start(lease),
                "renew": lambda: store.renew(lease),
                "succeed": lambda: store.finish(lease, BUNDLE),
                "fail": lambda: store.finish(lease, Failed(code="internal", message="broken")),
                "confirm": lambda: store.finish(lease, Cancelled()),
                "keep": lambda: store.keep_checkpoint(lease, checkpoint("pruning", 5)),
                "hand_back": lambda: store.hand_back(lease, "shutdown"),
                "release": lambda: store.release(lease, "killed"),
            }.get(operation, lambda: None)()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(OPERATIONS), max_size=14))
def test_any_order_of_calls_makes_a_legal_history(operations):
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/db"
        upgrade(url)
        engine = create_engine(url)
        try:
            walk = _Walk(JobStore(engine, max_attempts=MOST_ATTEMPTS))
            for operation in operations:
                try:
                    walk.do(operation)
                except ConflictError:
                    continue
            _assert_legal(walk.store, walk.job_id)
        finally:
            engine.dispose()


def _assert_legal(store: JobStore, job_id: str) -> None:
    job = store.get(job_id)
    events = store.events(job_id, 0, 1000)
    assert [event.seq for event in events] == list(range(1, job.version + 1))
    history = [Status(event.data["status"]) for event in events if event.type == "status"]
    assert history[0] is Status.QUEUED
    assert history[-1] is job.status
    assert all(after in TRANSITIONS[before] for before, after in itertools.pairwise(history))
    assert bool(store.artifacts(job_id)) == (job.status is Status.SUCCEEDED)
    assert (job.finished_at is not None) == (job.status in TERMINAL)
    assert (job.error is not None) == (job.status is Status.FAILED)
    attempts = store.attempts(job_id)
    assert [attempt.number for attempt in attempts] == list(range(1, job.attempt + 1))
    under_way = [attempt.number for attempt in attempts if attempt.outcome is None]
    assert under_way == ([job.attempt] if job.status in ACTIVE else [])
    if not any(event.data.get("reason") == "tried again on request" for event in events):
        assert [attempt.outcome for attempt in attempts].count("lost") <= MOST_ATTEMPTS
