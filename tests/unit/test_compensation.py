"""What stays of a block takes over what goes of it: by brute force, on live models, and only where it was heard."""

import copy

import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import nn
from transformers.pytorch_utils import Conv1D

from core.engine.anatomy import bind
from core.engine.methods import gradual
from core.engine.methods.neuroprune import compensation
from core.engine.methods.neuroprune.compensation import Compensation, adapt_
from core.engine.methods.neuroprune.criterion import NeuroPruneCriterion
from core.engine.methods.neuroprune.redundancy import hand_over_
from core.engine.narrowing import narrowing
from core.engine.plan import Masks
from core.engine.units import Matrix
from core.errors import NumericalError
from core.jobs.methods import NeuroPrune
from tests import pruning, tiny, tiny_families

GONE, LEFT = torch.tensor([1, 4]), torch.tensor([0, 2, 3])


def projection(kind: str, *, bias: bool) -> Matrix:
    torch.manual_seed(0)
    module = Conv1D(6, 5) if kind == "Conv1D" else nn.Linear(5, 6, bias=bias)
    nn.init.normal_(module.weight)
    if module.bias is not None:
        nn.init.normal_(module.bias)
    return Matrix(module)


@pytest.mark.parametrize(("kind", "bias"), [("Linear", True), ("Linear", False), ("Conv1D", True)])
def test_outputs_move_as_little_as_they_can(kind, bias, monkeypatch):
    """Beside the weighted least-squares solution of all outputs at once, bias included."""
    monkeypatch.setattr(compensation, "damping_of", lambda inputs, covariance: 1e-9 * covariance.diagonal().mean())
    output = projection(kind, bias=bias)
    inputs, weights = torch.randn(50, 5) @ torch.randn(5, 5) + torch.randn(5), torch.rand(50) + 0.1
    before = output.module(inputs).detach()
    known = torch.cat([inputs[:, LEFT], torch.ones(50, 1)], 1) if bias else inputs[:, LEFT]
    root = weights.double().sqrt()[:, None]
    best = torch.linalg.lstsq(root * known, root * before).solution.float()

    adapt_(output, inputs, weights, torch.arange(5), GONE, LEFT)
    torch.testing.assert_close(output.weight[:, LEFT], best[: len(LEFT)].T, rtol=1e-3, atol=1e-3)
    if bias:
        torch.testing.assert_close(output.bias, best[-1], rtol=1e-3, atol=1e-3)


def test_a_mixture_of_others_is_replaced_by_them():
    output = projection("Linear", bias=True)
    inputs = torch.randn(5000, 5)
    inputs[:, 1] = 2 * inputs[:, 0] - inputs[:, 3] + 5
    inputs[:, 4] = inputs[:, 2]
    before = output.module(inputs).detach()
    plain = copy.deepcopy(output.module)
    adapt_(output, inputs, torch.ones(len(inputs)), torch.arange(5), GONE, LEFT)
    inputs[:, GONE] = 0
    moved, would_have = ((module(inputs) - before).square().mean() for module in (output.module, plain))
    assert moved < 1e-3 * would_have


def test_nothing_left_but_the_bias():
    """It takes over the mean."""
    output, inputs = projection("Linear", bias=True), torch.randn(40, 5) + 3
    weight, bias = output.weight.clone(), output.bias.clone()
    adapt_(
        output, inputs, torch.ones(len(inputs)), torch.arange(5), torch.arange(5), torch.tensor([], dtype=torch.long)
    )
    torch.testing.assert_close(output.bias, bias + weight @ inputs.mean(0))
    assert torch.equal(output.weight, weight)


def test_what_never_changes_takes_over_nothing():
    output = projection("Linear", bias=True)
    weight, bias = output.weight.clone(), output.bias.clone()
    adapt_(output, torch.full((40, 5), 7.0), torch.ones(40), torch.arange(5), GONE, LEFT)
    torch.testing.assert_close(output.bias, bias + weight[:, GONE].sum(1) * 7)
    torch.testing.assert_close(output.weight, weight)


@pytest.mark.parametrize("tokens", [20, 300, 3000])
def test_the_fewer_tokens_the_more_damping(tokens):
    """As scikit-learn has it."""
    inputs = torch.randn(tokens, 40, generator=torch.Generator().manual_seed(0)) @ torch.randn(
        40, 40, generator=torch.Generator().manual_seed(1)
    )
    inputs = inputs - inputs.mean(0)
    covariance = inputs.T @ inputs / tokens
    shrinkage = ledoit_wolf_shrinkage(inputs.double().numpy(), assume_centered=True)
    expected = max(compensation.LEAST_DAMPING, shrinkage / (1 - shrinkage)) * covariance.diagonal().mean()
    torch.testing.assert_close(compensation.damping_of(inputs, covariance), expected, rtol=1e-3, atol=0)


def test_activations_that_are_not_finite_are_refused():
    inputs = torch.randn(9, 5)
    inputs[3, 2] = torch.inf
    with pytest.raises(NumericalError, match="activations"):
        adapt_(projection("Linear", bias=False), inputs, torch.ones(len(inputs)), torch.arange(5), GONE, LEFT)


FAMILIES = [tiny.bert_classifier, tiny.llama, tiny_families.gpt2, tiny_families.gpt_neox, tiny_families.phi3]


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_a_model_answers_more_like_before(make, kind):
    """Half the units of a kind go from the first layer: its projection's outputs move less than without."""
    model = make()
    distances = {}
    for compensated in (True, False):
        anatomy = bind(copy.deepcopy(model))
        part = (anatomy.attentions if kind == "heads" else anatomy.mlps)[0]
        before = outputs_of(anatomy.model, part)
        kept = torch.ones(part.units.count, dtype=torch.bool)
        removed = torch.arange(0, part.units.count, 2)
        stay = kept.clone()
        stay[removed] = False
        listener = Compensation(anatomy)
        with listener.watching():
            pruning.loss_of(anatomy.model, 0).backward()
            if compensated:
                assert listener.take_over_(part.units.position, removed, kept, stay)
        # What was heard is forgotten.
        assert not listener.take_over_(part.units.position, removed, kept, stay)
        part.units.zero_(~stay)
        distances[compensated] = float((outputs_of(anatomy.model, part) - before).square().mean())
    assert distances[True] < distances[False]


def outputs_of(model, part):
    """What the part's output projection answers to the batch of `pruning.loss_of`."""
    found = []
    hook = part.output.module.register_forward_hook(lambda _, __, output: found.append(output.detach()))
    with torch.no_grad():
        pruning.loss_of(model, 0)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
def test_a_narrowed_model_hands_over_the_same(make):
    """While it trains, a model reads only what is kept; what takes over is the same."""
    results = []
    for is_narrowed, takes_over in ((False, True), (True, True), (True, False)):
        model = make()
        anatomy = bind(model)
        masks, listener = Masks(anatomy), Compensation(anatomy)
        parts = [*anatomy.attentions, *anatomy.mlps]
        for part in parts:
            masks.remove(part.units.position, torch.arange(part.units.count // 2))
        masks.hold()
        with narrowing(anatomy, masks) as narrow, listener.watching():
            if is_narrowed:
                narrow.update()
            pruning.loss_of(model, 0).backward()
            for part in parts if takes_over else []:
                kept = masks.kept(part.units.position)
                removed = kept.nonzero().flatten()[:1]
                stay = kept.clone()
                stay[removed] = False
                assert listener.take_over_(part.units.position, removed, kept, stay)
        results.append([p.detach().clone() for part in anatomy.mlps for p in part.output.module.parameters()])
    for whole, narrowed, before in zip(*results, strict=True):
        torch.testing.assert_close(narrowed, whole, rtol=1e-3, atol=1e-4)
        assert not torch.equal(narrowed, before)


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize(("compensation", "expected"), [(True, {2, 4, 6}), (False, set())])
def test_listens_only_in_steps_after_which_something_goes(compensation, expected, monkeypatch):
    monkeypatch.setattr(gradual, "REMOVALS", 2)
    model = tiny.bert_classifier()
    pruner = pruning.Case("neuroprune", "structured").pruner(model, 0.5, compensation=compensation)
    listened, optimizer = set(), pruning.adamw(model)
    for step in range(1, pruning.STEPS + 1):
        pruner.begin_step(step)
        if hooks_of(model):
            listened.add(step)
        pruning.loss_of(model, step).backward()
        pruner.observe()
        optimizer.step()
        pruner.step(step, pruning.LEARNING_RATE)
        assert not hooks_of(model)
    assert listened == expected
    pruner.begin_step(pruner.schedule.last_step)
    pruner.end_training()
    assert not hooks_of(model)


def test_an_expert_that_hardly_any_token_chose_is_left_alone():
    model = tiny_families.model("mixtral", "causal-lm")
    expert = bind(model).mixtures[0].mlps[0]
    kept, before = torch.ones(expert.units.count, dtype=torch.bool), expert.output.weight.clone()
    removed = torch.tensor([0])
    stay = kept.clone()
    stay[removed] = False
    listener = Compensation(bind(model))
    for tokens, known in ((0, False), (2, False), (3, True)):
        with listener.watching():
            expert.output.module(torch.randn(tokens, expert.units.count)).square().sum().backward()
            assert listener.take_over_(expert.units.position, removed, kept, stay) is known
        assert torch.equal(expert.output.weight, before) is not known


def test_padding_and_what_no_answer_depends_on_count_nothing():
    """All that a classifier reads of a text's last layer is its first token."""
    model = tiny.bert_classifier()
    anatomy = bind(model)
    ids = torch.randint(4, tiny.VOCABULARY, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    gradients = []
    for part in (anatomy.mlps[0], anatomy.mlps[-1]):
        listener = Compensation(anatomy)
        with listener.watching():
            model(input_ids=ids, attention_mask=mask).logits.square().sum().backward()
            (reading,) = listener._readings[part.units.position]
            gradients.append(reading.weights.view(2, 7) > 0)
    assert torch.equal(gradients[0], mask.bool())
    assert torch.equal(gradients[1], torch.eye(7, dtype=torch.bool)[:1].expand(2, 7))


def test_tokens_that_count_nothing_dampen_no_less():
    """With padding or without, so many tokens tell the same."""
    weights = []
    for padding in (0, 50):
        anatomy = bind(tiny.bert_classifier())
        mlp, listener = anatomy.mlps[0], Compensation(anatomy)
        kept = torch.ones(mlp.units.count, dtype=torch.bool)
        read = torch.randn(20 + padding, mlp.units.count, generator=torch.Generator().manual_seed(0))
        with listener.watching():
            mlp.output.module(read)[:20].square().sum().backward()
            assert listener.take_over_(mlp.units.position, torch.tensor([0]), kept, torch.arange(len(kept)) > 0)
        weights.append(mlp.output.weight)
    torch.testing.assert_close(*weights)


def test_tokens_count_by_their_weight():
    """What a few heavy tokens ask for is what comes out, whatever all the others ask for."""
    generator = torch.Generator().manual_seed(0)
    heavy, light = (
        torch.randn(count, 5, generator=generator) @ torch.randn(5, 5, generator=generator) for count in (60, 540)
    )
    inputs, weights = torch.cat([heavy, light]), torch.cat([torch.ones(60), torch.full((540,), 1e-6)])
    few, all_of_them = (projection("Linear", bias=False) for _ in range(2))
    adapt_(few, heavy, torch.ones(60), torch.arange(5), GONE, LEFT)
    adapt_(all_of_them, inputs, weights, torch.arange(5), GONE, LEFT)
    assert (few.weight - all_of_them.weight).abs().max() < 0.3 * (
        few.weight - projection("Linear", bias=False).weight
    ).abs().max()


@pytest.mark.parametrize("kind", ["albert", "t5", "deberta-v2/shared", "mixtral"])
def test_every_kind_of_block_takes_over(kind):
    """Shared layers, cross attentions, gated MLPs and experts: what is heard fits what reads it."""
    model = tiny_families.model(kind, "seq2seq" if kind == "t5" else "causal-lm" if kind == "mixtral" else "masked-lm")
    anatomy = bind(model)
    listener = Compensation(anatomy)
    taken = {"heads": 0, "neurons": 0}
    with listener.watching():
        pruning.loss_of(model, 0).backward()
        for part in (*anatomy.attentions, *anatomy.mlps):
            kept = torch.ones(part.units.count, dtype=torch.bool)
            before = part.output.weight.clone()
            if listener.take_over_(part.units.position, torch.tensor([0]), kept, torch.arange(len(kept)) > 0):
                taken[part.units.kind] += 1
                columns = part.units.writes[0].layout.index(torch.tensor([0]))
                changed = (part.output.weight != before).any(0)
                assert changed.any()
                assert not changed[columns].any()
    assert taken["heads"] == len(anatomy.attentions)
    assert taken["neurons"] >= len(anatomy.mlps) / 2


def test_accumulated_batches_count_together():
    """Two halves of a batch, one after the other, are as good as the whole."""
    ids, biases = torch.randint(4, tiny.VOCABULARY, (4, 9)), []
    for halves in ((ids,), ids.split(2)):
        model = tiny.bert_classifier()
        (mlp, *_) = bind(model).mlps
        listener = Compensation(bind(model))
        with listener.watching():
            for half in halves:
                (model(input_ids=half).logits.square().sum()).backward()
            kept = torch.ones(mlp.units.count, dtype=torch.bool)
            assert listener.take_over_(mlp.units.position, torch.tensor([1, 3]), kept, torch.arange(len(kept)) > 4)
        biases.append(mlp.output.bias.clone())
    torch.testing.assert_close(*biases, rtol=1e-3, atol=1e-4)


def test_redundant_heads_are_merged_and_the_others_compensated():
    """Head 0 is head 1 over again, head 2 is like none: together they go as they would one after the other."""
    weights = []
    for by_hand in (True, False):
        model = tiny.bert_classifier()
        anatomy = bind(model)
        attention = anatomy.attentions[0]
        for part in attention.units.reads:
            part.values[0] = part.values[1]
        options = NeuroPrune(name="neuroprune", compensation=True, theta=1e-4)
        criterion = NeuroPruneCriterion(anatomy, options)
        kept, stay = torch.ones(4, dtype=torch.bool), torch.tensor([False, True, False, True])
        with criterion.watching():
            pruning.loss_of(model, 0).backward()
            if by_hand:
                hand_over_(attention, 0, 1)
                assert criterion.compensation.take_over_(attention.units.position, torch.tensor([2]), kept, stay)
            else:
                merged = criterion.hand_over(attention.units.position, torch.tensor([0, 2]), kept)
                assert merged == [(0, 1)]
        weights.append(torch.cat([attention.output.weight.flatten(), attention.output.bias]))
    assert torch.equal(*weights)
