"""What every pruning method must do: meet its target, hold it, go on from a state, and end whatever it is given."""

import copy

import pytest
import torch

from core.engine.anatomy import bind
from core.engine.compact import compact
from core.engine.methods import Schedule, build_pruner
from core.errors import NumericalError, UnreachableTargetError, VerificationError
from tests import tiny, tiny_families
from tests.pruning import (
    CASES,
    SCHEDULE,
    STEPS,
    Case,
    adamw,
    calibrate,
    check_target,
    count_zeros,
    every_gradual_method,
    every_method,
    every_model,
    loss_of,
    take_step,
    train,
    zeros,
)


@every_method
@every_model
def test_the_target_is_met_exactly_and_what_is_gone_stays_gone(case, make):
    model = make()
    pruner = case.pruner(model, 0.4)
    calibrate(pruner)
    optimizer, gone = adamw(model), zeros(pruner.anatomy)
    for step in range(1, STEPS + 1):
        take_step(pruner, optimizer, step)
        now = zeros(pruner.anatomy)
        # A gate of SMART's may open again for as long as it searches.
        if case.name != "smart" or step > SCHEDULE.last_step:
            assert not any(bool((before & ~after).any()) for before, after in zip(gone, now, strict=True))
        gone = now
        if step >= SCHEDULE.last_step:
            check_target(case, pruner, 0.4)
    check_compaction(pruner)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.granularity == "structured"], ids=lambda case: case.name
)
@pytest.mark.parametrize(("family", "task"), [("bert", "sequence-classification"), ("qwen2", "causal-lm")])
def test_whole_units_can_go_to_one_width(case, family, task):
    """BERT's heads stay: its stock class cannot have fewer."""
    anatomy = bind(tiny_families.model(family, task))
    parameters, cost = anatomy.encoder_parameters, anatomy.mlps[0].units.cost
    pruner = build_pruner(anatomy, case.method(), 0.4, SCHEDULE, seed=0, uniform=True)
    train(pruner)
    pruner.finish()
    heads, neurons = ({len(pruner.plan().indices[i]) for i in anatomy.positions(kind)} for kind in ("heads", "neurons"))
    assert (len(heads), len(neurons)) == (1, 1)
    assert (heads == {4}) == (family == "bert")
    assert 0 <= pruner.sparsity * parameters - int(0.4 * parameters) <= 3 * cost


def check_compaction(pruner):
    """Finished and compacted, the model answers as before."""
    model, ids = pruner.anatomy.model, torch.arange(4, 24).view(2, 10)
    with torch.no_grad():
        pruned = model(ids).logits
        pruner.finish()
        finished = model(ids).logits
        compact(pruner.anatomy, pruner.plan())
        compacted = model(ids).logits
    assert float((finished - pruned).abs().max()) <= 1e-5
    assert float((compacted - finished).abs().max()) <= 1e-5


@every_method
@every_model
@pytest.mark.parametrize("taken", [3, 5, 8])
def test_going_on_from_a_state_is_as_if_nothing_had_happened(case, make, taken):
    model = make()
    pruner, optimizer = case.pruner(model, 0.4), adamw(model)
    calibrate(pruner)
    for step in range(1, taken + 1):
        take_step(pruner, optimizer, step)
    other = copy.deepcopy(model)
    resumed, other_optimizer = case.pruner(other, 0.4), adamw(other)
    resumed.load_state_dict(copy.deepcopy(pruner.state_dict()))
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(taken + 1, STEPS + 1):
        assert resumed.sparsity == pruner.sparsity
        take_step(pruner, optimizer, step)
        take_step(resumed, other_optimizer, step)
    pruner.finish()
    resumed.finish()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert resumed.plan() == pruner.plan()
    assert resumed.merged == pruner.merged
    assert all(torch.equal(a, b) for a, b in zip(pruner.last_scores, resumed.last_scores, strict=True))


@every_method
def test_a_state_is_no_view_of_what_goes_on(case):
    model = tiny.llama()
    pruner, optimizer = case.pruner(model, 0.4), adamw(model)
    calibrate(pruner)
    for step in range(1, 5):
        take_step(pruner, optimizer, step)
    state = pruner.state_dict()
    before = copy.deepcopy(state)
    for step in range(5, STEPS + 1):
        take_step(pruner, optimizer, step)
    assert same(state, before)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@every_method
@every_model
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_ties_are_no_obstacle(case, make, value):
    """All weights of the layers are equal, and nothing is learnt; zeros that nobody pruned make no difference."""
    model = make()
    pruner = case.pruner(model, 0.4)
    for matrix in pruner.anatomy.matrices:
        matrix.weight.fill_(value)
    calibrate(pruner)
    for step in range(1, STEPS + 1):
        pruner.observe()
        pruner.step(step, 0.0)
    if value:
        check_target(case, pruner, 0.4)
    check_compaction(pruner)


@every_method
@every_model
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_what_is_not_finite_is_refused_or_does_not_matter(case, make, value, where):
    model = make()
    pruner = case.pruner(model, 0.4)
    loss_of(model, step=0).backward()
    attention = pruner.anatomy.layers[1].attentions[0]
    parameter = attention.value.weight.parameter
    tensor = parameter.data if where == "weight" else parameter.grad
    tensor[:20] = value
    try:
        calibrate(pruner)
        for step in range(1, STEPS + 1):
            pruner.observe()
            pruner.step(step, 0.0)
    except NumericalError:
        return
    check_target(case, pruner, 0.4)


@every_method
def test_nothing_and_all_that_can_go(case):
    model = tiny.bert_classifier()
    weights = sum(matrix.weight.numel() for matrix in bind(model).matrices)
    for sparsity in (0.0, 0.95 if case.granularity == "structured" else weights / bind(model).encoder_parameters):
        model = tiny.bert_classifier()
        pruner = case.pruner(model, sparsity)
        train(pruner)
        check_target(case, pruner, sparsity)
        check_compaction(pruner)


@every_method
def test_more_than_there_is_cannot_go(case):
    if case.granularity != "2:4":
        with pytest.raises(UnreachableTargetError) as caught:
            case.pruner(tiny.bert_classifier(), 0.99)
        assert caught.value.param == "/target"


def smallest():
    """One head and one neuron a layer."""
    config = tiny.bert_config()
    config.num_attention_heads, config.intermediate_size, config.num_labels = 1, 1, 2
    return tiny.randomised(type(tiny.bert_classifier())(config))


@every_method
@pytest.mark.parametrize("heads", [0, 1, 2])
def test_one_head_and_one_neuron(case, heads):
    model = smallest()
    if case.granularity == "2:4":
        with pytest.raises(UnreachableTargetError, match="pattern of 4 cannot be laid over a projection with 1 inputs"):
            case.pruner(model, 0.5)
        return
    anatomy = bind(model)
    sparsity = heads * anatomy.layers[0].attentions[0].units.cost / anatomy.encoder_parameters
    pruner = case.pruner(model, sparsity)
    train(pruner)
    check_target(case, pruner, sparsity)
    check_compaction(pruner)


@every_gradual_method
@pytest.mark.parametrize(("warmup", "recovery"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_a_single_step_is_enough(case, warmup, recovery):
    pruner = case.pruner(tiny.bert_classifier(), 0.4, Schedule(1, warmup, recovery))
    train(pruner, steps=1)
    check_target(case, pruner, 0.4)


@every_gradual_method
def test_a_target_that_was_not_reached_is_not_delivered(case):
    pruner = case.pruner(tiny.bert_classifier(), 0.4)
    train(pruner, steps=SCHEDULE.last_step - 1)
    with pytest.raises(VerificationError, match="of the encoder went instead of"):
        pruner.finish()


@pytest.mark.parametrize("name", ["neuroprune", "l1"])
@pytest.mark.parametrize("granularity", ["structured", "unstructured", "2:4"])
def test_penalties_do_not_disturb_the_target(name, granularity):
    case = Case(name, granularity)
    strength = {"alpha": 1.0, "beta": 1.0} if name == "neuroprune" else {"strength": 1.0}
    model = tiny.llama()
    pruner = case.pruner(model, 0.4, **strength)
    train(pruner)
    zeros_in_all = count_zeros(pruner.anatomy)
    assert pruner.sparsity * pruner.anatomy.encoder_parameters < zeros_in_all
    assert abs(pruner.sparsity - 0.4) <= 0.002 or granularity == "2:4"
    check_compaction(pruner)
