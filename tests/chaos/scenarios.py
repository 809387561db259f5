"""What is done to the service while it works: one function a scenario, called until all jobs have ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import redis

from tests.chaos.cluster import LEASE_SECONDS, WORKERS, Cluster
from tests.faulty import Fault

Disturbance = Callable[[Cluster, Random], None]

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
    """

    name: str
    disturb: Disturbance
    every: tuple[float, float] = (0.1, 0.3)
    outcomes: frozenset[str] = SUCCEEDED
    around: Callable[[Path], Any] = nullcontext
    options: Mapping[str, Any] = field(default_factory=dict)
    while_submitting: Disturbance | None = None


def nothing(_cluster: Cluster, _random: Random) -> None:
    """To compare with."""


def kill_a_child(cluster: Cluster, random: Random) -> None:
    """SIGKILL to a job's process, as the kernel does when memory runs out."""
    children = cluster.children()
    if children:
        with suppress(ProcessLookupError):
            os.kill(random.choice(children), signal.SIGKILL)


def kill_a_worker(cluster: Cluster, random: Random) -> None:
    """SIGKILL to a supervisor; its child dies with it."""
    cluster.kill(random.choice(WORKERS))


def kill_any(cluster: Cluster, random: Random) -> None:
    """One or the other."""
    random.choice([kill_a_child, kill_a_worker])(cluster, random)


def freeze_a_worker(cluster: Cluster, random: Random) -> None:
    """SIGSTOP past the lease: another worker takes the job, and the first one comes back from the dead."""
    cluster.freeze(random.choice(WORKERS), LEASE_SECONDS * random.uniform(1.2, 2.0))


def restart_broker(cluster: Cluster, random: Random) -> None:
    """Killed, away for a moment, back."""
    cluster.hold_down("broker")
    time.sleep(random.uniform(0.5, 3.0))
    cluster.let_up("broker")


def wipe_broker(cluster: Cluster, _random: Random) -> None:
    """It comes back and has forgotten everything."""
    cluster.wipe_broker()


def reset_broker_connections(cluster: Cluster, _random: Random) -> None:
    """As a firewall does with idle connections."""
    with suppress(redis.RedisError):
        cluster.reset_broker_connections()


def broker_is_down(cluster: Cluster, _random: Random) -> None:
    """While jobs are submitted; the first disturbance lets it up again."""
    cluster.hold_down("broker")


def let_broker_up(cluster: Cluster, _random: Random) -> None:
    """Does nothing once it is up."""
    cluster.let_up("broker")


def restart_postgresql(cluster: Cluster, random: Random) -> None:
    """A restart by its operator, or a crash."""
    cluster.postgresql.stop(random.choice([signal.SIGINT, signal.SIGQUIT]))
    time.sleep(random.uniform(0.0, 2.0))
    cluster.postgresql.start()


def fail_objects(kinds: Sequence[Fault], cluster: Cluster, random: Random) -> None:
    """A tenth of all requests to S3 fails from now on."""
    cluster.objects.fail_some(0.1, random.choice(kinds))


def deliver_five_times(cluster: Cluster, _random: Random) -> None:
    """The broker repeats itself: every job's message comes four more times, at any moment."""
    page, _ = cluster.store.page(100, None, None)
    for job in page:
        cluster.deliver_again(job.id, 4)


def fill_a_disk(cluster: Cluster, random: Random) -> None:
    """A worker's disk is full for a moment."""
    filler = cluster.work_dir(random.choice(WORKERS)) / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:  # until it is full
        while True:
            file.write(bytes(2**16))
    time.sleep(random.uniform(0.2, 1.5))
    filler.unlink()


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
    Scenario("children-killed", kill_a_child, every=(0.4, 1.4)),
    Scenario("workers-killed", kill_a_worker, every=(0.5, 1.6)),
    Scenario("children-and-workers-killed", kill_any, every=(0.4, 1.4)),
    Scenario("supervisors-frozen-past-their-lease", freeze_a_worker, every=(0.4, 1.0)),
    Scenario("broker-restarted", restart_broker),
    Scenario("broker-wiped", wipe_broker),
    Scenario("broker-connections-reset", reset_broker_connections),
    Scenario("submitted-while-broker-down", let_broker_up, while_submitting=broker_is_down),
    Scenario("postgresql-restarted", restart_postgresql, every=(0.2, 0.6)),
    Scenario("api-killed-between-commit-and-publish", nothing, options={"api": "tests.chaos.mortal_api:create_app"}),
    Scenario("s3-answers-500-and-503", partial(fail_objects, ["500", "503"])),
    Scenario("s3-slow", partial(fail_objects, ["slow"])),
    Scenario("s3-cuts-transfers", partial(fail_objects, ["cut"])),
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
    ),
)
