"""What projections read while a model runs: their inputs, token by token, padding left out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from core.engine.export.modeling_neuroprune import Experts


@contextmanager
def listening(model: nn.Module, modules: Sequence[nn.Module], hear: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Hear of the inputs of modules whenever the model runs within the block.

    Args:
        model: Called with `attention_mask` [rows, tokens] as a keyword, or without padding.
        modules: Parts of it, which read every token, [rows, tokens, in] or [rows * tokens, in], or belong to an expert.
        hear: Called with a module's index and what it reads, [T, in] in fp32 and without gradient.
    """
    masks: dict[torch.device, Tensor | None] = {}
    """By device: copies of a model that share a batch have a part of it each."""

    def note_mask(_: nn.Module, __: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        mask = inputs.get("attention_mask")
        if mask is None:
            masks.clear()
        else:
            masks[mask.device] = mask

    def pass_on(index: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read = inputs[0].detach().float()
        tokens, mask = read.flatten(0, -2), masks.get(read.device)
        # What else a projection may read, such as embeddings of distances, has no padding.
        if mask is not None and read.shape[:-1] in (mask.shape, (mask.numel(),)):
            tokens = tokens[mask.flatten().bool()]
        # Products are to be in fp32 whatever the model multiplies in.
        with torch.autocast(read.device.type, enabled=False):
            hear(index, tokens)

    def route_padding_nowhere(_: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...] | None:
        """What experts read is some of the tokens; which, their projections cannot know."""
        hidden, chosen, weights = inputs
        mask = masks.get(hidden.device)
        return None if mask is None else (hidden, chosen.masked_fill(~mask.flatten().bool()[:, None], -1), weights)

    hooks = [model.register_forward_pre_hook(note_mask, with_kwargs=True)]
    hooks += [m.register_forward_pre_hook(route_padding_nowhere) for m in model.modules() if isinstance(m, Experts)]
    hooks += [module.register_forward_pre_hook(partial(pass_on, index)) for index, module in enumerate(modules)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
