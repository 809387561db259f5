"""Who is let in: keys, the names that the service goes by, and pages of others."""

import socket

import pytest
from pydantic import SecretStr

from api.app import create_app
from client.sdk import ApiError, NeuroPruneClient
from core.progress import Failed
from tests.apis import RememberingDispatcher
from tests.databases import SQLITE_ONLY
from tests.problems import assert_problem
from tests.servers import served
from tests.specs import DEMO, demo_spec

pytestmark = SQLITE_ONLY

KEY, NEXT_KEY = "the-key-of-today", "the-key-of-tomorrow"
STREAM = {"Accept": "text/event-stream"}
NO_JOB = f"/v1/jobs/job_{'0' * 32}"


def bearing(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def closed(served_api):
    """The API once more, on the same database, with keys."""
    _, settings, _ = served_api
    keys = (SecretStr(KEY), SecretStr(NEXT_KEY))
    app = create_app(settings.model_copy(update={"api_keys": keys}), dispatcher=RememberingDispatcher())
    with served(app) as http:
        yield http


@pytest.fixture
def job_id(service):
    return service.store.create(demo_spec(), name=None, labels={})[0].id


def assert_no_job(service):
    assert service.http.get("/v1/jobs").json()["data"] == []


# ---- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs"),
        ("DELETE", NO_JOB),
        ("POST", f"{NO_JOB}/cancel"),
        ("GET", f"{NO_JOB}/events"),
        ("HEAD", f"{NO_JOB}/artifacts/report.json"),
        ("POST", "/v1/files"),
        ("OPTIONS", "/v1/files"),
        ("GET", "/v1/methods"),
        ("GET", "/%761/jobs"),
        ("GET", "/metrics"),
        ("GET", "/v1"),
        ("GET", "/v1/nothing"),
        ("GET", "/"),
        ("GET", "/healthz/"),
        ("GET", "/docs/filesystem"),
    ],
)
def test_nothing_is_told_without_a_key(closed, method, path):
    answer = closed.request(method, path)
    assert answer.headers["www-authenticate"] == "Bearer"
    if method == "HEAD":
        assert answer.status_code == 401
    else:
        assert "Authorization: Bearer" in assert_problem(answer, 401, "unauthorized")["detail"]


@pytest.mark.parametrize(
    "header",
    [
        "",
        KEY,
        f"Basic {KEY}",
        "Bearer",
        "Bearer schlüssel",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY} {NEXT_KEY}",
        f"Bearer {KEY},{NEXT_KEY}",
    ],
)
def test_a_wrong_key_is_none(closed, header):
    answer = closed.get("/v1/jobs", headers={"Authorization": header.encode("latin-1")})
    assert_problem(answer, 401, "unauthorized")
    assert KEY not in answer.text


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"Bearer {NEXT_KEY}", f"bearer  {KEY}"])
def test_each_key_opens(closed, service, header):
    for path in ("/v1/jobs", "/metrics"):
        assert closed.get(path, headers={"Authorization": header}).status_code == 200
    assert_problem(closed.get("/v1/nothing", headers={"Authorization": header}), 404, "not_found")
    assert closed.post("/v1/jobs", json=DEMO, headers={"Authorization": header}).status_code == 202


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/redoc", "/docs/files/swagger-ui-bundle.js", "/openapi.json"])
def test_what_tells_nothing_of_anybody_stays_open(closed, path):
    assert closed.get(path).status_code == 200


def test_probes_need_no_key_and_tell_nothing_but_what_is_missing(closed, service, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "arn:aws:iam::123456789012:user/neuroprune may not write to s3://secret-bucket")

    assert_problem(closed.get("/readyz"), 503, "not_ready", "worker")
    monkeypatch.setattr("core.storage.Storage._write", lambda self, path, source: refuse(self))
    problem = assert_problem(closed.get("/readyz"), 503, "not_ready", "storage", "worker")
    assert "arn" not in str(problem)
    assert "secret" not in str(problem)


def test_a_body_is_not_waited_for(closed):
    head = "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\nContent-Type: text/plain\r\n\r\n"
    with socket.create_connection((closed.base_url.host, closed.base_url.port), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_streams_need_a_key(closed, service, job_id):
    lease = service.store.claim(job_id, "worker")
    service.store.start(lease)
    service.store.finish(lease, Failed(code="internal", message="broken"))
    path = f"/v1/jobs/{job_id}/events"
    assert_problem(closed.get(path, headers=STREAM), 401, "unauthorized")
    assert "event: done" in closed.get(path, headers=STREAM | bearing(KEY)).text


def test_the_client_takes_its_key_everywhere(closed, service, tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROPRUNE_API_KEY", raising=False)
    (tmp_path / "rows.csv").write_text("text,label\ngood,1\nbad,0\n")
    with NeuroPruneClient(str(closed.base_url), api_key=NEXT_KEY) as client:
        assert client.upload_file(tmp_path / "rows.csv", "dataset")["filename"] == "rows.csv"
        job_id = client.submit(DEMO)["id"]
        service.succeed(job_id, {"manifest.json": b'{"format": 1, "files": {}}'})
        assert [event.type for event in client.watch(job_id)] == ["status"] * 4
        assert client.download(job_id, tmp_path / "bundle") == [tmp_path / "bundle" / "manifest.json"]
    with NeuroPruneClient(str(closed.base_url)) as client, pytest.raises(ApiError) as caught:
        client.download(job_id, tmp_path / "other")
    assert caught.value.status == 401


def test_keys_get_into_no_log(closed, service, monkeypatch, capsys, caplog):
    def broken(*_args, **_kwargs):
        raise RuntimeError("broken")

    monkeypatch.setattr("core.jobs.store.JobStore.page", broken)
    assert closed.get("/v1/jobs", headers=bearing(KEY)).status_code == 500
    assert closed.get("/v1/jobs", headers=bearing("no-key-of-this-service")).status_code == 401
    printed = capsys.readouterr()
    logged = printed.out + printed.err + caplog.text
    assert "request failed" in logged
    for key in (KEY, NEXT_KEY, "no-key-of-this-service"):
        assert key not in logged


def test_the_document_has_keys_for_all_but_the_probes(service):
    document = service.http.get("/openapi.json").json()
    scheme = document["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            is_probe = path in ("/healthz", "/readyz")
            assert operation.get("security", []) == ([] if is_probe else [{"key": []}]), f"{method} {path}"
            assert ({"401", "421"} <= operation["responses"].keys()) is not is_probe
            assert ("403" in operation["responses"]) is (method != "get")


# ---- names and pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1234", "127.0.0.1:80", "127.0.0.1:", "[::1]:8000", "[::1]"])
def test_this_machine_is_asked_by_its_own_names(service, host):
    assert service.http.get("/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:80:localhost",
        "localhost@evil.example",
        "192.168.1.5:8000",
        "localhost.",
        "[::2]",
        "::1",
        "[::1",
        "prüne",
        "*",
        "",
    ],
)
def test_a_name_that_was_made_to_lead_here_is_none_of_ours(service, host):
    headers = {"Host": host.encode("latin-1")}
    problem = assert_problem(service.http.post("/v1/jobs", json=DEMO, headers=headers), 421, "misdirected_request")
    assert "NEUROPRUNE_ALLOWED_HOSTS" in problem["detail"]
    assert service.http.get("/docs", headers=headers).status_code == 421
    assert service.http.get("/healthz", headers=headers).status_code == 200, "probes ask by any address"
    assert_no_job(service)


@pytest.mark.parametrize(
    "origin", ["http://localhost", "http://127.0.0.1:3000", "https://[::1]:8443", "http://LOCALHOST"]
)
def test_pages_of_the_services_own_names_may_post(service, origin):
    assert service.http.post("/v1/jobs", json=DEMO, headers={"Origin": origin}).status_code == 202


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://evil.example:8000",
        "https://localhost.evil.example",
        "http://localhost@evil.example",
        "chrome-extension://abcdefgh",
        "localhost",
        "http://",
        "null",
        "",
    ],
)
def test_pages_of_others_may_not(service, origin):
    headers = {"Origin": origin}
    rows = {"file": ("rows.csv", b"text,label\ngood,1\n")}
    problem = assert_problem(service.http.post("/v1/jobs", json=DEMO, headers=headers), 403, "forbidden")
    assert "NEUROPRUNE_ALLOWED_HOSTS" in problem["detail"]
    assert_problem(
        service.http.post("/v1/files", data={"purpose": "dataset"}, files=rows, headers=headers), 403, "forbidden"
    )
    assert_problem(service.http.delete(NO_JOB, headers=headers), 403, "forbidden")
    assert service.http.get("/v1/files", headers=headers).json()["data"] == []
    assert_no_job(service)
