"""Entries of reports by hand: targets met, levels that others beat, what was removed of a layer and why."""

from types import SimpleNamespace

import pytest
import torch

from core.engine.anatomy import bind
from core.engine.plan import Plan
from core.engine.report.frontier import SHARED, build_frontier
from core.engine.report.structure import describe_structure
from core.engine.report.target import check_met
from core.errors import VerificationError
from core.jobs.targets import ParametersTarget, SizeTarget
from tests import pruning, tiny


@pytest.mark.parametrize(
    ("target", "unit"), [(ParametersTarget(parameters=1000), "parameters"), (SizeTarget(size_bytes=1000), "bytes")]
)
def test_one_more_than_was_asked_for_is_refused(target, unit):
    entry = {"requested": 1000, "achieved": 1000, "unit": unit}
    check_met(target, {"target": entry})
    with pytest.raises(VerificationError, match=rf"The model has 1,001 {unit}, more than 1,000\."):
        check_met(target, {"target": {**entry, "achieved": 1001}})


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_levels_with_no_fewer_parameters_and_no_better_metric_are_beaten(higher_is_better):
    """Of two alike, neither."""
    sign = 1 if higher_is_better else -1
    levels = [(90, 0.8), (80, 0.9), (70, 0.7), (70, 0.7), (70, 0.6), (75, 0.7)]
    reports = {
        str(number): {
            **dict.fromkeys((*SHARED, "warnings", "seconds", "sparsity", "size_bytes", "latency_ms", "flops")),
            "headline_metric": "quality",
            "target": {"requested": 0.5, "achieved": 0.5},
            "metrics": {"quality": {"higher_is_better": higher_is_better, "pruned": sign * quality}},
            "parameters": {"encoder": {"pruned": parameters}},
        }
        for number, (parameters, quality) in enumerate(levels)
    }
    beaten = [level["is_dominated"] for level in build_frontier(reports)["frontier"]]
    assert beaten == [True, False, False, False, True, True]


def test_what_was_removed_of_a_layer_is_counted_and_has_the_scores_of_what_went():
    """A head of 8 has 3 x 8 x 33 + 32 x 8 parameters, a neuron 33 + 32."""
    anatomy = bind(tiny.bert())
    plan = Plan(((0, 2, 3), tuple(range(10)), tuple(range(32))) * 3)
    scores = [torch.arange(units.count).float() for units in anatomy.units]
    pruner = SimpleNamespace(plan=lambda: plan, merged=[], last_scores=scores)
    layer = describe_structure(anatomy, pruner)[1]
    heads, neurons = layer["attentions"][0]["heads"], layer["mlps"][0]["neurons"]
    assert (heads["dense"], heads["kept"], heads["removed_parameters"]) == (4, 3, 1048)
    assert (neurons["dense"], neurons["kept"], neurons["removed_parameters"]) == (64, 10, 54 * 65)
    assert (heads["mean_score_removed"], heads["mean_score_kept"]) == (1.0, pytest.approx(5 / 3))
    assert (neurons["mean_score_removed"], neurons["mean_score_kept"]) == (36.5, 4.5)


def test_the_score_of_what_went_is_that_of_when_it_went(monkeypatch):
    pruner = pruning.Case("magnitude", "structured").pruner(tiny.bert_classifier(), 0.5)
    score, last = pruner.criterion.unit_scores, {}

    def listen(position, kept):
        scores = score(position, kept)
        last.update({(position, unit): scores[unit] for unit in kept.nonzero().flatten().tolist()})
        return scores

    monkeypatch.setattr(pruner.criterion, "unit_scores", listen)
    pruning.train(pruner)
    assert pruner.sparsity > 0
    assert last
    for (position, unit), value in last.items():
        assert pruner.last_scores[position][unit] == value
