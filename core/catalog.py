"""The pruning methods on offer, as one literal table; options come from the contract itself."""

from dataclasses import dataclass
from typing import Any

from core.jobs.spec import NeuroPrune, Spec


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """One method: what it is called, where it was published, which options it takes."""

    name: str
    title: str
    summary: str
    paper: str
    options: type[Spec]

    def options_schema(self) -> dict[str, Any]:
        """JSON schema of the options, units and defaults included."""
        return self.options.model_json_schema()


METHODS: tuple[MethodEntry, ...] = (
    MethodEntry(
        name="neuroprune",
        title="NeuroPrune, target met exactly",
        summary="Preferential attachment in the MLPs, group sparsity in attention, elimination of redundant heads.",
        paper="https://arxiv.org/abs/2404.01306",
        options=NeuroPrune,
    ),
)
