"""SparseGPT: one-shot pruning with error compensation (Frantar & Alistarh, ICML 2023, https://arxiv.org/abs/2301.00774).

Each projection is a least-squares problem of its own: change W so that W X moves as little as possible. Columns are
visited from the left; where a weight goes, those to its right in the same row take over what it did (the optimal brain
surgeon's update, Hassibi & Stork 1992).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from core.engine.anatomy import Anatomy
from core.engine.methods.allocation import lowest
from core.engine.methods.one_shot import OneShotPruner, shares
from core.engine.methods.removal import lowest_of_each
from core.errors import NumericalError
from core.jobs.methods import SparseGPT

Choose = Callable[[Tensor, int], Tensor]
"""From the saliencies [out, width] of a group of columns, and which group it is, to bool [out, width]: what goes."""

NEGLIGIBLE = 1e-12
"""Share of the Hessian's mean diagonal that an input counts which is zero in every token: its weights go first."""


class SparseGPTPruner(OneShotPruner):
    """The weights whose loss can best be made up for go; the others make up for it."""

    def __init__(self, anatomy: Anatomy, sparsity: float | None, options: SparseGPT) -> None:
        super().__init__(anatomy, sparsity, options)
        self.damping = options.damping
        self.block_size = options.block_size

    @staticmethod
    def statistic(inputs: Tensor) -> Tensor:
        """X X^T, [in, in]: half the Hessian of the squared error, the same for every row of the weights."""
        return inputs.T @ inputs

    def prune(self, weight: Tensor, statistic: Tensor, count: int) -> Tensor:
        rows, columns = weight.shape
        factor = inverse_factor(statistic, self.damping)
        if self.pattern is None:
            starts = range(0, columns, self.block_size)
            counts = shares(count, [rows * min(self.block_size, columns - start) for start in starts])

            def of_block(saliency: Tensor, block: int) -> Tensor:
                return lowest(saliency.flatten(), counts[block]).view_as(saliency)

            return compensate_(weight, factor, of_block, self.block_size, 1)
        stay, of = self.pattern

        def by_pattern(saliency: Tensor, _: int) -> Tensor:
            return lowest_of_each(saliency, of - stay, of)

        return compensate_(weight, factor, by_pattern, of, max(1, self.block_size // of))


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper triangular U with U^T U the inverse of the damped Hessian, [in, in].

    Row i of U from the diagonal on is, but for its scale, row i of the inverse of the Hessian of inputs i, i + 1, …:
    all that the visit of column i needs (section 3.3 of the paper).

    Args:
        hessian: X X^T, [in, in], in fp64.
        damping: Added to the diagonal, as a share of its mean.

    Raises:
        NumericalError: the damped Hessian cannot be inverted.
    """
    diagonal = hessian.diagonal()
    mean = diagonal.mean() if bool(diagonal.any()) else diagonal.new_ones(())
    damped = hessian + torch.diag(torch.where(diagonal > 0, damping * mean, NEGLIGIBLE * mean))
    # With both axes reversed, the lower factor of H = L L^T becomes an upper one, and its inverse is U.
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if bool(failed):
        raise NumericalError("The Hessian of a layer cannot be inverted.", param="/method/damping")
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return factor


def compensate_(weight: Tensor, factor: Tensor, choose: Choose, width: int, groups_a_block: int) -> Tensor:
    """Algorithm 1 of the paper on one projection, in place: choose what goes group by group, and make up for it.

    Args:
        weight: [out, in]; computed in the factor's precision.
        factor: U of `inverse_factor`, [in, in].
        choose: Says what goes of one group of columns when the columns before it have been visited.
        width: Columns of a group, the last one may have fewer.
        groups_a_block: Later blocks hear of an error once a block; this changes only the speed.

    Returns:
        Bool [out, in], true for those that went.
    """
    work = weight.to(factor.dtype, copy=True)
    removed = torch.zeros_like(work, dtype=torch.bool)
    columns = work.shape[1]
    block = width * groups_a_block
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = torch.zeros_like(work[:, start:stop])
        for column in range(start, stop):
            if column % width == 0:
                group = slice(column, min(column + width, stop))
                saliency = work[:, group].square() / factor.diagonal()[group].square()
                removed[:, group] = choose(saliency, column // width)
            error = work[:, column] * removed[:, column] / factor[column, column]
            work[:, column:stop] -= torch.outer(error, factor[column, column:stop])
            errors[:, column - start] = error
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    weight.copy_(work.masked_fill_(removed, 0))
    return removed
