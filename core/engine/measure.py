"""What a model costs to run: dense and pruned in turns, so that both see the same machine.

Every figure is of full rows: each of a batch as long as stated, no padding. The memory that a process needs is
`core.engine.memory`'s.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from core.engine.data import Batch
from core.engine.export.onnx import open_session, run_session
from core.engine.inspection import most_tokens
from core.engine.loading import move
from core.engine.tasks import Task

LENGTH = 128
"""Tokens a row, or as many as the model takes."""
LATENCY_BATCH, LATENCY_ROUNDS = 1, 30
THROUGHPUT_BATCH, THROUGHPUT_ROUNDS = 8, 5
WARM_UP, LEAST_ROUNDS = 2, 3
SECONDS = 10.0
"""Rounds end early where they take longer."""
TOKEN_INPUTS = ("input_ids", "decoder_input_ids")
SPECIAL_TOKENS = tuple(f"{token}_token_id" for token in ("pad", "bos", "eos", "sep", "cls", "decoder_start"))
"""By the config's entries for them."""

Runs = dict[str, Callable[[], object]]
"""A call by the name of the side that it runs."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the models that are compared: loaded, on the CPU, and the folder that it was written to."""

    model: PreTrainedModel
    folder: Path


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds a call; the 10th and 90th percentile show the spread."""

    median: float
    p10: float
    p90: float
    calls: int


@dataclass(frozen=True, slots=True)
class Performance:
    """What the models cost to run; the innermost keys are the sides', such as `dense` and `pruned`.

    Latency and throughput (sequences a second) are by runtime: `torch` and `onnxruntime` run on the CPU, `torch_cuda`
    on the GPU. FLOPs are those of a latency call; a multiplication and an addition count as two. Peak memory (bytes) is
    the GPU's, weights included, during a throughput call. Sizes (bytes) are of the weights as saved.
    """

    latency_ms: dict[str, dict[str, Latency]]
    throughput: dict[str, dict[str, float]]
    flops: dict[str, int]
    gpu_memory_bytes: dict[str, dict[str, int]]
    size_bytes: dict[str, int]
    length: int | None
    """Tokens a row; None of images."""
    threads: int

    def latency_as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {runtime: {k: asdict(v) for k, v in sides.items()} for runtime, sides in self.latency_ms.items()}


def measure(task: type[Task], sides: Mapping[str, Side], inputs: Batch) -> Performance:
    """Time the models side by side, and count what they do.

    They run in torch, on the CPU and on the GPU if there is one, and in ONNX Runtime where each folder holds a
    `model.onnx`.

    Args:
        task: What the models are for; they run up to its outputs.
        sides: The models by name, in eval mode on the CPU.
        inputs: An example batch.
    """
    config = next(iter(sides.values())).model.config
    one, many = (full_batch_like(inputs, config, rows) for rows in (LATENCY_BATCH, THROUGHPUT_BATCH))
    threads = torch.get_num_threads()
    latency, throughput, memory = {}, {}, {}
    with torch.inference_mode():
        latency["torch"], throughput["torch"] = _timed(_torch_runs(task, sides, one), _torch_runs(task, sides, many))
        if torch.cuda.is_available():
            latency["torch_cuda"], throughput["torch_cuda"], memory["torch_cuda"] = _on_gpu(task, sides, one, many)
        if all((side.folder / "model.onnx").exists() for side in sides.values()):
            latency["onnxruntime"], throughput["onnxruntime"] = _timed(
                _onnxruntime_runs(sides, one), _onnxruntime_runs(sides, many)
            )
        flops = {name: count_flops(sides[name].model, run) for name, run in _torch_runs(task, sides, one).items()}
    sizes = {name: saved_bytes(side.folder) for name, side in sides.items()}
    length = one["input_ids"].shape[1] if "input_ids" in one else None
    return Performance(latency, throughput, flops, memory, sizes, length, threads)


def speedup(task: type[Task], sides: Mapping[str, Side], inputs: Batch, runtime: str) -> float:
    """How many times as fast as the side `dense` the side `pruned` is, by median latency as `measure` takes it.

    Args:
        task: What the models are for.
        sides: As of `measure`; for `onnxruntime`, with a `model.onnx` in their folders.
        inputs: An example batch.
        runtime: `torch` or `onnxruntime`, on the CPU.
    """
    one = full_batch_like(inputs, sides["dense"].model.config, LATENCY_BATCH)
    with torch.inference_mode():
        runs = _torch_runs(task, sides, one) if runtime == "torch" else _onnxruntime_runs(sides, one)
        latency = interleave(runs, LATENCY_ROUNDS, SECONDS)
    return latency["dense"].median / latency["pruned"].median


def full_batch(names: Iterable[str], config: PreTrainedConfig, rows: int) -> Batch:
    """So many rows of `LENGTH` tokens, or as many as the model takes; each input int64 [rows, length].

    The tokens are drawn, the same every time: how long experts take depends on which ones a router chooses, and for
    equal tokens it would choose the same few. None of them is special, so none ends or pads a text.
    """
    shape = rows, min(LENGTH, most_tokens(config) or LENGTH)
    generator = torch.Generator().manual_seed(0)

    def values(name: str) -> Tensor:
        if name not in TOKEN_INPUTS:
            return torch.full(shape, int(name != "token_type_ids"))
        tokens = _plain_tokens(config)
        return tokens[torch.randint(len(tokens), shape, generator=generator)]

    return {name: values(name) for name in names}


def _plain_tokens(config: PreTrainedConfig) -> Tensor:
    """All of the vocabulary but what the config gives a meaning, [tokens]."""
    entries: list[int | list[int] | None] = [getattr(config, entry, None) for entry in SPECIAL_TOKENS]
    special = [torch.tensor(entry).flatten() for entry in entries if entry is not None]
    tokens = torch.arange(config.vocab_size)
    return tokens[~torch.isin(tokens, torch.cat(special))] if special else tokens


def full_batch_like(inputs: Batch, config: PreTrainedConfig, rows: int) -> Batch:
    """A full batch of what an example batch holds; of images, which are of one size, its first row repeated."""
    images = {name: tensor for name, tensor in inputs.items() if tensor.ndim > 2}
    repeated = {name: tensor[:1].repeat(rows, *[1] * (tensor.ndim - 1)) for name, tensor in images.items()}
    return full_batch([name for name in inputs if name not in images], config, rows) | repeated


def interleave(runs: Runs, rounds: int, seconds: float = math.inf) -> dict[str, Latency]:
    """Time each call once a round, in turns, after warming up.

    Args:
        runs: What to time, by name.
        rounds: How often.
        seconds: Once these are over, no further round begins; `LEAST_ROUNDS` there are in any case.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for number in range(-WARM_UP, rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - started > seconds:
            break
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - begun) * 1000)
    return {name: _summary(samples[WARM_UP:]) for name, samples in times.items()}


def count_flops(model: PreTrainedModel, run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products in a call of a model, two for a multiplication and an addition.

    Norms, activations and softmax are not counted, as is usual.
    """
    # The counter does not know the fused attention of CPUs; written out as products it counts alike everywhere.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: _grouped_flops})
    with _frozen(model), sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return int(counter.get_total_flops())


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Without parameters that are trained: of those that a module is given or returns, the counter asks how their
    gradient is computed, and fails where none is.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _grouped_flops(rows: torch.Size, matrices: torch.Size, *_: Any, **__: Any) -> int:
    """Of the product of each row [rows, in] with its group's matrix [groups, in, out], which torch does not count."""
    return 2 * math.prod(rows) * matrices[-1]


def saved_bytes(folder: Path) -> int:
    """Size of a model's weights as saved."""
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))


def _timed(one: Runs, many: Runs) -> tuple[dict[str, Latency], dict[str, float]]:
    """Latency, and throughput in sequences a second."""
    latency = interleave(one, LATENCY_ROUNDS, SECONDS)
    batches = interleave(many, THROUGHPUT_ROUNDS, SECONDS)
    return latency, {name: THROUGHPUT_BATCH * 1000 / batch.median for name, batch in batches.items()}


def _torch_runs(task: type[Task], sides: Mapping[str, Side], batch: Batch) -> Runs:
    return {name: lambda model=side.model: task.outputs(model, batch) for name, side in sides.items()}  # type: ignore[misc]


def _onnxruntime_runs(sides: Mapping[str, Side], batch: Batch) -> Runs:
    threads = torch.get_num_threads()
    sessions = {name: open_session(side.folder / "model.onnx", threads) for name, side in sides.items()}
    return {name: lambda s=session: run_session(s, batch) for name, session in sessions.items()}  # type: ignore[misc]


def _on_gpu(
    task: type[Task], sides: Mapping[str, Side], one: Batch, many: Batch
) -> tuple[dict[str, Latency], dict[str, float], dict[str, int]]:
    """Latency, throughput, and peak bytes of each model; afterwards they are on the CPU again."""
    one, many = ({name: tensor.cuda() for name, tensor in batch.items()} for batch in (one, many))
    runs = _torch_runs(task, sides, many)
    memory = {}
    for name, side in sides.items():
        before = torch.cuda.memory_allocated()
        move(side.model, "cuda")
        torch.cuda.reset_peak_memory_stats()
        runs[name]()
        memory[name] = torch.cuda.max_memory_allocated() - before
    latency, throughput = _timed(_waited_for(_torch_runs(task, sides, one)), _waited_for(runs))
    for side in sides.values():
        move(side.model, "cpu")
    return latency, throughput, memory


def _waited_for(runs: Runs) -> Runs:
    """The GPU works on after a call returns: wait until it is done."""

    def waiting(run: Callable[[], object]) -> Callable[[], object]:
        def call() -> None:
            run()
            torch.cuda.synchronize()

        return call

    return {name: waiting(run) for name, run in runs.items()}


def _summary(samples: list[float]) -> Latency:
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return Latency(statistics.median(samples), deciles[0], deciles[-1], len(samples))
