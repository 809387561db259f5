"""The table of transitions, and that the database keeps to it."""

import itertools

import sqlalchemy as sa

from core.db import jobs
from core.jobs.state import ACTIVE, TERMINAL, TRANSITIONS, Status, sources
from core.jobs.transitions import transition
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
