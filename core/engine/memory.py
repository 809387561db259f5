"""How much memory a model takes that is loaded and run, in a process that does nothing else.

Resident memory is the kernel's word (Linux only). `core.engine.verify` asks for it in its clean process, started with
`ENVIRONMENT`, once it has loaded and run a model in every way: what the libraries need for themselves is there then.
"""

import gc
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from core.engine.data import Batch
from core.engine.export.bundle import load_bundle
from core.engine.export.onnx import open_session, run_session
from core.engine.measure import THROUGHPUT_BATCH, full_batch_like
from core.engine.tasks import Task

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Tensors leave the process when they are freed: kept for later use, they would hide the next model's."""

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@torch.inference_mode()
def peak_memory(task: type[Task], dense: Path, bundle: Path, inputs: Batch) -> dict[str, dict[str, int]]:
    """Bytes that `dense` and `pruned` take at their peak, weights included, by runtime; nothing but on Linux.

    Args:
        task: What the models are for; they run up to its outputs.
        dense: The dense model's folder.
        bundle: The pruned model's; in ONNX Runtime both run if each holds a `model.onnx`.
        inputs: An example batch; what runs are full rows, as many as when throughput is measured, in fp32.
    """
    if not available():
        return {}
    config = AutoConfig.from_pretrained(dense, local_files_only=True)
    batch = full_batch_like(inputs, config, THROUGHPUT_BATCH)

    def in_torch(model: PreTrainedModel) -> Callable[[], object]:
        return lambda: task.outputs(model, batch)

    def in_onnxruntime(folder: Path) -> Callable[[], object]:
        session = open_session(folder / "model.onnx", torch.get_num_threads())
        return lambda: run_session(session, batch)

    peaks = {
        "torch": {
            "dense": peak(
                lambda: in_torch(task.auto_class.from_pretrained(dense, local_files_only=True, dtype=torch.float32))
            ),
            "pruned": peak(lambda: in_torch(load_bundle(bundle, torch.float32))),
        }
    }
    if all((folder / "model.onnx").exists() for folder in (dense, bundle)):
        peaks["onnxruntime"] = {
            "dense": peak(lambda: in_onnxruntime(dense)),
            "pruned": peak(lambda: in_onnxruntime(bundle)),
        }
    return peaks


def available() -> bool:
    """Whether the kernel says how much memory a process had at its peak, and forgets it when asked."""
    return _RESET.exists()


def peak(load: Callable[[], Callable[[], object]]) -> int:
    """Bytes by which this process is larger, at the most, while what `load` returns runs, than before it was loaded.

    What loading takes in passing is not counted, nor are weights that no run reads: they stay in their file.
    """
    gc.collect()
    before = _resident("VmRSS")
    run = load()
    gc.collect()
    _RESET.write_text("5")  # the peak is from now on
    run()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """Resident memory of this process in bytes: `VmRSS` now, `VmHWM` at its peak."""
    status = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(status[name].split()[0]) * 1024
