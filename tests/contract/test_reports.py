"""What a whole run of the engine tells: its report, its card, its warnings and its errors."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from client.comparison import comparison
from client.load import load
from core.engine.anatomy import bind
from core.engine.compact import compact
from core.engine.methods import Schedule, build_pruner
from core.engine.report.structure import describe_structure
from core.errors import InvalidDataError
from core.jobs.methods import NeuroPrune
from tests import tiny
from tests.whole_jobs import Done, run_job, texts

ROWS = texts(40)


def embedding(folder: Path, rows: list[dict], parts: dict | None = None, **data) -> Done:
    """A small job on rows; its bundle lies in `folder / "bundle"`."""
    model = tiny.save(tiny.bert(), folder / "model")
    parts = parts or {"target": {"sparsity": 0.3}}
    names, export = {folder / "train.jsonl": "mine.JSONL"}, {"formats": ["safetensors"]}
    return run_job(folder, model, rows, {"name": "sentence-embedding"}, data=data, names=names, export=export, **parts)


@pytest.fixture
def job(tmp_path):
    return partial(embedding, tmp_path)


@pytest.fixture(scope="module")
def zeroed(tmp_path_factory):
    """A bundle and its summary; 60% of single weights went."""
    folder = tmp_path_factory.mktemp("zeroed")
    options = {"method": {"name": "magnitude", "granularity": "unstructured"}, "target": {"sparsity": 0.6}}
    return folder / "bundle", embedding(folder, ROWS, options).summary


def read_report(bundle):
    return json.loads((bundle / "report.json").read_text(), parse_constant=refuse)


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_a_metric_that_the_rows_do_not_define_is_left_out(job, tmp_path):
    done = job(ROWS, max_validation_rows=1)
    report = read_report(tmp_path / "bundle")
    assert list(report["metrics"]) == ["cosine_to_dense"]
    assert any("similarity_spearman" in warning for warning in done.warnings)
    table, warnings = (tmp_path / "bundle/README.md").read_text().split("## Warnings")
    assert "spearman" not in table
    assert report["warnings"] == done.warnings
    assert f"\n- {done.warnings[-1]}\n" in warnings
    assert [row for row in comparison(done.summary, "title").columns[0].cells if row.startswith("cosine")] == [
        "cosine to dense"
    ]


def test_a_bad_row_is_named_as_the_user_knows_it(job):
    rows = [{"text": text} for text in tiny.sentences(40)]
    rows[16] = {"text": None}
    with pytest.raises(InvalidDataError, match=r"^mine\.JSONL, line 17: column 'text' holds None") as caught:
        job(rows, max_train_rows=38)
    assert caught.value.param == "/task/data/train"


def test_removed_units_are_told_from_zeros(job, tmp_path):
    options = {"target": {"sparsity": 0.5}, "method": {"name": "neuroprune", "in_rows": 0.8, "heads_kept": 12}}
    summary = job(ROWS, options).summary
    sparsity, encoder = summary["sparsity"], summary["parameters"]["encoder"]
    target = {"name": "sparsity", "requested": 0.5, "achieved": sparsity["achieved"]}
    assert target.items() <= summary["target"].items()
    assert sparsity["removed"] == pytest.approx(1 - encoder["pruned"] / encoder["dense"])
    assert sparsity["achieved"] == pytest.approx(sparsity["removed"], abs=1e-3)
    card = (tmp_path / "bundle/README.md").read_text()
    assert "of its encoder removed\n" in card
    assert "gone from the weights, not set to zero" in card
    report = read_report(tmp_path / "bundle")
    for layer in report["layers"]:
        inputs = layer["attentions"][0]["inputs"]
        assert (inputs["dense"], inputs["kept"]) == (32, 6)
        assert len(inputs["kept_indices"]) == 6
    heads = report["topology"]["heads"]
    assert [graph["heads"] for graph in heads["similarity"]["pruned"]] == [4 - count for count in heads["removed"]]


def test_single_zeros_are_told_from_removed_units(zeroed):
    """Counted once more in the weights that were delivered."""
    bundle, summary = zeroed
    sparsity = summary["sparsity"]
    state = load(bundle).state_dict()
    projections = [w for name, w in state.items() if name.endswith("weight") and "encoder" in name and w.dim() == 2]
    zeros = sum(int((w == 0).sum()) for w in projections)
    assert sparsity["zero"] == pytest.approx(zeros / summary["parameters"]["encoder"]["dense"])
    assert sparsity["achieved"] == sparsity["removed"] + sparsity["zero"]
    assert sparsity["zero_in_dense"] == 0
    assert "zeros in the encoder" in comparison(summary, "title").columns[0].cells
    assert 0.6 - 1e-3 <= sparsity["achieved"] <= 0.65
    card = (bundle / "README.md").read_text()
    assert "gone from the weights, not set to zero" not in card
    assert "zero" in card.split("## Use")[0]
    assert read_report(bundle)["warnings"] == []
    assert "## Warnings" not in card


def test_what_the_models_cost_to_run_is_told_with_its_setting(zeroed):
    """Zeros are multiplied like everything else."""
    bundle, summary = zeroed
    assert summary["flops"]["pruned"] == summary["flops"]["dense"] > 0
    assert summary["flops_setting"] == {"batch": 1, "length": 64}
    assert set(summary["latency_setting"]) == {"batch", "length", "threads"}
    assert summary["throughput_setting"] == summary["latency_setting"] | {"batch": 8}
    assert summary["peak_memory_setting"] == {"batch": 8, "length": 64}
    assert summary["throughput_sequences_per_second"].keys() == summary["latency_ms"].keys()
    assert all(rate > 0 for sides in summary["throughput_sequences_per_second"].values() for rate in sides.values())
    assert set(summary["peak_memory_bytes"]) <= set(summary["latency_ms"])
    assert summary["size_bytes"]["pruned"] == (bundle / "model.safetensors").stat().st_size
    card = (bundle / "README.md").read_text()
    assert all(name in card for name in ("latency, torch", "throughput, torch", "FLOPs (billions)", "at batch 8"))


def test_the_topology_is_measured_and_drawn(zeroed):
    bundle, _ = zeroed
    topology = read_report(bundle)["topology"]
    degree = topology["degree"]
    assert degree["dense"]["mean"] > 95 > 60 > degree["pruned"]["mean"]
    assert sum(degree["dense"]["histogram"]) == sum(degree["pruned"]["histogram"]) == 3 * 64
    assert degree["dense"]["standard_deviation"] < degree["pruned"]["standard_deviation"]
    assert len(degree["pruned"]["rows"]["standard_deviation_by_layer"]) == 3
    assert set(map(len, topology["zero_share"]["pruned"].values())) == {3}
    assert max(map(max, topology["zero_share"]["dense"].values())) == 0
    assert max(map(max, topology["zero_share"]["pruned"].values())) > 0.4
    assert [graph["heads"] for graph in topology["heads"]["similarity"]["dense"]] == [4, 4, 4]
    assert (bundle / "topology.png").read_bytes().startswith(b"\x89PNG")
    assert "(topology.png)" in (bundle / "README.md").read_text()
    assert "topology.png" in json.loads((bundle / "manifest.json").read_text())["files"]


def test_a_pattern_has_no_requested_share(job):
    summary = job(ROWS, {"method": {"name": "magnitude", "granularity": "2:4"}}).summary
    assert summary["target"]["requested"] is None
    assert summary["sparsity"]["zero"] > 0.4


def test_zeros_of_in_rows_that_went_are_not_counted():
    """By a loop over what the compacted model holds."""
    anatomy = bind(tiny.bert())
    generator = torch.Generator().manual_seed(0)
    for matrix in anatomy.matrices:
        matrix.weight[torch.rand(matrix.weight.shape, generator=generator) < 0.3] = 0
    schedule = Schedule(1, 0.0, 0.0)
    method = NeuroPrune(name="neuroprune", in_rows=0.5, importance=False, alpha=0, beta=0)
    pruner = build_pruner(anatomy, method, 0.5, schedule, 0)
    pruner.step(1, 0.0)
    counted = [layer["zero_weights_in_kept"] for layer in describe_structure(anatomy, pruner)]
    compact(anatomy, pruner.plan())
    left = bind(anatomy.model)
    assert counted == [sum(int((m.weight == 0).sum()) for m in layer.matrices) for layer in left.layers]
    assert sum(counted) > 0
