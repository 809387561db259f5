"""What stays of an attention or MLP takes over what goes of it, as well as it can.

The paper lets a head that stays take over the output of one that goes if both are nearly equal (algorithms 2 and 3).
This does the same for heads and neurons that are equal to none, but to a mixture of others: least squares on what the
output projection reads. It is the optimal brain surgeon's update (Hassibi & Stork 1992) for groups of a projection's
inputs, as ZipLM (Kurtic et al. 2023, https://arxiv.org/abs/2302.04089) applies it to heads and neurons; but tokens
count by how much the loss depends on what the projection makes of them. Padding counts nothing so, and where a text
gets one answer, little does.

Shapes: T tokens; an output projection's weights are [out, in].
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from core.engine.anatomy import Anatomy, Attention, Mlp
from core.engine.units import Matrix
from core.errors import NumericalError

LEAST_TOKENS = 3
"""With fewer, nothing is known of how sure a covariance is."""

LEAST_DAMPING = 0.01
"""Added to the variance of every input, as a share of their mean, however many tokens there are."""


@dataclass
class _Reading:
    """What a projection read in one forward pass.

    `weights` are the squared lengths of the loss's gradients by its outputs, [T]; none before the backward pass.
    """

    inputs: Tensor
    weights: Tensor | None = None

    def weigh(self, gradient: Tensor) -> None:
        self.weights = gradient.detach().float().square().sum(-1).flatten()


class Compensation:
    """Hears what the output projections read in a training step, and adapts them to what goes after it."""

    def __init__(self, anatomy: Anatomy) -> None:
        parts: list[Attention | Mlp] = [*anatomy.attentions, *anatomy.mlps]
        self._parts = {part.units.position: part for part in parts}
        """By the position of their units in `Anatomy.units`, as are the readings."""
        self._readings: defaultdict[int, list[_Reading]] = defaultdict(list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listen to forward and backward passes within the block; what was heard is forgotten at its end."""
        with ExitStack() as hooks:
            hooks.callback(self._readings.clear)
            for position, part in self._parts.items():
                hook = part.output.module.register_forward_hook(partial(self._hear, position))
                hooks.callback(hook.remove)
            yield

    def take_over_(self, position: int, removed: Tensor, kept: Tensor, stay: Tensor) -> bool:
        """Let some of the units at this position of `anatomy.units` take over what others do.

        Args:
            position: Of any units; in-rows and experts have no outputs of their own, so nothing can take over.
            removed: Indices of those that go.
            kept: Bool [count], those that have computed until now.
            stay: Bool [count], those that take over.

        Returns:
            Whether they did: hardly a token may have come this way, or nobody have watched.

        Raises:
            NumericalError: the activations or gradients are not finite.
        """
        known = [
            (r.inputs.flatten(0, -2), r.weights) for r in self._readings.get(position, []) if r.weights is not None
        ]
        if not known:
            return False
        part = self._parts[position]
        (written,) = part.units.writes
        device = part.output.weight.device
        inputs, weights = (
            torch.cat([tensor.to(device).float() for tensor in column]) for column in zip(*known, strict=True)
        )
        counts = weights > 0
        if int(counts.sum()) < LEAST_TOKENS:
            return False
        reads, gone, left = (
            written.layout.index(units).to(device)
            for units in (kept.nonzero().flatten(), removed, stay.nonzero().flatten())
        )
        # While it trains, a projection may read only what is kept.
        if inputs.shape[1] != len(reads):
            inputs = inputs[:, reads]
        adapt_(part.output, inputs[counts], weights[counts], reads, gone, left)
        return True

    def _hear(self, position: int, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            # Kept as it is: until the backward pass it costs nothing.
            reading = _Reading(inputs[0].detach())
            self._readings[position].append(reading)
            output.register_hook(reading.weigh)  # type: ignore[no-untyped-call]


@torch.no_grad()
def adapt_(output: Matrix, inputs: Tensor, weights: Tensor, reads: Tensor, gone: Tensor, left: Tensor) -> None:
    """Change the weights of the inputs that are left, and the bias, so that a projection's outputs move least.

    Args:
        output: [out, in]; the weights of what goes stay as they are.
        inputs: What it read, [T, n].
        weights: How much each token counts, [T], positive.
        reads: Which of its inputs these are, [n].
        gone: Which of them go.
        left: Which of them take over.

    Raises:
        NumericalError: the inputs or weights are not finite.
    """
    if not bool(inputs.isfinite().all() & weights.isfinite().all()):
        raise NumericalError("The model's activations or gradients are not finite.")
    weight, bias = output.weight, output.bias
    weights = weights / weights.mean()
    # A bias makes up for the means; without one, inputs are compared with zero.
    mean = weights @ inputs / len(inputs) if bias is not None else torch.zeros_like(inputs[0])
    inputs = (inputs - mean) * weights.sqrt()[:, None]
    covariance = inputs.T @ inputs / len(inputs)
    damping = damping_of(inputs, covariance)
    is_gone, is_left = torch.isin(reads, gone), torch.isin(reads, left)
    covariance.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(covariance[is_left][:, is_left])
    # Inputs that never change take over nothing.
    shares = torch.zeros_like(covariance[is_left][:, is_gone])
    if not bool(failed):
        shares = torch.cholesky_solve(covariance[is_left][:, is_gone], factor)
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
