"""What Prometheus scrapes, counted on both databases."""

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from core.db import job_attempts, jobs, utcnow
from core.progress import Failed
from tests.apis import LIVE_SECONDS, SILENT_SECONDS
from tests.specs import demo_spec


@pytest.fixture
def scrape(service):
    def figures():
        answer = service.http.get("/metrics")
        assert answer.status_code == 200
        families = text_string_to_metric_families(answer.text)
        return {
            (sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples
        }

    return figures


def test_a_service_without_jobs_has_figures_too(scrape):
    figures = scrape()
    assert figures["neuroprune_jobs", "queued"] == 0
    assert figures["neuroprune_attempts_total",] == 0
    assert figures["neuroprune_queue_oldest_age_seconds",] == 0
    assert figures["neuroprune_workers",] == 0
    assert figures["neuroprune_deletions_pending",] == 0
    assert ("neuroprune_lease_shortest_seconds",) not in figures


def test_figures_follow_the_jobs(service, scrape, engine):
    store = service.store
    ids = [store.create(demo_spec(), name=None, labels={})[0].id for _ in range(5)]
    service.succeed(ids[0], {})
    failed = store.claim(ids[1], "w")
    store.start(failed)
    store.finish(failed, Failed(code="storage_full", message="full"))
    store.request_cancel(ids[2])
    store.claim(ids[3], "w")
    store.worker_seen("w", ["cpu"])
    with engine.begin() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id == ids[4]).values(queued_at=utcnow(-90)))
        long_run = {"queued_at": utcnow(-60), "started_at": utcnow(-50), "ended_at": utcnow(-20)}
        connection.execute(sa.update(job_attempts).where(job_attempts.c.job_id == ids[0]).values(**long_run))
    figures = scrape()
    wanted = {"queued": 1, "starting": 1, "succeeded": 1, "failed": 1, "cancelled": 1, "running": 0}
    assert {status: figures["neuroprune_jobs", status] for status in wanted} == wanted
    assert figures["neuroprune_jobs_active",] == 1
    assert figures["neuroprune_failures_total", "storage_full"] == 1
    assert figures["neuroprune_attempts_total",] == 3
    assert figures["neuroprune_queue_oldest_age_seconds",] == pytest.approx(90, abs=10)
    assert figures["neuroprune_lease_shortest_seconds",] == pytest.approx(60, abs=10)
    assert figures["neuroprune_attempt_run_seconds_count", "succeeded"] == 1
    assert figures["neuroprune_attempt_run_seconds_sum", "succeeded"] == pytest.approx(30, abs=0.5)
    assert figures["neuroprune_attempt_run_seconds_count", "failed"] == 1
    assert figures["neuroprune_job_wait_seconds_count",] == 3
    assert figures["neuroprune_job_wait_seconds_sum",] == pytest.approx(10, abs=5)
    assert figures["neuroprune_worker_silence_seconds", "w"] < 10


def test_workers_that_have_fallen_silent_are_not_counted(service, scrape):
    service.see_worker("silent", SILENT_SECONDS)
    assert scrape()["neuroprune_workers",] == 0
    service.see_worker("live", LIVE_SECONDS)
    figures = scrape()
    assert figures["neuroprune_workers",] == 1
    assert figures["neuroprune_worker_silence_seconds", "live"] == pytest.approx(LIVE_SECONDS, abs=10)
    assert ("neuroprune_worker_silence_seconds", "silent") not in figures


def test_counters_never_fall(service, scrape):
    store = service.store
    job_id = store.create(demo_spec(), name=None, labels={})[0].id
    seen = {}

    def none_has_fallen():
        figures = scrape()
        counters = {key: value for key, value in figures.items() if key[0].endswith(("_total", "_count", "_sum"))}
        assert [key for key, before in seen.items() if counters.get(key, 0) < before] == []
        seen.update(counters)

    def fail():
        lease = store.claim(job_id, "w")
        none_has_fallen()
        store.start(lease)
        store.finish(lease, Failed(code="numerical_failure", message="NaN"))
        none_has_fallen()

    fail()
    store.retry(job_id)
    none_has_fallen()
    fail()
    store.delete_job(job_id)
    none_has_fallen()
    assert scrape()["neuroprune_deletions_pending",] == 2
    assert seen["neuroprune_failures_total", "numerical_failure"] == 2
    assert seen["neuroprune_attempt_run_seconds_count", "failed"] == 2
    assert seen["neuroprune_job_wait_seconds_count",] == 1


def test_lost_attempts_are_failures_of_the_service(service, scrape):
    store = service.store
    job_id = store.create(demo_spec(), name=None, labels={})[0].id
    assert scrape()["neuroprune_failures_total", "worker_lost"] == 0
    assert store.release(store.claim(job_id, "w"), "killed") == "queued"
    assert scrape()["neuroprune_failures_total", "worker_lost"] == 1
    assert store.release(store.claim(job_id, "w"), "killed") == "failed"
    assert scrape()["neuroprune_failures_total", "worker_lost"] == 2


def test_a_resumed_job_waits_since_it_was_resumed(service, scrape, engine):
    store = service.store
    job_id = store.create(demo_spec(), name=None, labels={})[0].id
    store.request_pause(job_id)
    with engine.begin() as connection:
        connection.execute(sa.update(jobs).values(created_at=utcnow(-3600), queued_at=utcnow(-3600)))
    store.resume(job_id)
    assert scrape()["neuroprune_queue_oldest_age_seconds",] < 30
