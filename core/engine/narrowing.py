"""A shortcut of training: an MLP computes with the neurons that are left, while its weights stay whole.

Removed neurons are at zero and contribute nothing, so what is computed is the same, in less time; optimiser, masks and
checkpoints know nothing of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from core.engine.anatomy import Anatomy, Mlp
from core.engine.plan import Masks
from core.engine.units import Matrix, Projection


class Narrowing:
    """Narrows the MLPs of a live model to the neurons that its masks keep, as of the last `update`."""

    def __init__(self, anatomy: Anatomy, masks: Masks) -> None:
        self._mlps = anatomy.mlps
        self._masks = masks
        self._widths = [mlp.units.count for mlp in self._mlps]

    def update(self) -> None:
        """Leave out what has been removed since."""
        for index, mlp in enumerate(self._mlps):
            kept = self._masks.kept(mlp.units.position)
            width = int(kept.sum())
            if width != self._widths[index]:
                self._widths[index] = width
                _narrow(mlp, kept.nonzero().flatten().to(mlp.output.weight.device))

    def close(self) -> None:
        """Let every MLP compute with all of its neurons again."""
        for mlp in self._mlps:
            for matrix in mlp.matrices:
                # Only what lies over the class's own method.
                matrix.module.__dict__.pop("forward", None)


@contextmanager
def narrowing(anatomy: Anatomy, masks: Masks) -> Iterator[Narrowing]:
    """A narrowing that ends with the block."""
    narrow = Narrowing(anatomy, masks)
    try:
        yield narrow
    finally:
        narrow.close()


def _narrow(mlp: Mlp, kept: Tensor) -> None:
    """Compute with the neurons at these indices from now on."""
    for matrix in mlp.inputs:
        parts = [part for part in mlp.factors if part.weight.module is matrix.module]
        rows = torch.cat([part.weight.layout.index(kept) for part in parts])
        _replace_forward(matrix.module, rows, None)
    _replace_forward(mlp.output.module, None, kept)


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
