"""The client against a service made of a function."""

import errno
import hashlib
import itertools
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from client import patience
from client.errors import ApiError, UnreachableError
from client.events import parse_events
from client.sdk import NeuroPruneClient
from core.errors import ConfigurationError, InvalidInputError, StorageError, StorageFullError, VerificationError
from tests.folders import content_of

Handler = Callable[[httpx.Request], httpx.Response]

JOB = {"object": "job", "id": "j", "finished_at": "2026-01-01T00:00:00Z"}
PROBLEM = {"content-type": "application/problem+json"}


def client_of(handler: Handler, **options: Any) -> NeuroPruneClient:
    return NeuroPruneClient("http://service", transport=httpx.MockTransport(handler), **options)


def raise_(error: Exception) -> Any:
    raise error


class Service:
    """Serves one bundle, with Range, and breaks connections on demand."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)
        for folder in {"", *(name.rpartition("/")[0] for name in files)}:
            here = {name: data for name, data in files.items() if name.rpartition("/")[0] == folder}
            digests = {Path(name).name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in here.items()}
            manifest = json.dumps({"format": 1, "files": digests}).encode()
            self.files[f"{folder}/manifest.json".lstrip("/")] = manifest
        self.ranges: list[str | None] = []
        self.break_after: list[int] = []
        self.conditions: list[str | None] = []
        self.has_ranges = True

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/jobs/j/artifacts":
            return httpx.Response(200, json={"data": [self._entry(name) for name in self.files]})
        content = self.files[path.removeprefix("/v1/jobs/j/artifacts/")]
        assert request.headers["accept-encoding"] == "identity", "of compressed bytes, none can be resumed"
        wanted = request.headers.get("range") if self.has_ranges else None
        self.ranges.append(wanted)
        self.conditions.append(request.headers.get("if-range"))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = content[start:]
        stream = _Stream(body, self.break_after.pop(0) if self.break_after else len(body))
        return httpx.Response(206 if wanted else 200, stream=stream)

    def _entry(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        url = f"/v1/jobs/j/artifacts/{name}"
        return {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "url": url}


class _Stream(httpx.SyncByteStream):
    def __init__(self, body: bytes, break_after: int) -> None:
        self._body = body
        self._break_after = break_after

    def __iter__(self) -> Iterator[bytes]:
        yield self._body[: self._break_after]
        if self._break_after < len(self._body):
            raise httpx.ReadError("the line went dead")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSE_SECONDS", 0)


def test_events_are_parsed() -> None:
    text = 'id: 3\nevent: phase\ndata: {"phase":\ndata: "loading"}\n\n: ping\n\nevent: done\ndata: {}\n\n'
    for size in (1, 7, len(text)):
        first, last = parse_events(text[i : i + size] for i in range(0, len(text), size))
        assert (first.seq, first.type, first.data) == (3, "phase", {"phase": "loading"})
        assert last.type == "done"


def test_an_event_may_hold_what_unicode_ends_a_line_with() -> None:
    message = "a\u2028b\u2029c\u0085d\x7fe"
    data = json.dumps({"data": {"message": message}}, ensure_ascii=False)
    stream = f"id: 1\nevent: warning\ndata: {data}\n\nevent: done\ndata: {{}}\n\n".encode()

    def handler(request: httpx.Request) -> httpx.Response:
        return (
            httpx.Response(200, content=stream)
            if request.url.path.endswith("/events")
            else httpx.Response(200, json=JOB)
        )

    [event] = client_of(handler).watch("j")
    assert event.data == {"message": message}


def test_watch_resumes_after_the_last_event_it_saw() -> None:
    resumed_from = []

    def handler(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json=JOB)
        resumed_from.append(request.headers["last-event-id"])
        if len(resumed_from) == 1:
            return httpx.Response(
                200, stream=_Stream(b'id: 1\nevent: status\ndata: {"data": {"a": 1}}\n\nid: 2\nevent: x', 55)
            )
        return httpx.Response(200, content=b'id: 2\nevent: phase\ndata: {"data": {}}\n\nevent: done\ndata: {}\n\n')

    assert [(e.seq, e.data) for e in client_of(handler).watch("j")] == [(1, {"a": 1}), (2, {})]
    assert resumed_from == ["0", "1"]


def test_watch_ends_where_there_is_nothing_more() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return httpx.Response(204)
        return httpx.Response(200, json=JOB)

    assert list(client_of(handler).watch("j", after=7)) == []


def test_watch_gives_up_in_the_end() -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if len(asked) > 1:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json=JOB)

    with pytest.raises(UnreachableError, match="has not answered"):
        list(client_of(handler, patience_seconds=0.01).watch("j"))
    assert "/v1/jobs/j/events" in asked


def test_a_stream_that_breaks_after_a_long_silence_is_taken_up_again() -> None:
    """The service was there all the time; it had nothing to say."""
    streams = []

    class Silent(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b": ping\n\n"
            time.sleep(0.05)
            raise httpx.ReadError("lost")

    def handler(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json=JOB)
        streams.append(request)
        if len(streams) < 3:
            return httpx.Response(200, stream=Silent())
        return httpx.Response(200, content=b'id: 1\nevent: phase\ndata: {"data": {}}\n\nevent: done\ndata: {}\n\n')

    assert [event.seq for event in client_of(handler, patience_seconds=0.01).watch("j")] == [1]


def test_watch_is_patient_anew_with_every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each break takes half of it, and there are more of them than it would bear at a stretch."""
    streams = iter([f'id: {seq}\nevent: phase\ndata: {{"data": {{}}}}\n\nid'.encode() for seq in range(1, 6)])

    def handler(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json=JOB)
        body = next(streams, b"")
        return httpx.Response(200, stream=_Stream(body, max(0, len(body) - 1)))

    now = itertools.count(step=30)
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=now.__next__, sleep=lambda _: None))
    assert [event.seq for event in client_of(handler, patience_seconds=60).watch("j")] == [1, 2, 3, 4, 5]


def test_watch_does_not_wait_for_a_service_that_was_never_there() -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        raise httpx.ConnectError("refused")

    with pytest.raises(UnreachableError, match="No NeuroPrune service answers at http://service"):
        list(client_of(handler, patience_seconds=0.1).watch("j"))
    assert asked == ["/v1/jobs/j"]


def test_problems_name_every_field() -> None:
    problem = {
        "title": "Unprocessable Content",
        "detail": "/target: missing (and 1 more, see errors)",
        "errors": [{"pointer": "/target", "detail": "missing"}, {"pointer": "/model/name", "detail": "unknown"}],
    }
    with pytest.raises(ApiError) as caught:
        client_of(lambda _: httpx.Response(422, json=problem, headers=PROBLEM)).submit({})
    assert str(caught.value) == "/target: missing\n/model/name: unknown"
    assert caught.value.status == 422


def test_what_a_service_refuses_passes_from_process_to_process() -> None:
    problem = {"detail": "No such job.", "errors": [{"pointer": "/a", "detail": "b"}, {"pointer": "/c", "detail": "d"}]}
    error = pickle.loads(pickle.dumps(ApiError(404, problem)))
    assert (str(error), error.status, error.problem) == ("/a: b\n/c: d", 404, problem)


def test_a_gateway_before_a_service_that_is_away_says_so() -> None:
    with pytest.raises(
        UnreachableError, match=r"^No NeuroPrune service answers at http://service\S* \(502 Bad Gateway\)"
    ):
        client_of(lambda _: httpx.Response(502, text="<html>")).job("j")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[str | None], str]]:
    """A function that has every request refused for its key: what keys were sent, and what is said of that."""
    monkeypatch.delenv("NEUROPRUNE_API_KEY", raising=False)

    def ask(**options: Any) -> tuple[list[str | None], str]:
        sent = []

        def handler(request: httpx.Request) -> httpx.Response:
            sent.append(request.headers.get("authorization"))
            return httpx.Response(401, json={"detail": "This service asks for a key."}, headers=PROBLEM)

        client = client_of(handler, **options)
        asks: list[Callable[[], Any]] = [lambda: client.job("j"), client.jobs, lambda: client.delete_file("file_1")]
        asks.append(lambda: client.upload_file(Path(__file__), "dataset"))
        asks.append(lambda: list(client._events("j", 0, client._patience())))
        for one in asks:
            with pytest.raises(ApiError) as caught:
                one()
        return sent, str(caught.value)

    return ask


def test_the_key_goes_with_every_request(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused()[0] == [None] * 5
    assert refused(api_key="given")[0] == ["Bearer given"] * 5
    monkeypatch.setenv("NEUROPRUNE_API_KEY", "of-the-environment")
    assert refused()[0] == ["Bearer of-the-environment"] * 5
    assert refused(api_key="given")[0] == ["Bearer given"] * 5
    assert refused(api_key="")[0] == [None] * 5


def test_who_is_refused_is_told_where_the_key_comes_from(refused: Any) -> None:
    _, said = refused(api_key="wrong-key")
    assert said == "This service asks for a key.\nNEUROPRUNE_API_KEY has to hold one of its keys."


def test_nobody_else_gets_the_key() -> None:
    hosts = []

    def handler(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        return httpx.Response(307, headers={"location": "http://evil.example/v1/jobs"})

    with pytest.raises(UnreachableError, match="is no NeuroPrune service"):
        client_of(handler, api_key="secret").submit({})
    assert hosts == ["service"]


@pytest.mark.parametrize("key", ["two words", "line\n", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidInputError, match="NEUROPRUNE_API_KEY") as caught:
        NeuroPruneClient(api_key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[::1", "http://host:port"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^'http://\S+' is no URL: "):
        NeuroPruneClient(url)


@pytest.mark.parametrize(
    "start", ["http://user:secret@", "http://user:1/secret@", "http://user:@secret@", "user:secret@"]
)
@pytest.mark.parametrize("handler", [lambda _: raise_(httpx.ConnectError("refused")), lambda _: httpx.Response(404)])
def test_no_message_holds_a_password(start: str, handler: Handler) -> None:
    with pytest.raises(UnreachableError, match=r" at (http://)?prune\.example/? ") as caught:
        NeuroPruneClient(f"{start}prune.example", transport=httpx.MockTransport(handler)).job("j")
    assert "secret" not in str(caught.value)


def test_running_out_of_patience_tells_no_password() -> None:
    answers = iter([httpx.Response(200, json=JOB)])

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Basic dXNlcjpzZWNyZXQ="
        return next(answers, None) or raise_(httpx.ConnectError("refused"))

    url, transport = "http://user:secret@prune.example/pruning", httpx.MockTransport(handler)
    with pytest.raises(UnreachableError, match=r"^http://prune\.example/pruning/ has not answered for 0 s: "):
        list(NeuroPruneClient(url, patience_seconds=0, transport=transport).watch("j"))


@pytest.mark.parametrize("url", ["http://user:sec/ret@prune.example", "http://user:secret@prune.example:port"])
def test_a_url_that_is_none_may_hold_a_password_too(url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^'http://prune\.example\S*' is no URL, ") as caught:
        NeuroPruneClient(url)
    assert "sec" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, html="<h1>It works!</h1>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json=7),
        httpx.Response(200, json={"ok": True}),
        httpx.Response(200, json={"data": "none"}),
        httpx.Response(200, json={"data": [7]}),
        httpx.Response(200, json={"object": "list", "data": [{"object": "model", "id": "llama"}]}),
        httpx.Response(200, json={"object": "job", "id": None}),
        httpx.Response(200, json={"object": "model", "id": "llama"}),
    ],
)
@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.job("j"),
        lambda client: client.cancel("j"),
        lambda client: client.submit({}),
        lambda client: client.jobs(),
        lambda client: client.artifacts("j"),
        lambda client: client.upload_file(Path(__file__), "dataset"),
    ],
)
def test_what_answers_otherwise_is_no_service(response: httpx.Response, ask: Callable[[NeuroPruneClient], Any]) -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return response

    with pytest.raises(UnreachableError, match=r"^What answers at http://service\S* is no NeuroPrune service\.$"):
        ask(client_of(handler))
    assert len(asked) == 1, "nothing is sent twice to a stranger"


@pytest.mark.parametrize("answer", [[], {"ok": True}, {"data": [7]}])
def test_a_catalogue_is_a_list_of_objects(answer: Any) -> None:
    for ask in (NeuroPruneClient.methods, NeuroPruneClient.families, lambda client: client.attempts("j")):
        with pytest.raises(UnreachableError, match="is no NeuroPrune service"):
            ask(client_of(lambda _: httpx.Response(200, json=answer)))


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (httpx.Response(404, html="<h1>Not found</h1>"), "404 Not Found"),
        (httpx.Response(404, json={"detail": "Not Found"}), "404 Not Found"),
        (httpx.Response(501, html="<h1>Unsupported method ('POST')</h1>"), "501 Not Implemented"),
        (httpx.Response(307, headers={"location": "/"}), "307 Temporary Redirect"),
        (httpx.Response(422, text="no JSON", headers=PROBLEM), "422 Unprocessable Entity"),
        (httpx.Response(422, json=["wrong"], headers=PROBLEM), "422 Unprocessable Entity"),
        (httpx.Response(422, json={"errors": {"name": ["Too long."]}}, headers=PROBLEM), "422 Unprocessable Entity"),
    ],
)
def test_who_refuses_otherwise_is_no_service(response: httpx.Response, status: str) -> None:
    with pytest.raises(UnreachableError) as caught:
        client_of(lambda _: response).submit({})
    assert str(caught.value) == f"What answers at http://service is no NeuroPrune service ({status})."


@pytest.mark.parametrize("job_id", ["", ".", "..", "../methods", "j/cancel", "j?x", "job_1\r", "jöb"])
def test_what_is_no_id_is_not_asked_for(job_id: str, tmp_path: Path) -> None:
    client = client_of(lambda request: pytest.fail(f"{request.url} was asked for"))
    asks: list[Callable[[str], Any]] = [client.job, client.cancel, client.pause, client.resume, client.retry]
    asks += [client.attempts, client.artifacts, lambda job_id: next(client.watch(job_id))]
    asks += [lambda job_id: client.download(job_id, tmp_path), client.delete_job]
    for ask in asks:
        with pytest.raises(InvalidInputError, match=r"^'.*' is no job's id; one looks like job_0"):
            ask(job_id)
    with pytest.raises(InvalidInputError, match=r"^'.*' is no file's id; one looks like file_3"):
        client.delete_file(job_id)


def test_who_answers_a_deletion_with_something_is_no_service() -> None:
    with pytest.raises(UnreachableError, match="no NeuroPrune service"):
        client_of(lambda _: httpx.Response(200, json={})).delete_job("job_1")


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {"name": "the spec's", "labels": {"team": "a"}}),
        ({"name": "mine"}, {"name": "mine", "labels": {"team": "a"}}),
        ({"labels": {}}, {"name": "the spec's", "labels": {}}),
    ],
)
def test_submit_keeps_a_specs_name_and_labels_unless_others_are_given(given: Any, sent: Any) -> None:
    bodies = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(202, json=JOB)

    client_of(handler).submit({"a": 1, "name": "the spec's", "labels": {"team": "a"}}, **given)
    client_of(handler).submit({"a": 1})
    assert bodies == [{"a": 1, **sent}, {"a": 1}]


def test_an_upload_waits_for_the_service_to_store_and_check_the_file(tmp_path: Path) -> None:
    timeouts = []

    def handler(request: httpx.Request) -> httpx.Response:
        timeouts.append(request.extensions["timeout"])
        return httpx.Response(200, json=JOB if request.method == "GET" else {"object": "file", "id": "f"})

    (tmp_path / "rows.csv").touch()
    client = client_of(handler)
    client.job("j")
    client.upload_file(tmp_path / "rows.csv", "dataset")
    other, upload = timeouts
    assert upload["connect"] == other["connect"] == 5
    assert upload["read"] >= 600 > other["read"]


LOST: dict[str, Callable[[], httpx.Response]] = {
    "500": lambda: httpx.Response(500, json={"detail": "An unexpected error."}, headers=PROBLEM),
    "502": lambda: httpx.Response(502, html="<h1>Bad gateway</h1>"),
    "503": lambda: httpx.Response(503, json={"detail": "The database does not answer."}, headers=PROBLEM),
    "504": lambda: httpx.Response(504, html="<h1>Gateway timeout</h1>"),
    "520": lambda: httpx.Response(520, html="<h1>The server returned an unknown error</h1>"),
    "lost": lambda: raise_(httpx.ReadError("lost")),
}


@pytest.mark.parametrize("answer", LOST.values(), ids=LOST)
@pytest.mark.parametrize("key", [None, "order-7"])
def test_submit_repeats_a_request_whose_answer_got_lost_under_the_same_key(
    answer: Callable[[], httpx.Response], key: str | None
) -> None:
    keys: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        return answer() if len(keys) == 1 else httpx.Response(202, json=JOB)

    assert client_of(handler).submit({"a": 1}, name="x", idempotency_key=key)["id"] == "j"
    assert keys == [key or keys[0]] * 2


@pytest.mark.parametrize("answer", LOST.values(), ids=LOST)
def test_submit_repeats_a_request_once(answer: Callable[[], httpx.Response]) -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer()

    with pytest.raises((ApiError, UnreachableError)):
        client_of(handler).submit({})
    assert len(asked) == 2


@pytest.mark.parametrize("status", [409, 422])
def test_submit_does_not_repeat_what_was_refused(status: int) -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, json={"detail": "No."}, headers=PROBLEM)

    with pytest.raises(ApiError, match="No"):
        client_of(handler).submit({})
    assert len(asked) == 1


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "a\n", "\ud800", "k" * 256])
def test_a_key_that_no_header_can_hold_is_refused(key: str) -> None:
    client = client_of(lambda request: pytest.fail("it was sent"))
    with pytest.raises(InvalidInputError, match=r"^'.*' is no idempotency key: 1 to 255 visible ASCII characters\.$"):
        client.submit({}, idempotency_key=key)


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ConnectTimeout])
def test_submit_does_not_wait_for_a_service_that_is_not_there(error: type[httpx.TransportError]) -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        raise error("refused")

    with pytest.raises(UnreachableError, match="No NeuroPrune service answers at http://service"):
        client_of(handler).submit({})
    assert len(asked) == 1


def test_a_download_resumes_and_is_checked(tmp_path: Path) -> None:
    service = Service({"model.safetensors": b"weights" * 1000, "empty.txt": b""})
    service.break_after = [1000, 1000]  # the first is the manifest, which is shorter
    paths = client_of(service).download("j", tmp_path / "bundle")
    assert {p.name: p.read_bytes() for p in paths} == service.files
    assert service.ranges == [None, None, "bytes=1000-", None]
    assert content_of(tmp_path / "bundle") == service.files, "no partial file is left"


def test_a_service_that_does_not_continue_is_heard_from_the_start(tmp_path: Path) -> None:
    service = Service({"a.bin": b"0123456789"})
    service.has_ranges = False
    service.break_after = [1000, 7]  # the first is the manifest, which is shorter
    client_of(service).download("j", tmp_path)
    assert content_of(tmp_path) == service.files


def test_patience_begins_anew_with_whatever_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each break takes half of it, and there are more of them than it would bear at a stretch."""
    service = Service({"a.bin": b"0123456789"})
    service.break_after = [1000, *[1] * 9]  # the first is the manifest, which is shorter
    now = itertools.count(step=30)
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=now.__next__, sleep=lambda _: None))
    client_of(service, patience_seconds=60).download("j", tmp_path)
    assert content_of(tmp_path) == service.files


def test_paths_may_be_strings(tmp_path: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            assert b'filename="rows.csv"' in request.read()
            return httpx.Response(200, json={"object": "file", "id": "f"})
        return service(request)

    service = Service({"a.bin": b"01"})
    (tmp_path / "rows.csv").touch()
    client = client_of(handler)
    assert client.upload_file(str(tmp_path / "rows.csv"), "dataset")["id"] == "f"
    client.download("j", str(tmp_path / "bundle"))
    assert content_of(tmp_path / "bundle") == service.files


def test_a_full_disk_is_said_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(NeuroPruneClient, "_append", fail)
    with pytest.raises(StorageFullError, match=r"^There is no room for \S*manifest\.json; what has arrived of it"):
        client_of(Service({"a.bin": b"0123456789"})).download("j", tmp_path)


def test_a_download_goes_on_where_an_earlier_one_stopped(tmp_path: Path) -> None:
    service = Service({"a.bin": b"0123456789"})
    (tmp_path / ".a.bin.partial").write_bytes(b"01234")
    client_of(service).download("j", tmp_path)
    assert service.ranges == [None, "bytes=5-"]
    assert service.conditions == [None, f'"{hashlib.sha256(b"0123456789").hexdigest()}"']
    service.ranges.clear()
    client_of(service).download("j", tmp_path)
    assert service.ranges == [], "what is there is not fetched again"


def test_bundles_in_folders_are_fetched_and_each_is_checked(tmp_path: Path) -> None:
    service = Service({"report.json": b"{}", "sparsity-0.5/a.bin": b"01", "sparsity-0.7/a.bin": b"23"})
    client_of(service).download("j", tmp_path)
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*") if p.is_file()} == set(service.files)
    service.files["sparsity-0.7/a.bin"] = b"45"
    with pytest.raises(VerificationError, match=r"sparsity-0\.7/a\.bin"):
        client_of(service).download("j", tmp_path, overwrite=True)


@pytest.mark.parametrize("left", [b"other", b"other, and more of it"])
def test_what_another_download_left_is_not_taken_for_damage(tmp_path: Path, left: bytes) -> None:
    service = Service({"a.bin": b"0123456789"})
    (tmp_path / ".a.bin.partial").write_bytes(left)
    client_of(service).download("j", tmp_path)
    assert content_of(tmp_path) == service.files
    assert service.ranges[-1] is None, "it was fetched from the start"


@pytest.mark.parametrize("left", [None, b"other"])
def test_a_damaged_download_is_refused(tmp_path: Path, left: bytes | None) -> None:
    service = Service({"a.bin": b"0123456789"})
    entries = [service._entry(name) for name in service.files]
    service.files["a.bin"] = b"damaged..."
    if left:
        (tmp_path / ".a.bin.partial").write_bytes(left)

    def handler(request: httpx.Request) -> httpx.Response:
        listed = request.url.path.endswith("/artifacts")
        return httpx.Response(200, json={"data": entries}) if listed else service(request)

    with pytest.raises(StorageError, match="damaged"):
        client_of(handler).download("j", tmp_path)
    assert list(content_of(tmp_path)) == ["manifest.json"]


def test_a_file_of_the_users_is_not_overwritten(tmp_path: Path) -> None:
    service = Service({"README.md": b"a card", "config.json": b"{}", "sparsity-0.5/a.bin": b"01"})
    mine = {"README.md": b"my project", "config.json": b"{}", "notes.txt": b"mine", "sparsity-0.5/a.bin": b"mine"}
    for name, data in mine.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidInputError, match=r"names as the bundle's: README\.md, sparsity-0\.5/a\.bin\. Choose"):
        client_of(service).download("j", tmp_path)
    assert (content_of(tmp_path), service.ranges) == (mine, [])
    client_of(service).download("j", tmp_path, overwrite=True)
    assert content_of(tmp_path) == service.files | {"notes.txt": b"mine"}
    assert len(service.ranges) == len(service.files) - 1, "what is right already is not fetched again"


def test_the_first_few_of_many_files_in_the_way_are_named(tmp_path: Path) -> None:
    service = Service({f"{letter}.bin": b"new" for letter in "abcde"})
    for letter in "abcde":
        (tmp_path / f"{letter}.bin").write_bytes(b"old")
    with pytest.raises(InvalidInputError, match=r": a\.bin, b\.bin, c\.bin and 2 more\. "):
        client_of(service).download("j", tmp_path)


def test_bundles_are_not_mixed(tmp_path: Path) -> None:
    first, second = Service({"model.onnx": b"1", "vocab.txt": b"same"}), Service({"vocab.txt": b"same"})
    client_of(first).download("j", tmp_path)
    (tmp_path / "notes.txt").write_bytes(b"mine")
    (tmp_path / ".model.onnx.partial").write_bytes(b"")
    before = content_of(tmp_path)
    with pytest.raises(InvalidInputError, match=r": manifest\.json\. "):
        client_of(second).download("j", tmp_path)
    assert (content_of(tmp_path), second.ranges) == (before, [])
    client_of(second).download("j", tmp_path, overwrite=True)
    assert content_of(tmp_path) == second.files | {"notes.txt": b"mine"}


def test_an_interrupted_removal_can_be_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Service({"model.onnx": b"1", "vocab.txt": b"1"}), Service({"vocab.txt": b"2"})
    client_of(first).download("j", tmp_path)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "model.onnx":
            raise PermissionError(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(PermissionError):
        client_of(second).download("j", tmp_path, overwrite=True)
    monkeypatch.setattr(Path, "unlink", unlink)
    client_of(second).download("j", tmp_path, overwrite=True)
    assert content_of(tmp_path) == second.files


def test_a_folder_with_the_name_of_a_file_stays(tmp_path: Path) -> None:
    service, mine = Service({"config.json": b"{}"}), tmp_path / "config.json" / "mine"
    mine.parent.mkdir()
    mine.touch()
    (tmp_path / "manifest.json").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InvalidInputError, match=r"folders where the bundle has files: \S+/config\.json\. "):
            client_of(service).download("j", tmp_path, overwrite=overwrite)
    assert content_of(tmp_path) == {"config.json/mine": b"", "manifest.json": b"mine"}


@pytest.mark.parametrize("taken", ["bundle", "bundle/sparsity-0.5"])
def test_a_file_with_the_name_of_a_folder_stays(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_bytes(b"mine")
    service = Service({"a.bin": b"01", "sparsity-0.5/a.bin": b"01"})
    for overwrite in (False, True):
        with pytest.raises(InvalidInputError, match=rf"/{taken} is a file, not a folder\."):
            client_of(service).download("j", tmp_path / "bundle", overwrite=overwrite)
    assert content_of(tmp_path) == {taken: b"mine"}


def test_a_link_that_leads_nowhere_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidInputError, match=r": config\.json\. "):
        client_of(Service({"config.json": b"{}"})).download("j", tmp_path)


def test_what_was_changed_since_is_no_part_of_the_old_bundle(tmp_path: Path) -> None:
    first, second = Service({"model.onnx": b"1", "old.txt": b"1", "a.bin": b"1"}), Service({"a.bin": b"2"})
    client_of(first).download("j", tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"worked on")
    client_of(second).download("j", tmp_path, overwrite=True)
    assert content_of(tmp_path) == second.files | {"model.onnx": b"worked on"}


def test_a_file_that_ends_early_is_not_waited_for(tmp_path: Path) -> None:
    service = Service({"a.bin": b"0123456789"})
    entries = [service._entry(name) for name in service.files]
    service.files["a.bin"] = b"01234"

    def handler(request: httpx.Request) -> httpx.Response:
        listed = request.url.path.endswith("/artifacts")
        return httpx.Response(200, json={"data": entries}) if listed else service(request)

    with pytest.raises(StorageError, match=r"a\.bin ends after 5 of the 10 bytes"):
        client_of(handler).download("j", tmp_path)


@pytest.mark.parametrize(
    "part",
    [
        {"name": 1},
        {"bytes": "1"},
        {"bytes": True},
        {"sha256": None},
        {"url": None},
        {"url": "http://169.254.169.254/latest"},
        {"url": "//elsewhere/x"},
    ],
)
def test_files_that_no_service_of_ours_lists_are_refused(tmp_path: Path, part: dict[str, Any]) -> None:
    entry = {"name": "a.bin", "bytes": 1, "sha256": "0" * 64, "url": "/x"} | part
    with pytest.raises(UnreachableError, match="is no NeuroPrune service"):
        client_of(lambda _: httpx.Response(200, json={"data": [entry]})).download("j", tmp_path / "bundle")


def test_levels_of_a_frontier_are_not_mixed(tmp_path: Path) -> None:
    first, second = Service({"s/model.onnx": b"1", "s/a.bin": b"1"}), Service({"s/a.bin": b"2"})
    client_of(first).download("j", tmp_path)
    client_of(second).download("j", tmp_path, overwrite=True)
    assert content_of(tmp_path) == second.files


def test_an_interrupted_download_is_known_for_what_it_is(tmp_path: Path) -> None:
    first, second = Service({"a.bin": b"1", "b.bin": b"1"}), Service({"c.bin": b"2"})

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={}, headers=PROBLEM) if request.url.path.endswith("b.bin") else first(request)

    with pytest.raises(ApiError):
        client_of(handler).download("j", tmp_path)
    with pytest.raises(InvalidInputError, match=r"manifest\.json"):
        client_of(second).download("j", tmp_path)
    client_of(second).download("j", tmp_path, overwrite=True)
    assert content_of(tmp_path) == second.files


def test_a_manifest_has_nothing_removed_that_lies_elsewhere(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "mine.txt", tmp_path / "bundle"
    hidden = tmp_path / ".bundle.partial"
    folder.mkdir()
    elsewhere.write_text("mine")
    hidden.write_text("mine")
    names = ["../mine.txt", str(elsewhere), "", ".", ".."]
    manifest = {"format": 1, "files": {name: {"sha256": "0" * 64} for name in names}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    client_of(Service({"a.bin": b"1"})).download("j", folder, overwrite=True)
    assert elsewhere.exists()
    assert hidden.exists()


@pytest.mark.parametrize(
    "manifest", ["{", "[]", '{"name": "app"}', '{"format": 2, "files": {"src": {}}}', '{"format": 1, "files": ["src"]}']
)
def test_files_beside_another_kind_of_manifest_stay(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    (tmp_path / "src").write_text("mine")
    client_of(Service({"a.bin": b"1"})).download("j", tmp_path, overwrite=True)
    assert (tmp_path / "src").read_text() == "mine"


def test_a_bundle_that_contradicts_its_manifest_is_refused(tmp_path: Path) -> None:
    service = Service({"a.bin": b"0123456789"})
    service.files["a.bin"] = b"changed"
    with pytest.raises(VerificationError, match=r"a\.bin"):
        client_of(service).download("j", tmp_path)


@pytest.mark.parametrize("name", ["../evil", "a/../b", "a//b", "/a", "..", "", "a\0"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    entry = {"name": name, "bytes": 1, "sha256": "0" * 64, "url": "/x"}
    with pytest.raises(StorageError, match="outside"):
        client_of(lambda _: httpx.Response(200, json={"data": [entry]})).download("j", tmp_path / "bundle")


def test_a_job_without_a_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="has not succeeded"):
        client_of(lambda _: httpx.Response(200, json={"data": []})).download("j", tmp_path)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "nothing://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used_is_said(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigurationError, match="A proxy that the environment names cannot be used: "):
        NeuroPruneClient("http://prune.example")
    NeuroPruneClient("http://127.0.0.1:8000").close()
