"""A whole job of every family: what no part shows that is tried alone."""

import base64
from pathlib import Path

import pytest

from core.engine import delivery
from core.engine.verify import Findings, find
from core.families import FAMILIES
from core.family import Family
from tests import tiny, tiny_families, tiny_tasks
from tests.whole_jobs import run_job

SERVING = [family for family in FAMILIES if family.tasks]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Without the clean process that loads the bundle, which this one does instead, and without plots: they take longer
    than all the rest, and other tests have them.
    """

    def verify(folder: Path, dense: Path) -> Findings:
        return find(folder)

    monkeypatch.setattr(delivery, "verify", verify)
    for name in ("plot_structure", "plot_topology"):
        monkeypatch.setattr(delivery, name, lambda *_: None)


def task_of(family: Family) -> str:
    """One that needs no word of its own in the tokenizer."""
    return "sequence-classification" if "sequence-classification" in family.tasks else family.tasks[0]


def row(i: int, text: str) -> dict[str, str | int]:
    """With the columns of every task."""
    image = base64.b64encode(tiny_tasks.image(i)).decode()
    return {"text": text, "source": text, "target": text, "image": image, "label": i % 2}


@pytest.mark.parametrize("family", SERVING, ids=[family.model_type for family in SERVING])
def test_a_job_comes_to_its_end(family, tmp_path):
    name = task_of(family)
    model = tmp_path / "model"
    tiny_families.model(family.model_type, name).save_pretrained(model)
    tiny_tasks.processor(name).save_pretrained(model)
    rows = [row(i, text) for i, text in enumerate(tiny.sentences(20))]
    also = {"kind": "translation"} if name == "seq2seq" else {}
    parts = {"method": {"name": "magnitude"}, "export": {"formats": ["safetensors"]}}
    report = run_job(tmp_path, model, rows, {"name": name, **also}, target={"sparsity": 0.5}, **parts).report
    assert report["target"]["achieved"] == pytest.approx(0.5, abs=0.02)
    assert 0 < report["flops"]["pruned"] < report["flops"]["dense"]
