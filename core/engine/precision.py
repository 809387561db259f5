"""The type that a model's weights are saved in: they are pruned in fp32, and go as they came.

The original's size is what a user compares with: bf16 weights that came back in fp32 would have lost half of them to be
as large as before. Values are rounded before anything is compared or measured, so what is saved is what was examined.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from core.engine.inspection import blaming_the_model, weight_files
from core.family import Family

SAVED_IN = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What weights are delivered in, by the name that safetensors has for what they came in."""


def saved_dtype(folder: Path, family: Family) -> torch.dtype:
    """What most weights in a model's folder are saved in: `float16`, `bfloat16`, or else `float32`.

    Masks and the like, which older files hold beside the weights, do not count.

    Raises:
        InvalidModelError: there are no weights, or they cannot be read.
    """
    derived = tuple(f".{name}" for name in family.derived)
    entries: Counter[torch.dtype] = Counter()
    for path in weight_files(folder):
        with blaming_the_model(f"{path.name} cannot be read"), safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                if tensor.get_dtype() in SAVED_IN and not name.endswith(derived):
                    entries[SAVED_IN[tensor.get_dtype()]] += prod(tensor.get_shape())
    return entries.most_common(1)[0][0] if entries else torch.float32


def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round an fp32 model's weights, in place, to values that `dtype` has; they stay in fp32."""
    for parameter in _saved_weights(model):
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)


@contextmanager
def weights_in(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """A model whose weights are of another type while the block lasts; afterwards they are what they were.

    Buffers, such as the frequencies of rotary positions, stay as they are.
    """
    weights = [(parameter, parameter.data) for parameter in _saved_weights(model)]
    for parameter, data in weights:
        parameter.data = data.to(dtype)
    try:
        yield
    finally:
        for parameter, data in weights:
            parameter.data = data


def _saved_weights(model: PreTrainedModel) -> list[nn.Parameter]:
    """All but those that every load computes anew, such as tables of sinusoidal positions."""
    computed = set(model._keys_to_ignore_on_save or ())
    return [parameter for name, parameter in model.named_parameters() if name not in computed]
