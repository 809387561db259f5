"""Metrics for Prometheus, counted in the database at every scrape: any API process tells of the whole service."""

from collections.abc import Iterator

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from api.deps import Store
from api.errors import problems
from api.routes.jobs import WORKER_SILENT_SECONDS
from core.jobs.state import ACTIVE
from core.jobs.statistics import Statistics

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=Response, responses=problems(503) | {200: {"content": {"text/plain": {}}}})
def metrics(store: Store) -> Response:
    """Queue, leases, attempts, durations, outcomes and workers, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Counted(store.statistics()))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Counted(Collector):
    """One scrape's figures as Prometheus names them."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """All families, also those of which nothing is to be told yet."""
        yield from self._queue()
        yield from self._outcomes()
        yield from self._store()
        yield from self._workers()

    def _queue(self) -> Iterator[Metric]:
        known = self._statistics
        jobs = GaugeMetricFamily("neuroprune_jobs", "Jobs by status.", labels=["status"])
        for status, number in known.jobs.items():
            jobs.add_metric([status], number)
        yield jobs
        active = sum(known.jobs[status] for status in ACTIVE)
        yield GaugeMetricFamily("neuroprune_jobs_active", "Jobs that a worker holds a lease on.", value=active)
        yield GaugeMetricFamily(
            "neuroprune_queue_oldest_age_seconds",
            "How long the job is in the queue that is there longest.",
            value=known.oldest_queued_seconds,
        )
        lease = GaugeMetricFamily(
            "neuroprune_lease_shortest_seconds", "What is left of the lease that ends first; negative once it is over."
        )
        if known.shortest_lease_seconds is not None:
            lease.add_metric([], known.shortest_lease_seconds)
        yield lease

    def _outcomes(self) -> Iterator[Metric]:
        known = self._statistics
        failures = CounterMetricFamily("neuroprune_failures", "Attempts that failed, by code.", labels=["code"])
        for code, number in known.failures.items():
            failures.add_metric([code], number)
        yield failures
        yield CounterMetricFamily("neuroprune_attempts", "Starts of jobs.", value=known.attempts)
        yield SummaryMetricFamily(
            "neuroprune_job_wait_seconds",
            "From when a job was queued to its first start.",
            count_value=known.waited.count,
            sum_value=known.waited.seconds,
        )
        runs = SummaryMetricFamily(
            "neuroprune_attempt_run_seconds", "From an attempt's start to its end.", labels=["outcome"]
        )
        for outcome, durations in known.ran.items():
            runs.add_metric([outcome], count_value=durations.count, sum_value=durations.seconds)
        yield runs

    def _store(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "neuroprune_deletions_pending",
            "Parts of deleted jobs, and uploads, that are still to be removed from the store.",
            value=self._statistics.deletions,
        )

    def _workers(self) -> Iterator[Metric]:
        silences = self._statistics.worker_silence_seconds
        alive = {name: seconds for name, seconds in silences.items() if seconds < WORKER_SILENT_SECONDS}
        yield GaugeMetricFamily("neuroprune_workers", "Workers that showed themselves lately.", value=len(alive))
        silence = GaugeMetricFamily(
            "neuroprune_worker_silence_seconds", "Since a live worker last showed itself.", labels=["worker"]
        )
        for name, seconds in alive.items():
            silence.add_metric([name], seconds)
        yield silence
