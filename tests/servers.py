"""Real servers for tests: PostgreSQL in a private folder, the API and an S3 of moto's on free ports."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import uvicorn
from starlette.types import ASGIApp

START_SECONDS = 30.0


def postgresql_binaries() -> Path | None:
    """The folder of the newest server's binaries; Debian keeps them off the PATH."""
    on_path = shutil.which("postgres")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def postgresql(binaries: Path) -> Iterator[str]:
    """A fresh server; its SQLAlchemy URL."""
    with PostgreSQL(binaries) as server:
        yield server.url


class PostgreSQL:
    """A server on a Unix socket in a folder of its own; as a context manager it is up inside, and gone afterwards."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="np-pg-"))
        # The server refuses to run as root.
        is_root = os.geteuid() == 0
        account = pwd.getpwnam("postgres") if is_root else pwd.getpwuid(os.geteuid())
        as_account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if is_root else {}
        os.chown(self._folder, account.pw_uid, account.pw_gid)
        self._quiet = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "cwd": self._folder,
            **as_account,
        }
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """SQLAlchemy's."""
        return f"postgresql+psycopg://postgres@/postgres?host={self._folder}"

    def __enter__(self) -> Self:
        initdb = [self._binaries / "initdb", "-D", self._folder / "data", "-U", "postgres", "--auth=trust"]
        try:
            subprocess.run([*initdb, "-E", "UTF8", "--no-sync"], check=True, **self._quiet)
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Up, and ready."""
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "timezone=Asia/Tokyo", "-k", self._folder]
        command = [self._binaries / "postgres", "-D", self._folder / "data", *options]
        self._server = subprocess.Popen(command, **self._quiet)
        ready = [self._binaries / "pg_isready", "-h", self._folder, "-q"]
        _wait_until(lambda: subprocess.run(ready).returncode == 0)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Down: by SIGINT after it has cut its clients off, by SIGQUIT at once, as in a crash."""
        if self._server is not None:
            self._server.send_signal(how)
            self._server.wait(START_SECONDS)
            self._server = None


@contextmanager
def s3(bucket: str) -> Iterator[dict[str, str]]:
    """An object store in a process of its own, which forgets all when it ends; the environment that leads to it."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
            _wait_until(lambda: _answers(client))
            client.put(f"/{bucket}").raise_for_status()
        yield s3_environment(address)
    finally:
        server.terminate()
        server.wait(START_SECONDS)


def s3_environment(address: str) -> dict[str, str]:
    """What a process needs to use the object store at this address."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/").is_success
    except httpx.TransportError:
        return False


@contextmanager
def served(app: ASGIApp) -> Iterator[httpx.Client]:
    """The application over real HTTP; a client that knows its address."""
    # asyncio turns Nagle's delay (40 ms a request) off only where the protocol is spelled out.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            _wait_until(lambda: server.started)
            with httpx.Client(base_url=address, timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def _wait_until(ready) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready after {START_SECONDS} s")
        time.sleep(0.05)
