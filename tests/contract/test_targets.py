"""Whole jobs to every target: what was asked for is what is delivered."""

import json
import shutil

import pytest

from client.load import load
from core.engine.anatomy import bind, count_parameters
from core.errors import NumericalError, UnreachableTargetError, VerificationError
from tests import tiny, tiny_families
from tests.whole_jobs import run_job

TEXTS = tiny.sentences(60)


@pytest.fixture
def job(tmp_path):
    """Runs a small job to a target: its summary; the bundle lies in `tmp_path / "bundle"`."""

    def start(target, make=tiny.bert, task="sentence-embedding", formats=(), heard=None, **training):
        model = tiny.save(make(), tmp_path / "model")
        rows = [{"text": text, "label": str(text.split()[0] in tiny.WORDS[:11])} for text in tiny.sentences(60)]
        training = {"num_train_epochs": 2, **training}
        export = {"formats": formats}
        return run_job(
            tmp_path, model, rows, {"name": task}, training=training, heard=heard, target=target, export=export
        ).summary

    return start


def test_so_many_parameters_stay_in_the_whole_model(job, tmp_path):
    dense = count_parameters(tiny.bert())
    summary = job({"parameters": dense - 10_000})
    left = count_parameters(load(tmp_path / "bundle"))
    assert summary["target"] == {
        "name": "parameters",
        "requested": dense - 10_000,
        "achieved": left,
        "unit": "parameters",
    }
    assert 0 <= dense - 10_000 - left < 97
    card = (tmp_path / "bundle/README.md").read_text()
    assert f"Asked for: parameters {dense - 10_000:,}; achieved: {left:,} (parameters)." in card


def test_the_weights_take_so_many_bytes(job, tmp_path):
    summary = job({"size_bytes": 80_000}, tiny.llama, "causal-lm")
    saved = (tmp_path / "bundle/model.safetensors").stat().st_size
    assert (summary["target"]["requested"], summary["target"]["achieved"]) == (80_000, saved)
    assert 80_000 - 4 * 97 - 16 * 40 < saved <= 80_000


@pytest.mark.parametrize("target", [{"parameters": 10**9}, {"size_bytes": 10**9}])
def test_a_model_that_is_small_enough_stays_whole_with_a_warning(job, target):
    heard = []
    summary = job(target, heard=heard, num_train_epochs=0.5)
    assert summary["sparsity"]["achieved"] == 0
    assert [message.message for message in heard if message.type == "warning"] == [
        "The model is as small as the target asks for already: nothing is removed."
    ]


@pytest.mark.parametrize(
    ("make", "task"),
    [
        pytest.param(tiny.bert, "sentence-embedding", marks=pytest.mark.thorough),
        pytest.param(tiny.llama, "causal-lm", marks=pytest.mark.thorough),
        (lambda: tiny_families.model("mixtral", "causal-lm"), "causal-lm"),
    ],
)
def test_a_model_of_exactly_so_many_bytes_stays_whole(job, make, task, tmp_path):
    """Also where the bundle is a little smaller than the model that came: of mixtral's experts it joins gate and up."""

    def asked(size):
        shutil.rmtree(tmp_path / "bundle", ignore_errors=True)
        return job({"size_bytes": size}, make, task, num_train_epochs=0.5)

    whole = asked(10**9)["size_bytes"]["pruned"]
    assert asked(whole)["sparsity"]["achieved"] == 0
    smaller = asked(whole - 1)
    assert smaller["sparsity"]["achieved"] > 0
    assert smaller["size_bytes"]["pruned"] < whole


@pytest.mark.parametrize("target", [{"parameters": 3000}, {"size_bytes": 3000}])
def test_what_is_out_of_reach_is_refused_before_training(job, target):
    heard = []
    with pytest.raises(UnreachableTargetError, match="least"):
        job(target, heard=heard)
    assert {message.phase for message in heard if message.type == "phase"} == {"loading"}


def test_a_metric_may_drop_so_far(job, tmp_path):
    """The widest budget takes the sparsest model; what is decided on and what is reported on are other rows."""
    summary = job({"max_metric_drop": 1.99}, num_train_epochs=0.5)
    target = summary["target"]
    assert (target["name"], target["requested"]) == ("max_metric_drop", 1.99)
    assert target["achieved"] == 1 - summary["metrics"]["cosine_to_dense"]["pruned"]
    assert [round(trial["sparsity"], 2) for trial in target["tried"]] == [0.5, 0.75, 0.85, 0.9, 0.95]
    assert target["validation"]["sparsity"] == target["tried"][-1]["sparsity"]
    assert summary["sparsity"]["achieved"] == pytest.approx(0.95, abs=0.002)
    report = json.loads((tmp_path / "bundle/report.json").read_text())
    assert target["validation"]["rows"] + report["task"]["held_out_rows"] + report["task"]["train_rows"] == 60


def test_rows_that_do_not_define_the_metric_are_refused_before_training(tmp_path):
    """The two that have another label are not among the validation rows; there is no correlation with a constant."""
    model, heard = tiny.save(tiny.bert_regression(), tmp_path / "model"), []
    rows = [{"text": text, "label": float(place < 2)} for place, text in enumerate(TEXTS)]
    with pytest.raises(NumericalError, match="not defined by the validation rows"):
        run_job(tmp_path, model, rows, {"name": "regression"}, target={"max_metric_drop": 0.01}, heard=heard)
    assert not any(message.step for message in heard if message.type == "progress")


def test_a_frontier_is_a_bundle_for_each_level_and_what_compares_them(job, tmp_path):
    summary = job({"frontier": [0.7, 0.4]}, tiny.llama, "causal-lm")
    bundle = tmp_path / "bundle"
    assert summary["target"]["requested"] == [0.4, 0.7]
    assert summary["target"]["achieved"] == pytest.approx([0.4, 0.7], abs=0.002)
    parameters = []
    for level, requested in zip(summary["frontier"], (0.4, 0.7), strict=True):
        folder = bundle / level["folder"]
        assert level["folder"] == f"sparsity-{requested}"
        parameters.append(bind(load(folder)).encoder_parameters)
        report = json.loads((folder / "report.json").read_text())
        assert parameters[-1] == level["parameters"]["encoder"]["pruned"] == report["parameters"]["encoder"]["pruned"]
        assert report["target"]["requested"] == requested
        assert level["metrics"] == report["metrics"]
        card = (folder / "README.md").read_text()
        assert f"Asked for: sparsity {requested}; achieved: {report['target']['achieved']:.4g} (share" in card
        # Of the data, not the blocks that texts are packed into.
        assert (report["task"]["train_rows"], report["task"]["held_out_rows"]) == (54, 6)
        assert f"[{level['folder']}]({level['folder']}/README.md)" in (bundle / "README.md").read_text()
    assert parameters[1] < parameters[0]
    with pytest.raises(
        VerificationError, match=r"bundle is the folder of a frontier.*: sparsity-0\.4, sparsity-0\.7\."
    ):
        load(bundle)
    assert "Asked for" not in (bundle / "README.md").read_text()
    assert (bundle / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert set(json.loads((bundle / "manifest.json").read_text())["files"]) == {
        "README.md",
        "frontier.png",
        "report.json",
    }


def test_a_model_is_as_fast_as_asked_for(job, monkeypatch):
    """On a machine whose time for a call is half fixed, and half as long as the encoder is large."""

    def speedup(task, sides, inputs, runtime):
        dense, pruned = (bind(sides[name].model).encoder_parameters for name in ("dense", "pruned"))
        return 1 / (0.5 + 0.5 * pruned / dense)

    monkeypatch.setattr("core.engine.targets.speedup.speedup", speedup)
    summary = job({"speedup": 1.25, "runtime": "torch"})
    target, latency = summary["target"], summary["latency_ms"]["torch"]
    assert (target["requested"], target["runtime"]) == (1.25, "torch")
    assert target["expected"] == pytest.approx(1.25, rel=0.02)
    assert summary["sparsity"]["achieved"] == pytest.approx(0.4, abs=0.02)
    assert [trial["speedup"] for trial in target["tried"]] == [pytest.approx(1.25, rel=0.02)]
    assert target["achieved"] == latency["dense"]["median"] / latency["pruned"]["median"]
