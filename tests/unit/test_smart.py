"""SMART on tiny models: gates do what they say, the search ends in an exact selection, and goes on from its state."""

import copy

import numpy as np
import pytest
import torch

from core.engine.anatomy import bind
from core.engine.methods import Schedule, build_pruner
from core.engine.methods.budget import Budget
from core.engine.tasks import TASKS
from core.engine.training import train
from core.errors import NumericalError, UnreachableTargetError, VerificationError
from core.jobs import methods, spec
from tests import tiny
from tests.pruning import zero_weights

STEPS = 30
SCHEDULE = Schedule(STEPS, 0.1, 0.4)
GRANULARITIES = ["structured", "unstructured"]
MODELS = {"llama": tiny.llama, "bert": tiny.bert}


def smart(model, sparsity=0.5, schedule=SCHEDULE, **options):
    return build_pruner(bind(model), methods.Smart(name="smart", **options), sparsity, schedule, 0)


class Loop:
    """A plain training loop around a pruner, one call a step."""

    def __init__(self, model, pruner, accumulate=1):
        self.model, self.pruner, self.accumulate = model, pruner, accumulate
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        self.generator = torch.Generator().manual_seed(1)
        self.step = 0

    def backward(self):
        self.optimizer.zero_grad()
        for _ in range(self.accumulate):
            tokens = torch.randint(4, tiny.VOCABULARY, (4, 6), generator=self.generator)
            loss = self.model(tokens)[0].float().square().mean() / self.accumulate
            loss.backward()

    def advance(self, steps):
        for _ in range(steps):
            self.step += 1
            self.backward()
            self.pruner.observe()
            self.optimizer.step()
            self.pruner.step(self.step, 3e-3)


def budget_error(pruner, step):
    """By how much the closed gates are worth more or less than what may be kept after a step, as a share of all."""
    costs = torch.ones_like(pruner.scores) if pruner.candidates.costs is None else pruner.candidates.costs
    kept = float(costs.sum()) - SCHEDULE.reached(step) * 0.5 * pruner.anatomy.encoder_parameters
    return abs(float((costs * pruner.gates.values).sum()) - kept) / float(costs.sum())


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_search_keeps_its_budget_and_ends_in_an_exact_selection(granularity, model, accumulate):
    model = MODELS[model]()
    pruner = smart(model, granularity=granularity)
    loop = Loop(model, pruner, accumulate)
    stages = []
    for step in range(1, STEPS + 1):
        loop.advance(1)
        stages.append(pruner.stage)
        if pruner.stage == "search":
            assert budget_error(pruner, step) < 1e-6
            assert pruner.sparsity == 0
        if pruner.stage == "hold":
            selected = [units.clone() for units in map(pruner.masks.kept, range(len(pruner.anatomy.units)))]
            assert pruner.sparsity == pytest.approx(0.5, abs=0.5 * 145 / pruner.anatomy.encoder_parameters)
    assert stages == ["initialise"] * 2 + ["search"] * 15 + ["hold"] * 13
    assert all(torch.equal(pruner.masks.kept(i), units) for i, units in enumerate(selected))
    pruner.finish()


def test_units_that_were_not_selected_are_zero_and_stay_so():
    model = tiny.bert()
    pruner = smart(model)
    loop = Loop(model, pruner)
    loop.advance(SCHEDULE.last_step)
    for _ in range(5):
        for position, units in enumerate(pruner.anatomy.units):
            removed = ~pruner.masks.kept(position)
            for part in units.slices:
                by_unit = part.by_unit(part.parameter.detach())
                assert not by_unit[removed].any()
                assert by_unit[~removed].any()
        loop.advance(1)
    assert sum(pruner.masks.removed("neurons")) > 0


def test_exactly_so_many_weights_are_zero():
    model = tiny.llama()
    pruner = smart(model, 0.37, granularity="unstructured")
    Loop(model, pruner).advance(STEPS)
    assert zero_weights(pruner.anatomy) == int(0.37 * pruner.anatomy.encoder_parameters + 0.5)
    pruner.finish()


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.33, 0.7, 0.95])
def test_targets_are_met_to_half_a_neuron(sparsity):
    model = tiny.llama()
    pruner = smart(model, sparsity)
    Loop(model, pruner).advance(STEPS)
    half = 0.5 * pruner.anatomy.layers[0].mlps[0].units.cost / pruner.anatomy.encoder_parameters
    assert pruner.sparsity == pytest.approx(sparsity, abs=half)
    pruner.finish()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_closed_gates_scale_what_the_units_pass_on(granularity):
    model = tiny.bert()
    pruner = smart(model, granularity=granularity)
    raw = [matrix.weight.clone() for matrix in pruner.anatomy.matrices]
    values = torch.rand(len(pruner.scores), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pruner.gates.close(values)
    expected = iter(values.float())
    for i, (before, matrix) in enumerate(zip(raw, pruner.anatomy.matrices, strict=True)):
        gates = torch.ones_like(before)
        if granularity == "unstructured":
            gates = torch.stack([next(expected) for _ in range(before.numel())]).view_as(before)
        elif i % 6 in (3, 5):  # the attention's output, the MLP's output
            block = 8 if i % 6 == 3 else 1
            for column in range(0, before.shape[1], block):
                gates[:, column : column + block] = next(expected)
        torch.testing.assert_close(matrix.weight, before * gates, rtol=0, atol=0)
    assert next(expected, None) is None
    pruner.gates.open()
    assert all(torch.equal(before, m.weight) for before, m in zip(raw, pruner.anatomy.matrices, strict=True))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_slopes_match_finite_differences_of_the_loss(granularity):
    model = tiny.llama().double()
    pruner = smart(model, granularity=granularity)
    loop = Loop(model, pruner)
    tokens = torch.randint(4, tiny.VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(1))
    values = 0.2 + 0.8 * torch.rand(len(pruner.scores), generator=torch.Generator().manual_seed(0)).double()

    def loss(values):
        pruner.gates.close(values)
        with torch.no_grad():
            result = float(model(tokens)[0].float().double().square().mean())
        pruner.gates.open()
        return result

    pruner.gates.close(values)
    loop.optimizer.zero_grad()
    model(tokens)[0].square().mean().backward()
    slopes = pruner.gates.open()
    model.zero_grad()
    for unit in range(0, len(values), len(values) // 12):
        step = torch.zeros_like(values)
        step[unit] = 1e-2
        difference = (loss(values + step) - loss(values - step)) / 2e-2
        assert slopes[unit].item() == pytest.approx(difference, rel=2e-3, abs=1e-5)


def test_the_optimiser_sees_the_raw_weights_gradients():
    """By the chain rule, from a model that multiplies by its gates itself."""
    model = tiny.bert()
    pruner = smart(model)
    values = torch.linspace(0, 1, len(pruner.scores), dtype=torch.float64)
    output = pruner.anatomy.layers[0].attentions[0].output.module
    gates = values[:4].float().repeat_interleave(8)
    tokens = torch.arange(4, 20).view(2, 8)
    raw = output.weight.detach().clone().requires_grad_()
    pruner.gates.close(values)
    model(tokens)[0].square().mean().backward()
    name = next(name for name, module in model.named_modules() if module is output)
    call = torch.func.functional_call(model, {f"{name}.weight": raw * gates}, (tokens,))
    call[0].square().mean().backward()
    pruner.gates.open()
    torch.testing.assert_close(output.weight.grad, raw.grad)
    assert not output.weight.grad[:, :8].any()


def test_units_that_lower_the_loss_gain_and_those_that_raise_it_lose():
    """The search finds what importance at the start could not know: one neuron of a layer must not be there."""
    model = tiny.bert()
    pruner = smart(model, 0.3, Schedule(60, 0.05, 0.2), score_learning_rate=0.1)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    output = pruner.anatomy.layers[1].mlps[0].output.module
    output.weight.requires_grad_(True)
    loss_of = torch.ones(64)
    loss_of[:32] = -1
    for step in range(1, 61):
        # Opening a gate of the first half by df changes the loss by -df, of the second by df.
        weight = output.weight.detach()
        output.weight.grad = weight * loss_of / weight.square().sum(0).clamp_min(1e-12)
        pruner.observe()
        pruner.step(step, 0.0)
    kept = pruner.masks.kept(pruner.anatomy.positions("neurons")[1])
    assert kept[:32].all()
    assert not kept[32:].any()


def test_the_split_between_heads_and_neurons_is_learnt():
    """Where only the heads pay, heads stay and neurons go in their place; the target is met all the same."""
    removed = {}
    for favoured in ("heads", "neurons"):
        model = tiny.bert()
        pruner = smart(model, 0.3)
        pruner.stage = "search"
        is_head = torch.cat([torch.full((u.count,), u.kind == "heads") for u in pruner.anatomy.units[:2]]).repeat(3)
        pruner.scores.data = torch.where(is_head == (favoured == "heads"), 1.0, -1.0)
        pruner.step(SCHEDULE.last_step, 0.0)
        removed[favoured] = sum(pruner.masks.removed("heads")), sum(pruner.masks.removed("neurons"))
        assert pruner.sparsity == pytest.approx(0.3, abs=0.5 * 65 / pruner.anatomy.encoder_parameters)
    proportional = Budget.of(bind(tiny.bert()), 0.3).counts(1.0)["heads"]
    assert removed["heads"][0] == 0
    assert removed["neurons"][0] > proportional
    assert removed["neurons"][1] < removed["heads"][1]


@pytest.mark.parametrize("head_score", [-1.0, 1.0])
@pytest.mark.parametrize("sparsity", [0.02, 0.95])
def test_a_split_that_cannot_meet_the_target_gives_way(sparsity, head_score):
    """At 2 % one head is too much, at 95 % no head may stay, whatever the scores say."""
    pruner = smart(tiny.llama(), sparsity)
    pruner.stage = "search"
    is_head = torch.tensor(([True] * 4 + [False] * 48) * 3)
    pruner.scores.data = torch.where(is_head, head_score, -head_score)
    pruner.step(SCHEDULE.last_step, 0.0)
    pruner.finish()
    assert sum(pruner.masks.removed("heads")) == (0 if sparsity < 0.5 else 12)


def test_neurons_that_lost_all_their_connections_leave():
    pruner = smart(tiny.llama(), 0.5, granularity="unstructured")
    pruner.stage = "search"
    scores = [torch.randn(part.weight.shape, generator=torch.Generator().manual_seed(0)) for part in pruner.gates.parts]
    scores[6][:, 3] = -100  # all that the first layer's down projection reads from neuron 3
    pruner.scores.data = torch.cat([part.flatten() for part in scores])
    pruner.step(SCHEDULE.last_step, 0.0)
    pruner.finish()
    assert pruner.masks.kept(pruner.anatomy.positions("neurons")[0]).nonzero().flatten().tolist() == [
        i for i in range(48) if i != 3
    ]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_scores_start_from_magnitude_and_sensitivity_standardised_in_each_layer(granularity):
    model = tiny.llama()
    loop = Loop(model, smart(model, granularity=granularity, score_learning_rate=1e-9))
    loop.backward()
    anatomy = loop.pruner.anatomy
    if granularity == "unstructured":
        groups = [(matrix.weight[None], matrix.gradient[None]) for matrix in anatomy.matrices]
        entries = [([weight.flatten(1).T], [gradient.flatten(1).T]) for weight, gradient in groups]
    else:
        groups = [units for units in anatomy.units if units.kind != "inputs"]
        entries = [
            (
                [part.by_unit(part.parameter.detach()).flatten(1) for part in units.slices],
                [part.by_unit(part.parameter.grad).flatten(1) for part in units.slices],
            )
            for units in groups
        ]
    expected = []
    for weights, gradients in entries:
        weight, gradient = torch.cat(weights, 1), torch.cat(gradients, 1)
        magnitude, sensitivity = weight.abs().sum(1).numpy(), (weight * gradient).abs().sum(1).numpy()
        mix = 0.5 * magnitude / magnitude.mean() + 0.5 * sensitivity / sensitivity.mean()
        expected.append((mix - np.mean(mix)) / np.std(mix))
    loop.pruner.observe()
    for step in range(1, SCHEDULE.first_step + 1):
        loop.pruner.step(step, 0.0)
    np.testing.assert_allclose(loop.pruner.scores.detach(), np.concatenate(expected), rtol=1e-3, atol=1e-4)


def test_final_scores_are_kept_for_the_report():
    model = tiny.bert()
    pruner = smart(model)
    Loop(model, pruner).advance(STEPS)
    expected = pruner.scores.detach().split([4, 64] * 3)
    reported = [scores for i, scores in enumerate(pruner.last_scores) if pruner.anatomy.units[i].kind != "inputs"]
    assert all(torch.equal(a, b) for a, b in zip(expected, reported, strict=True))
    for kind in ("heads", "neurons"):
        positions = pruner.anatomy.positions(kind)
        scores = torch.cat([pruner.last_scores[i] for i in positions])
        kept = torch.cat([pruner.masks.kept(i) for i in positions])
        assert scores[kept].min() >= scores[~kept].max()


@pytest.mark.parametrize("reached", [1, 9, 25])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_training_goes_on_from_a_state_bit_by_bit(granularity, reached):
    model = tiny.llama()
    loop = Loop(model, smart(model, granularity=granularity))
    loop.advance(reached)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(loop.pruner.state_dict())
    optimizer, noise = copy.deepcopy(loop.optimizer.state_dict()), loop.generator.get_state()
    loop.advance(STEPS - reached)

    other = tiny.llama()
    other.load_state_dict(weights)
    again = Loop(other, smart(other, granularity=granularity))
    again.pruner.load_state_dict(state)
    again.optimizer.load_state_dict(optimizer)
    again.generator.set_state(noise)
    again.step = reached
    again.advance(STEPS - reached)

    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert torch.equal(loop.pruner.scores, again.pruner.scores)
    assert loop.pruner.plan() == again.pruner.plan()
    assert loop.pruner.sparsity == again.pruner.sparsity
    again.pruner.finish()


def test_a_state_does_not_change_while_training_goes_on():
    model = tiny.bert()
    loop = Loop(model, smart(model))
    loop.advance(9)
    state = loop.pruner.state_dict()
    before = copy.deepcopy(state)
    loop.advance(3)
    assert torch.equal(state["scores"], before["scores"])
    assert torch.equal(state["gates"]["values"], before["gates"]["values"])
    assert all(torch.equal(state["moments"][name], before["moments"][name]) for name in ("exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_schedule_of_one_step_selects_at_once(granularity):
    model = tiny.bert()
    pruner = smart(model, 0.4, Schedule(1, 0.1, 0.4), granularity=granularity)
    Loop(model, pruner).advance(1)
    assert pruner.stage == "hold"
    pruner.finish()


def test_a_search_that_was_cut_short_is_not_delivered():
    model = tiny.bert()
    pruner = smart(model)
    Loop(model, pruner).advance(SCHEDULE.last_step - 1)
    with pytest.raises(VerificationError):
        pruner.finish()


def test_gradients_that_are_not_finite_end_the_search():
    model = tiny.bert()
    loop = Loop(model, smart(model))
    loop.advance(9)
    loop.backward()
    loop.pruner.anatomy.layers[0].mlps[0].output.gradient[0, 0] = torch.nan
    loop.pruner.observe()
    with pytest.raises(NumericalError):
        loop.pruner.step(10, 3e-3)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_more_than_there_is_cannot_be_removed(granularity):
    with pytest.raises(UnreachableTargetError):
        smart(tiny.bert(), 0.9999, granularity=granularity)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_trains_in_the_jobs_own_loop(granularity, precision):
    part = spec.CausalLM.model_validate({"name": "causal-lm", "data": {"source": "path", "train": "/data/t.jsonl"}})
    training = spec.Training(
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_length=16,
        precision=precision,
    )
    task = TASKS["causal-lm"](part, training, tiny.tokenizer())
    model, features = tiny.llama(), task.features([{"text": text} for text in tiny.sentences(60)])
    pruner = smart(model, granularity=granularity)
    losses = []
    train(
        task,
        model,
        features,
        steps=STEPS,
        stage="pruning",
        pruner=pruner,
        listen=lambda report: losses.append(report.loss),
    )
    pruner.finish()
    assert losses[-1] < losses[0]
    assert zero_weights(pruner.anatomy) >= 0.45 * pruner.anatomy.encoder_parameters


def test_heads_that_cannot_go_do_not_compete():
    """Gates on BERT's heads would close for nothing: its stock class cannot have fewer."""
    options = methods.Smart(name="smart")
    for uniform, kinds in ((True, {"neurons"}), (False, {"heads", "neurons"})):
        anatomy = bind(tiny.bert())
        pruner = build_pruner(anatomy, options, 0.3, Schedule(10, 0.1, 0.4), 0, uniform=uniform)
        assert {anatomy.units[position].kind for position in pruner.candidates.positions} == kinds
