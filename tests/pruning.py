"""Every pruning method at every granularity, and short trainings of tiny models under them."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor
from transformers import PreTrainedModel

from core.engine.anatomy import Anatomy, bind
from core.engine.methods import Pruner, Schedule, build_pruner
from core.jobs.methods import Method, takes_target
from tests import tiny, tiny_families

LEARNING_RATE = 1e-2
STEPS = 10
SCHEDULE = Schedule(STEPS, warmup_fraction=0.1, recovery_fraction=0.4)


@dataclass(frozen=True)
class Case:
    """A method at a granularity; its penalties are off, so that every zero is one that was pruned."""

    name: str
    granularity: str

    def method(self, **options: Any) -> Any:
        plain: dict[str, Any] = {"neuroprune": {"alpha": 0.0, "beta": 0.0}, "l1": {"strength": 0.0}}.get(self.name, {})
        if self.name == "neuroprune" and self.granularity == "structured" and options.get("mode") != "faithful":
            plain["compensation"] = True
        return TypeAdapter(Method).validate_python(
            {"name": self.name, "granularity": self.granularity, **plain, **options}
        )

    def pruner(self, model: PreTrainedModel, sparsity: float, schedule: Schedule = SCHEDULE, **options: Any) -> Pruner:
        method = self.method(**options)
        return build_pruner(bind(model), method, sparsity if takes_target(method) else None, schedule, seed=0)


BY_WEIGHT = ("unstructured", "2:4")
GRADUAL = [
    Case(name, granularity)
    for name in ("neuroprune", "importance", "magnitude", "l1", "random")
    for granularity in ("structured", *BY_WEIGHT)
]
CASES = [
    *GRADUAL,
    *(Case("smart", granularity) for granularity in ("structured", "unstructured")),
    *(Case(name, granularity) for name in ("wanda", "sparsegpt") for granularity in BY_WEIGHT),
]
every_method = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.granularity}")
every_gradual_method = pytest.mark.parametrize("case", GRADUAL, ids=lambda case: f"{case.name}-{case.granularity}")
every_model = pytest.mark.parametrize("make", [tiny.bert_classifier, tiny.llama], ids=["bert", "llama"])
every_storage = pytest.mark.parametrize(
    "make",
    [tiny.bert_classifier, tiny.llama, tiny_families.gpt2, tiny_families.gpt_neox, tiny_families.phi3],
    ids=["bert", "llama", "gpt2", "gpt_neox", "phi3"],
)
"""Projections apart and fused, in parts and head by head, as [out, in] and as [in, out]."""


def loss_of(model: PreTrainedModel, step: int) -> Tensor:
    """Cross entropy of random rows, others in every step, to the same answer."""
    ids = torch.randint(4, tiny.VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(step))
    also = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
    logits = model(ids, **also).logits.flatten(0, -2)
    return F.cross_entropy(logits, torch.ones(len(logits), dtype=torch.long))


def adamw(model: PreTrainedModel) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)


def zero_weights(anatomy: Anatomy) -> int:
    """How many weights of the matrices are zero."""
    return sum(int((matrix.weight == 0).sum()) for matrix in anatomy.matrices)


def calibrate(pruner: Pruner) -> None:
    """Let the pruner see a fixed batch."""
    model = pruner.anatomy.model

    def run(rows: int) -> None:
        with torch.no_grad():
            loss_of(model, step=0)

    pruner.calibrate(run)


def take_step(pruner: Pruner, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One optimiser step as the training loop takes it."""
    pruner.begin_step(step)
    optimizer.zero_grad()
    loss, penalty = loss_of(pruner.anatomy.model, step), pruner.penalty()
    (loss if penalty is None else loss + penalty).backward()
    pruner.observe()
    optimizer.step()
    pruner.step(step, LEARNING_RATE)


def train(pruner: Pruner, steps: int = STEPS) -> None:
    """Prune along the schedule, up to but without `finish`."""
    calibrate(pruner)
    optimizer = adamw(pruner.anatomy.model)
    for step in range(1, steps + 1):
        take_step(pruner, optimizer, step)


def zeros(anatomy: Anatomy) -> list[Tensor]:
    """Which entries of the transformer layers' parameters are zero."""
    return [parameter.detach() == 0 for parameter in anatomy.stack.parameters()]


def count_zeros(anatomy: Anatomy) -> int:
    return sum(int(zero.sum()) for zero in zeros(anatomy))


def check_target(case: Case, pruner: Pruner, sparsity: float) -> None:
    """What is zero is exactly what was asked for, and what the pruner says."""
    anatomy = pruner.anatomy
    total, found = anatomy.encoder_parameters, count_zeros(anatomy)
    assert pruner.sparsity == found / total
    if case.granularity == "2:4":
        for matrix in anatomy.matrices:
            assert ((matrix.weight.reshape(-1, 4) == 0).sum(1) == 2).all()
    elif case.granularity == "unstructured":
        assert found == int(sparsity * total + 0.5)
    else:
        assert abs(found - sparsity * total) <= max(0.5 * anatomy.layers[0].mlps[0].units.cost, 0.001 * total)


def plant_twins(anatomy: Anatomy, layer: int, heads: list[int]) -> None:
    """Let heads of a layer compute the same; what they write stays different."""
    for part in anatomy.layers[layer].attentions[0].units.reads:
        by_unit = part.values
        for head in heads[1:]:
            by_unit[head] = by_unit[heads[0]]
