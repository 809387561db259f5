"""A training that was stopped and goes on ends with the same bits as one that never stopped."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from core.checkpoints import Checkpoints, CheckpointStore
from core.engine.anatomy import bind
from core.engine.evaluate import HiddenTeacher, Teacher
from core.engine.methods import Schedule, build_pruner
from core.engine.pruning import prune
from core.engine.tasks import TASKS
from core.engine.training import train
from core.errors import Interrupted
from core.jobs import methods, spec
from core.progress import Checkpointed, Warned
from core.storage import Storage
from tests import tiny, tiny_families
from tests.pruning import plant_twins

DATA = {"source": "path", "train": "/data/train.jsonl"}
STEPS, RECOVERY_STEPS = 12, 6
ROWS = 46
"""7 batches of 4 blocks, so that accumulated steps end in the middle of an epoch and at its end."""

LLAMA, GPT2 = tiny.llama, tiny_families.gpt2


def llama_with_twins() -> PreTrainedModel:
    """Two heads of one layer stay alike while it trains a little."""
    model = tiny.llama()
    plant_twins(bind(model), 1, [1, 3])
    return model


NEUROPRUNE = methods.NeuroPrune(name="neuroprune", compensation=True)
UNCOMPENSATED = methods.NeuroPrune(name="neuroprune", compensation=False)
FAITHFUL = methods.NeuroPrune(name="neuroprune", mode="faithful", alpha=1e-3, beta=1e-3, theta=0.3)
SMART = methods.Smart(name="smart")
IMPORTANCE = methods.Importance(name="importance")
UNSTRUCTURED = methods.Importance(name="importance", granularity="unstructured")


class Job:
    """One job of one training, whose attempts share a store; `stop_at` is the step at which an attempt is stopped."""

    def __init__(
        self,
        folder: Path,
        method: methods.Method,
        make_model: Callable[[], PreTrainedModel] = LLAMA,
        **training: object,
    ) -> None:
        self.folder = folder
        self.method = method
        self.make_model = make_model
        self.training = spec.Training.model_validate(
            {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "max_length": 16, "precision": "fp32", **training}
        )
        self.recorded: dict[str, Checkpointed] = {}
        self.warnings: list[str] = []
        self.attempts = 0

    def attempt(self, stop_at: int | None = None):
        """Train until the end or the stop; the model, its pruner, and the steps that were taken."""
        self.attempts += 1
        torch.manual_seed(self.attempts)  # whatever else a process has drawn must not matter
        part = spec.CausalLM.model_validate({"name": "causal-lm", "data": DATA})
        task = TASKS["causal-lm"](part, self.training, tiny.tokenizer())
        dense, model = self.make_model(), self.make_model()
        features = task.features([{"text": text} for text in tiny.sentences(ROWS)])
        assert 24 < len(features) <= 28
        anatomy = bind(model)
        sparsity = 0.5 if methods.takes_target(self.method) else None
        pruner = build_pruner(anatomy, self.method, sparsity, Schedule(STEPS, 0.1, 0.4), seed=0)
        checkpoints = Checkpoints(self.store(), interval_seconds=1e9)
        taken = []

        def listen(report):
            taken.append(report.step)
            if report.step == stop_at:
                checkpoints.request_stop()

        hidden_teacher = HiddenTeacher(task, bind(dense), anatomy) if self.training.hidden_distillation else None
        train(
            task,
            model,
            features,
            steps=STEPS,
            stage="pruning",
            checkpoints=checkpoints,
            teacher=Teacher(task, dense, features),
            hidden_teacher=hidden_teacher,
            pruner=pruner,
            listen=listen,
        )
        pruner.finish()
        return model, pruner, taken

    def store(self) -> CheckpointStore:
        prefix = f"checkpoints/job/{self.attempts}"
        scratch = self.folder / f"scratch-{self.attempts}"
        return CheckpointStore(Storage(str(self.folder)), prefix, dict(self.recorded), scratch, self.hear)

    def hear(self, message: Checkpointed | Warned) -> None:
        if isinstance(message, Checkpointed):
            self.recorded[message.stage] = message
        else:
            self.warnings.append(message.message)


class RecoveringJob(Job):
    """A job that recovers in a training of its own; of an attempt's steps, it tells what the pruner hears."""

    def attempt(self, stop_at: int | None = None):
        self.attempts += 1
        torch.manual_seed(self.attempts)
        part = spec.CausalLM.model_validate({"name": "causal-lm", "data": DATA})
        task = TASKS["causal-lm"](part, self.training, tiny.tokenizer())
        features = task.features([{"text": text} for text in tiny.sentences(ROWS)])
        anatomy = bind(tiny.llama())
        pruner = build_pruner(anatomy, self.method, 0.5, Schedule(STEPS, 0.1, 0.4), seed=0)
        checkpoints = Checkpoints(self.store(), interval_seconds=1e9)
        self.heard = []
        rates = []
        take_step = pruner.step

        def watch(step, learning_rate):
            rates.append((step, learning_rate))
            take_step(step, learning_rate)
            if step == stop_at:
                checkpoints.request_stop()

        pruner.step = watch
        prune(
            task,
            pruner,
            tiny.llama(),
            features,
            STEPS,
            self.heard.append,
            recovery_steps=RECOVERY_STEPS,
            checkpoints=checkpoints,
        )
        return anatomy.model, pruner, rates


def test_a_recovery_holds_what_is_gone_while_the_learning_rate_rises_anew(tmp_path):
    _, pruner, rates = RecoveringJob(tmp_path, NEUROPRUNE).attempt()
    assert [step for step, _ in rates] == list(range(1, STEPS + RECOVERY_STEPS + 1))
    pruning, recovery = ([rate for _, rate in part] for part in (rates[:STEPS], rates[STEPS:]))
    assert pruning[-1] < 0.2 * max(pruning)
    assert max(recovery) == max(pruning)
    assert 0.49 < pruner.sparsity < 0.51
    for units in pruner.anatomy.units:
        removed = ~pruner.masks.kept(units.position)
        assert not any(part.values[removed].any() for part in units.slices)


def test_what_stays_takes_over_while_a_model_trains(tmp_path):
    """Until the first units go, all is the same; then what takes over has other weights."""
    weights = {}
    for method in (NEUROPRUNE, UNCOMPENSATED):
        job = Job(tmp_path / str(method.compensation), method)
        with pytest.raises(Interrupted):
            job.attempt(stop_at=Schedule(STEPS, 0.1, 0.4).first_step + 1)
        checkpoint = Checkpoints(job.store()).fetch("pruning")
        weights[method.compensation] = load_file(checkpoint.folder / "model.safetensors")
    changed = {name for name, weight in weights[True].items() if not torch.equal(weight, weights[False][name])}
    assert changed
    assert all(name.endswith(("o_proj.weight", "down_proj.weight")) for name in changed)


def test_a_recovery_that_was_stopped_ends_with_the_same_bits(tmp_path):
    expected, _, _ = RecoveringJob(tmp_path / "whole", NEUROPRUNE).attempt()
    job = RecoveringJob(tmp_path / "stopped", NEUROPRUNE)
    with pytest.raises(Interrupted):
        job.attempt(stop_at=STEPS + 3)
    model, _, rates = job.attempt()
    assert rates[0][0] == STEPS + 4
    assert [report.step for report in job.heard] == [STEPS, 4, 5, 6]
    assert job.heard[0].total_steps == STEPS
    assert is_same(model, expected)


def is_same(one, other) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("method", "make_model", "training", "stops"),
    [
        pytest.param(NEUROPRUNE, LLAMA, {}, [1, 7, 11], id="neuroprune, twice in the first epoch's middle and end"),
        pytest.param(SMART, LLAMA, {}, [3, 8], id="smart, while its gates are closed"),
        pytest.param(
            IMPORTANCE, LLAMA, {"gradient_accumulation_steps": 2}, [4, 6], id="accumulated, at an epoch's end"
        ),
        pytest.param(UNSTRUCTURED, LLAMA, {"precision": "bf16"}, [5], id="bf16, single weights"),
        pytest.param(FAITHFUL, llama_with_twins, {}, [7], id="as published, which removes at an epoch's end"),
        pytest.param(NEUROPRUNE, LLAMA, {"hidden_distillation": 1.0}, [6], id="hidden states are distilled"),
        pytest.param(NEUROPRUNE, GPT2, {}, [5, 9], id="dropout, whose random numbers go on"),
    ],
)
def test_a_stopped_training_ends_with_the_same_bits(tmp_path, method, make_model, training, stops):
    expected, expected_pruner, steps = Job(tmp_path / "whole", method, make_model, **training).attempt()
    assert steps == list(range(1, STEPS + 1))
    job = Job(tmp_path / "stopped", method, make_model, **training)
    for stop in stops:
        with pytest.raises(Interrupted):
            job.attempt(stop_at=stop)
        assert job.recorded["pruning"].step == stop
    model, pruner, steps = job.attempt()
    assert steps == list(range(stops[-1] + 1, STEPS + 1))
    assert is_same(model, expected)
    assert pruner.plan() == expected_pruner.plan()
    assert pruner.merged == expected_pruner.merged
    assert bool(pruner.merged) is (method is FAITHFUL)
    assert not job.warnings


def test_a_second_training_in_bf16_is_the_same_whether_the_first_was_taken_up_or_not(tmp_path):
    """The second was in fp32 where the same process had done the first."""
    part = spec.CausalLM.model_validate({"name": "causal-lm", "data": DATA})
    training = spec.Training.model_validate({"learning_rate": 1e-2, "max_length": 16, "precision": "bf16"})
    recorded: dict[str, Checkpointed] = {}
    losses = []
    for attempt in range(2):
        task, model = TASKS["causal-lm"](part, training, tiny.tokenizer()), LLAMA()
        features = task.features([{"text": text} for text in tiny.sentences(ROWS)])

        def hear(message: Checkpointed) -> None:
            recorded[message.stage] = message

        store = CheckpointStore(
            Storage(str(tmp_path)), f"checkpoints/job/{attempt}", dict(recorded), tmp_path / f"{attempt}", hear
        )
        train(task, model, features, steps=2, stage="dense", checkpoints=Checkpoints(store), listen=lambda _: None)
        heard = []
        train(task, model, features, steps=2, stage="pruning", listen=heard.append)
        losses.append([report.loss for report in heard])
    assert losses[0] == losses[1]
