"""Whole jobs of tiny models whose inputs would once have failed them after all the training."""

import json
import re
from pathlib import Path

import pytest
import torch

from core.engine.export.onnx import export_onnx
from core.engine.generation import mend_generation_config
from core.engine.memory import available
from core.engine.tasks import TASKS
from core.errors import VerificationError
from tests import tiny, tiny_families
from tests.whole_jobs import Done, run_job


def do(task: str, model: Path, words: list[str], folder: Path, formats=(), names=None) -> Done:
    """A job on these texts, whose labels are their lengths."""
    rows = [{"text": text, "label": len(text)} for text in words]
    export = {"formats": list(formats)}
    return run_job(folder, model, rows, {"name": task}, names=names, target={"sparsity": 0.3}, export=export)


CONTRADICTIONS = [
    ({"temperature": 0.6, "do_sample": False}, "settings without effect are left out. .*temperature"),
    ({"top_p": 0.9, "top_k": 5, "min_p": 0.1, "typical_p": 0.5}, "settings without effect are"),
    ({"num_beams": 1, "length_penalty": 2.0}, "settings without effect are"),
    ({"epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "top_h": 0.3}, "settings without effect are"),
    ({"pad_token_id": -1}, "all but the special tokens is left out"),
]


@pytest.mark.parametrize(("settings", "message"), CONTRADICTIONS)
def test_a_contradictory_generation_config_is_mended_with_a_warning(settings, message, tmp_path):
    model, heard = tiny.llama(), []
    model.generation_config.update(**settings)
    mend_generation_config(model, tiny.tokenizer(), heard.append)
    assert len(heard) == 1
    assert re.search(message, heard[0].message)
    model.generation_config.save_pretrained(tmp_path)


def test_settings_that_sample_are_kept():
    model = tiny.llama()
    model.generation_config.update(do_sample=True, temperature=0.6)
    mend_generation_config(model, tiny.tokenizer(), pytest.fail)
    assert model.generation_config.temperature == 0.6


def test_a_model_with_a_contradictory_generation_config_is_pruned(tmp_path):
    folder = tiny.save(tiny.llama(), tmp_path / "model")
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": false}')
    warnings = do("causal-lm", folder, tiny.sentences(40), tmp_path).warnings
    assert [w for w in warnings if "generation_config.json" in w]
    assert "temperature" not in json.loads((tmp_path / "bundle" / "generation_config.json").read_text())


def test_rows_of_one_token_can_be_exported(tmp_path):
    folder = tiny.save(tiny.bert(), tmp_path / "model")
    report = do("sentence-embedding", folder, tiny.WORDS * 2, tmp_path, ["onnx"], {folder: "my-model"}).report
    assert "onnx" in report["verification"]["largest_absolute_difference"]
    assert set(report["latency_ms"]) >= {"torch", "onnxruntime"}
    if available():
        assert set(report["peak_memory_bytes"]) >= {"torch", "onnxruntime"}
    assert report["model"]["name"] == "my-model"
    assert "# my-model, " in (tmp_path / "bundle" / "README.md").read_text()


@pytest.mark.parametrize(
    ("model_type", "task"),
    [
        ("opt", "regression"),
        pytest.param("albert", "sentence-embedding", marks=pytest.mark.thorough),
        pytest.param("distilbert", "regression", marks=pytest.mark.thorough),
        pytest.param("gpt_neo", "causal-lm", marks=pytest.mark.thorough),
    ],
)
def test_families_that_name_everything_otherwise_are_pruned(model_type, task, tmp_path):
    folder = tiny.save(tiny_families.model(model_type, task), tmp_path / "model")
    report = do(task, folder, tiny.sentences(40), tmp_path).report
    assert report["target"]["achieved"] == pytest.approx(0.3, abs=0.01)


def test_what_cannot_be_exported_is_said(tmp_path):
    one = {name: torch.ones(1, 1, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    with pytest.raises(VerificationError, match=r"cannot be exported to ONNX: \w+: .*export\.formats"):
        export_onnx(TASKS["sentence-embedding"], tiny.bert(), one, tmp_path / "model.onnx")
