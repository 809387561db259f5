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

DAMPING = 0.02
"""Added to the variance of every input, as a share of their mean: one batch has few tokens."""


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
        heard = torch.cat([tokens.to(device) for tokens in self._heard[self._index[position]]])
        columns = written.layout.index(kept.nonzero().flatten()).to(device)
        if heard.shape[1] != len(columns):
            heard = heard[:, columns]
        # While it trains, a projection may read only what is kept.
        place = torch.zeros(part.output.weight.shape[1], dtype=torch.long, device=device)
        place[columns] = torch.arange(len(columns), device=device)
        gone, left = (written.layout.index(units).to(device) for units in (removed, stay.nonzero().flatten()))
        take_over_(part.output, heard[:, place[gone]], heard[:, place[left]], gone, left)


@torch.no_grad()
def take_over_(output: Matrix, gone: Tensor, left: Tensor, gone_columns: Tensor, left_columns: Tensor) -> None:
    """Change the weights of the inputs that are left, and the bias, so that a projection's outputs move least.

    Args:
        output: [out, in]; the weights of those that go stay as they are.
        gone: What the inputs read that go, [T, gone].
        left: What those read that are left, [T, left].
        gone_columns: Where the former are in `output`, [gone].
        left_columns: Where the latter are, [left].

    Raises:
        NumericalError: the inputs are not finite.
    """
    weight, bias = output.weight, output.bias
    lost = weight[:, gone_columns].float()
    # A bias makes up for the means; without one, inputs are compared with zero.
    gone_mean, left_mean = (gone.mean(0), left.mean(0)) if bias is not None else (0.0, 0.0)
    gone, left = gone - gone_mean, left - left_mean
    gram = left.T @ left
    damping = DAMPING * gram.diagonal().mean() if len(gram) else gram.new_zeros(())
    if damping == 0:
        shares = gram.new_zeros(len(gram), len(gone_columns))
    else:
        gram.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if bool(failed):
            raise NumericalError("The model's activations are not finite.")
        shares = torch.cholesky_solve(left.T @ gone, factor)
    gained = lost @ shares.T
    weight[:, left_columns] += gained.to(weight.dtype)
    if bias is not None:
        bias += (lost @ gone_mean - gained @ left_mean).to(bias.dtype)
