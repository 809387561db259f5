"""What the benchmarks of the engine share: dense models trained once, one pruning run, results that survive.

A dense model is trained once a task and seed and kept in a folder; every method starts from it. A result is one line
of a JSONL file; a run whose key is there is not repeated.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, set_seed

from core.engine.anatomy import bind
from core.engine.data import Features
from core.engine.evaluate import Teacher, evaluate
from core.engine.inputs import Inputs
from core.engine.loading import move
from core.engine.measure import Runs, full_batch_like, interleave
from core.engine.methods import Schedule, build_pruner
from core.engine.preparation import Prepared, prepare
from core.engine.pruning import prune
from core.engine.structures import give_structure
from core.engine.tasks import Task
from core.engine.training import StepReport, total_steps, train
from core.jobs.defaults import resolve
from core.jobs.spec import JobSpec
from core.jobs.targets import SparsityTarget

ROUNDS = 30
"""Timed answers of each model."""

_DENSE = {
    "learning_rate",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "precision",
}
"""Of the training, what a dense model depends on."""

MINILM = {"source": "builtin", "name": "all-MiniLM-L6-v2"}


@dataclass(frozen=True, slots=True)
class Trial:
    """One task of a benchmark: what is trained on what, densely and while pruning."""

    name: str
    model: Path
    train: Path
    validation: Path
    task: dict[str, Any]
    dense_epochs: float
    training: dict[str, Any]
    max_train_rows: int | None = None
    max_validation_rows: int | None = None

    def spec(self, method: dict[str, Any], sparsity: float | None, seed: int, **training: Any) -> JobSpec:
        """The resolved job of one run; the model's source says nothing here."""
        data = {
            "source": "path",
            "train": str(self.train),
            "validation": str(self.validation),
            "max_train_rows": self.max_train_rows,
            "max_validation_rows": self.max_validation_rows,
        }
        return resolve(
            JobSpec.model_validate(
                {
                    "model": MINILM,
                    "task": {**self.task, "data": data},
                    "method": method,
                    "target": None if sparsity is None else {"sparsity": sparsity},
                    "training": {**self.training, **training, "seed": seed},
                }
            )
        )

    def recipe(self, spec: JobSpec) -> dict[str, Any]:
        """All that a result depends on beside the method and the machine, for its key."""
        training = spec.training.model_dump(mode="json", exclude={"seed"})
        rows = {"train": self.max_train_rows, "validation": self.max_validation_rows}
        return {
            "metric": spec.task.metric,
            "rows": rows,
            "dense_epochs": self.dense_epochs,
            "training": training,
        }

    def dense_folder(self, seed: int, work: Path) -> Path:
        """Where the dense model of one seed is kept; another recipe has another folder."""
        training = self.spec({"name": "neuroprune"}, 0.5, seed).training
        recipe = [self.task, self.max_train_rows, self.dense_epochs, training.model_dump(include=_DENSE)]
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        return work / f"{self.name}-{seed}-{digest[:8]}"

    def prepared(self, spec: JobSpec, model: Path) -> Prepared:
        """Loaded model and rows; a new head depends on the seed alone."""
        set_seed(spec.training.seed)
        return prepare(spec, Inputs(model, self.train, self.validation), ignore)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder, which is made if it is not there: by one process at a time, and whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with TemporaryDirectory(dir=folder.parent) as scratch:
                made = Path(scratch) / folder.name
                make(made)
                made.rename(folder)
    return folder


def dense_model(trial: Trial, seed: int, work: Path) -> Path:
    """Folder of the trial's dense model, trained now if it is not there yet."""

    def make(folder: Path) -> None:
        spec = trial.spec({"name": "neuroprune"}, 0.5, seed)
        prepared = trial.prepared(spec, trial.model)
        if trial.dense_epochs:
            steps = total_steps(len(prepared.train), spec.training, trial.dense_epochs)
            progress = Progress(f"{folder.name} dense")
            train(prepared.task, prepared.model, prepared.train, steps=steps, stage="dense", listen=progress)
        prepared.task.processor.save_pretrained(folder)
        prepared.model.save_pretrained(folder)

    return made_once(trial.dense_folder(seed, work), make)


class Dense:
    """A trial's dense model of one seed and what is known of it. Every run starts from it; nothing changes it."""

    def __init__(self, trial: Trial, seed: int, work: Path) -> None:
        """Train the dense model if it is not there yet, evaluate it, and let it answer the training rows."""
        folder = dense_model(trial, seed, work)
        self.prepared = trial.prepared(trial.spec({"name": "neuroprune"}, 0.5, seed), folder)
        self.model = self.prepared.model
        self.evaluation = evaluate(self.prepared.task, self.model, self.prepared.held_out)

    @cached_property
    def teacher(self) -> Teacher:
        """What it answers to the training rows."""
        return Teacher(self.prepared.task, self.model, self.prepared.train)

    def teacher_of(self, spec: JobSpec) -> Teacher | None:
        """The teacher, where a job learns from one."""
        return self.teacher if spec.training.trains and spec.training.distillation != 0 else None

    def copies(self, spec: JobSpec) -> tuple[Task, PreTrainedModel, Features]:
        """Task and model of one run, which may be changed, and its training rows."""
        task = copy.copy(self.prepared.task)
        task.training = spec.training
        return task, copy.deepcopy(self.model), self.prepared.train


def run_method(dense: Dense, spec: JobSpec, title: str) -> dict[str, Any]:
    """Prune a copy of the dense model and measure both on the held-out rows.

    Returns:
        Metrics of both, seconds of pruning, what every layer kept, how many times as fast the smaller model is.
    """
    task, model, features = dense.copies(spec)
    training = spec.training
    steps, recovery_steps = _steps(spec, features)
    schedule = Schedule(max(1, steps), training.warmup_fraction, training.recovery_fraction)
    sparsity = spec.target.sparsity if isinstance(spec.target, SparsityTarget) else None
    pruner = build_pruner(bind(model), spec.method, sparsity, schedule, training.seed)
    teacher = dense.teacher_of(spec)
    started = time.monotonic()
    prune(task, pruner, dense.model, features, steps, Progress(title), recovery_steps=recovery_steps, teacher=teacher)
    seconds = time.monotonic() - started
    result = _compared(dense, task, model)
    plan = pruner.plan()
    kept = [[len(plan.kept(part.units)) for part in layer.parts] for layer in pruner.anatomy.layers]
    give_structure("ragged", pruner.anatomy, plan)
    return {
        **result,
        "sparsity": pruner.sparsity,
        "encoder_parameters": {
            "dense": bind(dense.model).encoder_parameters,
            "pruned": pruner.anatomy.encoder_parameters,
        },
        "speedup": round(speedup(dense, model), 3),
        "kept": kept,
        "merged_heads": len(pruner.merged),
        "train_rows": len(features),
        "steps": steps + recovery_steps,
        "seconds": round(seconds, 1),
    }


def train_on(dense: Dense, spec: JobSpec, title: str) -> dict[str, Any]:
    """Train a copy of the dense model for as many steps as pruning it takes, from the same teacher: what time gives.

    Returns:
        As `run_method`, without what was kept; nothing is timed, as the model's shapes are the dense one's.
    """
    task, model, features = dense.copies(spec)
    steps = sum(_steps(spec, features))
    teacher = dense.teacher_of(spec)
    started = time.monotonic()
    train(task, model, features, steps=steps, stage="dense", listen=Progress(title), teacher=teacher)
    seconds = time.monotonic() - started
    parameters = bind(model).encoder_parameters
    return {
        **_compared(dense, task, model),
        "sparsity": 0.0,
        "encoder_parameters": {"dense": parameters, "pruned": parameters},
        "speedup": 1.0,
        "train_rows": len(features),
        "steps": steps,
        "seconds": round(seconds, 1),
    }


def _steps(spec: JobSpec, features: Features) -> tuple[int, int]:
    """Optimiser steps of pruning and of recovery."""
    training = spec.training
    pruning = total_steps(len(features), training, training.num_train_epochs or 0)
    return pruning, total_steps(len(features), training, training.recovery_epochs)


def _compared(dense: Dense, task: Task, model: PreTrainedModel) -> dict[str, Any]:
    """Metrics of the dense model and of another one, and what trained that."""
    pruned = evaluate(task, model, dense.prepared.held_out, dense.evaluation.summaries)
    return {
        "dense": {name: metric.value for name, metric in dense.evaluation.metrics.items()},
        "pruned": {name: metric.value for name, metric in pruned.metrics.items()},
        "headline": task.headline,
        "device": device(),
        "higher_is_better": dense.evaluation.metrics[task.headline].higher_is_better,
    }


def device() -> str:
    """What trains."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


@torch.inference_mode()
def speedup(dense: Dense, pruned: PreTrainedModel) -> float:
    """How many times as fast the pruned model answers as the dense one: torch on the CPU, one full row, in turns."""
    task = dense.prepared.task
    sides = {"dense": copy.deepcopy(dense.model), "pruned": pruned}
    for model in sides.values():
        move(model, "cpu")
        model.train(False)
    example = task.inputs(sides["dense"], task.collate([dense.prepared.held_out[0]]))
    batch = full_batch_like(example, dense.model.config, 1)
    runs: Runs = {name: partial(task.outputs, model, batch) for name, model in sides.items()}
    times = interleave(runs, ROUNDS)
    return times["dense"].median / times["pruned"].median


class Results:
    """Lines of a JSONL file by their key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def all(self) -> list[dict[str, Any]]:
        """Every result so far, those of other processes included."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def has(self, key: dict[str, Any]) -> bool:
        """Whether a run with this key was made."""
        return any(key.items() <= result.items() for result in self.all())

    @contextmanager
    def claim(self, key: dict[str, Any]) -> Iterator[bool]:
        """Whether a run is to be made here and now: not if it was made, or another process is at it.

        While the block lasts, no other process gets it.
        """
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        locks = self.path.with_suffix(".locks")
        locks.mkdir(exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(FileLock(locks / digest[:16], blocking=False))
            except Timeout:
                print("Left to the process that is at it:", json.dumps(key))
                yield False
            else:
                yield not self.has(key)

    def add(self, result: dict[str, Any]) -> None:
        """Append one."""
        with self.path.open("a") as file:
            file.write(json.dumps(result) + "\n")


class Progress:
    """Prints where training stands, now and then."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.shown = time.monotonic()

    def __call__(self, step: StepReport) -> None:
        if time.monotonic() - self.shown > 20 or step.step == step.total_steps:
            self.shown = time.monotonic()
            print(
                f"{self.title}: step {step.step}/{step.total_steps}, loss {step.loss:.3f}, {step.sparsity:.1%} gone",
                flush=True,
            )


def ignore(_: object) -> None:
    """Benchmarks print their own progress."""
