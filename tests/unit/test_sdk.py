"""The client against a service made of a function."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from client import sdk
from client.sdk import ApiError, NeuroPruneClient, UnreachableError, parse_events
from core.errors import InvalidInputError, StorageError, VerificationError

Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler, **options: Any) -> NeuroPruneClient:
    return NeuroPruneClient("http://service", transport=httpx.MockTransport(handler), **options)


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

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/jobs/j/artifacts":
            return httpx.Response(200, json={"data": [self._entry(name) for name in self.files]})
        content = self.files[path.removeprefix("/v1/jobs/j/artifacts/")]
        wanted = request.headers.get("range")
        self.ranges.append(wanted)
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
    monkeypatch.setattr(sdk, "_PAUSE_SECONDS", 0)


def test_events_are_parsed() -> None:
    lines = [
        "id: 3",
        "event: phase",
        'data: {"phase":',
        'data: "loading"}',
        "",
        ": ping",
        "",
        "event: done",
        "data: {}",
        "",
    ]
    first, last = parse_events(iter(lines))
    assert (first.seq, first.type, first.data) == (3, "phase", {"phase": "loading"})
    assert last.type == "done"


def test_watch_resumes_after_the_last_event_it_saw() -> None:
    resumed_from = []

    def handler(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json={"finished_at": "2026-01-01T00:00:00Z"})
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
        return httpx.Response(200, json={"finished_at": "2026-01-01T00:00:00Z"})

    assert list(client_of(handler).watch("j", after=7)) == []


def test_watch_gives_up_in_the_end() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(UnreachableError, match="has not answered"):
        list(client_of(handler, patience_seconds=0.01).watch("j"))


def test_problems_name_every_field() -> None:
    problem = {
        "title": "Unprocessable Content",
        "detail": "/target: missing (and 1 more, see errors)",
        "errors": [{"pointer": "/target", "detail": "missing"}, {"pointer": "/model/name", "detail": "unknown"}],
    }
    with pytest.raises(ApiError) as caught:
        client_of(lambda _: httpx.Response(422, json=problem)).submit({})
    assert str(caught.value) == "/target: missing\n/model/name: unknown"
    assert caught.value.status == 422


def test_an_answer_that_is_not_json_is_an_api_error() -> None:
    with pytest.raises(ApiError, match="answered 502"):
        client_of(lambda _: httpx.Response(502, text="<html>")).job("j")


@pytest.mark.parametrize("url", ["http://[::1", "http://host:port"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^'http://\S+' is no URL: "):
        NeuroPruneClient(url)


def test_what_answers_with_no_json_is_no_service() -> None:
    client = client_of(lambda request: httpx.Response(200, html="<h1>It works!</h1>"))
    with pytest.raises(UnreachableError, match=r"^What answers at http://service\S* is no NeuroPrune service\.$"):
        client.jobs()


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
        return httpx.Response(202, json={"id": "j"})

    client_of(handler).submit({"a": 1, "name": "the spec's", "labels": {"team": "a"}}, **given)
    client_of(handler).submit({"a": 1})
    assert bodies == [{"a": 1, **sent}, {"a": 1}]


def test_an_upload_waits_for_the_service_to_store_and_check_the_file(tmp_path: Path) -> None:
    timeouts = []

    def handler(request: httpx.Request) -> httpx.Response:
        timeouts.append(request.extensions["timeout"])
        return httpx.Response(200, json={})

    (tmp_path / "rows.csv").touch()
    client = client_of(handler)
    client.job("j")
    client.upload_file(tmp_path / "rows.csv", "dataset")
    other, upload = timeouts
    assert upload["connect"] == other["connect"] == 5
    assert upload["read"] >= 600 > other["read"]


def test_submit_repeats_a_request_whose_answer_got_lost_under_the_same_key() -> None:
    keys = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        if len(keys) == 1:
            raise httpx.ReadError("lost")
        return httpx.Response(202, json={"id": "j"})

    assert client_of(handler).submit({"a": 1}, name="x")["id"] == "j"
    assert keys[0] == keys[1]


def test_submit_does_not_wait_for_a_service_that_is_not_there() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(UnreachableError, match="No NeuroPrune service answers at http://service"):
        client_of(handler).submit({})


def test_a_download_resumes_and_is_checked(tmp_path: Path) -> None:
    service = Service({"model.safetensors": b"weights" * 1000, "empty.txt": b""})
    service.break_after = [1000]
    paths = client_of(service).download("j", tmp_path / "bundle")
    assert {p.name: p.read_bytes() for p in paths} == service.files
    assert service.ranges[:2] == [None, "bytes=1000-"]
    assert sorted(p.name for p in (tmp_path / "bundle").iterdir()) == sorted(service.files), "no partial file is left"


def test_a_download_goes_on_where_an_earlier_one_stopped(tmp_path: Path) -> None:
    service = Service({"a.bin": b"0123456789"})
    (tmp_path / ".a.bin.partial").write_bytes(b"01234")
    client_of(service).download("j", tmp_path)
    assert service.ranges == ["bytes=5-", None]
    service.ranges.clear()
    client_of(service).download("j", tmp_path)
    assert service.ranges == [], "what is there is not fetched again"


def test_bundles_in_folders_are_fetched_and_each_is_checked(tmp_path: Path) -> None:
    service = Service({"report.json": b"{}", "sparsity-0.5/a.bin": b"01", "sparsity-0.7/a.bin": b"23"})
    client_of(service).download("j", tmp_path)
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*") if p.is_file()} == set(service.files)
    service.files["sparsity-0.7/a.bin"] = b"45"
    with pytest.raises(VerificationError, match=r"sparsity-0\.7/a\.bin"):
        client_of(service).download("j", tmp_path)


def test_a_damaged_download_is_refused(tmp_path: Path) -> None:
    service = Service({"a.bin": b"0123456789"})
    (tmp_path / ".a.bin.partial").write_bytes(b"wrong")
    with pytest.raises(StorageError, match="damaged"):
        client_of(service).download("j", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_contradicts_its_manifest_is_refused(tmp_path: Path) -> None:
    service = Service({"a.bin": b"0123456789"})
    service.files["a.bin"] = b"changed"
    with pytest.raises(VerificationError, match=r"a\.bin"):
        client_of(service).download("j", tmp_path)


@pytest.mark.parametrize("name", ["../evil", "a/../b", "a//b", "/a", "..", ""])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    entry = {"name": name, "bytes": 1, "sha256": "0" * 64, "url": "/x"}
    with pytest.raises(StorageError, match="outside"):
        client_of(lambda _: httpx.Response(200, json={"data": [entry]})).download("j", tmp_path / "bundle")


def test_a_job_without_a_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="has not succeeded"):
        client_of(lambda _: httpx.Response(200, json={"data": []})).download("j", tmp_path)
