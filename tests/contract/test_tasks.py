"""Whole jobs of tasks that read or write something else than the usual: what is reported, delivered and refused."""

import base64
from pathlib import Path

import pytest

from client.load import load
from core.engine.export.bundle import read_probe
from core.engine.verify import tolerated
from tests import tiny, tiny_families, tiny_tasks
from tests.whole_jobs import run_job


def do(model: Path, rows: list[dict], task: dict, folder: Path, **parts) -> dict:
    """A job's report; its bundle lies in `folder / "bundle"`."""
    training = {"hidden_distillation": 0.1}
    return run_job(folder, model, rows, task, training=training, target={"sparsity": 0.3}, **parts).report


def test_an_image_model_is_pruned(tmp_path):
    folder = tmp_path / "model"
    tiny_families.model("vit", "image-classification").save_pretrained(folder)
    tiny_tasks.processor("image-classification").save_pretrained(folder)
    rows = [{"image": base64.b64encode(tiny_tasks.image(i)).decode(), "label": "ab"[i % 2]} for i in range(20)]
    report = do(folder, rows, {"name": "image-classification", "metric": "macro_f1"}, tmp_path)
    assert report["headline_metric"] == "macro_f1"
    assert next(iter(report["metrics"])) == "macro_f1"
    assert {"accuracy", "macro_f1"} <= set(report["metrics"])
    found, most = (report["verification"][name] for name in ("largest_absolute_difference", "tolerated"))
    assert set(found) == set(most) == WAYS
    outputs = read_probe(tmp_path / "bundle")[1]
    assert most == {way: tolerated(way, outputs) for way in WAYS}
    assert set(read_probe(tmp_path / "bundle")[0]) == {"pixel_values"}
    assert "length" not in report["latency_setting"]
    card = (tmp_path / "bundle/README.md").read_text()
    assert "processor = AutoImageProcessor.from_pretrained" in card
    assert load(tmp_path / "bundle").config.id2label == {0: "a", 1: "b"}


WAYS = {"compaction", "loader", "auto_class", "onnx"}


def test_an_encoder_decoder_is_pruned(tmp_path):
    folder = tiny.save(tiny_families.model("t5", "seq2seq"), tmp_path / "model")
    sources, targets = tiny.sentences(40), tiny.sentences(40, seed=1)
    rows = [{"source": source, "target": [target]} for source, target in zip(sources, targets, strict=True)]
    task = {"name": "seq2seq", "kind": "summarisation", "max_target_length": 8}
    # ONNX of encoder-decoders is tried with the families, and takes long.
    report = do(folder, rows, task, tmp_path, export={"formats": ["safetensors"]})
    assert report["headline_metric"] == "rouge_l"
    written = {"rouge_1", "rouge_2", "rouge_l"}
    assert next(iter(report["metrics"])) == "rouge_l"
    assert set(report["metrics"]) == written | {"nats_per_token", "perplexity", "nats_per_character"}
    assert report["target"]["achieved"] == pytest.approx(0.3, abs=0.01)
    assert set(report["verification"]["largest_absolute_difference"]) == WAYS - {"onnx"}
    inputs, _ = read_probe(tmp_path / "bundle")
    assert set(inputs) == {"input_ids", "attention_mask", "decoder_input_ids"}
    model, options = load(tmp_path / "bundle"), {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    del inputs["decoder_input_ids"]
    cached, whole = (model.generate(**inputs, use_cache=use_cache, **options) for use_cache in (True, False))
    assert cached.tolist() == whole.tolist()
