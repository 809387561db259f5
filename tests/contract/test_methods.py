"""Every method through the engine's own training, in bf16 with accumulated gradients, and whole jobs of some."""

import pytest
import torch

from client.load import load
from core.engine.anatomy import bind
from core.engine.compact import compact
from core.engine.pruning import prune
from core.engine.tasks import TASKS
from core.jobs import spec
from tests import tiny
from tests.pruning import SCHEDULE, STEPS, check_target, every_method, zeros
from tests.whole_jobs import run_job

DATA = {"source": "path", "train": "/data/train.jsonl"}
CASES = [
    pytest.param("regression", spec.Regression, tiny.bert_regression, id="bert", marks=pytest.mark.thorough),
    pytest.param("causal-lm", spec.CausalLM, tiny.llama, id="llama"),
]


@every_method
@pytest.mark.parametrize(("name", "part", "make"), CASES)
def test_what_is_gone_stays_gone_in_bf16_with_accumulated_gradients(case, name, part, make):
    training = spec.Training(
        learning_rate=1e-2,
        distillation=0.5,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_length=16,
        precision="bf16",
    )
    task = TASKS[name](part.model_validate({"name": name, "data": DATA}), training, tiny.tokenizer())
    features = task.features([{"text": text, "label": i % 5} for i, text in enumerate(tiny.sentences(60))])
    model = make()
    pruner = case.pruner(model, 0.4)
    heard, gone = [], zeros(pruner.anatomy)

    def listen(report):
        nonlocal gone
        heard.append(report.step)
        now = zeros(pruner.anatomy)
        if case.name != "smart" or report.step > SCHEDULE.last_step:
            assert not any(bool((before & ~after).any()) for before, after in zip(gone, now, strict=True))
        if report.step >= SCHEDULE.last_step:
            check_target(case, pruner, 0.4)
        gone = now

    prune(task, pruner, make(), features, STEPS, listen)
    assert heard == list(range(1, STEPS + 1))
    model.train(False)
    ids = torch.arange(4, 24).view(2, 10)
    with torch.no_grad():
        masked = model(ids).logits
        assert masked.dtype == torch.float32
        compact(pruner.anatomy, pruner.plan())
        assert float((model(ids).logits - masked).abs().max()) <= 1e-5


@pytest.fixture
def job(tmp_path):
    """Runs a whole job of a tiny model on labelled rows: its report; the bundle lies in `tmp_path / "bundle"`."""

    def start(make, task, method, target=None, formats=("onnx",), **training):
        model = tiny.save(make(), tmp_path / "model")
        rows = [{"text": text, "label": 5.0 * (text.split()[0] in tiny.WORDS[:11])} for text in tiny.sentences(200)]
        training = {"num_train_epochs": 2, "learning_rate": 5e-3, "per_device_train_batch_size": 8, **training}
        parts = {"method": method, "target": target, "export": {"formats": formats}}
        return run_job(tmp_path, model, rows, {"name": task}, training=training, **parts).report

    return start


def test_a_regression_is_pruned_to_a_bundle_that_loads_everywhere(job, tmp_path):
    method = {"name": "neuroprune", "in_rows": 0.25, "heads_kept": 7}
    report = job(
        tiny.bert_classifier,
        "regression",
        method,
        {"sparsity": 0.5},
        dense_epochs=20,
        num_train_epochs=4,
        learning_rate=2e-3,
    )
    assert report["headline_metric"] == "pearson"
    assert report["target"]["achieved"] == pytest.approx(0.5, abs=0.002)
    assert set(report["metrics"]) == {"pearson", "spearman"}
    assert report["metrics"]["pearson"]["dense"] > 0.5
    assert set(report["verification"]["largest_absolute_difference"]) >= {"loader", "auto_class", "onnx"}
    model = load(tmp_path / "bundle")
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    layers = [layer["attentions"][0] for layer in model.config.neuroprune["layers"]]
    assert sum(attention["heads"] for attention in layers) == 7
    # With 32 dimensions a gather costs more than it saves: the in-rows stay, as zeros.
    assert not any("inputs" in attention for attention in layers)
    assert report["sparsity"]["zero"] > 0


@pytest.mark.parametrize(
    ("make", "task"),
    [
        (tiny.bert_regression, "regression"),
        pytest.param(tiny.llama, "causal-lm", marks=pytest.mark.thorough),
    ],
)
def test_faithful_neuroprune_goes_from_end_to_end(job, make, task, tmp_path):
    """With a wide theta all heads of a layer but one are merged after the first epoch."""
    method = {"name": "neuroprune", "mode": "faithful", "theta": 10.0, "epsilon": 0.05}
    report = job(make, task, method, formats=())
    assert report["target"]["requested"] is None
    assert [layer["attentions"][0]["heads"]["kept"] for layer in report["layers"]] == [1, 1, 1]
    encoder = bind(load(tmp_path / "bundle"))
    assert report["parameters"]["encoder"]["pruned"] == encoder.encoder_parameters
    weights = torch.cat([matrix.weight.flatten().abs() for matrix in encoder.matrices])
    assert not ((weights > 0) & (weights < 0.05)).any()
