"""Jobs on a model of the Hub's cache, with data from there or from Parquet, through the whole service."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import hub_caches, tiny
from tests.integration.stack import HUB_HOME

pytestmark = pytest.mark.timeout(300)


def sentences(count, start=0):
    return [(text, int("good" in text)) for text in tiny.sentences(start + count)[start:]]


@pytest.fixture(scope="module")
def model(stack, tmp_path_factory):
    """The spec of a tiny classifier in the cache."""
    folder = tmp_path_factory.mktemp("model") / "classifier"
    tiny.save(tiny.bert_classifier(), folder)
    hub_caches.put_model(stack.stack.state_dir / HUB_HOME, "owner/classifier", folder)
    return {"source": "hub", "id": "owner/classifier"}


def of_the_hub(stack, folder):
    splits = {"train": sentences(48), "dev": sentences(16, 48), "held": sentences(16, 64)}
    hub_caches.put_dataset(stack.stack.state_dir / HUB_HOME, "owner/reviews", "default", splits)
    return {"source": "hub", "id": "owner/reviews", "validation_split": "dev", "test_split": "held"}


def of_parquet(stack, folder):
    texts, labels = zip(*sentences(64), strict=True)
    pq.write_table(pa.table({"sentence": texts, "label": labels}), folder / "rows.parquet")
    return {"source": "upload", "train": stack.client.upload_file(folder / "rows.parquet", "dataset")["id"]}


@pytest.mark.parametrize("data", [of_the_hub, pytest.param(of_parquet, marks=pytest.mark.thorough)])
def test_a_job_is_done(stack, model, tmp_path, data):
    job_id = stack.submit(
        {
            "model": model,
            "task": {"name": "sequence-classification", "data": data(stack, tmp_path), "text_column": "sentence"},
            "target": {"sparsity": 0.3},
            "training": {"num_train_epochs": 1, "dense_epochs": 0, "max_length": 16},
            "export": {"formats": ["safetensors"]},
        }
    )
    job = stack.finished(job_id)
    assert job["status"] == "succeeded", job["error"]
    phases = [event.data["phase"] for event in stack.history(job_id) if event.type == "phase"]
    assert phases[:2] == ["loading", "baseline"]


def test_a_model_that_is_not_there_is_named(stack):
    job_id = stack.submit(
        {
            "model": {"source": "hub", "id": "owner/absent"},
            "task": {"name": "causal-lm", "data": {"source": "builtin", "name": "python-docs"}},
            "target": {"sparsity": 0.3},
        }
    )
    error = stack.finished(job_id)["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "/model/id")
    assert "owner/absent" in error["message"]
