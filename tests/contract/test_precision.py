"""Models whose weights are saved in 16 bits come back so, and are what was measured."""

import json

import pytest
import torch
from safetensors.torch import load_file

from client.load import load
from core.engine.export.bundle import read_probe, read_task
from core.engine.precision import round_weights, saved_dtype, weights_in
from core.engine.verify import inspect
from tests import tiny, tiny_families, tiny_tasks
from tests.whole_jobs import rows_of_any_task, run_job, shorten_jobs

KINDS = [
    ("bert", "sequence-classification", torch.bfloat16, "ragged"),
    ("llama", "causal-lm", torch.bfloat16, "uniform"),
    ("llama", "causal-lm", torch.float16, "masked"),
    ("gpt2", "causal-lm", torch.float16, "ragged"),
    ("t5", "seq2seq", torch.bfloat16, "ragged"),
    ("mixtral", "causal-lm", torch.bfloat16, "ragged"),
    ("vit", "image-classification", torch.bfloat16, "ragged"),
]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Prunes a model that is saved in a type: its report; the bundle lies in `tmp_path / "bundle"`."""

    shorten_jobs(monkeypatch)

    def start(family, task, dtype, target, formats=(), **parts):
        model = tiny_families.model(family, task)
        folder = tmp_path / "model"
        model.to(dtype).save_pretrained(folder)
        tiny_tasks.processor(task).save_pretrained(folder)
        assert saved_dtype(folder) is dtype
        also = {"kind": "translation"} if task == "seq2seq" else {}
        export = {"formats": formats}
        return run_job(
            tmp_path, folder, rows_of_any_task(20), {"name": task, **also}, target=target, export=export, **parts
        ).report

    return start


@pytest.mark.parametrize(("family", "task", "dtype", "structure"), KINDS)
def test_weights_come_back_in_the_type_that_they_came_in(job, tmp_path, family, task, dtype, structure):
    report, bundle = job(family, task, dtype, {"sparsity": 0.5}, structure=structure), tmp_path / "bundle"
    weights = load_file(bundle / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {dtype}
    name = str(dtype).removeprefix("torch.")
    assert report["model"]["dtype"] == json.loads((bundle / "config.json").read_text())["dtype"] == name
    dense = (tmp_path / "model/model.safetensors").stat().st_size
    assert report["size_bytes"]["dense"] == pytest.approx(dense, rel=0.02)
    assert report["size_bytes"]["pruned"] <= (1 if structure == "masked" else 0.95) * report["size_bytes"]["dense"]
    assert f"saved as {name}" in (bundle / "README.md").read_text()
    # In fp32, what was saved gives to the last bits what was recorded.
    assert report["verification"]["largest_absolute_difference"]["loader"] <= 1e-5
    assert inspect(bundle)["max_abs_difference"] <= 1e-5
    # It runs in the type that it is saved in.
    model, (inputs, expected) = load(bundle), read_probe(bundle)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    with torch.inference_mode():
        outputs = read_task(bundle).outputs(model, inputs)
    assert float((outputs.float() - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_onnx_computes_with_the_weights_that_are_delivered(job, tmp_path):
    report = job("bert", "sentence-embedding", torch.bfloat16, {"sparsity": 0.5}, ["onnx"])
    assert report["verification"]["largest_absolute_difference"]["onnx"] <= 1e-4
    assert report["latency_ms"].keys() == {"torch", "onnxruntime"}


def test_bytes_are_counted_in_the_type_that_the_weights_are_saved_in(job, tmp_path):
    report = job("llama", "causal-lm", torch.bfloat16, {"size_bytes": 40_000})
    saved = (tmp_path / "bundle/model.safetensors").stat().st_size
    assert report["target"]["achieved"] == saved
    assert 38_500 < saved <= 40_000


def test_a_model_in_fp32_stays_in_fp32(tmp_path):
    assert saved_dtype(tiny.save(tiny.bert(), tmp_path / "model")) is torch.float32


def test_a_few_weights_of_another_type_do_not_decide(tmp_path):
    """Such as norms or a router, which some keep in fp32."""
    model = tiny.llama().to(torch.bfloat16)
    model.model.norm.float()
    assert saved_dtype(tiny.save(model, tmp_path / "model")) is torch.bfloat16


def test_rounded_weights_survive_being_saved_and_what_is_not_a_weight_stays():
    model = tiny.llama()
    frequencies = model.model.rotary_emb.inv_freq.clone()
    round_weights(model, torch.bfloat16)
    rounded = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with weights_in(model, torch.bfloat16):
        assert all(torch.equal(weight.float(), rounded[name]) for name, weight in model.named_parameters())
        assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    assert all(torch.equal(parameter, rounded[name]) for name, parameter in model.named_parameters())
    assert any(not torch.equal(parameter, rounded[name]) for name, parameter in tiny.llama().named_parameters())
