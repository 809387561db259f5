"""How fast a model is: dense and pruned in turns, so that both see the same machine."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from core.engine.data import Batch
from core.engine.export.onnx import export_onnx, open_session, run_session
from core.engine.inspection import most_tokens
from core.engine.loading import move
from core.engine.tasks import Task

BATCH = 1
LENGTH = 128
ROUNDS = 30
WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds a call; the 10th and 90th percentile show the spread."""

    median: float
    p10: float
    p90: float
    calls: int


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """Latency by runtime, then `dense` and `pruned`, and the setting it was measured in."""

    runtimes: dict[str, dict[str, Latency]]
    setting: dict[str, int]

    def runtimes_as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {runtime: {k: asdict(v) for k, v in sides.items()} for runtime, sides in self.runtimes.items()}


def measure_latency(
    task: type[Task], dense: PreTrainedModel, pruned: PreTrainedModel, example: Batch, bundle: Path
) -> LatencyReport:
    """Dense beside pruned on the CPU: in torch, and in ONNX Runtime where the bundle holds an ONNX file.

    Args:
        example: Inputs to export the dense model with.
        bundle: The folder with the pruned model's `model.onnx`, if any.
    """
    move(dense, "cpu")
    dense.train(False)
    length = min(LENGTH, most_tokens(dense.config) or LENGTH)
    inputs = {name: torch.ones(BATCH, length, dtype=torch.long) for name in example}
    if "token_type_ids" in inputs:
        inputs["token_type_ids"].zero_()
    threads = torch.get_num_threads()
    with torch.inference_mode():
        in_torch = interleave(
            {"dense": lambda: task.outputs(dense, inputs), "pruned": lambda: task.outputs(pruned, inputs)}, ROUNDS
        )
    runtimes = {"torch": in_torch}
    if (bundle / "model.onnx").exists():
        runtimes["onnxruntime"] = _in_onnxruntime(task, dense, example, inputs, bundle, threads)
    return LatencyReport(runtimes, {"batch": BATCH, "length": length, "threads": threads})


def interleave(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Latency]:
    """Time each call once a round, in turns, after warming up."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - started) * 1000)
    return {name: _summary(samples) for name, samples in times.items()}


def _in_onnxruntime(
    task: type[Task], dense: PreTrainedModel, example: Batch, inputs: Batch, bundle: Path, threads: int
) -> dict[str, Latency]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "dense.onnx"
        export_onnx(task, dense, example, path)
        sessions = {"dense": open_session(path, threads), "pruned": open_session(bundle / "model.onnx", threads)}
        return interleave({k: lambda s=s: run_session(s, inputs) for k, s in sessions.items()}, ROUNDS)  # type: ignore[misc]


def _summary(samples: list[float]) -> Latency:
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return Latency(statistics.median(samples), deciles[0], deciles[-1], len(samples))
