"""Whatever dies: no accepted job is lost, none is completed twice, none lies about its state, every bundle is whole."""

import time
import zlib
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest

from core.jobs.state import TERMINAL
from tests.chaos import results
from tests.chaos.cluster import Cluster, submit
from tests.chaos.conftest import JOBS
from tests.chaos.scenarios import SCENARIOS, Scenario
from tests.chaos.verdict import judge

PATIENCE_SECONDS = 60.0 * JOBS + 300
"""For all jobs of a scenario: a tiny job takes some seconds, and may be disturbed several times."""

FIRST = "first"
"""Key of the job that shows how long one takes, and what its weights are."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(PATIENCE_SECONDS + 600)]


def job_spec(cluster: Cluster, model: str, rows: Path) -> dict[str, Any]:
    """A small real job: train a little, prune, compact, verify in a process of its own, export."""
    return {
        "model": {"source": "upload", "file": cluster.client.upload_file(Path(model), "model")["id"]},
        "task": {
            "name": "sequence-classification",
            "data": {"source": "upload", "train": cluster.client.upload_file(rows, "dataset")["id"]},
        },
        "target": {"sparsity": 0.4},
        "training": {"num_train_epochs": 3, "dense_epochs": 1, "max_length": 16},
        "export": {"formats": ["safetensors"]},
    }


def pace(cluster: Cluster, spec: dict[str, Any]) -> tuple[str, float]:
    """A first job, left in peace: its id, and the seconds it took."""
    begun = time.monotonic()
    job_id = submit(cluster, spec, FIRST, PATIENCE_SECONDS)
    while cluster.store.get(job_id).status not in TERMINAL:
        assert time.monotonic() < begun + PATIENCE_SECONDS
        time.sleep(0.1)
    return job_id, time.monotonic() - begun


def live_through(cluster: Cluster, scenario: Scenario, random: Random, job_seconds: float) -> int:
    """Disturb until every job has ended, or patience has; how often that hit anything."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    disturbances = 0
    while time.monotonic() < deadline:
        disturbances += scenario.disturb(cluster, random)
        pause = time.monotonic() + job_seconds * random.uniform(*scenario.every)
        while time.monotonic() < pause:
            cluster.tend()
            time.sleep(0.1)
        if all(job.status in TERMINAL for job in cluster.store.page(10_000, None, None)[0]):
            break
    return disturbances


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_job_ends_once_and_whole(scenario, tmp_path, model_archive, rows):
    random = Random(zlib.crc32(scenario.name.encode()))
    begun = time.monotonic()
    with scenario.around(tmp_path), Cluster(tmp_path, **scenario.options) as cluster:
        spec = job_spec(cluster, model_archive, rows)
        first, job_seconds = pace(cluster, spec)
        if scenario.while_submitting is not None:
            scenario.while_submitting(cluster, random)
        accepted = {FIRST: first}
        for number in range(1, JOBS):
            cluster.tend()
            key = f"{scenario.name}-{number}"
            accepted[key] = submit(cluster, spec, key, PATIENCE_SECONDS)
        disturbances = live_through(cluster, scenario, random, job_seconds)
        cluster.objects.fail_some(0.0, "500")
        verdict = judge(cluster.store, cluster.client, accepted, scenario.outcomes)
        was_disturbed = disturbances > 0 and scenario.evidence(cluster, verdict)
    seconds = round(time.monotonic() - begun)
    figures = {
        "scenario": scenario.name,
        "jobs": JOBS,
        "disturbances": disturbances,
        "seconds": seconds,
        "job_seconds": round(job_seconds, 1),
    }
    results.add(figures | asdict(verdict))
    assert verdict.is_clean, verdict
    assert was_disturbed, "nothing has happened that could have done harm"
