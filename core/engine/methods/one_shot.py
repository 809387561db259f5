"""What the methods that need no training have in common: input statistics, exact numbers, one layer after the other.

Shapes: T tokens that are not padding; a projection's weights are [out, in].
"""

from abc import abstractmethod
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from core.engine.anatomy import Anatomy, Layer
from core.engine.export.modeling_neuroprune import Experts
from core.engine.methods.base import Pruner
from core.engine.methods.connections import release_unconnected
from core.engine.methods.removal import check_pattern, weights_to_remove
from core.engine.plan import WeightMasks
from core.errors import NumericalError, VerificationError
from core.jobs.methods import SparseGPT, Wanda, pattern_of

Statistic = Callable[[Tensor], Tensor]
"""From a projection's inputs [T, in] to what is summed over all calibration batches."""


class OneShotPruner(Pruner):
    """Prunes by the inputs of each projection, layer by layer, before any training; then holds what it removed.

    A layer's inputs are looked at after the earlier layers were pruned, as both papers do. This takes one pass over the
    calibration rows a layer.
    """

    def __init__(self, anatomy: Anatomy, sparsity: float | None, options: Wanda | SparseGPT) -> None:
        """Bind to a model.

        Args:
            anatomy: The model.
            sparsity: Share of the transformer layers' parameters; None with a pattern, from which it follows.
            options: The method's.

        Raises:
            UnreachableTargetError: the projections have fewer weights, or the pattern does not divide their inputs.
        """
        super().__init__(anatomy)
        self.calibration_rows = options.calibration_rows
        self.pattern = pattern_of(options.granularity)
        self.weight_masks = WeightMasks(anatomy)
        self.encoder_parameters = anatomy.encoder_parameters
        sizes = [matrix.weight.numel() for matrix in anatomy.matrices]
        if self.pattern is not None:
            stay, of = self.pattern
            check_pattern(anatomy, of)
            self.counts = [size // of * (of - stay) for size in sizes]
            """How many weights go, by position of `anatomy.matrices`."""
        else:
            assert sparsity is not None  # noqa: S101 the contract asks for a target without a pattern
            self.counts = shares(weights_to_remove(anatomy, sparsity), sizes)

    @staticmethod
    @abstractmethod
    def statistic(inputs: Tensor) -> Tensor:
        """What the method needs to know of a projection's inputs [T, in]; summed over batches."""

    @abstractmethod
    def prune(self, weight: Tensor, statistic: Tensor, count: int) -> Tensor:
        """Decide what goes of one projection.

        Args:
            weight: [out, in]; what stays may be changed in place.
            statistic: Of the projection's inputs, over all calibration rows.
            count: How many weights go.

        Returns:
            Bool [out, in], true for those that go.
        """

    @torch.no_grad()
    def calibrate(self, run: Callable[[int], None]) -> None:
        """Prune the model, in as many passes over the calibration rows as it has layers.

        Raises:
            NumericalError: weights or activations are not finite.
        """
        position = 0
        for index, layer in enumerate(self.anatomy.layers):
            modules = [matrix.module for matrix in layer.matrices]
            calibration = partial(run, self.calibration_rows)
            of_target = reading_target(layer)
            statistics = sum_over_tokens(self.anatomy.model, modules, calibration, self.statistic, of_target)
            for matrix, statistic in zip(layer.matrices, statistics, strict=True):
                if not bool(statistic.isfinite().all() & matrix.weight.isfinite().all()):
                    raise NumericalError(f"Weights or activations of layer {index} are not finite.", param="/model")
                removed = self.prune(matrix.weight, statistic, self.counts[position])
                self.weight_masks.remove(position, removed)
                position += 1

    def step(self, step: int, learning_rate: float) -> None:
        """Hold what was removed."""
        self.weight_masks.hold()

    def finish(self) -> None:
        if self.weight_masks.removed != sum(self.counts):
            raise VerificationError(f"{self.weight_masks.removed} weights went instead of {sum(self.counts)}.")
        release_unconnected(self.anatomy, self.masks)

    @property
    def sparsity(self) -> float:
        return self.weight_masks.removed / self.encoder_parameters

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "weight_masks": self.weight_masks.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.weight_masks.load_state_dict(state["weight_masks"])


def shares(count: int, sizes: Iterable[int]) -> list[int]:
    """Divide `count` in proportion to `sizes`: the sum is exact, and every part less than one off its share.

    The running sum is rounded down, so that remainders are spread and no part exceeds its size.
    """
    ends = list(accumulate(sizes, initial=0))
    return [count * end // ends[-1] - count * start // ends[-1] for start, end in pairwise(ends)]


def reading_target(layer: Layer) -> set[nn.Module]:
    """The projections that read what a decoder writes, of a model that has an encoder besides."""
    if not layer.reads_target:
        return set()
    of_encoder = [matrix.module for a in layer.attentions if a.row.cross for matrix in a.readers[1]]
    return {matrix.module for matrix in layer.matrices if matrix.module not in of_encoder}


def sum_over_tokens(
    model: Any,
    modules: Sequence[nn.Module],
    run: Callable[[], None],
    statistic: Statistic,
    of_target: Container[nn.Module] = (),
) -> list[Tensor]:
    """Sum a statistic of each module's inputs over all tokens that pass, padding left out.

    Args:
        model: Called with `attention_mask` [rows, tokens] as a keyword, or without padding; an encoder-decoder with
            `decoder_input_ids`, too, which end with its padding token.
        modules: Parts of it, which read every token, [rows, tokens, in] or [rows * tokens, in], or belong to an expert.
        run: Passes batches through the model.
        statistic: Of inputs [T, in] in fp32.
        of_target: Those of the modules that read the decoder's tokens.

    Returns:
        One sum a module, in fp64.
    """
    sums: dict[nn.Module, Tensor] = {}
    mask: Tensor | None = None
    target_mask: Tensor | None = None

    def note_masks(_: nn.Module, __: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        nonlocal mask, target_mask
        mask, written = inputs.get("attention_mask"), inputs.get("decoder_input_ids")
        target_mask = None if written is None else _before_padding(written, model.config.pad_token_id)

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read = inputs[0].float()
        tokens = read.flatten(0, -2)
        real = target_mask if module in of_target else mask
        # What else a projection may read, such as embeddings of distances, has no padding.
        if real is not None and read.shape[:-1] in (real.shape, (real.numel(),)):
            tokens = tokens[real.flatten().bool()]
        now = statistic(tokens).double()
        sums[module] = sums[module] + now if module in sums else now

    def route_padding_nowhere(_: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...] | None:
        """What experts read is some of the tokens; which, their projections cannot know."""
        hidden, chosen, weights = inputs
        return None if mask is None else (hidden, chosen.masked_fill(~mask.flatten().bool()[:, None], -1), weights)

    hooks = [model.register_forward_pre_hook(note_masks, with_kwargs=True)]
    hooks += [m.register_forward_pre_hook(route_padding_nowhere) for m in model.modules() if isinstance(m, Experts)]
    hooks += [module.register_forward_pre_hook(add) for module in modules]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [sums[module] for module in modules]


def _before_padding(written: Tensor, padding: int) -> Tensor:
    """Bool [rows, tokens]: all up to each row's last token that is no padding, and the first one, which starts it."""
    real = (written != padding).int().flip(1).cummax(1).values.flip(1).bool()
    real[:, 0] = True
    return real
