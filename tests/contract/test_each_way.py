"""Each way of loading a bundle is compared by itself: a file that only one of them reads is enough to refuse it."""

import json
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import dynamic_module_utils

from core.engine import delivery
from core.engine import verify as verification
from core.engine.export.bundle import write_manifest
from core.engine.export.gguf import export_gguf
from core.engine.export.modeling_neuroprune import MODELING_FILE
from core.engine.export.onnx import export_onnx
from core.engine.tasks import TASKS
from core.errors import VerificationError
from tests import tiny
from tests.contract.test_families import Case, inputs, outputs, write_bundle
from tests.contract.test_gguf import ragged
from tests.tiny_tokenizers import byte_level

CASE = Case("llama", "causal-lm")
BUILT = "narrow(self, config.neuroprune)"


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """Verified in this process, which is quicker than a clean one."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def here(*folders):
        return subprocess.CompletedProcess([], 0, json.dumps(asdict(verification.find(*folders))), "")

    monkeypatch.setattr(verification, "_in_clean_process", here)
    model = ragged("llama")
    return write_bundle(CASE, model, outputs(CASE, model), tmp_path / "bundle")


def other():
    """A model of the same widths and other weights."""
    return tiny.randomised(ragged("llama"), seed=1)


def raise_probe(folder, amount):
    tensors = load_file(folder / "probe.safetensors")
    save_file(tensors | {"outputs": tensors["outputs"] + amount}, folder / "probe.safetensors", {"task": CASE.task})


def negate_embeddings(folder):
    code = (folder / MODELING_FILE).read_text()
    hook = "self.get_input_embeddings().register_forward_hook(lambda *found: -found[-1])"
    assert BUILT in code
    (folder / MODELING_FILE).write_text(code.replace(BUILT, f"{BUILT}; {hook}"))


@pytest.mark.parametrize(
    ("way", "damage"),
    [
        ("loader", lambda folder: raise_probe(folder, 1.0)),
        ("loader", lambda folder: raise_probe(folder, -1.0)),
        ("auto_class", negate_embeddings),
        ("onnx", lambda folder: export_onnx(TASKS[CASE.task], other(), inputs(), folder / "model.onnx")),
        ("gguf", lambda folder: export_gguf(other(), byte_level("ByteLevel"), folder / "model.gguf")),
    ],
    ids=["probe too high", "probe too low", "code", "onnx", "gguf"],
)
def test_a_way_that_answers_otherwise_is_named(bundle, way, damage):
    damage(bundle)
    write_manifest(bundle)
    with pytest.raises(VerificationError, match=f"^Loaded through {way}, the"):
        verification.verify(bundle)


@pytest.mark.parametrize("change", [1.0, -1.0])
def test_a_compacted_model_that_answers_otherwise_is_refused(monkeypatch, change):
    monkeypatch.setattr(delivery, "give_structure", lambda *_: answers.add_(change))
    answers, model = torch.zeros(2, 3), tiny.bert()
    task = SimpleNamespace(outputs=lambda *_: answers.clone())
    prepared = SimpleNamespace(task=task, dtype=torch.float32)
    pruner = SimpleNamespace(anatomy=SimpleNamespace(model=model), plan=lambda: None)
    with pytest.raises(VerificationError, match=r"^The compacted model's outputs differ .* by 1\.0e\+00"):
        delivery.compact_and_compare("ragged", prepared, pruner, {})
