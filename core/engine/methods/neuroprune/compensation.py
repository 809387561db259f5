"""What stays of an attention or MLP takes over what goes of it, as well as it can.

The paper lets a head that stays take over the output of one that goes if both are nearly equal (algorithms 2 and 3).
This does the same for heads and neurons that are equal to none, but to a mixture of others: least squares on what the
output projection reads. It is the optimal brain surgeon's update (Hassibi & Stork 1992) for groups of a projection's
inputs, as ZipLM (Kurtic et al. 2023, https://arxiv.org/abs/2302.04089) applies it to heads and neurons.

Shapes: T tokens; an output projection's weights are [out, in].
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from core.engine.anatomy import Anatomy, Attention, Mlp
from core.engine.methods.activations import listening
from core.engine.units import Matrix
from core.errors import NumericalError

LEAST_DAMPING = 0.01
"""Added to the variance of every input, as a share of their mean, however many tokens there are."""


class Compensation:
    """Hears what the output projections read in a training step, and adapts them to what goes after it."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._model = anatomy.model
        self._parts: list[Attention | Mlp] = [*anatomy.attentions, *anatomy.mlps]
        self._index = {part.units.position: index for index, part in enumerate(self._parts)}
        """By position in `Anatomy.units`."""
        self._heard: defaultdict[int, list[Tensor]] = defaultdict(list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listen within the block; what was heard is forgotten at its end."""

        def hear(index: int, tokens: Tensor) -> None:
            self._heard[index].append(tokens)

        try:
            with listening(self._model, [part.output.module for part in self._parts], hear):
                yield
        finally:
            self._heard.clear()

    def has_heard(self, position: int) -> bool:
        """Whether there is anything to go by for the units at this position."""
        return any(len(tokens) for tokens in self._heard[self._index[position]])

    def take_over_(self, position: int, removed: Tensor, kept: Tensor, stay: Tensor) -> None:
        """Let some of the units at this position of `anatomy.units` take over what others do.

        Args:
            position: Of heads or neurons.
            removed: Indices of those that go.
            kept: Bool [count], those that have computed until now.
            stay: Bool [count], those that take over.

        Raises:
            NumericalError: the activations are not finite.
        """
        part = self._parts[self._index[position]]
        (written,) = part.units.writes
        device = part.output.weight.device
        inputs = torch.cat([tokens.to(device) for tokens in self._heard[self._index[position]]])
        reads, gone, left = (
            written.layout.index(units).to(device)
            for units in (kept.nonzero().flatten(), removed, stay.nonzero().flatten())
        )
        # While it trains, a projection may read only what is kept.
        if inputs.shape[1] != len(reads):
            inputs = inputs[:, reads]
        take_over_(part.output, inputs, reads, gone, left)


@torch.no_grad()
def take_over_(output: Matrix, inputs: Tensor, reads: Tensor, gone: Tensor, left: Tensor) -> None:
    """Change the weights of the inputs that are left, and the bias, so that a projection's outputs move least.

    Args:
        output: [out, in]; the weights of what goes stay as they are.
        inputs: What it read, [T, n].
        reads: Which of its inputs these are, [n].
        gone: Which of them go.
        left: Which of them take over.

    Raises:
        NumericalError: the inputs are not finite.
    """
    weight, bias = output.weight, output.bias
    # A bias makes up for the means; without one, inputs are compared with zero.
    mean = inputs.mean(0) if bias is not None else torch.zeros_like(inputs[0])
    inputs = inputs - mean
    covariance = inputs.T @ inputs / len(inputs)
    damping = damping_of(inputs, covariance)
    is_gone, is_left = torch.isin(reads, gone), torch.isin(reads, left)
    shares = covariance[is_left][:, is_gone]
    # Inputs that never change take over nothing.
    if damping != 0:
        covariance.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(covariance[is_left][:, is_left])
        if bool(failed):
            raise NumericalError("The model's activations are not finite.")
        shares = torch.cholesky_solve(shares, factor)
    lost = weight[:, reads[is_gone]].float()
    gained = lost @ shares.T
    weight[:, reads[is_left]] += gained.to(weight.dtype)
    if bias is not None:
        bias += (lost @ mean[is_gone] - gained @ mean[is_left]).to(bias.dtype)


def damping_of(inputs: Tensor, covariance: Tensor) -> Tensor:
    """What to add to a covariance's diagonal, scalar: the more, the fewer the tokens are for so many inputs.

    The shrinkage towards a multiple of the identity that comes nearest to the true covariance in the mean (Ledoit &
    Wolf 2004, https://doi.org/10.1016/S0047-259X(03)00096-4).

    Args:
        inputs: [T, n], centred.
        covariance: Of them, [n, n].
    """
    count = len(covariance)
    variance = covariance.diagonal().mean()
    squared = covariance.square().sum()
    dispersion = squared - count * variance.square()
    error = (inputs.square().sum(1).square().mean() - squared) / len(inputs)
    shrinkage = (error / dispersion.clamp_min(torch.finfo(squared.dtype).tiny)).clamp(0, 1)
    return variance * (shrinkage / (1 - shrinkage)).clamp(LEAST_DAMPING, 1 / LEAST_DAMPING)
