"""What stays of a model: a plan, how it is held as masks, and what it removes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.engine.anatomy import Anatomy, Units


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Indices of what one layer keeps, ascending: head groups and neurons."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What every layer keeps."""

    layers: tuple[LayerPlan, ...]

    def kept(self, units: Units) -> tuple[int, ...]:
        """The kept indices of one layer's heads or neurons."""
        layer = self.layers[units.layer]
        return layer.heads if units.kind == "heads" else layer.neurons


class Masks:
    """Which units of a live model are still kept; removed ones are held at zero.

    Starts with everything kept. Removal is final: there is no way back from a mask.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._kept = [torch.ones(u.count, dtype=torch.bool) for u in anatomy.units]

    def kept(self, position: int) -> Tensor:
        """Bool [count] of the units at this position of `anatomy.units`."""
        return self._kept[position]

    def remove(self, position: int, indices: Tensor) -> None:
        """Drop units and zero what belongs to them."""
        self._kept[position][indices] = False
        self._anatomy.units[position].zero_(~self._kept[position])

    def hold(self) -> None:
        """Zero again everything that was removed; called after every optimiser step."""
        for units, kept in zip(self._anatomy.units, self._kept, strict=True):
            if not bool(kept.all()):
                units.zero_(~kept)

    def removed_parameters(self) -> int:
        """Parameters of everything removed so far."""
        pairs = zip(self._anatomy.units, self._kept, strict=True)
        return sum(int((~kept).sum()) * units.cost for units, kept in pairs)

    def plan(self) -> Plan:
        """The plan that these masks describe."""
        kept = [tuple(mask.nonzero().flatten().tolist()) for mask in self._kept]
        return Plan(tuple(LayerPlan(heads, neurons) for heads, neurons in zip(kept[::2], kept[1::2], strict=True)))
