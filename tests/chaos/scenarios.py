"""What is done to the service while it works: one function a scenario, called until all jobs have ended."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import redis

from tests.chaos.cluster import LEASE_SECONDS, WORKERS, Cluster
from tests.chaos.verdict import Verdict
from tests.faulty import Fault

Disturbance = Callable[[Cluster, Random], bool]
"""Does something to the service, and says whether it could: there may be nobody to be killed."""

Evidence = Callable[[Cluster, Verdict], bool]
"""Whether it shows afterwards that the service was disturbed."""

SUCCEEDED = frozenset({"succeeded"})
_SHIFTED_CLOCK = Path(__file__).parent / "shifted_clock"
_FULL_BYTES = 24 * 2**20
"""Of a disk that is small: room for a job of the suite, twice over."""


@dataclass(frozen=True)
class Scenario:
    """One kind of trouble.

    Attributes:
        name: as -k selects it and the figures list it.
        disturb: does it once.
        every: from … to, between two times, in units of what a job takes by itself on this machine.
        outcomes: statuses and error codes in which jobs may end.
        around: what has to be set up on the folder before the cluster starts.
        options: of the cluster.
        while_submitting: whether the trouble begins before the jobs are submitted.
        evidence: that there was trouble, besides that each disturbance says so.
    """

    name: str
    disturb: Disturbance
    every: tuple[float, float] = (0.1, 0.3)
    outcomes: frozenset[str] = SUCCEEDED
    around: Callable[[Path], Any] = nullcontext
    options: Mapping[str, Any] = field(default_factory=dict)
    while_submitting: Disturbance | None = None
    evidence: Evidence = lambda _cluster, _verdict: True


def nothing(_cluster: Cluster, _random: Random) -> bool:
    """To compare with, or beside what holds all the time."""
    return True


def kill_a_child(cluster: Cluster, random: Random) -> bool:
    """SIGKILL to a job's process, as the kernel does when memory runs out."""
    children = cluster.children()
    if not children:
        return False
    try:
        os.kill(random.choice(children), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def kill_a_worker(cluster: Cluster, random: Random) -> bool:
    """SIGKILL to a supervisor; its child dies with it."""
    return cluster.kill(random.choice(WORKERS))


def kill_any(cluster: Cluster, random: Random) -> bool:
    """One or the other."""
    return random.choice([kill_a_child, kill_a_worker])(cluster, random)


def freeze_a_worker(cluster: Cluster, random: Random) -> bool:
    """SIGSTOP past the lease: another worker takes the job, and the first one comes back from the dead."""
    return cluster.freeze(random.choice(WORKERS), LEASE_SECONDS * random.uniform(1.2, 2.0))


def restart_broker(cluster: Cluster, random: Random) -> bool:
    """Killed, away for a moment, back."""
    was_killed = cluster.hold_down("broker")
    time.sleep(random.uniform(0.5, 3.0))
    cluster.let_up("broker")
    return was_killed


def wipe_broker(cluster: Cluster, _random: Random) -> bool:
    """It comes back and has forgotten everything."""
    return cluster.wipe_broker()


def reset_broker_connections(cluster: Cluster, _random: Random) -> bool:
    """As a firewall does with idle connections."""
    try:
        return cluster.reset_broker_connections() > 0
    except redis.RedisError:
        return False


def broker_is_down(cluster: Cluster, _random: Random) -> bool:
    """While jobs are submitted; the first disturbance lets it up again."""
    return cluster.hold_down("broker")


def let_broker_up(cluster: Cluster, _random: Random) -> bool:
    """Does nothing once it is up."""
    cluster.let_up("broker")
    return True


def restart_postgresql(cluster: Cluster, random: Random) -> bool:
    """A restart by its operator, or a crash."""
    cluster.postgresql.stop(random.choice([signal.SIGINT, signal.SIGQUIT]))
    time.sleep(random.uniform(0.0, 2.0))
    cluster.postgresql.start()
    return True


def fail_objects(kinds: Sequence[Fault], cluster: Cluster, random: Random) -> bool:
    """A tenth of all requests to S3 fails from now on."""
    cluster.objects.fail_some(0.1, random.choice(kinds))
    return True


def deliver_five_times(cluster: Cluster, _random: Random) -> bool:
    """The broker repeats itself: every job's message comes four more times, at any moment."""
    page, _ = cluster.store.page(100, None, None)
    return sum(cluster.deliver_again(job.id, 4) for job in page) == len(page)


def fill_a_disk(cluster: Cluster, random: Random) -> bool:
    """A worker's disk is full for a moment."""
    filler = cluster.work_dir(random.choice(WORKERS)) / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
    except OSError as error:
        is_full = error.errno == errno.ENOSPC
    time.sleep(random.uniform(0.2, 1.5))
    filler.unlink()
    return is_full


def attempts_were_lost(_cluster: Cluster, verdict: Verdict) -> bool:
    """Jobs began more often than there are jobs."""
    return verdict.attempts > sum(verdict.outcomes.values())


def api_was_restarted(cluster: Cluster, _verdict: Verdict) -> bool:
    """It had died."""
    return cluster.restarts["api"] > 0


def broker_was_restarted(cluster: Cluster, _verdict: Verdict) -> bool:
    """It had died."""
    return cluster.restarts["broker"] > 0


def objects_failed(cluster: Cluster, _verdict: Verdict) -> bool:
    """Requests to S3 were not answered as they should have been."""
    return cluster.objects.failed > 0


def clocks_were_off(cluster: Cluster, _verdict: Verdict) -> bool:
    """The workers' logs tell another time."""
    return all(abs(cluster.clock_error(worker)) > timedelta(minutes=5) for worker in WORKERS)


@contextmanager
def small_disks(folder: Path) -> Iterator[None]:
    """A small file system of its own for each worker's scratch."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount the small disks that this needs")
    mounted: list[Path] = []
    try:
        for worker in WORKERS:
            (folder / worker).mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={_FULL_BYTES}", "tmpfs", str(folder / worker)]
            if subprocess.run(command, capture_output=True).returncode:
                pytest.skip("this machine does not let its root mount file systems")
            mounted.append(folder / worker)
        yield
    finally:
        for path in mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def clock(shift_seconds: float) -> dict[str, str]:
    """What makes a process live so much later, or earlier."""
    search_path = [str(_SHIFTED_CLOCK), str(Path(__file__).parents[2])]
    return {"PYTHONPATH": os.pathsep.join(search_path), "CHAOS_CLOCK_SHIFT_SECONDS": str(shift_seconds)}


SCENARIOS: Sequence[Scenario] = (
    Scenario("undisturbed", nothing),
    Scenario("children-killed", kill_a_child, every=(0.4, 1.4), evidence=attempts_were_lost),
    Scenario("workers-killed", kill_a_worker, every=(0.5, 1.6), evidence=attempts_were_lost),
    Scenario("children-and-workers-killed", kill_any, every=(0.4, 1.4), evidence=attempts_were_lost),
    Scenario("supervisors-frozen-past-their-lease", freeze_a_worker, every=(0.4, 1.0), evidence=attempts_were_lost),
    Scenario("broker-restarted", restart_broker, evidence=broker_was_restarted),
    Scenario("broker-wiped", wipe_broker, evidence=broker_was_restarted),
    Scenario("broker-connections-reset", reset_broker_connections),
    Scenario(
        "submitted-while-broker-down",
        let_broker_up,
        while_submitting=broker_is_down,
        evidence=broker_was_restarted,
    ),
    Scenario("postgresql-restarted", restart_postgresql, every=(0.2, 0.6)),
    Scenario(
        "api-killed-between-commit-and-publish",
        nothing,
        options={"api": "tests.chaos.mortal_api:create_app"},
        evidence=api_was_restarted,
    ),
    Scenario("s3-answers-500-and-503", partial(fail_objects, ["500", "503"]), evidence=objects_failed),
    Scenario("s3-slow", partial(fail_objects, ["slow"]), evidence=objects_failed),
    Scenario("s3-cuts-transfers", partial(fail_objects, ["cut"]), evidence=objects_failed),
    Scenario(
        "disk-full",
        fill_a_disk,
        outcomes=SUCCEEDED | {"storage_full"},
        around=small_disks,
    ),
    Scenario("messages-delivered-five-times", deliver_five_times),
    Scenario(
        "clocks-off-by-minutes",
        nothing,
        options={"worker_environments": (clock(420), clock(-420))},
        evidence=clocks_were_off,
    ),
)
