"""The store, on SQLite and PostgreSQL."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from core import db
from core.errors import ConfigurationError, ConflictError, InvalidInputError, LeaseLostError, NotFoundError
from core.jobs.ids import new_job_id
from core.jobs.records import Cancelled, FileRecord
from core.jobs.state import Status
from core.jobs.store import JobStore
from core.progress import Artifact, Failed, PhaseStarted, StepDone, Succeeded, Warned
from tests.specs import demo_spec, upload_spec

BUNDLE = Succeeded(
    metrics_summary={"cosine": 0.97},
    artifacts=[
        Artifact(name="report.json", size=2, sha256="ab", media_type="application/json"),
        Artifact(name="model.safetensors", size=5 * 2**32, sha256="cd", media_type="application/octet-stream"),
    ],
)


def queued(store, **options):
    return store.create(demo_spec(), **{"name": None, "labels": {}} | options)[0]


def running(store, owner="worker"):
    job = queued(store)
    lease = store.claim(job.id, owner)
    store.start(lease)
    return lease


def expire(store):
    with store._writer.begin() as connection:
        connection.execute(sa.update(db.jobs).values(lease_expires_at=db.utcnow(-1)))


def created_hours_ago(store, hours):
    with store._writer.begin() as connection:
        connection.execute(sa.update(db.jobs).values(created_at=db.utcnow(-hours * 3600)))


def add_file(store, purpose="dataset", columns=None, number=0):
    file_id, key = f"file_{'a' * 31}{number}", f"uploads/{number}"
    record = FileRecord(file_id, "train.jsonl", purpose, 10, "00", key, datetime.now(UTC), columns)
    store.expect_file(record.key)
    store.add_file(record)
    return record


# ---- the schema ----------------------------------------------------------------------------------------------------


def test_migrations_make_the_tables_that_the_code_declares(engine):
    with engine.connect() as connection:
        assert db.is_migrated(connection)
        assert compare_metadata(MigrationContext.configure(connection), db.metadata) == []


def test_upgrading_twice_changes_nothing(database):
    engine = db.create_engine(database)
    try:
        before = sa.inspect(engine).get_table_names()
        db.upgrade(database)
        assert sa.inspect(engine).get_table_names() == before
        with engine.connect() as connection:
            assert db.is_migrated(connection)
    finally:
        engine.dispose()


def test_every_migration_can_be_taken_back(own_database, engine):
    command.downgrade(db._alembic(own_database), "base")
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]
    db.upgrade(own_database)
    with engine.begin() as connection:
        assert db.is_migrated(connection)


def test_who_upgrades_waits_for_another_who_does(own_database, engine):
    """As where every replica of a deployment runs the migrations before it starts."""
    if engine.dialect.name != "postgresql":
        pytest.skip("SQLite has one writer at a time")
    engine.dispose()
    db.downgrade(own_database, "0001")
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    other = db.create_engine(own_database)
    with other.begin() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(db.UPGRADE_LOCK)))
        environment = os.environ | {"NEUROPRUNE_DATABASE_URL": own_database}
        command = [sys.executable, "-m", "migrations"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not connection.execute(waiting).scalar_one():
            time.sleep(0.05)
        assert process.poll() is None
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", 0)
    other.dispose()


def test_an_empty_database_is_not_migrated(tmp_path):
    engine = db.create_engine(f"sqlite:///{tmp_path}/new/empty.db")
    assert not JobStore(engine).is_migrated()
    engine.dispose()


@pytest.mark.parametrize("url", ["nonsense", "mysql://localhost/x"])
def test_other_databases_are_refused(url):
    with pytest.raises(ConfigurationError, match="sqlite:///path or postgresql"):
        db.create_engine(url)


def test_database_clock_is_utc_and_shifts(engine):
    with engine.connect() as connection:
        now, later, earlier = connection.execute(sa.select(db.utcnow(), db.utcnow(90.5), db.utcnow(-1e-3))).one()
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)
    assert abs(later - now - timedelta(seconds=90.5)) < timedelta(milliseconds=50)
    assert earlier < later


# ---- creating ------------------------------------------------------------------------------------------------------


def test_created_job_is_queued_with_its_first_event(store):
    job = queued(store, name="demo", labels={"team": "search"})
    assert job.status is Status.QUEUED
    assert (job.name, job.labels, job.attempt, job.version) == ("demo", {"team": "search"}, 0, 1)
    assert job.spec["training"]["num_train_epochs"] is None
    assert job.resolved_spec["training"]["num_train_epochs"] is not None
    assert store.get(job.id) == job
    [event] = store.events(job.id, 0, 10)
    assert (event.seq, event.type, event.data["status"]) == (1, "status", "queued")


def test_unusual_text_survives(store):
    spec = demo_spec(task={**demo_spec().task.model_dump(), "text_column": "ünï\x00✂"})
    job, _ = store.create(spec, name="Ω", labels={})
    assert store.get(job.id).spec["task"]["text_column"] == "ünï\x00✂"


def test_missing_file_is_named_and_nothing_is_stored(store):
    with pytest.raises(InvalidInputError, match="There is no file") as caught:
        store.create(upload_spec("file_" + "b" * 32), name=None, labels={})
    assert caught.value.param == "/task/data/train"
    assert store.page(10, None, None) == ([], None)


def test_file_of_the_wrong_purpose_is_refused(store):
    record = add_file(store, purpose="model")
    with pytest.raises(InvalidInputError, match="purpose=dataset"):
        store.create(upload_spec(record.id), name=None, labels={})


@pytest.mark.parametrize("columns", [None, ["id", "label", "text"]])
def test_uploaded_file_is_accepted(store, columns):
    record = add_file(store, columns=columns)
    assert store.get_file(record.id) == record
    assert store.create(upload_spec(record.id), name=None, labels={})[0].status is Status.QUEUED


@pytest.mark.parametrize(
    ("columns", "pointer", "message"),
    [
        (
            ["label", "sentence"],
            "/task/text_column",
            "train.jsonl, the file of /task/data/train, has no column 'text'; it has 'label', 'sentence'.",
        ),
        (["text"], "/task/label_column", "has no column 'label'; it has 'text'."),
        ([], "/task/label_column", "has no column 'label'; it has none."),
        ([f"c{i}" for i in range(99)], "/task/label_column", "'c9', …."),
    ],
)
def test_a_column_that_the_rows_lack_is_named_with_those_there_are(store, columns, pointer, message):
    record = add_file(store, columns=columns)
    with pytest.raises(InvalidInputError) as caught:
        store.create(upload_spec(record.id), name=None, labels={})
    assert caught.value.param == pointer
    assert message in caught.value.message
    assert store.page(10, None, None) == ([], None)


def test_each_file_must_have_the_columns(store):
    train, test = add_file(store, columns=["text", "label"]), add_file(store, columns=["text"], number=1)
    data = {"source": "upload", "train": train.id, "test": test.id}
    with pytest.raises(InvalidInputError, match="the file of /task/data/test, has no column 'label'"):
        store.create(demo_spec(task={"name": "regression", "data": data}), name=None, labels={})


@pytest.mark.parametrize(
    "change", [{"spec": demo_spec(target={"sparsity": 0.6})}, {"name": "other"}, {"labels": {"team": "search"}}]
)
def test_idempotency_key_replays_and_refuses_another_request(store, change):
    request = {"spec": demo_spec(), "name": None, "labels": {}, "idempotency_key": "k"}
    first, replayed = store.create(**request)
    assert not replayed
    assert store.create(**request) == (first, True)
    with pytest.raises(InvalidInputError, match="Idempotency-Key"):
        store.create(**request | change)
    assert len(store.page(10, None, None)[0]) == 1


def test_a_default_that_is_written_out_makes_no_other_request(store):
    first, _ = store.create(demo_spec(), name=None, labels={}, idempotency_key="k")
    spelt_out = demo_spec(training={"seed": 42}, export={"formats": ["safetensors", "onnx"]})
    assert store.create(spelt_out, name=None, labels={}, idempotency_key="k") == (first, True)


def test_idempotency_key_is_remembered_for_a_day(store):
    first = queued(store, idempotency_key="k")
    created_hours_ago(store, 23)
    assert queued(store, idempotency_key="k").id == first.id
    created_hours_ago(store, 25)
    assert queued(store, idempotency_key="k", name="new").id != first.id


def test_the_same_key_at_the_same_time_makes_one_job(store):
    together = threading.Barrier(6)

    def create(_):
        together.wait()
        return store.create(demo_spec(), name=None, labels={}, idempotency_key="k")

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(create, range(6)))
    assert len({job.id for job, _ in made}) == 1
    assert sum(not replayed for _, replayed in made) == 1


# ---- reading -------------------------------------------------------------------------------------------------------


def test_unknown_job_is_not_found(store):
    for call in (store.get, store.request_cancel, store.artifacts, lambda i: store.events(i, 0, 1)):
        with pytest.raises(NotFoundError, match="There is no job"):
            call("job_missing")


def test_unknown_file_is_not_found(store):
    with pytest.raises(NotFoundError, match="There is no file"):
        store.get_file("file_missing")


def test_ids_sort_by_time():
    ids = []
    for _ in range(20):
        ids.append(new_job_id())
        time.sleep(1e-5)
    assert ids == sorted(ids)
    assert all(i.startswith("job_") and i[16] == "7" and i[20] in "89ab" for i in ids)


def test_pages_are_newest_first_and_complete(store):
    made = [queued(store).id for _ in range(5)]
    store.request_cancel(made[2])
    seen, cursor = [], None
    for expected in (2, 2, 1):
        page, cursor = store.page(2, cursor, None)
        assert len(page) == expected
        seen += [job.id for job in page]
    assert cursor is None
    assert seen == made[::-1]
    assert [job.id for job in store.page(9, None, Status.CANCELLED)[0]] == [made[2]]


def test_queue_positions_count_queued_jobs_only(store):
    made = [queued(store).id for _ in range(4)]
    store.claim(made[0], "worker")
    assert store.queue_positions(made) == {made[1]: 1, made[2]: 2, made[3]: 3}


def test_a_job_that_comes_back_queues_last(store):
    made = [queued(store).id for _ in range(3)]
    store.request_pause(made[0])
    store.resume(made[0])
    assert store.queue_positions(made) == {made[1]: 1, made[2]: 2, made[0]: 3}
    assert store.undispatched(older_than_seconds=0) == [made[1], made[2], made[0]]
    assert [store.claim_next("worker").job_id for _ in made] == [made[1], made[2], made[0]]
    assert store.claim_next("worker") is None


# ---- cancelling ----------------------------------------------------------------------------------------------------


def test_queued_job_is_cancelled_at_once(store):
    job = store.request_cancel(queued(store).id)
    assert job.status is Status.CANCELLED
    assert job.finished_at is not None
    assert store.claim(job.id, "worker") is None


def test_running_job_is_asked_and_then_cancelled(store):
    lease = running(store)
    job = store.request_cancel(lease.job_id)
    assert job.status is Status.CANCELLING
    assert store.request_cancel(lease.job_id) == job
    assert store.renew(lease) is Status.CANCELLING
    store.finish(lease, Cancelled())
    with pytest.raises(ConflictError, match="is cancelled and cannot be cancelled"):
        store.request_cancel(lease.job_id)


def test_a_job_that_ends_while_it_is_cancelled_keeps_its_result(store):
    lease = running(store)
    store.request_cancel(lease.job_id)
    store.finish(lease, BUNDLE)
    assert store.get(lease.job_id).status is Status.SUCCEEDED


# ---- leases --------------------------------------------------------------------------------------------------------


def test_of_many_claimers_one_wins(store):
    job = queued(store)
    together = threading.Barrier(8)

    def claim(number):
        together.wait()
        return store.claim(job.id, f"worker-{number}")

    with ThreadPoolExecutor(8) as pool:
        leases = [lease for lease in pool.map(claim, range(8)) if lease]
    assert len(leases) == 1
    assert leases[0].attempt == 1
    assert store.get(job.id).attempt == 1


def test_who_is_too_late_for_a_job_gets_the_next(store, monkeypatch):
    first, second = queued(store).id, queued(store).id
    claim = store.claim

    def claim_late(job_id, owner):
        if job_id == first:
            claim(job_id, "another")
        return claim(job_id, owner)

    monkeypatch.setattr(store, "claim", claim_late)
    assert store.claim_next("worker").job_id == second


def test_recorded_progress_is_seen(store):
    lease = running(store)
    store.record(lease, PhaseStarted(phase="pruning"))
    store.record(lease, StepDone(fraction=0.25, step=5, total_steps=20, eta_seconds=60, metrics={"loss": 0.5}))
    store.record(lease, Warned(message="one"))
    store.record(lease, Warned(message="two"))
    job = store.get(lease.job_id)
    assert job.phase == "pruning"
    assert job.progress.fraction == 0.25
    assert job.progress.metrics == {"loss": 0.5}
    eta = datetime.fromisoformat(job.progress.eta_at)
    assert timedelta(seconds=50) < eta - datetime.now(UTC) < timedelta(seconds=61)
    assert job.warnings == ("one", "two")
    assert [event.type for event in store.events(job.id, 3, 9)] == ["phase", "progress", "warning", "warning"]


def test_concurrent_records_leave_no_gap(store):
    lease = running(store)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: store.record(lease, Warned(message=str(n))), range(30)))
    job = store.get(lease.job_id)
    assert sorted(job.warnings, key=int) == [str(n) for n in range(30)]
    assert [event.seq for event in store.events(job.id, 0, 100)] == list(range(1, 34))


def test_success_publishes_the_bundle(store):
    lease = running(store)
    assert store.artifacts(lease.job_id) == []
    store.finish(lease, BUNDLE)
    job = store.get(lease.job_id)
    assert job.status is Status.SUCCEEDED
    assert job.metrics_summary == {"cosine": 0.97}
    model, report = store.artifacts(job.id)
    assert model.size == 5 * 2**32
    assert report.key == f"artifacts/{job.id}/1/report.json"


def test_failure_says_why(store):
    lease = running(store)
    store.record(lease, PhaseStarted(phase="loading"))
    store.finish(lease, Failed(code="invalid_input", message="no such column", param="/task/text_column"))
    error = store.get(lease.job_id).error
    assert (error.code, error.param, error.phase, error.attempt) == (
        "invalid_input", "/task/text_column", "loading", 1,
    )  # fmt: skip
    last = store.events(lease.job_id, 0, 99)[-1]
    assert last.data["error"]["message"] == "no such column"


def test_lost_lease_changes_nothing(store):
    old = running(store, "first")
    expire(store)
    assert store.reap() == [old.job_id]
    new = store.claim(old.job_id, "second")
    before, events = store.get(old.job_id), store.events(old.job_id, 0, 99)
    calls = (
        lambda: store.renew(old),
        lambda: store.start(old),
        lambda: store.record(old, Warned(message="late")),
        lambda: store.record(old, PhaseStarted(phase="late")),
        lambda: store.finish(old, BUNDLE),
        lambda: store.finish(old, Failed(code="internal", message="late")),
        lambda: store.finish(old, Cancelled()),
        lambda: store.release(old, "late"),
        lambda: store.hand_back(old, "late"),
    )
    for call in calls:
        with pytest.raises(LeaseLostError):
            call()
    assert store.get(old.job_id) == before
    assert store.events(old.job_id, 0, 99) == events
    assert store.artifacts(old.job_id) == []
    store.start(new)
    store.finish(new, BUNDLE)
    assert store.artifacts(old.job_id)[0].attempt == 2


@pytest.mark.parametrize("ending", [JobStore.request_cancel, JobStore.request_pause])
@pytest.mark.parametrize("give_up", [JobStore.release, JobStore.hand_back])
def test_a_worker_that_was_given_up_does_not_queue_what_has_ended_or_is_paused(store, ending, give_up):
    """Nobody has claimed the job since, so that the attempt is still the last."""
    lease = running(store)
    ending(store, lease.job_id)
    expire(store)
    store.reap()
    before = store.get(lease.job_id)
    assert before.status in {Status.CANCELLED, Status.PAUSED}
    with pytest.raises(LeaseLostError):
        give_up(store, lease, "late")
    assert store.get(lease.job_id) == before


def test_outcomes_that_do_not_follow_are_refused(store):
    lease = running(store)
    with pytest.raises(ConflictError, match="is running and cannot become cancelled"):
        store.finish(lease, Cancelled())
    starting = store.claim(queued(store).id, "worker")
    with pytest.raises(ConflictError, match="is starting and cannot become succeeded"):
        store.finish(starting, BUNDLE)
    assert store.artifacts(starting.job_id) == []


def test_released_job_waits_again_until_its_attempts_are_used_up(store):
    lease = running(store)
    store.record(lease, StepDone(fraction=0.5))
    store.record(lease, Warned(message="short texts"))
    assert store.release(lease, "worker shut down") is Status.QUEUED
    job = store.get(lease.job_id)
    assert (job.progress, job.phase, job.attempt) == (None, None, 1)
    lease = store.claim(job.id, "worker")
    assert (lease.attempt, store.get(job.id).warnings) == (2, ())
    assert store.release(lease, "worker shut down") is Status.FAILED
    error = store.get(job.id).error
    assert error.code == "worker_lost"
    assert error.retryable
    assert "2 times" in error.message


def test_released_while_cancelling_is_cancelled(store):
    lease = running(store)
    store.request_cancel(lease.job_id)
    assert store.release(lease, "worker shut down") is Status.CANCELLED


# ---- the reaper ----------------------------------------------------------------------------------------------------


def test_reaper_leaves_live_leases_alone(store):
    lease = running(store)
    assert store.reap() == []
    assert store.renew(lease) is Status.RUNNING


def test_reaper_ends_what_was_being_cancelled(store):
    lease = running(store)
    store.request_cancel(lease.job_id)
    expire(store)
    assert store.reap() == []
    assert store.get(lease.job_id).status is Status.CANCELLED


def test_renewed_lease_outlives_the_first_one(engine):
    store = JobStore(engine, lease_seconds=0.6)
    lease = store.claim(queued(store).id, "worker")
    for _ in range(4):
        time.sleep(0.25)
        store.renew(lease)
        assert store.reap() == []
    time.sleep(0.8)
    assert store.reap() == [lease.job_id]


def test_two_reapers_queue_a_job_once(store):
    running(store)
    expire(store)
    with ThreadPoolExecutor(4) as pool:
        reaped = [job_id for ids in pool.map(lambda _: store.reap(), range(4)) for job_id in ids]
    assert len(reaped) == 1


def test_a_lease_that_is_being_renewed_is_left_alone(store):
    lease = running(store)
    expire(store)
    with ThreadPoolExecutor(1) as pool:
        with store._writer.begin() as connection:
            connection.execute(sa.update(db.jobs).values(lease_expires_at=db.utcnow(60)))
            reaping = pool.submit(store.reap)
            wait([reaping], timeout=0.5)
        assert reaping.result() == []
    assert store.renew(lease) is Status.RUNNING


def test_undispatched_jobs_are_found_oldest_first(store, monkeypatch):
    first, second, third = (queued(store).id for _ in range(3))
    assert store.undispatched(30) == [first, second, third]
    store.mark_dispatched(second)
    store.claim(third, "worker")
    assert store.undispatched(30) == [first]
    assert store.undispatched(-1) == [first, second]
    monkeypatch.setattr("core.jobs.leases.REPUBLISHED_AT_ONCE", 1)
    assert store.undispatched(-1) == [first]


# ---- workers -------------------------------------------------------------------------------------------------------


def test_workers_are_live_while_they_show_themselves(store):
    store.worker_seen("a", ["cpu"])
    store.worker_seen("a", ["cpu", "gpu-24g"])
    [worker] = store.live_workers(5)
    assert (worker.name, worker.queues) == ("a", ("cpu", "gpu-24g"))
    assert store.live_workers(-1) == []


def test_a_worker_that_says_goodbye_is_not_live(store):
    store.worker_seen("a", ["cpu"])
    store.worker_seen("b", ["cpu"])
    store.worker_gone("a")
    store.worker_gone("never seen")
    assert [worker.name for worker in store.live_workers(5)] == ["b"]


def test_workers_of_long_ago_are_forgotten_when_another_begins(store, engine):
    store.worker_seen("old", ["jobs"])
    with engine.begin() as connection:
        connection.execute(sa.update(db.workers).values(seen_at=db.utcnow(-2 * 24 * 3600)))
    store.worker_seen("new", ["jobs"])
    assert [worker.name for worker in store.live_workers(7 * 24 * 3600)] == ["new"]
