"""Real servers for tests: PostgreSQL in a private folder, the API and an S3 of moto's on free ports."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    """A fresh server on a Unix socket; its SQLAlchemy URL."""
    folder = Path(tempfile.mkdtemp(prefix="np-pg-"))
    # The server refuses to run as root.
    account = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    as_account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    os.chown(folder, account.pw_uid, account.pw_gid)
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **as_account}
    try:
        initdb = [binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, **quiet)
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "timezone=Asia/Tokyo", "-k", folder]
        server = subprocess.Popen([binaries / "postgres", "-D", data, *options], **quiet)
        try:
            _wait_until(lambda: subprocess.run([binaries / "pg_isready", "-h", folder, "-q"]).returncode == 0)
            yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
        finally:
            server.terminate()
            server.wait(START_SECONDS)
    finally:
        shutil.rmtree(folder)


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
