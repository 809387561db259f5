"""A whole job whose reported quality is worked out again, from the bundle and the dense model on the test rows."""

import pytest
import torch
import torch.nn.functional as F

from client.load import load
from tests import tiny
from tests.whole_jobs import run_job, texts

TRAIN, TEST = texts(60)[:50], texts(60)[50:]


def embeddings(model):
    """Of the test rows, one by one."""
    rows = (tiny.tokenizer()(row["text"], return_tensors="pt") for row in TEST)
    with torch.inference_mode():
        return torch.stack([model(row["input_ids"])[0][0].mean(0) for row in rows])


def test_embeddings_are_compared_with_the_dense_models_of_the_test_rows(tmp_path):
    """As many rows are validated on: theirs could be taken for them."""
    model = tiny.save(tiny.bert(), tmp_path / "model")
    data = {"validation_fraction": 0.2}
    task = {"name": "sentence-embedding"}
    done = run_job(tmp_path, model, TRAIN, task, data=data, test=TEST, target={"sparsity": 0.5})
    cosine = F.cosine_similarity(embeddings(load(done.bundle)), embeddings(tiny.bert())).mean().item()
    assert done.report["task"]["held_out_rows"] == len(TEST)
    assert done.report["metrics"]["cosine_to_dense"]["pruned"] == pytest.approx(cosine, abs=1e-5)
    assert cosine < 0.999
