"""A whole job of every family: what no part shows that is tried alone."""

import pytest

from core.families import FAMILIES
from core.family import Family
from tests import tiny_families, tiny_tasks
from tests.whole_jobs import rows_of_any_task, run_job, shorten_jobs

SERVING = [family for family in FAMILIES if family.tasks]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    shorten_jobs(monkeypatch)


def task_of(family: Family) -> str:
    """One that needs no word of its own in the tokenizer."""
    return "sequence-classification" if "sequence-classification" in family.tasks else family.tasks[0]


@pytest.mark.parametrize("family", SERVING, ids=[family.model_type for family in SERVING])
def test_a_job_comes_to_its_end(family, tmp_path):
    name = task_of(family)
    model = tmp_path / "model"
    tiny_families.model(family.model_type, name).save_pretrained(model)
    tiny_tasks.processor(name).save_pretrained(model)
    rows = rows_of_any_task(20)
    also = {"kind": "translation"} if name == "seq2seq" else {}
    parts = {"method": {"name": "magnitude"}, "export": {"formats": ["safetensors"]}}
    report = run_job(tmp_path, model, rows, {"name": name, **also}, target={"sparsity": 0.5}, **parts).report
    assert report["target"]["achieved"] == pytest.approx(0.5, abs=0.02)
    assert 0 < report["flops"]["pruned"] < report["flops"]["dense"]
