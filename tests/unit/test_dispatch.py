"""Waking the workers, with and without a broker."""

import socket
import time

import pytest

from core.dispatch import Dispatcher


@pytest.fixture
def dispatcher():
    """A function that makes one."""
    made = []

    def make(url):
        made.append(Dispatcher(url))
        return made[-1]

    yield make
    for each in made:
        each.close()


def assert_gives_up(dispatcher):
    began = time.monotonic()
    dispatcher.connect()
    assert time.monotonic() - began < 2
    began = time.monotonic()
    assert not dispatcher.job_ready("job_x")
    assert time.monotonic() - began < 2
    assert not dispatcher.is_reachable()
    assert not dispatcher.is_drained()


def test_a_broker_that_is_down_is_given_up_at_once(dispatcher, tmp_path):
    assert_gives_up(dispatcher("redis://127.0.0.1:1/0"))
    assert_gives_up(dispatcher(f"redis+socket://{tmp_path}/no.sock"))


def test_a_broker_that_is_silent_is_given_up_soon(dispatcher):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert_gives_up(dispatcher(f"redis://127.0.0.1:{listener.getsockname()[1]}/0"))
