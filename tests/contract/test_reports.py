"""What a whole run of the engine tells: its report, its card, its warnings and its errors."""

import json

import pytest

from client.demo import comparison
from core.engine.pipeline import Inputs, run
from core.errors import InvalidDataError
from core.jobs.defaults import resolve
from core.jobs.spec import JobSpec
from core.progress import Warned
from tests import tiny


@pytest.fixture
def job(tmp_path):
    """Runs a small job on rows: its summary, its messages; its bundle lies in `tmp_path / "bundle"`."""
    model = tiny.save(tiny.bert(), tmp_path / "model")
    (tmp_path / "bundle").mkdir()

    def start(rows, **data):
        train = tmp_path / "train.jsonl"
        train.write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = {
            "model": {"source": "path", "path": str(model)},
            "task": {"name": "sentence-embedding", "data": {"source": "path", "train": str(train), **data}},
            "target": {"sparsity": 0.3},
            "training": {"num_train_epochs": 1, "precision": "fp32"},
            "export": {"formats": ["safetensors"]},
        }
        messages = []
        inputs = Inputs(model, train, names={train: "mine.JSONL"})
        return run(resolve(JobSpec.model_validate(spec)), inputs, tmp_path / "bundle", messages.append), messages

    return start


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_a_metric_that_the_rows_do_not_define_is_left_out(job, tmp_path):
    summary, messages = job([{"text": text} for text in tiny.sentences(40)], max_validation_rows=1)
    report = json.loads((tmp_path / "bundle/report.json").read_text(), parse_constant=refuse)
    assert list(report["metrics"]) == ["cosine_to_dense"]
    assert any("similarity_spearman" in each.message for each in messages if isinstance(each, Warned))
    assert "spearman" not in (tmp_path / "bundle/README.md").read_text()
    assert [row for row in comparison(summary).columns[0].cells if row.startswith("cosine")] == ["cosine to dense"]


def test_a_bad_row_is_named_as_the_user_knows_it(job):
    rows = [{"text": text} for text in tiny.sentences(40)]
    rows[16] = {"text": None}
    with pytest.raises(InvalidDataError, match=r"^mine\.JSONL, line 17: column 'text' holds None") as caught:
        job(rows, max_train_rows=38)
    assert caught.value.param == "/task/data/train"
