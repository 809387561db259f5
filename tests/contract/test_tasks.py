"""Whole jobs of tasks that read or write something else than the usual: what is reported, delivered and refused."""

import base64
import json

import pytest

from client.load import load
from core.engine.export.bundle import read_probe
from core.engine.pipeline import run
from core.engine.preparation import Inputs
from core.engine.verify import tolerated
from core.jobs.defaults import resolve
from core.jobs.spec import JobSpec
from tests import tiny, tiny_families, tiny_tasks


def do(folder, rows, task, tmp_path, **options) -> dict:
    """A job's report; its bundle lies in `tmp_path / "bundle"`."""
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bundle").mkdir()
    spec = {
        "model": {"source": "path", "path": str(folder)},
        "task": {"data": {"source": "path", "train": str(train)}, **task},
        "target": {"sparsity": 0.3},
        "training": {"num_train_epochs": 1, "precision": "fp32", "max_length": 16, "hidden_distillation": 0.1},
        **options,
    }
    run(resolve(JobSpec.model_validate(spec)), Inputs(folder, train), tmp_path / "bundle", lambda _: None)
    return json.loads((tmp_path / "bundle/report.json").read_text())


def test_an_image_model_is_pruned(tmp_path):
    folder = tmp_path / "model"
    tiny_families.model("vit", "image-classification").save_pretrained(folder)
    tiny_tasks.processor("image-classification").save_pretrained(folder)
    rows = [{"image": base64.b64encode(tiny_tasks.image(i)).decode(), "label": "ab"[i % 2]} for i in range(20)]
    report = do(folder, rows, {"name": "image-classification", "metric": "macro_f1"}, tmp_path)
    assert report["headline_metric"] == "macro_f1"
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
    assert set(report["metrics"]) == written | {"nats_per_token", "perplexity", "nats_per_character"}
    assert report["target"]["achieved"] == pytest.approx(0.3, abs=0.01)
    assert set(report["verification"]["largest_absolute_difference"]) == WAYS - {"onnx"}
    inputs, _ = read_probe(tmp_path / "bundle")
    assert set(inputs) == {"input_ids", "attention_mask", "decoder_input_ids"}
    model, options = load(tmp_path / "bundle"), {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    del inputs["decoder_input_ids"]
    cached, whole = (model.generate(**inputs, use_cache=use_cache, **options) for use_cache in (True, False))
    assert cached.tolist() == whole.tolist()
