"""Models whose weights are saved in 16 bits come back so, and are what was measured."""

import json
from inspect import getclosurevars

import pytest
import torch
from safetensors.torch import load_file, save_file

from client.load import load
from core.engine import delivery, memory, pipeline
from core.engine.evaluate import evaluate
from core.engine.export.bundle import read_probe, read_task
from core.engine.precision import round_weights, saved_dtype, weights_in
from core.engine.tasks import TASKS
from core.engine.verify import inspect, tolerated
from core.families import family_of
from tests import tiny, tiny_families, tiny_tasks
from tests.whole_jobs import rows_of_any_task, run_job, shorten_jobs

KINDS = [
    ("bert", "sequence-classification", torch.bfloat16, "ragged"),
    ("llama", "causal-lm", torch.bfloat16, "uniform"),
    ("llama", "causal-lm", torch.float16, "masked"),
    ("gpt2", "causal-lm", torch.float16, "ragged"),
    ("t5", "seq2seq", torch.float16, "ragged"),
    ("marian", "seq2seq", torch.bfloat16, "ragged"),
    ("mixtral", "causal-lm", torch.bfloat16, "ragged"),
    ("mixtral", "causal-lm", torch.bfloat16, "masked"),
    ("vit", "image-classification", torch.bfloat16, "ragged"),
]


KEPT_IN_FP32 = {("t5", torch.float16)}
"""transformers loads some of their weights in fp32 all the same."""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Prunes a model that is saved in a type: its report; the bundle lies in `tmp_path / "bundle"`."""

    shorten_jobs(monkeypatch)

    def start(family, task, dtype, target, formats=(), **parts):
        model = tiny_families.model(family, task)
        folder = tmp_path / "model"
        model.to(dtype).save_pretrained(folder)
        tiny_tasks.processor(task).save_pretrained(folder)
        assert saved_dtype(folder, family_of(family)) is dtype
        also = {"kind": "translation"} if task == "seq2seq" else {}
        export = {"formats": formats}
        return run_job(
            tmp_path, folder, rows_of_any_task(20), {"name": task, **also}, target=target, export=export, **parts
        ).report

    return start


@pytest.mark.parametrize(("family", "task", "dtype", "structure"), KINDS)
def test_weights_come_back_in_the_type_that_they_came_in(job, tmp_path, family, task, dtype, structure):
    report, bundle = job(family, task, dtype, {"sparsity": 0.5}, structure=structure), tmp_path / "bundle"
    model, saved = load(bundle), load_file(bundle / "model.safetensors")
    buffers = dict(model.named_buffers())
    assert {tensor.dtype for key, tensor in saved.items() if key not in buffers} == {dtype}
    name = str(dtype).removeprefix("torch.")
    assert report["model"]["dtype"] == json.loads((bundle / "config.json").read_text())["dtype"] == name
    dense = (tmp_path / "model/model.safetensors").stat().st_size
    assert report["size_bytes"]["dense"] == pytest.approx(dense, rel=0.02)
    assert report["size_bytes"]["pruned"] <= (1 if structure == "masked" else 0.95) * report["size_bytes"]["dense"]
    assert f"saved as {name}" in (bundle / "README.md").read_text()
    # In fp32, what was saved gives to the last bits what was recorded.
    inputs, expected = read_probe(bundle)
    assert report["verification"]["largest_absolute_difference"]["loader"] <= tolerated("loader", expected)
    assert inspect(bundle)["max_abs_difference"] <= tolerated("loader", expected)
    # It runs in the type that it is saved in.
    also = {torch.float32} if (family, dtype) in KEPT_IN_FP32 else set()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype} | also
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


def test_dense_and_pruned_are_judged_by_weights_that_can_be_saved(tmp_path, monkeypatch):
    """Also after dense training."""
    judged = []

    def evaluated(task, model, *others):
        judged.append({name: weight.clone() for name, weight in model.named_parameters()})
        return evaluate(task, model, *others)

    for place in (pipeline, delivery):
        monkeypatch.setattr(place, "evaluate", evaluated)
    shorten_jobs(monkeypatch)
    folder = tiny.save(tiny.bert_classifier().to(torch.bfloat16), tmp_path / "model")
    training, task = {"dense_epochs": 1}, {"name": "sequence-classification"}
    run_job(tmp_path, folder, rows_of_any_task(20), task, target={"sparsity": 0.5}, training=training)
    assert len(judged) == 2
    assert all(torch.equal(w, w.bfloat16().float()) for weights in judged for w in weights.values())


def test_memory_is_measured_in_fp32(job, tmp_path, monkeypatch):
    job("bert", "sentence-embedding", torch.bfloat16, {"sparsity": 0.5})
    models = []

    def peak(load):
        models.append(getclosurevars(load()).nonlocals["model"])
        return 1

    monkeypatch.setattr(memory, "peak", peak)
    monkeypatch.setattr(memory, "available", lambda: True)
    memory.peak_memory(
        TASKS["sentence-embedding"], tmp_path / "model", tmp_path / "bundle", tiny_tasks.inputs("sentence-embedding")
    )
    assert [model.dtype for model in models] == [torch.float32, torch.float32]


def test_a_model_in_fp32_stays_in_fp32(tmp_path):
    assert saved_dtype(tiny.save(tiny.bert(), tmp_path / "model"), family_of("bert")) is torch.float32


def test_a_few_weights_of_another_type_do_not_decide(tmp_path):
    """Such as norms and biases, or a router, which some keep in fp32: many tensors with few weights."""
    model = tiny.bert().to(torch.bfloat16)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data = parameter.data.float()
    assert saved_dtype(tiny.save(model, tmp_path / "model"), family_of("bert")) is torch.bfloat16


@pytest.mark.parametrize(
    ("name", "layer", "dtype"),
    [
        ("gpt_neox", "gpt_neox.layers.0.attention", torch.uint8),
        ("gpt2", "h.0.attn", torch.float32),
        ("gpt_neo", "transformer.h.0.attn.attention", torch.float32),
    ],
)
def test_masks_that_older_files_hold_do_not_decide(tmp_path, name, layer, dtype):
    folder = tiny.save(tiny_families.model(name, "causal-lm").half(), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    mask = torch.ones(1, 1, 512, 512, dtype=dtype)
    save_file({**weights, f"{layer}.bias": mask}, folder / "model.safetensors", {"format": "pt"})
    assert saved_dtype(folder, family_of(name)) is torch.float16


def test_all_files_of_a_model_count(tmp_path):
    tiny.llama().half().save_pretrained(tmp_path, max_shard_size="20KB")
    first, *others = sorted(tmp_path.glob("*.safetensors"))
    assert len(others) > 1
    save_file({name: weight.float() for name, weight in load_file(first).items()}, first)
    assert saved_dtype(tmp_path, family_of("llama")) is torch.float16


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
