"""Gates on a live model's weights: in forward and backward a weight counts f times, and the optimiser never knows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from core.engine.units import Slice, Units


class Gateable(Protocol):
    """Weights under gates; `Matrix` is one, with a gate for every entry."""

    @property
    def weight(self) -> Tensor:
        """Live view without gradient; writes go through."""

    @property
    def gradient(self) -> Tensor | None:
        """View of the gradient, shaped like `weight`, if there is one."""


@dataclass(frozen=True, slots=True)
class UnitOutputs:
    """The weights that pass on what one layer's heads or neurons compute: [units, hidden, block], a gate a unit."""

    units: Units

    @property
    def weight(self) -> Tensor:
        """Live view; writes go through."""
        return self._output.values

    @property
    def gradient(self) -> Tensor | None:
        """View of the gradient, if there is one."""
        gradient = self._output.parameter.grad
        return None if gradient is None else self._output.by_unit(gradient)

    @property
    def _output(self) -> Slice:
        (output,) = self.units.gates
        return output


class Gates:
    """While closed, the model's weights are raw weights times gates; while open, the raw weights themselves.

    Closed for forward and backward, open for the optimiser: so it moves the raw weights, along their own gradients.
    """

    def __init__(self, parts: Sequence[Gateable], shapes: Sequence[torch.Size]) -> None:
        """Open gates.

        Args:
            parts: The weights.
            shapes: A part's gates, so that they broadcast over its weight.
        """
        self.parts = parts
        self.shapes = shapes
        self.counts = [shape.numel() for shape in shapes]
        self.values: Tensor | None = None
        """fp64 [sum of counts], part by part, while the gates are closed."""
        self._raw: list[Tensor] = []

    @torch.no_grad()
    def close(self, values: Tensor) -> None:
        """Scale the weights by `values`, fp64 [sum of counts]."""
        self._raw = [part.weight.clone() for part in self.parts]
        self._scale(values)

    @torch.no_grad()
    def open(self) -> Tensor:
        """Put the raw weights back, and turn the gradients, which are the scaled weights', into theirs.

        Returns:
            dL/df, [sum of counts].
        """
        assert self.values is not None  # noqa: S101 only closed gates can be opened
        slopes = []
        for part, raw, gate in zip(self.parts, self._raw, self._by_part(self.values), strict=True):
            part.weight.copy_(raw)
            gradient = part.gradient
            if gradient is None:
                slopes.append(torch.zeros_like(gate).flatten())
                continue
            slopes.append((raw * gradient).sum_to_size(gate.shape).flatten())
            gradient.mul_(gate)
        self.values, self._raw = None, []
        return torch.cat(slopes)

    def state_dict(self) -> dict[str, Any]:
        """Gates and raw weights; neither is written to again, so that they need no copy."""
        return {"values": self.values, "raw": self._raw}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Close the gates as they were when the state was taken."""
        self.values, self._raw = None, []
        if state["values"] is not None:
            self._raw = [raw.to(part.weight.device) for raw, part in zip(state["raw"], self.parts, strict=True)]
            self._scale(state["values"].to(self.parts[0].weight.device))

    def _scale(self, values: Tensor) -> None:
        self.values = values
        for part, raw, gate in zip(self.parts, self._raw, self._by_part(values), strict=True):
            part.weight.copy_(raw * gate.to(raw.dtype))

    def _by_part(self, values: Tensor) -> list[Tensor]:
        """Gates in the shapes in which they broadcast over the parts' weights."""
        return [gate.view(shape) for gate, shape in zip(torch.split(values, self.counts), self.shapes, strict=True)]
