"""Health, catalogue and the OpenAPI document."""

import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from core.catalog import METHODS
from core.families import FAMILIES
from core.jobs.spec import JobSpec
from core.jobs.store import JobStore
from core.uploads import SUFFIXES
from tests.apis import LIVE_SECONDS, PATIENCE_SECONDS, SILENT_SECONDS, until
from tests.databases import SQLITE_ONLY
from tests.problems import assert_problem
from tests.specs import DEMO

pytestmark = SQLITE_ONLY

THREADS = 40
"""In which the framework runs what is not async, all requests together."""


def test_process_is_healthy(service):
    assert service.http.get("/healthz").json() == {"status": "ok"}


def test_process_is_healthy_while_every_thread_waits_for_the_database(service, monkeypatch):
    arrived, answer = [], threading.Event()

    def hang(self, limit, cursor, status):
        arrived.append(limit)
        answer.wait(PATIENCE_SECONDS)
        return [], None

    monkeypatch.setattr(JobStore, "page", hang)
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            waiters = [pool.submit(service.http.get, "/v1/jobs") for _ in range(THREADS)]
            until(lambda: len(arrived) == THREADS)
            assert service.http.get("/healthz", timeout=5).json() == {"status": "ok"}
        finally:
            answer.set()
    assert {waiter.result().status_code for waiter in waiters} == {200}


def test_the_broker_is_connected_to_before_the_first_job(service):
    assert service.dispatcher.connected


def test_ready_while_a_worker_was_seen_lately(service):
    problem = assert_problem(service.http.get("/readyz"), 503, "not_ready", "worker")
    assert "start one" in problem["detail"]
    service.see_worker("w", SILENT_SECONDS)
    assert_problem(service.http.get("/readyz"), 503, "not_ready", "worker")
    service.see_worker("w", LIVE_SECONDS)
    answer = service.http.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["checks"] == dict.fromkeys(["database", "schema", "broker", "storage", "worker"], "ok")


def test_a_database_that_does_not_answer_is_named(service, monkeypatch):
    def refuse(self):
        raise sa.exc.OperationalError("SELECT 1", {}, Exception("refused"))

    monkeypatch.setattr(JobStore, "answers", refuse)
    problem = assert_problem(service.http.get("/readyz"), 503, "not_ready", "database")
    assert "does not answer" in problem["detail"]


def test_a_database_that_became_read_only_is_unavailable(service, monkeypatch):
    """As a PostgreSQL is that became a standby."""

    def refuse(self, *_, **__):
        raise sa.exc.InternalError("INSERT", {}, Exception("cannot execute INSERT in a read-only transaction"))

    monkeypatch.setattr(JobStore, "create", refuse)
    answer = service.http.post("/v1/jobs", json=DEMO)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_every_missing_part_is_named(service, engine):
    service.dispatcher.reachable = False
    folder = Path(service.settings.storage_url)
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("in the way")
    with engine.begin() as connection:
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'old'")
    try:
        answer = service.http.get("/readyz")
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")
        folder.unlink()
    assert_problem(answer, 503, "not_ready", "schema", "broker", "storage")


def test_catalogue_is_served(service):
    methods = service.http.get("/v1/methods").json()["data"]
    assert [method["name"] for method in methods] == [entry.name for entry in METHODS]
    assert "description" in methods[0]["options"]["properties"]["alpha"]
    families = service.http.get("/v1/families").json()["data"]
    assert [family["model_type"] for family in families] == [family.model_type for family in FAMILIES]
    uniform = {family["model_type"]: family["uniform"] for family in families}
    assert (uniform["bert"], uniform["llama"]) == (["neurons"], ["heads", "neurons"])


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_of_documentation_need_nobody_else(service, page):
    body = service.http.get(page).text
    sources = re.findall(r'(?:src|href)="([^"]+)"', body)
    assert any(source.endswith(".js") for source in sources)
    for source in sources:
        assert source.startswith("/docs/files/"), source
        assert service.http.get(source).status_code == 200


@pytest.fixture
def document(service):
    return service.http.get("/openapi.json").json()


def test_every_reference_in_the_document_resolves(document):
    def references(node):
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for child in node.values():
                yield from references(child)
        elif isinstance(node, list):
            for child in node:
                yield from references(child)

    found = list(references(document))
    assert found
    for reference in found:
        at = document
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]


def test_refusals_are_documented_as_problems(document):
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], f"{method} {path} {status}"
    assert document["components"]["schemas"]["Problem"]["examples"]


def test_examples_are_valid(document):
    examples = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert examples
    for example in examples.values():
        spec = {key: value for key, value in example["value"].items() if key not in ("name", "labels")}
        JobSpec.model_validate(spec)


def test_all_accepted_suffixes_are_documented(document):
    schemas = document["components"]["schemas"]
    [form] = [schema for name, schema in schemas.items() if name.startswith("Body_upload_file")]
    described = form["properties"]["file"]["description"]
    named = re.findall(r"(?:\.\w+)+", described)
    assert sorted(named) == sorted(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
