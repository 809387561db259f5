"""What a job will take of memory and disk, reckoned from sizes before anything large is loaded.

A job that cannot fit is refused in seconds, and not killed by the kernel after hours. The reckoning leaves out what
libraries take for themselves, so it refuses too little rather than too much.
"""

import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from core.engine.inspection import Shapes
from core.errors import OutOfGpuMemoryError, OutOfMemoryError, StorageFullError
from core.jobs.spec import JobSpec
from core.resources import available_memory

_FP32_BYTES = 4
_TRAINING_COPIES = 4
"""Of the weights: themselves, their gradients, and Adam's two moments."""
_CHECKPOINT_COPIES = 4
"""Of the weights: those of the dense model, themselves, and Adam's two moments."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes.

    Attributes:
        weights: one copy of the model's parameters, in fp32.
        training: all that lies on the device that trains: copies, the dense model, activations.
        disk: what the work folder will hold beside the inputs.
    """

    weights: int
    training: int
    disk: int


def footprint(shapes: Shapes, config: PreTrainedConfig, spec: JobSpec, length: int) -> Footprint:
    """The footprint of a job.

    Args:
        shapes: of the tensors in the model's files.
        config: the model's.
        spec: a resolved spec.
        length: tokens of the longest row.
    """
    weights = _FP32_BYTES * sum(map(prod, shapes.values()))
    trains = bool(spec.training.num_train_epochs)
    copies = _TRAINING_COPIES if trains else 1
    batch = spec.training.per_device_train_batch_size if trains else spec.training.per_device_eval_batch_size
    activations = activation_bytes(config, batch, length) if trains else 0
    # The dense model and the pruned one, and both as ONNX to measure them side by side.
    files = 2 + 2 * ("onnx" in spec.export.formats) + len({"gguf", "executorch"} & set(spec.export.formats))
    disk = weights * (files + _CHECKPOINT_COPIES * trains)
    return Footprint(weights=weights, training=weights * (copies + 1) + activations, disk=disk)


def activation_bytes(config: PreTrainedConfig, batch: int, length: int) -> int:
    """What a forward pass keeps for the backward one, in fp32.

    sbh(34 + 5as/h) bytes a layer in 16 bits (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large
    Transformer Models", equation 2), and twice that in 32; heads and embeddings come on top.
    """
    hidden, heads, layers = (
        getattr(config, name, 0) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    if not hidden:
        return 0
    return int(2 * layers * length * batch * hidden * (34 + 5 * heads * length / hidden))


def check_fits(needed: Footprint, folder: Path) -> None:
    """Refuse a job that this worker cannot hold.

    Raises:
        OutOfMemoryError: main memory does not suffice.
        OutOfGpuMemoryError: the GPU's memory does not suffice.
        StorageFullError: the disk below `folder` does not suffice.
    """
    advice = "A smaller per_device_train_batch_size or max_length needs less, or a larger worker has more."
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        free, _ = torch.cuda.mem_get_info()
        if needed.training > free:
            raise OutOfGpuMemoryError(
                f"The job needs about {_gib(needed.training)} of GPU memory; the worker has {_gib(free)} free. {advice}"
            )
    # On the CPU the dense and the pruned model are compared and exported, wherever they were trained.
    in_memory = 2 * needed.weights if on_gpu else needed.training
    memory = available_memory()
    if memory is not None and in_memory > memory:
        raise OutOfMemoryError(
            f"The job needs about {_gib(in_memory)} of memory; the worker has {_gib(memory)} free. {advice}"
        )
    disk = shutil.disk_usage(folder).free
    if needed.disk > disk:
        raise StorageFullError(
            f"The job needs about {_gib(needed.disk)} of disk to work; the worker has {_gib(disk)} free. "
            "Fewer formats need less, or a larger worker has more."
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
