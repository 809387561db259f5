"""The whole service as a deployment runs it: PostgreSQL, Valkey, S3 behind a proxy that can fail, an API, two workers.

Every part is a process of its own with a private folder, and can be killed, stopped and started again.
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import redis
from sqlalchemy.engine import Engine

from client import broker
from client.local import Service
from client.sdk import NeuroPruneClient
from core import db
from core.dispatch import Dispatcher
from core.jobs.store import JobStore
from tests.faulty import FaultyProxy
from tests.integration.stack import runners
from tests.servers import PostgreSQL, free_port, postgresql_binaries, s3

BUCKET = "neuroprune"
WORKERS = ("worker-1", "worker-2")
LEASE_SECONDS = 10.0
READY_SECONDS = 120.0

_REPOSITORY = Path(__file__).parents[2]
_SETTINGS = {
    "NEUROPRUNE_LEASE_SECONDS": str(LEASE_SECONDS),
    "NEUROPRUNE_REAPER_INTERVAL_SECONDS": "1",
    "NEUROPRUNE_REDISPATCH_SECONDS": "5",
    "NEUROPRUNE_CANCEL_GRACE_SECONDS": "1",
    "NEUROPRUNE_MAX_ATTEMPTS": "100",  # the faults of a scenario must not use a job's attempts up
    "NEUROPRUNE_CHECKPOINT_INTERVAL_SECONDS": "0.5",
    "NEUROPRUNE_TORCH_THREADS": "1",
    "NEUROPRUNE_LOG_FORMAT": "json",
}


class Cluster:
    """A deployment, up inside of the context.

    Args:
        folder: for logs, the broker's data and the workers' scratch.
        api: factory of the application that is served.
        worker_environments: what is special about the first and the second worker.
    """

    def __init__(
        self,
        folder: Path,
        *,
        api: str = "api.app:create_app",
        worker_environments: Sequence[Mapping[str, str]] = ({}, {}),
    ) -> None:
        self.folder = folder
        self.postgresql: PostgreSQL
        self.objects: FaultyProxy
        self.store: JobStore
        self.url: str
        self.client: NeuroPruneClient
        self._api = api
        self._worker_environments = worker_environments
        self._services: dict[str, Service] = {}
        self._held: set[str] = set()
        self.restarts: Counter[str] = Counter()
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    # ---- what tests do with it -------------------------------------------------------------------------------------

    def tend(self) -> None:
        """Start what has died, as an orchestrator would, unless it is held down."""
        for name, service in self._services.items():
            if not service.is_running and name not in self._held:
                service.stop()  # what it may have left running
                service.start()
                self.restarts[name] += 1

    def kill(self, name: str) -> bool:
        """SIGKILL to one process, if it runs; its children are its own affair."""
        pid = self._services[name].pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        return pid is not None

    def freeze(self, name: str, seconds: float) -> bool:
        """SIGSTOP, if it runs, and after so long SIGCONT; the process's children go on meanwhile."""
        pid = self._services[name].pid
        if pid is not None:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)
        return pid is not None

    def hold_down(self, name: str) -> bool:
        """Kill a service, if it runs, and do not let `tend` start it until it is let up."""
        self._held.add(name)
        return self.kill(name)

    def let_up(self, name: str) -> None:
        """Inverse of `hold_down`."""
        self._held.discard(name)
        self.tend()

    def children(self) -> list[int]:
        """Processes that do jobs now."""
        return runners(str(self.folder))

    def wipe_broker(self) -> bool:
        """All messages are lost, those on its disk too."""
        was_killed = self.hold_down("broker")
        self._services["broker"].stop()
        for file in (self.folder / "broker").rglob("*"):
            if file.is_file():
                file.unlink()
        self.let_up("broker")
        return was_killed

    def reset_broker_connections(self) -> int:
        """Every client of the broker has to connect again; how many."""
        with redis.Redis.from_url(f"unix://{self._socket}", socket_timeout=2) as connection:
            return int(connection.execute_command("CLIENT", "KILL", "TYPE", "normal"))

    def deliver_again(self, job_id: str, times: int) -> bool:
        """Put the message that the job may be ready into the broker so many more times; whether it took them."""
        dispatcher = Dispatcher(f"redis+socket://{self._socket}")
        try:
            return sum(dispatcher.job_ready(job_id) for _ in range(times)) == times
        finally:
            dispatcher.close()

    def clock_error(self, worker: str) -> timedelta:
        """How far the time of day of a worker's newest line in its log is from when it was written."""
        log = self.folder / f"{worker}.log"
        said = max(json.loads(line)["timestamp"] for line in log.read_text().splitlines() if line.startswith("{"))
        return datetime.fromisoformat(said) - datetime.fromtimestamp(log.stat().st_mtime, UTC)

    def work_dir(self, worker: str) -> Path:
        """A worker's scratch."""
        return self.folder / worker

    # ---- how it comes up -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        binaries = postgresql_binaries()
        assert binaries is not None, "chaos needs PostgreSQL's server binaries"
        self.postgresql = self._exit.enter_context(PostgreSQL(binaries))
        db.upgrade(self.postgresql.url)
        engine: Engine = db.create_engine(self.postgresql.url)
        self._exit.callback(engine.dispose)
        self.store = JobStore(engine)
        aws = self._exit.enter_context(s3(BUCKET))
        self.objects = self._exit.enter_context(FaultyProxy(aws["AWS_ENDPOINT_URL"]))
        self._socket = self._exit.enter_context(broker.socket_folder(self.folder)) / broker.SOCKET_NAME
        environment = {
            **os.environ,
            **aws,
            **_SETTINGS,
            "AWS_ENDPOINT_URL": self.objects.address,
            "PYTHONPATH": str(_REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "NEUROPRUNE_DATABASE_URL": self.postgresql.url,
            "NEUROPRUNE_BROKER_URL": f"redis+socket://{self._socket}",
            "NEUROPRUNE_STORAGE_URL": f"s3://{BUCKET}/store",
        }
        self._launch_broker(environment)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        uvicorn = [sys.executable, "-m", "uvicorn", "--factory", "--no-access-log", "--port", str(port), self._api]
        self._launch("api", uvicorn, environment)
        for name, special in zip(WORKERS, self._worker_environments, strict=True):
            command = [sys.executable, "-m", "worker", "--hostname", f"{name}@chaos"]
            scratch = {"NEUROPRUNE_WORK_DIR": str(self.work_dir(name))}
            self._launch(name, command, environment | scratch | dict(special))
        self.client = self._exit.enter_context(NeuroPruneClient(self.url))
        self._wait_until_ready()

    def _launch_broker(self, environment: Mapping[str, str]) -> None:
        data = self.folder / "broker"
        data.mkdir(mode=0o700)
        self._launch("broker", broker.server_command(broker.find_server(), self._socket, data), environment)

    def _launch(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        log = self.folder / f"{name}.log"
        service = Service(name, command, log=log, environment=environment, stop_seconds=10)
        self._services[name] = service
        self._exit.callback(service.stop)
        service.start()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            assert time.monotonic() < deadline, self._services["api"].log_tail()
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=10, trust_env=False)
            # A worker says that it lives when its reaper begins; both have to.
            return answer.is_success and len(self.store.live_workers(READY_SECONDS)) == len(WORKERS)
        except httpx.TransportError:
            return False


def submit(cluster: Cluster, spec: Mapping[str, Any], key: str, patience: float) -> str:
    """Submit until the service has accepted, always under one key, as a careful client does; the job's id."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            headers = {"Idempotency-Key": key}
            answer = httpx.post(f"{cluster.url}/v1/jobs", json=dict(spec), headers=headers, trust_env=False)
            if answer.status_code == httpx.codes.ACCEPTED:
                return str(answer.json()["id"])
            assert answer.is_server_error, answer.text
        except httpx.TransportError:
            cluster.tend()
        time.sleep(0.3)
    raise TimeoutError(f"{key} was not accepted within {patience:g} s")
