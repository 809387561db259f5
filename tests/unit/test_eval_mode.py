"""Models that are in train mode, with dropout, answer as in eval mode wherever they are measured or learnt from."""

from types import SimpleNamespace

import pytest
import torch

from core.engine.anatomy import bind
from core.engine.evaluate import HiddenTeacher, Teacher, evaluate
from core.engine.methods import Schedule, build_pruner
from core.engine.pruning import prune
from core.engine.tasks import TASKS
from core.jobs import spec
from core.jobs.methods import Wanda
from tests import tiny


def dropping(make):
    """In train mode, half of everything is dropped."""
    model = make()
    model.config.attention_dropout = 0.5
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    return model.train()


def prepared(name, **options):
    """A task and rows for it; evaluated in batches of two."""
    part = SimpleNamespace(text_column="text")
    training = spec.Training(max_length=16, per_device_eval_batch_size=2, **options)
    task = TASKS[name](part, training, tiny.tokenizer())
    return task, task.features([{"text": text} for text in tiny.sentences(12)])


@pytest.mark.parametrize("is_training", [True, False])
def test_a_model_is_evaluated_in_eval_mode_and_left_in_its_own(is_training):
    task, rows = prepared("sentence-embedding")
    model = dropping(tiny.bert).train(is_training)
    expected = evaluate(task, tiny.bert(), rows).summaries
    for found, summary in zip(evaluate(task, model, rows).summaries, expected, strict=True):
        torch.testing.assert_close(found, summary)
    assert model.training is is_training


@pytest.mark.parametrize(("name", "make"), [("sentence-embedding", tiny.bert), ("causal-lm", tiny.llama)])
def test_teachers_answer_in_eval_mode(name, make):
    task, rows = prepared(name)
    batch = task.collate([rows[i] for i in range(4)])
    with torch.no_grad():
        expected = task.outputs(make(), batch)
    torch.testing.assert_close(Teacher(task, dropping(make), rows).answer(batch), expected, rtol=1e-4, atol=1e-5)
    student = make()
    hidden = HiddenTeacher(task, bind(dropping(make)), bind(student))
    task.outputs(student, batch)
    assert hidden.distance(batch).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("is_training", [True, False])
def test_calibration_passes_so_many_rows_in_eval_mode_and_leaves_the_models_own(is_training):
    """Once for each of three layers."""
    task, rows = prepared("sentence-embedding")
    model = dropping(tiny.bert).train(is_training)
    pruner = build_pruner(bind(model), Wanda(name="wanda", calibration_rows=5), 0.3, Schedule(1, 0.0, 0.0), 0)
    passed = []
    model.register_forward_pre_hook(
        lambda model, _, inputs: passed.append((len(inputs["input_ids"]), model.training)), with_kwargs=True
    )
    prune(task, pruner, tiny.bert(), rows, 0, lambda _: None)
    assert passed == [(2, False), (2, False), (1, False)] * 3
    assert model.training is is_training


def test_the_seed_says_which_rows_calibrate():
    drawn = []
    for seed in (0, 0, 1):
        task, rows = prepared("sentence-embedding", seed=seed)
        model = tiny.bert()
        read = set()
        model.register_forward_pre_hook(
            lambda _, __, inputs, read=read: read.update(map(tuple, inputs["input_ids"].tolist())), with_kwargs=True
        )
        pruner = build_pruner(bind(model), Wanda(name="wanda", calibration_rows=4), 0.3, Schedule(1, 0.0, 0.0), 0)
        prune(task, pruner, tiny.bert(), rows, 0, lambda _: None)
        drawn.append(read)
    assert drawn[0] == drawn[1] != drawn[2]
