"""What stays of a model: a plan, how it is held as masks, and what it removes."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.engine.anatomy import Anatomy
from core.engine.experts import leave_out_removed
from core.engine.units import Kind, Units


@dataclass(frozen=True, slots=True)
class Plan:
    """Indices of what is kept, ascending, by position of `Anatomy.units`."""

    indices: tuple[tuple[int, ...], ...]

    def kept(self, units: Units) -> tuple[int, ...]:
        """The kept indices of one attention's or MLP's units."""
        return self.indices[units.position]


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
        """Drop units with all of their members, and zero what belongs to them."""
        units = self._anatomy.units[position]
        removed = torch.zeros_like(self._kept[position])
        removed[indices] = True
        self._kept[position] &= ~removed
        units.zero_(removed)
        for member in itertools.compress(units.members, removed):
            self.remove(member.position, torch.arange(member.count))
        self._leave_out_experts()

    def hold(self) -> None:
        """Zero again everything that was removed; called after every optimiser step."""
        for units, kept in zip(self._anatomy.units, self._kept, strict=True):
            if not bool(kept.all()):
                units.hold_(kept)

    def removed(self, kind: Kind) -> list[int]:
        """How many units of a kind are gone, by attention (heads, in-rows), MLP (neurons) or mixture (experts)."""
        return [int((~self._kept[i]).sum()) for i in self._anatomy.positions(kind)]

    def gone_members(self) -> set[int]:
        """Positions of the units that went as a whole because they belong to an expert that is gone."""
        gone: set[int] = set()
        for units, kept in zip(self._anatomy.units, self._kept, strict=True):
            gone |= {member.position for member in itertools.compress(units.members, ~kept)}
        return gone

    def removed_attention_parameters(self) -> int:
        """Parameters of the heads and in-rows removed so far."""
        gone = zip(self._anatomy.attentions, self.removed("heads"), self.removed("inputs"), strict=True)
        return sum(attention.removed_parameters(heads, inputs) for attention, heads, inputs in gone)

    def removed_parameters(self) -> int:
        """Parameters of everything removed so far."""
        gone = zip(self._anatomy.units, self._kept, strict=True)
        others = (int((~kept).sum()) * units.cost for units, kept in gone if units.kind in ("neurons", "experts"))
        return self.removed_attention_parameters() + sum(others)

    def plan(self) -> Plan:
        """The plan that these masks describe."""
        return Plan(tuple(tuple(mask.nonzero().flatten().tolist()) for mask in self._kept))

    def state_dict(self) -> dict[str, Any]:
        """What is kept."""
        return {"kept": [mask.clone() for mask in self._kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep what was kept when the state was taken, and zero the rest."""
        self._kept = [mask.clone() for mask in state["kept"]]
        self._leave_out_experts()
        self.hold()

    def _leave_out_experts(self) -> None:
        """Let no router choose an expert that is gone."""
        for mixture in self._anatomy.mixtures:
            if not bool(self._kept[mixture.units.position].all()):
                leave_out_removed(mixture.router)


class WeightMasks:
    """Which single weights of a live model's projections are still kept; removed ones are held at zero."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self.kept = [torch.ones_like(matrix.weight, dtype=torch.bool) for matrix in anatomy.matrices]
        """Bool [out, in], by position of `anatomy.matrices`."""
        self.removed = 0
        """How many weights are gone."""

    def remove(self, position: int, chosen: Tensor) -> None:
        """Drop the weights marked in `chosen` (bool [out, in]) and zero them."""
        before = int(self.kept[position].sum())
        self.kept[position] &= ~chosen
        self.removed += before - int(self.kept[position].sum())
        self._zero(position)

    def hold(self) -> None:
        """Zero again everything that was removed; called after every optimiser step."""
        for position in range(len(self.kept)):
            self._zero(position)

    def state_dict(self) -> dict[str, Any]:
        """What is kept."""
        return {"kept": [mask.clone() for mask in self.kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep what was kept when the state was taken, and zero the rest."""
        self.kept = copies_like(self.kept, state["kept"])
        self.removed = sum(int((~kept).sum()) for kept in state["kept"])
        self.hold()

    def _zero(self, position: int) -> None:
        # Not by a product: infinity times zero is NaN.
        self._anatomy.matrices[position].weight.masked_fill_(~self.kept[position], 0)


def copies_like(present: list[Tensor], states: list[Tensor]) -> list[Tensor]:
    """Copies of a state's tensors, each on the device of the present one: a checkpoint may come from another."""
    return [state.to(tensor.device, copy=True) for tensor, state in zip(present, states, strict=True)]
