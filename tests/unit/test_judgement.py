"""How much worse a pruned model is than the dense one, where more is better and where less is."""

from types import SimpleNamespace

import pytest
import torch

from core.engine.anatomy import bind
from core.engine.evaluate import evaluate
from core.engine.report.target import drop
from core.engine.targets.metric_drop import WithinDrop, drop_of, judge
from core.engine.tasks import TASKS, Metric
from core.jobs import spec
from tests import tiny

DATA = {"source": "path", "train": "/data/train.jsonl"}


@pytest.mark.parametrize(
    ("part", "make", "metric"),
    [
        (spec.SentenceEmbedding, tiny.bert, "cosine_to_dense"),
        (spec.CausalLM, tiny.llama, "nats_per_token"),
    ],
)
def test_a_ruined_model_is_judged_by_its_own_answers(part, make, metric):
    """To the validation rows, as the dense one is; the held-out ones are not looked at."""
    name = part.model_fields["name"].annotation.__args__[0]
    task = TASKS[name](
        part.model_validate({"name": name, "data": DATA}), spec.Training(max_length=16), tiny.tokenizer()
    )
    rows, others = (task.features([{"text": text} for text in tiny.sentences(80, seed)]) for seed in (0, 1))
    model, ruined = make(), tiny.randomised(make(), seed=1, deviation=2.0)
    prepared = SimpleNamespace(task=task, model=model, validation=rows, held_out=others)
    course = object.__new__(WithinDrop)
    course._ladder, course._most_drop = SimpleNamespace(prepared=prepared), 0.1
    dense = course._evaluate_dense()
    for found, expected in zip(dense.summaries, evaluate(task, model, rows).summaries, strict=True):
        assert torch.equal(found, expected)
    judgement = judge(prepared, dense, SimpleNamespace(anatomy=bind(ruined), sparsity=0.5), most_drop=0.1)
    worse = evaluate(task, ruined, rows, dense.summaries).metrics[metric].value - dense.metrics[metric].value
    assert judgement["drop"] == abs(worse) > 0.1
    assert (judgement["sparsity"], judgement["is_good"]) == (0.5, False)


def test_what_a_metric_loses_is_positive_whichever_way_is_better():
    assert drop_of(Metric(0.75, "share", True), Metric(0.5, "share", True)) == 0.25
    assert drop_of(Metric(2.0, "nats", False), Metric(2.5, "nats", False)) == 0.5
    assert drop({"dense": 0.75, "pruned": 0.5, "higher_is_better": True}) == 0.25
    assert drop({"dense": 2.0, "pruned": 2.5, "higher_is_better": False}) == 0.5
