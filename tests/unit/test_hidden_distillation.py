"""Distances between hidden states against what transformers itself gives out as hidden states."""

import copy
import itertools
from functools import partial

import pytest
import torch
from torch import nn

from core.engine.anatomy import bind
from core.engine.evaluate import HiddenTeacher, Teacher
from core.engine.methods import Schedule, build_pruner
from core.engine.pruning import prune
from core.engine.tasks import TASKS
from core.jobs import methods, spec
from tests import tiny, tiny_families

DATA = {"source": "path", "train": "/data/train.jsonl"}
TASK_PARTS = {"regression": spec.Regression, "causal-lm": spec.CausalLM}
CASES = [
    ("regression", tiny.bert_regression),
    ("causal-lm", tiny.llama),
    ("regression", partial(tiny_families.model, "albert", "regression")),
]
"""Of the last, some layers are one, which is called several times."""
all_cases = pytest.mark.parametrize(("name", "make"), CASES, ids=["bert", "llama", "albert"])


def make_task(name, **training):
    options = {"per_device_train_batch_size": 4, "max_length": 16, "learning_rate": 1e-2, "precision": "fp32"}
    part = TASK_PARTS[name].model_validate({"name": name, "data": DATA})
    return TASKS[name](part, spec.Training(**options | training), tiny.tokenizer())


def features_of(task):
    return task.features([{"text": text, "label": i % 5} for i, text in enumerate(tiny.sentences(24))])


def states_after_layers(model, batch):
    """Of every layer; Llama gives out the last one only after the final norm, so the norm is taken away."""
    plain = copy.deepcopy(model.base_model)
    if hasattr(plain, "norm"):
        plain.norm = nn.Identity()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        return plain(**inputs, output_hidden_states=True).hidden_states[1:]


@all_cases
def test_the_distance_is_the_relative_squared_difference_of_real_tokens(name, make):
    task, dense, student = make_task(name), make(), tiny.randomised(make(), seed=1)
    features = features_of(task)
    batch = task.collate([features[i] for i in range(6)])
    batch["attention_mask"][0, 3:] = 0
    teacher = HiddenTeacher(task, bind(dense), bind(student))
    task.outputs(student, batch)
    found = teacher.distance(batch).item()
    distances = []
    for ours, wanted in zip(states_after_layers(student, batch), states_after_layers(dense, batch), strict=True):
        error = scale = 0.0
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            error += float((ours[row, :length] - wanted[row, :length]).double().square().sum())
            scale += float(wanted[row, :length].double().square().sum())
        distances.append(error / scale)
    assert len(distances) == dense.config.num_hidden_layers
    assert found == pytest.approx(sum(distances) / len(distances), rel=1e-5)


@all_cases
def test_answers_asked_for_in_between_do_not_count(name, make):
    """The dense model answers a batch for its outputs as well; cached for BERT, live for Llama."""
    task, dense, student = make_task(name), make(), tiny.randomised(make(), seed=1)
    features = features_of(task)
    answers = Teacher(task, dense, features)
    teacher = HiddenTeacher(task, bind(dense), bind(student))
    found = []
    for rows in ((0, 1, 2), (3, 4), (0, 1, 2)):
        batch = task.collate([features[i] for i in rows])
        task.outputs(student, batch)
        answers.answer(batch)
        found.append(teacher.distance(batch).item())
    assert found[0] == found[2] != found[1]


@all_cases
def test_an_equal_model_has_no_distance_and_another_learns(name, make):
    task, dense, student = make_task(name), make(), make()
    features = features_of(task)
    batch = task.collate([features[i] for i in range(4)])
    teacher = HiddenTeacher(task, bind(dense), bind(student))
    task.outputs(student, batch)
    assert teacher.distance(batch).item() == 0
    tiny.randomised(student, seed=2)
    task.outputs(student, batch)
    teacher.distance(batch).backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in bind(student).stack.parameters())
    assert all(p.grad is None for p in dense.parameters())


def hooks(model):
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


@all_cases
@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_pruning_with_hidden_states_differs_and_leaves_no_hooks(name, make, distillation):
    pruned = []
    for weight in (0.0, 1.0, 5.0):
        task = make_task(name, hidden_distillation=weight, distillation=distillation, gradient_accumulation_steps=2)
        model, dense = make(), make()
        pruner = build_pruner(bind(model), methods.Magnitude(name="magnitude"), 0.3, Schedule(6, 0.1, 0.4), 0)
        prune(task, pruner, dense, features_of(task), 6, lambda _: None)
        assert hooks(model) == hooks(dense) == []
        assert abs(pruner.sparsity - 0.3) <= 0.002
        pruned.append(model)
    for one, other in itertools.combinations(pruned, 2):
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
