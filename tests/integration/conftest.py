"""One embedded stack a session, and uploads that its jobs use."""

import gzip
import json
import shutil

import pytest

from client.local import EmbeddedStack
from client.sdk import NeuroPruneClient
from tests.integration.stack import FAST, HUB_HOME, Service
from tests.servers import postgresql, postgresql_binaries

SQLITE, POSTGRESQL = "sqlite", "postgresql"


@pytest.fixture(scope="session")
def stack(request, tmp_path_factory):
    """The service on SQLite; on PostgreSQL where a module says so by `parametrize(…, indirect=True)`."""
    folder = tmp_path_factory.mktemp("stack")
    if getattr(request, "param", SQLITE) == SQLITE:
        yield from _running(folder, {})
        return
    binaries = postgresql_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server binaries on this machine")
    with postgresql(binaries) as url:
        yield from _running(folder, {"NEUROPRUNE_DATABASE_URL": url})


def _running(folder, environment):
    environment = FAST | environment | {"NEUROPRUNE_HUB_HOME": str(folder / HUB_HOME)}
    with EmbeddedStack(folder, port=0, environment=environment) as stack, NeuroPruneClient(stack.url) as client:
        yield Service(stack, client)


@pytest.fixture(scope="session")
def upload_model(tmp_path_factory):
    """A function that zips a tiny model and uploads it; the file's id."""
    from tests import tiny

    def upload(service, name):
        folder = tmp_path_factory.mktemp("model")
        tiny.save(getattr(tiny, name)(), folder / name)
        archive = shutil.make_archive(str(folder / name), "zip", folder, name)
        return service.client.upload_file(type(folder)(archive), "model")["id"]

    return upload


@pytest.fixture(scope="session")
def upload_rows(tmp_path_factory):
    """A function that uploads sentences as JSONL.gz, labelled by whether they hold `good`; the file's id."""
    from tests import tiny

    def upload(service, count):
        path = tmp_path_factory.mktemp("rows") / "rows.jsonl.gz"
        rows = [{"text": text, "label": int("good" in text)} for text in tiny.sentences(count)]
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return service.client.upload_file(path, "dataset")["id"]

    return upload


@pytest.fixture
def endless(stack, upload_model, upload_rows):
    """The spec of a job that trains until somebody ends it."""
    return {
        "model": {"source": "upload", "file": upload_model(stack, "bert_classifier")},
        "task": {
            "name": "sequence-classification",
            "data": {"source": "upload", "train": upload_rows(stack, 64)},
        },
        "target": {"sparsity": 0.3},
        "training": {"num_train_epochs": 1000, "dense_epochs": 0, "max_length": 16},
    }
