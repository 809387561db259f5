"""Waking the workers, with and without a broker."""

import socket
import subprocess
import time

import pytest
import redis
from kombu import Connection

from client.broker import SOCKET_NAME, answers, find_server, server_command, socket_folder
from core.dispatch import KEY_PREFIX, QUEUE, TASK_NAME, Dispatcher
from tests.servers import START_SECONDS


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


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """The socket of a real one."""
    state = tmp_path_factory.mktemp("broker")
    with socket_folder(state) as folder:
        path = folder / SOCKET_NAME
        with subprocess.Popen(server_command(find_server(), path, state), stdout=subprocess.DEVNULL) as server:
            try:
                deadline = time.monotonic() + START_SECONDS
                while not answers(path):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                yield path
            finally:
                server.terminate()


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


def test_a_broker_that_answers_holds_the_jobs_until_they_are_taken(dispatcher, broker):
    url = f"redis+socket://{broker}"
    told = dispatcher(url)
    told.connect()
    assert told.is_reachable()
    assert told.is_drained()
    assert [told.job_ready(job_id) for job_id in ("job_a", "job_b")] == [True, True]
    assert told.is_reachable()
    assert not told.is_drained()
    with redis.Redis.from_url(f"unix://{broker}") as server:
        assert server.llen("np:cpu") == 2
        assert all(key.startswith(b"np:") for key in server.scan_iter())
    with Connection(url, transport_options={"global_keyprefix": KEY_PREFIX}) as worker:
        for job_id in ("job_a", "job_b"):
            assert not told.is_drained()
            message = worker.default_channel.basic_get(QUEUE, no_ack=True)
            assert (message.headers["task"], message.payload[0]) == (TASK_NAME, [job_id])
    assert told.is_reachable()
    assert told.is_drained()
