"""What a job will take of memory and disk, reckoned from sizes before anything large is loaded.

A job that cannot fit is refused in seconds, and not killed by the kernel after hours. The reckoning leaves out what
libraries take for themselves, so it refuses too little rather than too much.
"""

import shutil
from collections.abc import Collection
from math import prod
from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedConfig

from core.engine.inspection import Shapes
from core.errors import OutOfGpuMemoryError, OutOfMemoryError, StorageFullError
from core.resources import available_memory

_TRAINING_COPIES = 4
"""Of the weights: themselves, their gradients, and Adam's two moments."""
_ATTENTION_DROPOUTS = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "dropout_rate")
"""What configs call the rate at which attention probabilities are dropped in training."""
_CHECKPOINT_COPIES = 4
"""Of the weights: those of the dense model, themselves, and Adam's two moments."""


def weights_bytes(shapes: Shapes, dtype: torch.dtype = torch.float32) -> int:
    """One copy of the tensors of a model's files."""
    return dtype.itemsize * sum(map(prod, shapes.values()))


def training_bytes(shapes: Shapes, *, trains: bool) -> int:
    """What lies on the device that trains: copies of the weights, and the dense model that teaches."""
    return ((_TRAINING_COPIES if trains else 1) + 1) * weights_bytes(shapes)


def disk_bytes(shapes: Shapes, dtype: torch.dtype, formats: Collection[str], *, trains: bool) -> int:
    """What the work folder will hold beside the inputs."""
    # The dense model and the pruned one; both as ONNX as well, to measure them side by side.
    saved = 2 * weights_bytes(shapes, dtype)
    others = 2 * ("onnx" in formats) + len({"gguf", "executorch"} & set(formats))
    return saved + weights_bytes(shapes) * (others + _CHECKPOINT_COPIES * trains)


def activation_bytes(config: PreTrainedConfig, batch: int, length: int) -> int:
    """What a forward pass keeps for the backward one, in fp32.

    sbh(34 + 5as/h) bytes a layer in 16 bits (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large
    Transformer Models", equation 2), and twice that in 32; heads and embeddings come on top. The second term is the
    attention matrices', which fused attentions do not keep where nothing of them is dropped.
    """
    hidden, heads, layers = (
        getattr(config, name, 0) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    if not hidden:
        return 0
    drops = any(getattr(config, name, 0) for name in _ATTENTION_DROPOUTS)
    is_fused = getattr(AutoModel._model_mapping.get(type(config), None), "_supports_sdpa", False)
    matrices = 0 if is_fused and not drops else 5 * heads * length / hidden
    return int(2 * layers * length * batch * hidden * (34 + matrices))


def tokens_of_images(config: PreTrainedConfig) -> int:
    """Into how many tokens such a model cuts an image; 0 where its config does not tell."""
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    return (size // patch) ** 2 + 1 if isinstance(size, int) and isinstance(patch, int) else 0


def check_memory(shapes: Shapes, *, trains: bool, activations: int = 0, is_loaded: bool = False) -> None:
    """Refuse a model that this worker's memory cannot hold while it is trained.

    Args:
        shapes: Of the tensors in the model's files.
        trains: Whether gradients are taken.
        activations: Bytes of them in the largest batch, as far as that is known.
        is_loaded: Whether main memory holds the model already.

    Raises:
        OutOfGpuMemoryError: the GPU's memory does not suffice.
        OutOfMemoryError: main memory does not suffice.
    """
    advice = "A smaller per_device_train_batch_size or max_length needs less, or a larger worker has more."
    needed = training_bytes(shapes, trains=trains) + activations
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        if needed > free:
            raise OutOfGpuMemoryError(
                f"The job needs about {_gib(needed)} of GPU memory; the worker has {_gib(free)} free. {advice}"
            )
        # On the CPU the dense and the pruned model are compared and exported.
        needed = 2 * weights_bytes(shapes)
    memory = available_memory()
    if memory is not None and is_loaded:
        memory += weights_bytes(shapes)
    if memory is not None and needed > memory:
        raise OutOfMemoryError(
            f"The job needs about {_gib(needed)} of memory; the worker has {_gib(memory)} free. {advice}"
        )


def check_disk(shapes: Shapes, dtype: torch.dtype, formats: Collection[str], folder: Path, *, trains: bool) -> None:
    """Refuse a job that the disk below `folder` cannot hold.

    Args:
        shapes: of the tensors in the model's files.
        dtype: what models are saved in.
        formats: what else than safetensors they are exported to.
        folder: where the job works.
        trains: whether checkpoints are written.

    Raises:
        StorageFullError: there is too little room.
    """
    needed, free = disk_bytes(shapes, dtype, formats, trains=trains), shutil.disk_usage(folder).free
    if needed > free:
        raise StorageFullError(
            f"The job needs about {_gib(needed)} of disk to work; the worker has {_gib(free)} free. "
            "Fewer formats need less, or a larger worker has more."
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
