"""Mixtures of experts: taken apart and put together, a router that leaves out what is gone, exact budgets."""

import copy

import pytest
import torch
from pydantic import ValidationError

from core.engine.anatomy import bind
from core.engine.compact import compact
from core.engine.export.executorch import check_lowerable
from core.engine.methods.budget import Budget
from core.engine.plan import Masks
from core.engine.structures import give_structure, join_experts
from core.engine.units import KINDS
from core.errors import InvalidInputError, UnreachableTargetError
from core.families import family_of
from core.jobs.spec import JobSpec
from tests import tiny_families
from tests.pruning import SCHEDULE, Case, check_target, loss_of, train

EXPERTS, PER_TOKEN, NEURONS, HIDDEN = 3, 2, 48, 32
"""Of the tiny models."""

GRADUAL = [Case(name, "structured") for name in ("neuroprune", "importance", "magnitude", "l1", "random")]
every_gradual_method = pytest.mark.parametrize("case", GRADUAL, ids=lambda case: case.name)


def mixtral():
    return tiny_families.model("mixtral", "causal-lm", deviation=0.2)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(4, 20).reshape(2, 8)).logits


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "qwen3_moe/mixed"])
def test_experts_are_taken_apart_and_put_together(kind):
    model = tiny_families.model(kind, "causal-lm")
    expected, weights = logits(model), copy.deepcopy(model.state_dict())
    anatomy = bind(model)
    assert float((logits(model) - expected).abs().max()) <= 1e-5
    assert {len(mixture.mlps) for mixture in anatomy.mixtures} == {EXPERTS}
    join_experts(anatomy)
    assert torch.equal(logits(model), expected)
    found = model.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def reference(model, layer: int, gone: int):
    """The model with a router that computes by hand: the logit of the expert that is gone is minus infinity."""
    router = model.model.layers[layer].mlp.gate

    def choose(module, args, output):
        values = torch.nn.functional.linear(args[0].reshape(-1, HIDDEN), module.weight)
        values[:, gone] = -torch.inf
        weights, chosen = values.softmax(-1).topk(PER_TOKEN)
        return values, weights / weights.sum(-1, keepdim=True), chosen

    router.register_forward_hook(choose)
    return model


@pytest.mark.parametrize("gone", range(EXPERTS))
def test_an_expert_that_is_gone_is_not_routed_to(gone):
    expected = logits(reference(mixtral(), 1, gone))
    model = mixtral()
    dense, anatomy = logits(model), bind(model)
    masks = Masks(anatomy)
    masks.remove(anatomy.mixtures[1].units.position, torch.tensor([gone]))
    assert float((logits(model) - expected).abs().max()) <= 1e-5
    assert float((dense - expected).abs().max()) > 1e-3
    assert masks.removed_parameters() == HIDDEN * (3 * NEURONS + 1)
    compact(anatomy, masks.plan())
    assert float((logits(model) - expected).abs().max()) <= 1e-5


def test_restored_masks_leave_out_the_same_experts():
    model = mixtral()
    anatomy = bind(model)
    masks = Masks(anatomy)
    masks.remove(anatomy.mixtures[0].units.position, torch.tensor([2]))
    restored = mixtral()
    Masks(bind(restored)).load_state_dict(masks.state_dict())
    assert torch.equal(logits(restored), logits(model))


def test_experts_learn_though_one_is_gone():
    model = mixtral()
    anatomy = bind(model)
    Masks(anatomy).remove(anatomy.mixtures[0].units.position, torch.tensor([0]))
    loss_of(model, 0).backward()
    gradient = anatomy.mixtures[0].router.weight.grad
    assert gradient.any(1).tolist() == [False, True, True]


@every_gradual_method
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe/mixed"])
def test_experts_heads_and_neurons_meet_one_budget(case, kind):
    model = tiny_families.model(kind, "causal-lm", deviation=0.2)
    pruner = case.pruner(model, 0.4, experts=0.3)
    total = sum(mixture.units.count for mixture in pruner.anatomy.mixtures)
    train(pruner)
    pruner.finish()
    check_target(case, pruner, 0.4)
    removed = pruner.masks.removed("experts")
    assert sum(removed) == int(0.3 * total + 0.5)
    assert max(removed) <= EXPERTS - PER_TOKEN
    assert sum(pruner.masks.removed("heads")) > 0
    expected = logits(model)
    give_structure("ragged", pruner.anatomy, pruner.plan())
    assert float((logits(model) - expected).abs().max()) <= 1e-5


def test_a_budget_counts_on_the_way_as_masks_do():
    anatomy = bind(mixtral())
    budget = Budget.of(anatomy, 0.5, experts=0.3)
    counts = [budget.counts(step / 40) for step in range(41)]
    assert all(now[kind] <= counts[-1][kind] for now in counts for kind in now)
    assert all(now["neurons"] >= now["experts"] * NEURONS for now in counts)
    assert counts[-1]["experts"] == 3
    assert abs(budget.achieved(counts[-1]) - 0.5) * anatomy.encoder_parameters <= 1.5 * HIDDEN


def test_neurons_of_experts_that_are_gone_count_once():
    """In a budget that goes on from where an earlier one ended: nothing but the difference is still to go."""
    pruner = Case("random", "structured").pruner(mixtral(), 0.4, experts=0.3)
    train(pruner)
    further = Budget.of(bind(mixtral()), 0.45, experts=0.3, gone=pruner.masks)
    assert further.counts(0.0) == {kind: sum(pruner.masks.removed(kind)) for kind in KINDS}
    assert abs(further.achieved(further.counts(1.0)) - 0.45) <= 0.001


def test_the_least_important_expert_goes():
    model = mixtral()
    for layer in model.model.layers:
        layer.mlp.experts.down_proj.data[1] *= 1e-3
        layer.mlp.experts.gate_up_proj.data[1] *= 1e-3
    pruner = Case("magnitude", "structured").pruner(model, 0.4, SCHEDULE, experts=0.34)
    train(pruner)
    kept = [pruner.plan().kept(mixture.units) for mixture in pruner.anatomy.mixtures]
    assert kept == [(0, 2)] * 3


def test_experts_that_cannot_go_are_refused():
    with pytest.raises(UnreachableTargetError, match=r"6 of 9 experts cannot go: .* 2 in every layer, so 3") as caught:
        Budget.of(bind(mixtral()), 0.7, experts=0.7)
    assert caught.value.param == "/method/experts"
    with pytest.raises(UnreachableTargetError, match="This Llama model has no experts"):
        Budget.of(bind(tiny_families.model("llama", "causal-lm")), 0.5, experts=0.1)
    with pytest.raises(UnreachableTargetError, match=r"0\.0500 cannot be met; nearest is 0\.2"):
        Budget.of(bind(mixtral()), 0.05, experts=0.3)


def test_no_family_with_experts_is_exported_to_executorch():
    check_lowerable(family_of("llama"))
    with pytest.raises(
        InvalidInputError, match="Qwen3 MoE models cannot be exported to ExecuTorch, only to safe"
    ) as caught:
        check_lowerable(family_of("qwen3_moe"))
    assert caught.value.param == "/export/formats"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"structure": "masked"}, "/structure: masked is not possible with experts"),
        ({"structure": "uniform"}, "/structure: uniform is not possible with experts"),
        ({"method": {"granularity": "unstructured"}}, "experts cannot be set with granularity unstructured"),
        ({"method": {"mode": "faithful"}, "target": None}, "experts cannot be set with mode faithful"),
    ],
    ids=["masked", "uniform", "single weights", "faithful"],
)
def test_options_that_contradict_experts_are_refused(change, message):
    job = {
        "model": {"source": "path", "path": "/models/mixtral"},
        "task": {"name": "causal-lm", "data": {"source": "builtin", "name": "python-docs"}},
        "target": {"sparsity": 0.5},
        **change,
        "method": {"name": "neuroprune", "experts": 0.25, **change.get("method", {})},
    }
    with pytest.raises(ValidationError, match=message):
        JobSpec.model_validate(job)
