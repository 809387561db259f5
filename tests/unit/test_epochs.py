"""How many steps a training takes, with which rows in which order, and what the trainer is told."""

from types import SimpleNamespace

import pytest

from core.engine.epochs import EpochSampler
from core.engine.tasks import TASKS
from core.engine.training import _arguments, total_steps, train
from core.jobs import spec
from tests import tiny

LENGTHS = [5 + i % 7 for i in range(50)]


@pytest.mark.parametrize(
    ("rows", "accumulation", "epochs", "steps"),
    [
        (100, 1, 1, 4),
        (96, 1, 1, 3),
        (100, 2, 1, 2),
        (100, 3, 1, 2),
        (100, 4, 2.5, 3),
        (100, 1, 0.3, 2),
        (1, 8, 0.01, 1),
        (100, 1, 0, 0),
    ],
)
def test_steps_are_those_of_whole_epochs_of_accumulated_batches(rows, accumulation, epochs, steps):
    training = spec.Training(per_device_train_batch_size=32, gradient_accumulation_steps=accumulation)
    assert total_steps(rows, training, epochs) == steps


def epoch(number, seed=0):
    sampler = EpochSampler(LENGTHS, 4, seed)
    sampler.set_epoch(number)
    return list(sampler)


def test_the_order_of_the_rows_follows_from_seed_and_epoch_alone():
    orders = [epoch(0), epoch(1), epoch(2), epoch(0, seed=1), epoch(1, seed=1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    assert orders[1] == epoch(1)


def test_every_epoch_of_a_training_has_all_rows_in_an_order_of_its_own():
    training = spec.Training(learning_rate=1e-3, per_device_train_batch_size=4, max_length=16, precision="fp32")
    task = TASKS["causal-lm"](SimpleNamespace(text_column="text"), training, tiny.tokenizer())
    features = task.features([{"text": text} for text in tiny.sentences(30)])
    seen, outputs = [], task.outputs
    task.outputs = lambda model, batch: seen.extend(batch["row"].tolist()) or outputs(model, batch)
    steps = total_steps(len(features), training, epochs=2)
    train(task, tiny.llama(), features, steps=steps, stage="dense", listen=lambda _: None)
    # A recovery goes on where it ends.
    train(task, tiny.llama(), features, steps=steps // 2, steps_before=steps, stage="recovery", listen=lambda _: None)
    epochs = [seen[start : start + len(features)] for start in range(0, len(seen), len(features))]
    assert [sorted(order) for order in epochs] == [list(range(len(features)))] * 3
    assert len({tuple(order) for order in epochs}) == 3


def test_the_trainer_is_told_what_was_asked_for(tmp_path):
    asked = {
        "learning_rate": 3e-4,
        "weight_decay": 0.03,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 3,
    }
    found = _arguments(spec.Training(precision="fp32", **asked), 100, 7, str(tmp_path))
    assert {name: getattr(found, name) for name in asked} == asked
    assert (found.max_steps, found.warmup_steps, found.seed, found.bf16) == (100, 5, 7, False)
    assert (found.lr_scheduler_type, found.max_grad_norm) == ("linear", 1.0)
    assert _arguments(spec.Training(precision="bf16", **asked), 19, 7, str(tmp_path)).warmup_steps == 0
