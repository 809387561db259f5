"""What targeted pruning costs on top of plain fine-tuning: time a step and memory, side by side in one run.

    python -m benchmarks.overhead DATA [--case gpt2-shakespeare]

The same model, rows and teacher are trained in turns without and with NeuroPrune, over the whole schedule that a case
of `benchmarks.quality` has; the first steps of each turn are left out, and means are compared, because only some of the
steps remove something. Memory is the peak of a process that trains one way or the other.
The result goes to `benchmarks/results/overhead.jsonl`.
"""

import copy
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import Annotated

import torch
import typer

from benchmarks.quality import CASES, WORK
from benchmarks.trials import Results, dense_model
from core.engine.anatomy import bind, count_parameters
from core.engine.evaluate import Teacher
from core.engine.methods import Schedule, build_pruner
from core.engine.preparation import Prepared
from core.engine.training import StepReport, total_steps, train
from core.jobs.spec import JobSpec

RESULTS = Results(Path(__file__).parent / "results" / "overhead.jsonl")
ROUNDS, WARMING_UP = 3, 10
STEPS_ALONE = 60
"""Enough for every removal there is: memory does not grow after that."""
SPARSITY = 0.7


class Paces:
    """Seconds between the optimiser steps of one turn."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, _: StepReport) -> None:
        self.times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Without the first steps."""
        return [b - a for a, b in zip(self.times[WARMING_UP:], self.times[WARMING_UP + 1 :], strict=False)]


def turn(prepared: Prepared, spec: JobSpec, teacher: Teacher, steps: int, *, pruned: bool) -> list[float]:
    """Train a copy of the model for so many steps; seconds of each."""
    model = copy.deepcopy(prepared.model)
    schedule = Schedule(steps, spec.training.warmup_fraction, spec.training.recovery_fraction)
    pruner = build_pruner(bind(model), spec.method, SPARSITY, schedule, 0) if pruned else None
    paces = Paces()
    train(
        prepared.task, model, prepared.train, steps=steps, stage="pruning", teacher=teacher, pruner=pruner, listen=paces
    )
    return paces.seconds()


def own_peak() -> int:
    """Peak resident memory of this process, in bytes; `ru_maxrss` would start from that of the process it came from."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def peak_bytes(data: Path, case: str, work: Path, *, pruned: bool) -> int:
    """Peak resident memory of a process of its own that trains one way."""
    command = [sys.executable, "-m", "benchmarks.overhead", str(data), "--case", case, "--work", str(work)]
    way = "pruned" if pruned else "plain"
    answer = subprocess.run([*command, "--alone", way], capture_output=True, text=True, check=True)
    return int(answer.stdout.split()[-1])


def main(
    data: Path,
    case: Annotated[str, typer.Option(help="What is trained.")] = "sst2",
    work: Annotated[Path, typer.Option(help="Where the dense model is kept.")] = WORK,
    alone: Annotated[str | None, typer.Option(help="Train one way, plain or pruned, and print peak bytes.")] = None,
) -> None:
    """Measure and print."""
    trial = CASES[case].trial(data, work)
    spec = trial.spec({"name": "neuroprune"}, SPARSITY, 0)
    prepared = trial.prepared(spec, dense_model(trial, 0, work))
    steps = total_steps(len(prepared.train), spec.training, spec.training.num_train_epochs or 0)
    teacher = Teacher(prepared.task, copy.deepcopy(prepared.model), prepared.train)
    if alone is not None:
        turn(prepared, spec, teacher, STEPS_ALONE, pruned=alone == "pruned")
        print(own_peak())
        return
    plain: list[float] = []
    pruned: list[float] = []
    for number in range(ROUNDS):
        # The machine's pace drifts: who comes first changes from round to round.
        for way in (pruned, plain) if number % 2 else (plain, pruned):
            way.append(mean(turn(prepared, spec, teacher, steps, pruned=way is pruned)))
        print(f"round {number + 1}: {plain[-1]:.4f} s plain, {pruned[-1]:.4f} s pruned", flush=True)
    ratios = sorted(b / a for a, b in zip(plain, pruned, strict=True))
    memory = {
        way: [peak_bytes(data, case, work, pruned=way == "pruned") for _ in range(2)] for way in ("plain", "pruned")
    }
    extra = median(memory["pruned"]) - median(memory["plain"])
    parameters = 4 * count_parameters(prepared.model)
    result = {
        "case": case,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "seconds_plain": plain,
        "seconds_pruned": pruned,
        "time_ratio_median": median(ratios),
        "time_ratio_range": [ratios[0], ratios[-1]],
        "peak_bytes": memory,
        "extra_memory_of_parameters": extra / parameters,
    }
    RESULTS.add(result)
    print(f"step: {median(ratios):.3f}x plain ({ratios[0]:.3f} … {ratios[-1]:.3f} over {ROUNDS} rounds)")
    print(f"peak memory: {extra / 1e6:+.1f} MB, {extra / parameters:+.1%} of the parameters' size")


if __name__ == "__main__":
    typer.run(main)
