"""What tasks learn from labels and from the dense model, against loops over single predictions."""

import math
from types import SimpleNamespace

import pytest
import torch

from core.engine.tasks import TASKS
from core.engine.training import _DistillingTrainer
from core.jobs import spec
from tests import tiny

NONE = -100
CLASSES = {"labels": [4, 0, 2]}
TOKENS = {"input_ids": [[1, 2, 3], [4, 0, 1]]}
HIDDEN = {"labels": [[NONE, 2, NONE], [4, NONE, NONE]], "attention_mask": [[1, 1, 1], [1, 1, 0]]}
TARGETS = {"labels": [[3, 1, NONE], [2, NONE, NONE]]}


def nats(logits):
    """Of each class."""
    total = math.log(sum(math.exp(logit) for logit in logits))
    return [total - logit for logit in logits]


def divergence(ours, taught, temperature):
    student, teacher = (nats([logit / temperature for logit in logits]) for logits in (ours, taught))
    return temperature**2 * sum(math.exp(-t) * (s - t) for s, t in zip(student, teacher, strict=True))


@pytest.mark.parametrize("share", [None, 0.3, 1.0])
@pytest.mark.parametrize(
    ("name", "batch", "labels", "taught_at", "temperature"),
    [
        ("sequence-classification", CLASSES, {(0,): 4, (1,): 0, (2,): 2}, [(0,), (1,), (2,)], 2.0),
        # The token before says which is next; after a row's last one there is none.
        ("causal-lm", TOKENS, {(0, 0): 2, (0, 1): 3, (1, 0): 0, (1, 1): 1}, [(0, 0), (0, 1), (1, 0), (1, 1)], 1.0),
        ("masked-lm", HIDDEN, {(0, 1): 2, (1, 0): 4}, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)], 1.0),
        ("seq2seq", TARGETS, {(0, 0): 3, (0, 1): 1, (1, 0): 2}, [(0, 0), (0, 1), (1, 0)], 1.0),
    ],
)
def test_labels_and_teacher_have_their_shares(name, batch, labels, taught_at, temperature, share):
    task = TASKS[name](None, spec.Training(distillation=share), tiny.tokenizer())
    batch = {key: torch.tensor(values) for key, values in batch.items()}
    shape, generator = (*next(iter(batch.values())).shape, 5), torch.Generator().manual_seed(0)
    ours, taught = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    hard = sum(nats(ours[place].tolist())[label] for place, label in labels.items()) / len(labels)
    soft = sum(divergence(ours[place].tolist(), taught[place].tolist(), temperature) for place in taught_at)
    expected = hard if share is None else (1 - share) * hard + share * soft / len(taught_at)
    assert task.loss(ours, batch, taught).item() == pytest.approx(expected)
    assert task.loss(ours, batch, None).item() == pytest.approx(hard)


def test_embeddings_learn_where_the_dense_ones_are_and_how_far_apart():
    ours, taught = torch.nn.functional.normalize(torch.randn(2, 4, 3, dtype=torch.float64), dim=-1)
    task = TASKS["sentence-embedding"](None, spec.Training(), tiny.tokenizer())
    point = sum(1 - float(ours[i] @ taught[i]) for i in range(4)) / 4
    pairs = sum(float(ours[i] @ ours[j] - taught[i] @ taught[j]) ** 2 for i in range(4) for j in range(4)) / 16
    assert task.loss(ours, {}, taught).item() == pytest.approx(point + pairs)


def test_the_teachers_answers_count_and_hidden_distances_and_penalties_are_added():
    task = SimpleNamespace(
        outputs=lambda model, batch: torch.tensor(1.0),
        loss=lambda outputs, batch, teacher: outputs + teacher,
        training=SimpleNamespace(hidden_distillation=0.5),
    )
    trainer = SimpleNamespace(
        task=task,
        teacher=SimpleNamespace(answer=lambda batch: torch.tensor(2.0)),
        hidden_teacher=SimpleNamespace(distance=lambda batch: torch.tensor(4.0)),
        pruner=SimpleNamespace(penalty=lambda: torch.tensor(0.25)),
        losses=[],
    )
    assert _DistillingTrainer.compute_loss(trainer, None, {}) == 1 + 2 + 0.5 * 4 + 0.25
    assert trainer.losses == [1 + 2 + 0.5 * 4]
