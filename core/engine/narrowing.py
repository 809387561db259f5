"""A shortcut of training: a model computes with the heads and neurons that are left, while its weights stay whole.

What is removed is at zero and contributes nothing, so what is computed is the same, in less time (but dropout draws
fewer numbers); optimiser, masks and checkpoints know nothing of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig

from core.engine.anatomy import Anatomy, Attention, Layer, Mlp
from core.engine.plan import Masks
from core.engine.units import Matrix, Part, Projection

MOST_LEFT = 0.6
"""Share of a block up to which it is narrowed: the chosen weights are copied for every backward pass, which takes more
memory than it spares while most of them are left.
"""


class Narrowing:
    """Narrows the attentions and MLPs of a live model to what its masks keep, as of the last `update`.

    Attentions stay as they are where they get something from outside for all of their heads, such as biases, or read
    the number of heads from the config, which other layers share.
    """

    def __init__(self, anatomy: Anatomy, masks: Masks) -> None:
        self._masks = masks
        self._blocks = [
            (layer, part, part.units.count)
            for layer in anatomy.layers
            for part in layer.parts
            if isinstance(part, Mlp) or _stands_alone(part, layer)
        ]

    def update(self) -> None:
        """Leave out what has been removed since."""
        for index, (layer, part, width) in enumerate(self._blocks):
            kept = self._masks.kept(part.units.position).nonzero().flatten()
            if isinstance(part, Attention) and not len(kept):
                # Code of attentions expects a head; this one is at zero.
                kept = torch.zeros(1, dtype=torch.long)
            if len(kept) != width and len(kept) <= MOST_LEFT * part.units.count:
                self._blocks[index] = layer, part, len(kept)
                _narrow(layer, part, kept.to(part.output.weight.device))

    def close(self) -> None:
        """Let everything compute with all of its heads and neurons again."""
        for layer, part, _ in self._blocks:
            for matrix in part.matrices:
                # Only what lies over the class's own method.
                matrix.module.__dict__.pop("forward", None)
            if isinstance(part, Attention):
                _set_head_counts(layer.module, part, part.groups)


@contextmanager
def narrowing(anatomy: Anatomy, masks: Masks) -> Iterator[Narrowing]:
    """A narrowing that ends with the block."""
    narrow = Narrowing(anatomy, masks)
    try:
        yield narrow
    finally:
        narrow.close()


def _stands_alone(attention: Attention, layer: Layer) -> bool:
    """Whether an attention can compute with fewer heads for a while."""
    row = attention.row
    paths = (*row.head_counts, *row.widths, *row.key_value_head_counts)
    counts_are_its_own = not any(isinstance(_owner(layer.module, path)[0], PreTrainedConfig) for path in paths)
    return row.bias is None and not row.by_head and counts_are_its_own


def _narrow(layer: Layer, part: Attention | Mlp, kept: Tensor) -> None:
    """Compute with the heads or neurons at these indices from now on."""
    held: tuple[Part, ...] = part.parts if isinstance(part, Attention) else part.factors
    for matrix in part.matrices[:-1]:
        own = [piece.weight.layout.index(kept) for piece in held if piece.weight.module is matrix.module]
        # Fused projections keep their order.
        _replace_forward(matrix.module, torch.cat(own).sort().values, None)
    (written,) = part.units.writes
    _replace_forward(part.output.module, None, written.layout.index(kept))
    if isinstance(part, Attention):
        _set_head_counts(layer.module, part, len(kept))


def _set_head_counts(layer: nn.Module, attention: Attention, groups: int) -> None:
    """Tell an attention's code how many heads its projections give."""
    row, heads = attention.row, groups * attention.queries_per_group
    for paths, value in (
        (row.head_counts, heads),
        (row.key_value_head_counts, groups),
        (row.widths, heads * attention.head_dim),
    ):
        for path in paths:
            owner, name = _owner(layer, path)
            setattr(owner, name, value)


def _owner(layer: nn.Module, path: str) -> tuple[Any, str]:
    """What has the attribute at a path, and the attribute's name."""
    owner, _, name = path.rpartition(".")
    return attrgetter(owner)(layer), name


def _replace_forward(module: Projection, rows: Tensor | None, columns: Tensor | None) -> None:
    """Let a projection compute only these outputs, or read only these inputs."""

    def forward(inputs: Tensor) -> Tensor:
        weight: Tensor = Matrix(module).differentiable
        bias: Tensor | None = module.bias
        if rows is not None:
            weight = weight.index_select(0, rows)
            bias = None if bias is None else bias.index_select(0, rows)
        if columns is not None:
            weight = weight.index_select(1, columns)
        return functional.linear(inputs, weight, bias)

    module.forward = forward  # type: ignore[method-assign]
