"""The order in which a training sees its rows."""

from collections.abc import Iterator

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices


class EpochSampler(LengthGroupedSampler):
    """Rows of similar length together, in an order that follows from the seed and the epoch alone.

    The sampler it is made from draws from the process's own generator, so that its order depends on all that was drawn
    before, and cannot be had again by a process that begins in the middle.
    """

    def __init__(self, lengths: list[int], rows_a_step: int, seed: int) -> None:
        super().__init__(rows_a_step, lengths=lengths)
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Count from 0; the trainer says so before each."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # Apart by more than any number of epochs, so that no two seeds share an order.
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)  # type: ignore[no-untyped-call]
        return iter(order)
