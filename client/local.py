"""The embedded stack: broker, API and one worker as processes of this machine, below one state folder.

Nothing runs in the background: whoever holds the stack calls `tend` now and then, which restarts what has died.
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import httpx
from sqlalchemy.engine import URL

from client import broker
from core import db, processes
from core.errors import ConfigurationError
from core.settings import get_settings
from core.storage import Storage

DEFAULT_PORT = 8000

_Result = TypeVar("_Result")

_HOST = "127.0.0.1"
_MODULES = Path(__file__).parents[1]
"""Where the service's packages are installed; uvicorn would look for them in the working directory."""
_READY_SECONDS = 90.0
_POLL_SECONDS = 0.1
_CHECK_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 30.0
_STABLE_SECONDS = 60.0
_LOG_TAIL_LINES = 15


def _healthy() -> bool:
    return True


class Service:
    """One process that is to run for as long as the stack does.

    Args:
        stop_seconds: What it gets to end by itself.
        is_healthy: Asked every few seconds; a process that says no three times in a row is replaced.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        stop_seconds: float,
        is_healthy: Callable[[], bool] = _healthy,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self._command = command
        self._log = log
        self._environment = environment
        self._stop_seconds = stop_seconds
        self._is_healthy = is_healthy
        self._pass_fds = pass_fds
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._bad_checks = 0
        self._started_at = 0.0
        self._checked_at = 0.0

    @property
    def pid(self) -> int | None:
        """Of the process that runs."""
        return self._process.pid if self.is_running and self._process else None

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process, its output going to the end of the log."""
        with self._log.open("ab") as log:
            self._process = processes.spawn(self._command, log=log, env=self._environment, pass_fds=self._pass_fds)
        self._started_at = self._checked_at = time.monotonic()
        self._bad_checks = 0

    def tend(self) -> None:
        """Start it again if it has died or does not answer, each time after a longer pause."""
        now = time.monotonic()
        if self.is_running and now - self._checked_at >= _CHECK_SECONDS:
            self._checked_at = now
            self._bad_checks = 0 if self._is_healthy() else self._bad_checks + 1
            if self._bad_checks >= 3:
                self.stop()
        if self.is_running:
            return
        if now - self._started_at > _STABLE_SECONDS:
            self._failures = 0
        if now - self._started_at >= min(2.0**self._failures, _LONGEST_PAUSE_SECONDS):
            self._failures += 1
            self.stop()  # what it may have left running
            self.start()

    def stop(self) -> None:
        """End the process and all that it started; it may have ended long ago."""
        if self._process is not None:
            processes.stop(self._process, self._stop_seconds)

    def log_tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])


class EmbeddedStack:
    """The whole service, as a context manager: ready inside, and gone afterwards whatever happens.

    Args:
        state_dir: Where it keeps everything; one stack at a time.
        port: Of the API, 0 for any; by default 8000, or the next one that is free.
        environment: Settings (`NEUROPRUNE_…`) that go before those of this process's own environment.
    """

    def __init__(
        self, state_dir: str | Path, *, port: int | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.state_dir = Path(state_dir).absolute()
        self._port = port
        self._overrides = environment or {}
        self._socket: socket.socket | None = None
        self._services: list[Service] = []
        self._exit = ExitStack()

    @property
    def url(self) -> str:
        """Of the API."""
        if self._socket is None:
            raise ConfigurationError("The stack has not been started.")
        return f"http://{_HOST}:{self._socket.getsockname()[1]}"

    def service(self, name: str) -> Service:
        """`broker`, `api` or `worker`."""
        return next(service for service in self._services if service.name == name)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def tend(self) -> None:
        """Call this a few times a second: it restarts what has died."""
        for service in self._services:
            service.tend()

    def tend_during(self, work: Callable[[], _Result]) -> _Result:
        """Do what waits for the service in another thread, and tend in this one; what it returns or raises."""
        outcome: Future[_Result] = Future()

        def do() -> None:
            try:
                outcome.set_result(work())
            except BaseException as error:  # whatever it is, it is the caller's
                outcome.set_exception(error)

        # The other thread must not be the one that tends: a process dies with the thread that started it
        # (`processes.spawn`). It is a daemon because an interrupt leaves it behind.
        threading.Thread(target=do, daemon=True).start()
        while True:
            self.tend()
            if wait([outcome], timeout=_POLL_SECONDS).done:
                return outcome.result()

    def _start(self) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        (self.state_dir / "logs").mkdir(exist_ok=True)
        get_settings()  # what is set wrongly is better said here than in a service's log
        self._exit.enter_context(_instance_lock(self.state_dir / "lock"))
        defaults = {
            "NEUROPRUNE_DATABASE_URL": str(URL.create("sqlite", database=str(self.state_dir / "neuroprune.db"))),
            "NEUROPRUNE_STORAGE_URL": str(self.state_dir / "storage"),
            "NEUROPRUNE_WORK_DIR": str(self.state_dir / "work"),
        }
        # Whatever lies in the working directory is nobody's module.
        safe = {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
        environment = safe | defaults | os.environ | dict(self._overrides)
        if "NEUROPRUNE_BROKER_URL" not in environment:
            environment["NEUROPRUNE_BROKER_URL"] = self._start_broker(environment)
        db.upgrade(environment["NEUROPRUNE_DATABASE_URL"])
        Storage(environment["NEUROPRUNE_STORAGE_URL"])  # a kind that is not known is better said here, too
        self._socket = self._exit.enter_context(_open_socket(self._port))
        api = [
            sys.executable,
            "-m",
            "uvicorn",
            "--factory",
            "--no-access-log",
            "--timeout-graceful-shutdown",
            "2",
            "--app-dir",
            str(_MODULES),
            "api.app:create_app",
        ]
        listener = self._socket.fileno()
        self._launch("api", [*api, "--fd", str(listener)], environment, stop_seconds=5, pass_fds=[listener])
        self._launch("worker", [sys.executable, "-m", "worker"], environment, stop_seconds=90)
        self._wait_until("the API and the worker", self._missing)

    def _start_broker(self, environment: Mapping[str, str]) -> str:
        program = broker.find_server()
        socket_path = self._exit.enter_context(broker.socket_folder(self.state_dir)) / broker.SOCKET_NAME
        data = self.state_dir / "broker"
        data.mkdir(mode=0o700, exist_ok=True)
        command = broker.server_command(program, socket_path, data)
        self._launch("broker", command, environment, stop_seconds=5, is_healthy=lambda: broker.answers(socket_path))
        self._wait_until("the broker", lambda: None if broker.answers(socket_path) else "It does not answer.")
        return f"redis+socket://{quote(str(socket_path))}"

    def _launch(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        stop_seconds: float,
        is_healthy: Callable[[], bool] = _healthy,
        pass_fds: Sequence[int] = (),
    ) -> None:
        log = self.state_dir / "logs" / f"{name}.log"
        service = Service(
            name,
            command,
            log=log,
            environment=environment,
            stop_seconds=stop_seconds,
            is_healthy=is_healthy,
            pass_fds=pass_fds,
        )
        self._services.append(service)
        service.start()

    def _wait_until(self, what: str, missing: Callable[[], str | None]) -> None:
        """Until nothing is missing any more; what still is, if it takes too long, is told."""
        deadline = time.monotonic() + _READY_SECONDS
        while reason := missing():
            for service in self._services:
                if not service.is_running:
                    raise ConfigurationError(f"The {service.name} did not start. Its log ends:\n{service.log_tail()}")
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"Waited {_READY_SECONDS:g} s for {what} in vain. {reason} The logs are in "
                    f"{self.state_dir / 'logs'}."
                )
            time.sleep(_POLL_SECONDS)

    def _missing(self) -> str | None:
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False)
        except httpx.TransportError:
            return "The API does not answer."
        return None if answer.is_success else str(answer.json()["detail"])

    def _stop(self) -> None:
        """The worker first, which gives its job back; the broker last."""
        with _no_interrupts():
            for service in reversed(self._services):
                service.stop()
            self._services.clear()
            self._exit.close()


@contextmanager
def _instance_lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(f"Another NeuroPrune already runs in {path.parent}; stop it first.") from error
        yield


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """A second Ctrl-C must not cut the clean-up short; it takes seconds at most."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _open_socket(wanted: int | None) -> socket.socket:
    """A socket for the API on the wanted port, or on the first free one from 8000.

    It is bound here, not by the API, so that nobody else can take the port meanwhile, nor while the API restarts.

    Raises:
        ConfigurationError: the wanted port is taken.
    """
    for port in range(DEFAULT_PORT, DEFAULT_PORT + 100) if wanted is None else [wanted]:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by the connections
        try:
            listener.bind((_HOST, port))
            listener.listen(128)
        except OSError:
            listener.close()
            continue
        return listener
    raise ConfigurationError("No port from 8000 to 8099 is free." if wanted is None else f"Port {wanted} is taken.")
