"""How much has to go for a target in parameters or bytes, and what another level adds to one."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.engine.anatomy import bind, count_parameters
from core.engine.evaluate import Evaluation
from core.engine.export.bundle import write_model
from core.engine.ladder import AT_ONCE, Ladder, Level
from core.engine.methods import Schedule, build_pruner
from core.engine.methods.budget import Budget
from core.engine.precision import weights_in
from core.engine.structures import give_structure
from core.engine.targets import speedup
from core.engine.targets.amounts import level_of_bytes, level_of_parameters, removable_parameters, removable_share
from core.engine.targets.metric_drop import WithinDrop, is_within, standard_error
from core.engine.targets.speedup import AtSpeed
from core.engine.tasks import TASKS, Metric
from core.errors import UnreachableTargetError
from core.jobs.methods import Random
from core.jobs.spec import JobSpec
from core.jobs.targets import SpeedupTarget
from tests import pruning, tiny, tiny_families
from tests.specs import demo_spec

DATA = {"source": "path", "train": "/data/train.jsonl"}
MODELS = {
    "bert": (tiny.bert, "sentence-embedding"),
    "llama": (tiny.llama, "causal-lm"),
    "mpnet": (lambda: tiny_families.model("mpnet", "sentence-embedding"), "sentence-embedding"),
}
every_model = pytest.mark.parametrize("name", MODELS)


def ladder(name, structure="ragged", **method):
    """Without data: for what is known before training."""
    make, task = MODELS[name]
    spec = JobSpec.model_validate(
        {
            "model": {"source": "path", "path": "/models/tiny"},
            "task": {"name": task, "data": DATA},
            "method": {"name": "random", **method},
            "target": {"sparsity": 0.5},
            "structure": structure,
        }
    )
    prepared = SimpleNamespace(
        model=make(),
        dtype=torch.float32,
        tokenizer=tiny.tokenizer(),
        task=TASKS[task](spec.task, spec.training, tiny.tokenizer()),
    )
    return Ladder(spec, prepared, lambda _: None)


def delivered(of, level, seed=1):
    """A model at a level; other units are gone than from a stand-in."""
    model, uniform = copy.deepcopy(of.prepared.model), of.spec.structure == "uniform"
    method = Random(name="random", layer_floor=0.8 if uniform else 0.2)
    pruner = build_pruner(bind(model), method, level.sparsity, AT_ONCE, seed, uniform=uniform, at_least=level.at_least)
    pruner.step(1, 0.0)
    pruner.finish()
    give_structure(of.spec.structure, pruner.anatomy, pruner.plan())
    return model


@every_model
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(left=st.floats(0, 1))
def test_parameters_are_met_within_a_neuron_and_never_exceeded(name, left):
    of = ladder(name)
    total, most = count_parameters(of.prepared.model), removable_parameters(of)
    wanted = total - int((1 - left) * most)
    found = count_parameters(delivered(of, level_of_parameters(of, wanted)))
    neuron = bind(of.prepared.model).mlps[0].units.cost
    assert 0 <= wanted - found < max(neuron, 0.001 * bind(of.prepared.model).encoder_parameters)


@every_model
def test_fewer_parameters_than_must_stay_are_refused_with_what_is_possible(name):
    of = ladder(name)
    least = count_parameters(of.prepared.model) - removable_parameters(of)
    assert count_parameters(delivered(of, level_of_parameters(of, least))) == least
    with pytest.raises(UnreachableTargetError, match=rf"{least:,} is the least\.") as caught:
        level_of_parameters(of, least - 1)
    assert caught.value.param == "/target/parameters"


def test_more_parameters_than_there_are_remove_nothing():
    of = ladder("bert")
    assert count_parameters(delivered(of, level_of_parameters(of, 10**9))) == count_parameters(of.prepared.model)


def test_one_width_has_at_most_the_parameters():
    of = ladder("llama", "uniform")
    total = count_parameters(of.prepared.model)
    for wanted in (total - 1, total - 5000, total - 12_345):
        step = 3 * bind(of.prepared.model).mlps[0].units.cost
        assert 0 <= wanted - count_parameters(delivered(of, level_of_parameters(of, wanted))) < step


@every_model
@pytest.mark.parametrize(
    ("share", "dtype"), [(0.35, torch.float32), (0.62, torch.float32), (0.9, torch.float32), (0.62, torch.bfloat16)]
)
def test_bytes_are_met_within_a_neuron_and_never_exceeded(name, share, dtype, tmp_path):
    of = ladder(name)
    of.prepared.dtype = dtype
    with weights_in(of.prepared.model, dtype):
        of.prepared.model.save_pretrained(tmp_path / "dense")
    dense = (tmp_path / "dense/model.safetensors").stat().st_size
    size = dense - int(share * dtype.itemsize * removable_parameters(of))
    level = level_of_bytes(of, size)
    write_model(delivered(of, level), of.prepared.tokenizer, of.prepared.task, tmp_path / "pruned", dtype)
    saved = (tmp_path / "pruned/model.safetensors").stat().st_size
    anatomy = bind(of.prepared.model)
    slack = 16 * len(list(of.prepared.model.parameters()))
    assert (
        0
        <= size - saved
        <= dtype.itemsize * max(anatomy.mlps[0].units.cost, 0.001 * anatomy.encoder_parameters) + slack
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fewer_bytes_than_must_stay_are_refused_with_what_is_possible(dtype):
    of = ladder("bert")
    of.prepared.dtype = dtype
    with pytest.raises(UnreachableTargetError, match=r"cannot be saved in 1,000 bytes: .* at least\.") as caught:
        level_of_bytes(of, 1000)
    assert caught.value.param == "/target/size_bytes"
    least = int(re.search(r"([\d,]+) at least", caught.value.message)[1].replace(",", ""))
    assert level_of_bytes(of, least).sparsity == pytest.approx(removable_share(of))
    with pytest.raises(UnreachableTargetError):
        level_of_bytes(of, least - 1)


@given(st.floats(0.05, 0.9), st.floats(0.05, 0.9), st.floats(0, 1), st.booleans())
def test_a_further_level_takes_nothing_back(one, other, reached, at_least):
    """Neither on the way nor in the end, and is met all the same."""
    anatomy = bind(tiny.bert())
    lower, higher = sorted((one, other))
    before = build_pruner(anatomy, Random(name="random", layer_floor=0.1), lower, AT_ONCE, 0)
    before.step(1, 0.0)
    budget = Budget.of(anatomy, higher, at_least=at_least, gone=before.masks)
    gone = {kind: sum(before.masks.removed(kind)) for kind in ("heads", "neurons")}
    for share in (reached, 1.0):
        counts = budget.counts(share)
        assert all(counts[kind] >= count for kind, count in gone.items())
    assert budget.is_met_by(int(budget.achieved(budget.counts(1.0)) * anatomy.encoder_parameters + 0.5))


@pytest.mark.parametrize("granularity", ["structured", "unstructured"])
@pytest.mark.parametrize("name", ["neuroprune", "magnitude"])
def test_a_further_level_goes_on_from_the_one_before(name, granularity):
    """What was gone stays gone, at every step, and the new level is met exactly."""
    model = tiny.bert_classifier()
    options = pruning.Case(name, granularity).method()
    first = build_pruner(bind(model), options, 0.3, pruning.SCHEDULE, 0)
    pruning.train(first)
    first.finish()
    gone, plan = pruning.zeros(first.anatomy), first.plan()
    copied = copy.deepcopy(model)
    schedule = Schedule(pruning.STEPS, 0.1, 0.4, start=first.sparsity / 0.6)
    further = build_pruner(bind(copied), options, 0.6, schedule, 0, previous=first)
    optimizer = pruning.adamw(copied)
    for step in range(1, pruning.STEPS + 1):
        pruning.take_step(further, optimizer, step)
        now = pruning.zeros(further.anatomy)
        assert not any(bool((before & ~after).any()) for before, after in zip(gone, now, strict=True))
        gone = now
    further.finish()
    assert further.sparsity == pytest.approx(0.6, abs=0.002)
    assert all(set(after) <= set(before) for before, after in zip(plan.indices, further.plan().indices, strict=True))
    assert first.plan() == plan


def test_levels_take_longer_the_sparser_they_are():
    assert Level(0.9).share_of_epochs() == 1
    assert Level(0.7).share_of_epochs(0.5) == 0.5
    assert Level(0.9).share_of_epochs(0.7) == pytest.approx(2 / 3)
    assert Level(None).share_of_epochs() == 1


def test_a_levels_steps_are_those_of_its_pruning_and_of_its_recovery():
    training = {"num_train_epochs": 2, "recovery_epochs": 1, "per_device_train_batch_size": 4}
    ladder = Ladder(demo_spec(training=training), SimpleNamespace(train=range(40)), listen=None)
    assert ladder.steps(Level(0.5)) == 30
    assert ladder.steps(Level(0.7), before=0.5) == 15


def test_a_schedule_starts_where_the_level_before_ended():
    schedule = Schedule(100, 0.1, 0.4, start=0.5)
    assert schedule.reached(10) == 0.5
    assert schedule.reached(35) == pytest.approx(1 - 0.5 * 0.5**3)
    assert schedule.reached(60) == 1


class StoredMetric(SimpleNamespace):
    """A task whose summaries are what was right, one number a row."""

    headline = "accuracy"

    def metrics(self, summaries, reference):
        return {"accuracy": Metric(torch.cat(summaries).mean().item(), "share", True)}


def test_the_standard_error_of_a_drop_is_that_of_the_pairs_differences():
    """Against the formula for the mean of independent groups."""
    generator = torch.Generator().manual_seed(0)
    dense = [torch.rand(8, generator=generator).round() for _ in range(20)]
    pruned = [torch.where(torch.rand(8, generator=generator) < 0.2, 0.0, batch) for batch in dense]
    ours, reference = (Evaluation({}, summaries) for summaries in (pruned, dense))
    differences = torch.stack([before.mean() - after.mean() for before, after in zip(dense, pruned, strict=True)])
    error = standard_error(StoredMetric(), reference, ours, "accuracy")
    assert error == pytest.approx(float(differences.std()) / 20**0.5, rel=1e-4)
    assert standard_error(StoredMetric(), reference, Evaluation({}, dense), "accuracy") == pytest.approx(0, abs=1e-7)
    assert standard_error(StoredMetric(), Evaluation({}, dense[:1]), Evaluation({}, pruned[:1]), "accuracy") is None


@pytest.mark.parametrize(
    ("name", "metric", "batches"),
    [
        ("masked-lm", "accuracy", [[3.0, 2.0, 1.0], [0.0, 0.0, 0.0]]),
        ("masked-lm", "nats_per_token", [[3.0, 2.0, 1.0], [0.0, 0.0, 0.0]]),
        ("seq2seq", "nats_per_character", [[3.0, 2.0, 9.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_a_drop_has_no_standard_error_where_one_batch_holds_all_that_counts(name, metric, batches):
    task = TASKS[name](SimpleNamespace(metric=metric), None, tiny.tokenizer())
    evaluation = Evaluation({}, [torch.tensor(batch, dtype=torch.float64) for batch in batches])
    assert standard_error(task, evaluation, evaluation, metric) is None


def test_there_is_no_standard_error_of_what_batches_do_not_sum_up():
    """As of BLEU, which is of written texts; nor of a metric that is not defined without some of the rows."""
    summaries = [torch.ones(2), torch.ones(2)]
    assert standard_error(StoredMetric(), Evaluation({}, summaries), Evaluation({}, summaries), "bleu") is None
    undefined = [torch.ones(2), torch.tensor([torch.nan])]
    assert standard_error(StoredMetric(), Evaluation({}, summaries), Evaluation({}, undefined), "accuracy") is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(limit=st.integers(1, 19))
def test_bisection_finds_the_highest_level_within_the_budget(limit):
    """The drop rises with sparsity and crosses the budget at `limit` twentieths; five levels, and two to be sure."""
    course, trained = bisecting(lambda sparsity: sparsity - limit / 20 + 0.01, most_drop=0.02)
    (reached,) = course.follow()
    assert reached.pruner.sparsity == limit / 20
    assert reached.facts["validation"]["sparsity"] == limit / 20
    assert len(set(trained)) == len(trained) <= 7
    assert course.most_steps == 9


def test_a_drop_counts_with_its_error_but_with_half_of_the_budget_at_most():
    assert is_within(0.006, 0.004, 0.01)
    assert not is_within(0.0061, 0.004, 0.01)
    for error in (0.005, 0.1, None):
        assert is_within(0.005, error, 0.01)
        assert not is_within(0.0051, error, 0.01)
    assert is_within(0.0, 0.1, 0.0)
    assert not is_within(float("nan"), 0.0, 1.0)


@pytest.mark.parametrize(
    ("error", "said"),
    [(0.01, None), (0.0111, "its standard error is 0.011."), (None, "its standard error is unknown.")],
)
def test_a_drop_that_is_less_sure_than_is_made_up_for_is_said_to_be(error, said):
    heard = []
    course, _ = bisecting(lambda sparsity: 0.0, most_drop=0.02, error=error, report=heard.append)
    course.follow()
    assert [message.message for message in heard] == (
        [f"100 validation rows are few to decide on a drop of 0.02 in accuracy: {said}"] if said else []
    )


def test_a_budget_that_no_level_keeps_is_refused():
    course, trained = bisecting(lambda sparsity: 1.0, most_drop=0.02)
    with pytest.raises(
        UnreachableTargetError, match=r"With 5% removed, accuracy .* 1 worse than dense, give or take 0\.001: not"
    ) as caught:
        course.follow()
    assert caught.value.param == "/target/max_metric_drop"
    assert trained == [0.5, 0.25, 0.1, 0.05, 0.15, 0.2]


def test_a_budget_that_every_model_keeps_is_refused_before_anything_is_trained(monkeypatch):
    """A dense model may be as bad as that, for want of a prefix or of training."""
    course, trained = bisecting(lambda sparsity: 0.0, most_drop=0.3)
    del course._evaluate_dense
    course._ladder.prepared.model = None
    dense = Evaluation({"accuracy": Metric(0.3, "fraction", higher_is_better=True)}, [])
    monkeypatch.setattr("core.engine.targets.metric_drop.evaluate", lambda *_, **__: dense)
    with pytest.raises(UnreachableTargetError, match=r"accuracy on the validation rows is 0\.3: every model is within"):
        course.follow()
    assert trained == []


@pytest.mark.parametrize(
    ("unlucky", "found", "further"),
    [
        # Bisection, sent down, ends at 0.45; the next level shows that it was, and another bisection begins there.
        ({0.5}, 0.75, [0.55, 0.75, 0.85, 0.8]),
        # Nine levels are used up.
        ({0.5, 0.55}, 0.7, [0.55, 0.6, 0.8, 0.7]),
        ({0.5, 0.55, 0.6}, 0.45, [0.55, 0.6]),
    ],
)
def test_levels_that_fail_by_chance_do_not_end_the_search(unlucky, found, further):
    """All up to 0.75 are within the budget, but for those that chance is against."""
    course, trained = bisecting(lambda sparsity: sparsity > 0.76 or sparsity in unlucky, most_drop=0.02)
    (reached,) = course.follow()
    assert reached.pruner.sparsity == reached.facts["validation"]["sparsity"] == found
    tried = [trial["sparsity"] for trial in reached.facts["tried"]]
    assert tried == trained == [0.5, 0.25, 0.35, 0.4, 0.45, *further]


def test_the_lowest_level_may_fail_by_chance_too():
    course, trained = bisecting(lambda sparsity: sparsity != 0.15, most_drop=0.02)
    (reached,) = course.follow()
    assert reached.pruner.sparsity == 0.15
    assert trained == [0.5, 0.25, 0.1, 0.05, 0.15, 0.2, 0.3, 0.35]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(good=st.lists(st.booleans(), min_size=1, max_size=19))
def test_whatever_fails_the_best_that_was_tried_is_found(good):
    """No level is tried twice, nor more than were announced; and two above the best have failed, or none is left."""
    levels = [step / 20 for step in range(1, len(good) + 1)]
    is_good = dict(zip(levels, good, strict=True))
    course, trained = bisecting(lambda sparsity: 0.0 if is_good[sparsity] else 1.0, most_drop=0.02, levels=len(good))
    try:
        (reached,) = course.follow()
        best = reached.pruner.sparsity
    except UnreachableTargetError:
        best = 0.0
        assert levels[0] in trained
    assert best == max((level for level in trained if is_good[level]), default=0.0)
    assert len(set(trained)) == len(trained) <= course.most_steps <= len(levels)
    if len(trained) < course.most_steps:
        assert all(level in trained for level in levels if level > best) or min(trained[-2:]) > best


def bisecting(drop, most_drop, levels=19, error=0.001, report=lambda _: None):
    """A search over so many levels, which cost a step each and whose drop is given; and what it trains for."""
    trained = []

    def reach(level):
        trained.append(level.sparsity)
        return SimpleNamespace(sparsity=level.sparsity)

    prepared = SimpleNamespace(task=StoredMetric(), validation=SimpleNamespace(source_rows=100))
    ladder = SimpleNamespace(
        can_reach=lambda level: level.sparsity <= levels / 20, reach=reach, prepared=prepared, steps=lambda level: 1
    )
    course = WithinDrop(ladder, most_drop, report)
    course._evaluate_dense = lambda: None
    course._judged = lambda dense, pruner: {
        "sparsity": pruner.sparsity,
        "drop": drop(pruner.sparsity),
        "standard_error": error,
        "is_good": is_within(drop(pruner.sparsity), error, most_drop),
    }
    return course, trained


def linear(sparsity):
    return 1 - 0.9 * sparsity


def at_speed(wanted, real=linear, least=0.0, stood_in=linear):
    """A course on a machine where the time of a call is as `stood_in` says for stand-ins, and as `real` once trained.

    Every trained model but the first goes on from the one before.
    """
    trained, timed = [], []

    def reach(level, previous=None):
        assert (previous.sparsity if previous else None) == (trained[-1] if trained else None)
        trained.append(level.sparsity)
        return SimpleNamespace(sparsity=level.sparsity, time=real(level.sparsity))

    def stand_in(level):
        timed.append(level.sparsity)
        return SimpleNamespace(sparsity=level.sparsity, time=stood_in(level.sparsity))

    course = object.__new__(AtSpeed)
    course._target = SpeedupTarget(speedup=wanted, runtime="torch")
    course._ladder = SimpleNamespace(reach=reach, stand_in=stand_in)
    course._least, course._most, heard = least, 0.95, []
    course._report, course._time = heard.append, lambda pruner: pruner.time
    course._level, course._expected = course._search()
    return course, trained, timed, heard


@given(st.floats(1.05, 6.5))
def test_few_stand_ins_find_a_speed(wanted):
    course, trained, timed, heard = at_speed(wanted)
    assert course._expected == pytest.approx(wanted, rel=0.02)
    assert len(timed) <= 3
    (reached,) = course.follow()
    assert reached.facts["tried"] == [{"sparsity": trained[0], "speedup": pytest.approx(wanted, rel=0.02)}]
    assert not heard


@pytest.mark.parametrize("power", [0.7, 1.5])
@pytest.mark.parametrize("wanted", [1.3, 2.0, 4.0])
def test_a_speed_is_found_where_time_does_not_fall_in_proportion(wanted, power):
    course, _, timed, _ = at_speed(wanted, stood_in=lambda sparsity: 1 - 0.9 * sparsity**power)
    assert course._expected == pytest.approx(wanted, rel=0.02)
    assert 2 < len(timed) <= 6


def test_a_trained_model_that_is_slower_loses_a_little_more():
    """Never less than before, and not more than it takes."""
    course, trained, _, heard = at_speed(2.0, real=lambda sparsity: 1.1 - 0.9 * sparsity)
    (reached,) = course.follow()
    assert len(trained) == len(reached.facts["tried"]) > 1
    assert trained == sorted(trained)
    assert reached.facts["tried"][-1]["speedup"] == pytest.approx(2.0, rel=0.05)
    assert not heard


def test_a_speed_that_is_missed_after_all_is_said():
    course, trained, _, heard = at_speed(2.0, real=lambda sparsity: 0.9)
    course.follow()
    assert len(trained) == 4
    assert "not within 5% of 2" in heard[0].message


@pytest.mark.parametrize(("wanted", "sparsity"), [(2.0, 0.556), (1.2, 0.3)])
def test_no_less_is_tried_than_has_to_go(wanted, sparsity):
    """So many heads, for instance; a model that is faster by that alone is as near as can be."""
    course, trained, timed, _ = at_speed(wanted, least=0.3)
    course.follow()
    assert min(timed) == 0.3
    assert trained == [pytest.approx(sparsity, abs=0.01)]


def test_the_bounds_of_a_speed_are_what_the_methods_options_leave(monkeypatch):
    monkeypatch.setattr(speedup, "removable_share", lambda ladder: 0.97)
    ladder = SimpleNamespace(can_reach=lambda level: 0.12 <= level.sparsity <= 0.62)
    assert speedup._bounds(ladder) == (0.15, 0.6)
    assert speedup._bounds(SimpleNamespace(can_reach=lambda _: True)) == (0.0, 0.95)

    def refuse(level):
        raise UnreachableTargetError(f"not {level.sparsity}")

    with pytest.raises(UnreachableTargetError, match=r"not 0\.95"):
        speedup._bounds(SimpleNamespace(can_reach=lambda _: False, check=refuse))


def test_speed_is_against_the_dense_model_as_it_is_delivered(monkeypatch, tmp_path):
    """Pruning takes the experts of a mixture apart, which is slower."""
    monkeypatch.setattr(speedup, "_bounds", lambda ladder: (0.0, 0.95))
    monkeypatch.setattr(AtSpeed, "_search", lambda self: (None, 1.0))
    model = tiny_families.model("mixtral", "causal-lm")
    stock = [type(module) for module in model.modules()]
    bind(model)
    assert [type(module) for module in model.modules()] != stock
    ladder = SimpleNamespace(dense_copy=lambda: copy.deepcopy(model))
    course = AtSpeed(ladder, SpeedupTarget(speedup=2.0, runtime="torch"), tmp_path, pytest.fail)
    assert [type(module) for module in course._dense.model.modules()] == stock


def test_a_speed_out_of_reach_is_refused_with_what_is_possible():
    with pytest.raises(UnreachableTargetError, match=r"with 95% of .* removed .* is 6\.90 times as fast") as caught:
        at_speed(7.0)
    assert caught.value.param == "/target/speedup"
