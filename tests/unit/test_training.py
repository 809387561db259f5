"""Pruning while training: what is removed stays removed, counts are exact, runs repeat."""

import math

import pytest
import torch
from transformers import GenerationConfig

from core.engine import narrowing
from core.engine.anatomy import bind
from core.engine.evaluate import Teacher
from core.engine.methods import Schedule, build_pruner
from core.engine.methods.gradual import GradualPruner
from core.engine.tasks import TASKS
from core.engine.training import _dropout, train
from core.errors import NumericalError
from core.jobs import methods, spec
from tests import tiny

DATA = {"source": "path", "train": "/data/train.jsonl"}
STEPS = 24


def run(sparsity=0.5, precision="fp32", seed=0, **options):
    """Prune a tiny Llama; returns the model, its pruner and what the listener heard."""
    part = spec.CausalLM.model_validate({"name": "causal-lm", "data": DATA})
    training = spec.Training(
        learning_rate=1e-2,
        distillation=0.5,
        per_device_train_batch_size=4,
        max_length=16,
        precision=precision,
        seed=seed,
    )
    task = TASKS["causal-lm"](part, training, tiny.tokenizer())
    model, features = tiny.llama(), task.features([{"text": text} for text in tiny.sentences(60)])
    anatomy = bind(model)
    method = methods.NeuroPrune(name="neuroprune", **options)
    schedule = Schedule(STEPS, 0.1, 0.4)
    pruner = build_pruner(anatomy, method, sparsity, schedule, seed)
    heard = []

    def listen(report):
        heard.append(report)
        for units, position in zip(anatomy.units, range(len(anatomy.units)), strict=True):
            removed = ~pruner.masks.kept(position)
            for part in units.slices:
                assert not part.by_unit(part.parameter.detach())[removed].any()

    train(
        task,
        model,
        features,
        steps=STEPS,
        stage="pruning",
        teacher=Teacher(task, tiny.llama(), features),
        pruner=pruner,
        listen=listen,
    )
    return model, pruner, heard


@pytest.mark.parametrize("wanted", [True, False, None])
def test_training_leaves_the_configs_as_they_were(wanted):
    model = tiny.llama()
    if wanted is None:
        del model.config.use_cache
    else:
        model.config.use_cache = wanted
    # Others than the tokenizer's.
    model.config.update({"pad_token_id": 9, "bos_token_id": 8, "eos_token_id": 7})
    model.generation_config = GenerationConfig.from_model_config(model.config)
    before = model.config.to_diff_dict(), model.generation_config.to_diff_dict()
    part = spec.CausalLM.model_validate({"name": "causal-lm", "data": DATA})
    task = TASKS["causal-lm"](part, spec.Training(learning_rate=1e-2, max_length=16), tiny.tokenizer())
    features = task.features([{"text": text} for text in tiny.sentences(4)])
    train(task, model, features, steps=1, stage="dense", listen=lambda _: None)
    assert (model.config.to_diff_dict(), model.generation_config.to_diff_dict()) == before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_removed_units_stay_zero_through_every_step(precision):
    _, pruner, heard = run(precision=precision)
    assert [report.step for report in heard] == list(range(1, STEPS + 1))
    sparsities = [report.sparsity for report in heard]
    assert sparsities == sorted(sparsities)
    assert sparsities[-1] == pytest.approx(0.5, abs=0.5 * 96 / 32_448)
    assert pruner.sparsity == sparsities[-1]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.33, 0.9])
def test_the_target_is_met_exactly(sparsity):
    model, pruner, _ = run(sparsity)
    assert pruner.masks.removed_parameters() / bind(model).encoder_parameters == pytest.approx(sparsity, abs=0.0015)


@pytest.fixture
def narrowed(monkeypatch):
    """How wide each block was made while training."""
    widths = []

    def spy(layer, part, kept):
        widths.append(len(kept))
        narrow(layer, part, kept)

    narrow = narrowing._narrow
    monkeypatch.setattr(narrowing, "_narrow", spy)
    return widths


def test_training_computes_with_what_is_left_and_then_with_everything_again(narrowed):
    model, pruner, _ = run(0.7, layer_floor=1.0)
    left = {int(pruner.masks.kept(mlp.units.position).sum()) for mlp in pruner.anatomy.mlps}
    assert left <= set(narrowed)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_training_that_fails_leaves_a_model_that_computes_with_everything(narrowed, monkeypatch):
    made = []
    make = tiny.llama
    monkeypatch.setattr(tiny, "llama", lambda: made.append(make()) or made[-1])
    monkeypatch.setattr(GradualPruner, "end_epoch", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(0.9)
    assert narrowed
    assert not any("forward" in vars(module) for model in made for module in model.modules())


def test_every_layer_keeps_its_share():
    _, pruner, _ = run(0.7, layer_floor=1.0)
    assert len({len(pruner.plan().kept(mlp.units)) for mlp in pruner.anatomy.mlps}) <= 2


def test_the_same_seed_gives_the_same_model():
    one, _, _ = run(seed=5)
    two, _, _ = run(seed=5)
    other, _, _ = run(seed=6)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_single_step_trains():
    """A learning rate that rises from zero does not begin there."""
    part = spec.CausalLM.model_validate({"name": "causal-lm", "data": DATA})
    task = TASKS["causal-lm"](part, spec.Training(learning_rate=1e-2, max_length=16), tiny.tokenizer())
    model, features = tiny.llama(), task.features([{"text": text} for text in tiny.sentences(10)])
    train(task, model, features, steps=1, stage="dense", listen=lambda _: None)
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny.llama().parameters(), strict=True))


def test_training_leaves_the_model_in_fp32():
    model, _, _ = run(precision="bf16")
    with torch.no_grad():
        assert model(torch.tensor([[4, 5, 6]])).logits.dtype == torch.float32
        assert "autocast" not in str(model.forward)


def test_strong_penalties_leave_zeros_and_no_penalty_leaves_none():
    for strength, expected in ((0.0, False), (5.0, True)):
        model, pruner, _ = run(0.3, alpha=strength, beta=strength)
        pruner.finish()
        attention = bind(model).layers[0].attentions[0]
        zeros = [(matrix.weight == 0).sum() for matrix in attention.projections]
        removed = ~pruner.masks.kept(0)
        masked = int(removed.sum()) * (2 + 1 + 1) * 8 * 32
        assert (int(sum(zeros)) > masked) is expected


def test_penalties_of_the_published_method_are_part_of_the_loss():
    sums = []
    for strength in (0.0, 0.1):
        model, _, _ = run(None, mode="faithful", alpha=strength, beta=strength, theta=0.0)
        sums.append(sum(float(matrix.weight.abs().sum()) for matrix in bind(model).matrices))
    assert sums[1] < 0.9 * sums[0]


def test_a_loss_that_is_not_finite_ends_the_training():
    part = spec.CausalLM.model_validate({"name": "causal-lm", "data": DATA})
    training = spec.Training(learning_rate=1e-2, max_length=16, precision="fp32")
    task = TASKS["causal-lm"](part, training, tiny.tokenizer())
    model = tiny.llama()
    features = task.features([{"text": text} for text in tiny.sentences(20)])
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="became nan at step 1"):
        train(task, model, features, steps=2, stage="pruning", teacher=None, pruner=None, listen=lambda _: None)


def test_dropout_comes_back_when_training_fails():
    model = tiny.bert()
    before = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert any(before)

    def diverge():
        with _dropout(model, wanted=False):
            assert not any(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))
            raise NumericalError("diverged")

    with pytest.raises(NumericalError):
        diverge()
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == before


@pytest.fixture
def losses(monkeypatch):
    """The task's loss of each batch, in order, and what else is to be done to it."""
    seen, spoilt = [], {}
    loss_of = TASKS["causal-lm"].loss

    def spy(self, *arguments):
        loss = loss_of(self, *arguments)
        seen.append(float(loss.detach()))
        return loss * spoilt.get(len(seen), 1.0)

    monkeypatch.setattr(TASKS["causal-lm"], "loss", spy)
    return seen, spoilt


def accumulate(rows, steps):
    """Train with three batches a step; returns what the listener heard, and how many batches an epoch has."""
    part = spec.CausalLM.model_validate({"name": "causal-lm", "data": DATA})
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "distillation": 0.0}
    training = spec.Training(learning_rate=1e-2, max_length=16, precision="fp32", **options)
    task = TASKS["causal-lm"](part, training, tiny.tokenizer())
    features = task.features([{"text": text} for text in tiny.sentences(rows)])
    heard = []
    train(task, tiny.llama(), features, steps=steps, stage="dense", listen=heard.append)
    return heard, math.ceil(len(features) / 4)


def test_the_loss_of_a_step_is_the_mean_of_all_its_batches(losses):
    """Those of a step are sorted by length: none of them speaks for all. An epoch's last step has fewer."""
    seen, _ = losses
    heard, batches = accumulate(rows=27, steps=4)
    assert batches == 4
    steps = [seen[0:3], seen[3:4], seen[4:7], seen[7:8]]
    assert [report.loss for report in heard] == pytest.approx([sum(step) / len(step) for step in steps])


@pytest.mark.parametrize("batch", [4, 5, 6])
def test_a_loss_that_is_not_finite_is_found_in_every_batch_of_a_step(losses, batch):
    _, spoilt = losses
    spoilt[batch] = float("nan")
    with pytest.raises(NumericalError, match="became nan at step 2"):
        accumulate(rows=36, steps=3)
