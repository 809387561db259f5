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
from transformers import PreTrainedModel

from core.engine.inspection import blaming_the_model, weight_files

HALF = {"F16": torch.float16, "BF16": torch.bfloat16}
"""By the name that safetensors has for them; all else goes in fp32."""


def saved_dtype(folder: Path) -> torch.dtype:
    """What most weights in a model's folder are saved in: `float16`, `bfloat16`, or else `float32`.

    Raises:
        InvalidModelError: there are no weights, or they cannot be read.
    """
    entries: Counter[str] = Counter()
    for path in weight_files(folder):
        with blaming_the_model(f"{path.name} cannot be read"), safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                entries[tensor.get_dtype()] += prod(tensor.get_shape())
    name, _ = entries.most_common(1)[0]
    return HALF.get(name, torch.float32)


def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round an fp32 model's weights, in place, to values that `dtype` has; they stay in fp32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)


@contextmanager
def weights_in(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """A model whose weights are of another type while the block lasts; afterwards they are what they were.

    Buffers, such as the frequencies of rotary positions, stay as they are.
    """
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    for parameter, data in weights:
        parameter.data = data.to(dtype)
    try:
        yield
    finally:
        for parameter, data in weights:
            parameter.data = data
