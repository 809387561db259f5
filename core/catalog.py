"""The pruning methods on offer, as one literal table; options come from the contract itself."""

from dataclasses import dataclass
from typing import Any

from core.jobs import methods
from core.jobs.base import Spec


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

    def described(self) -> dict[str, Any]:
        """What users are told of it, as JSON types."""
        return {
            "name": self.name,
            "title": self.title,
            "summary": self.summary,
            "paper": self.paper,
            "options": self.options_schema(),
        }


METHODS: tuple[MethodEntry, ...] = (
    MethodEntry(
        name="neuroprune",
        title="NeuroPrune",
        summary="Preferential attachment in the MLPs, group sparsity in attention, elimination of redundant heads; as "
        "published, or to an exact target, where what stays can take over what goes.",
        paper="https://arxiv.org/abs/2404.01306",
        options=methods.NeuroPrune,
    ),
    MethodEntry(
        name="importance",
        title="Magnitude and sensitivity",
        summary="The lowest mix of weight magnitude and first-order sensitivity goes, gradually.",
        paper="https://arxiv.org/abs/1611.06440",
        options=methods.Importance,
    ),
    MethodEntry(
        name="smart",
        title="SMART: learnt scores, differentiable top-k",
        summary="A learnt score for every unit, an exact soft top-k over all layers, a falling temperature.",
        paper="https://arxiv.org/abs/2403.19969",
        options=methods.Smart,
    ),
    MethodEntry(
        name="magnitude",
        title="Gradual magnitude pruning",
        summary="The smallest weights or units go along a cubic schedule while the model trains.",
        paper="https://arxiv.org/abs/2210.06384",
        options=methods.Magnitude,
    ),
    MethodEntry(
        name="l1",
        title="l1 regularisation",
        summary="All weights shrink alike while the model trains; the smallest go along the schedule.",
        paper="https://arxiv.org/abs/1506.02626",
        options=methods.L1,
    ),
    MethodEntry(
        name="random",
        title="Random choice",
        summary="Weights or units go by chance: the floor for every comparison.",
        paper="https://arxiv.org/abs/2003.03033",
        options=methods.Random,
    ),
    MethodEntry(
        name="wanda",
        title="Wanda",
        summary="A few rows, no training: the smallest |weight| times input norm of each output goes.",
        paper="https://arxiv.org/abs/2306.11695",
        options=methods.Wanda,
    ),
    MethodEntry(
        name="sparsegpt",
        title="SparseGPT",
        summary="A few rows, no training: weights go, and those that stay make up for the error they leave.",
        paper="https://arxiv.org/abs/2301.00774",
        options=methods.SparseGPT,
    ),
)
