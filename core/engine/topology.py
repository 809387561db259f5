"""The shape of a network: how connected its neurons are, how alike its heads, where its weights are zero.

What figures 1, 2 and 7 to 10 of the paper measure (Dhurandhar et al. 2024, https://arxiv.org/abs/2404.01306). All of
it is read from a live model's weights, so of a pruned model before compaction: what was removed is there, as zeros.

Shapes: h hidden size, N neurons, k head groups.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.engine.anatomy import Anatomy, Attention, Layer, Mlp
from core.engine.methods.neuroprune.redundancy import representatives, similarity
from core.engine.plan import Plan
from core.engine.units import Slice

MATRIX_KINDS = ("query", "key", "value", "attention_output", "mlp_input", "mlp_output")
HISTOGRAM_BINS = 20


@dataclass(frozen=True, slots=True)
class Degrees:
    """How many connections each of a number of rows or neurons has."""

    connections: NDArray[np.int64]
    """[entries]"""
    possible: NDArray[np.int64]
    """[entries], weights that could be connections."""

    @property
    def fractional(self) -> NDArray[np.float64]:
        """Shares, 0 … 1, [entries]."""
        return self.connections / self.possible

    @property
    def standard_deviation(self) -> float:
        """Of the fractional degree, in percent as in figure 2; that of the population. 0 where there is no entry."""
        return 100 * float(self.fractional.std()) if len(self.connections) else 0.0

    @property
    def mean(self) -> float:
        """Of the fractional degree, in percent. 0 where there is no entry."""
        return 100 * float(self.fractional.mean()) if len(self.connections) else 0.0

    @property
    def histogram(self) -> list[int]:
        """How many entries have a fractional degree in each of `HISTOGRAM_BINS` equal parts of 0 … 1."""
        return [int(count) for count in np.histogram(self.fractional, HISTOGRAM_BINS, (0.0, 1.0))[0]]


@dataclass(frozen=True, slots=True)
class HeadGraph:
    """The graph of a layer's similar heads (algorithm 2), and the dominating set found in it (algorithm 3)."""

    heads: int
    edges: int
    """Pairs of heads that differ by no more than theta, and by nothing that is not a weight."""
    dominating: int
    """Heads that together stand for all."""


def together(degrees: list[Degrees]) -> Degrees:
    """The entries of several `Degrees` as one."""
    return Degrees(
        np.concatenate([d.connections for d in degrees]),
        np.concatenate([d.possible for d in degrees]),
    )


@torch.no_grad()
def neuron_degrees(mlp: Mlp, epsilon: float) -> Degrees:
    """Connections of each MLP neuron, in and out, of all the weights it has, [N].

    A neuron reads the hidden state by its row of L_in (gated: by one row of each) and writes to it by its column of
    L_out. Both ends count alike: a weight is a connection where |w| >= `epsilon`, and the degree is their number over
    that of the weights, so a neuron with half of its inputs and no output has a degree of 1/4.
    """
    weights = [part for part in mlp.units.slices if part.name == "weight"]
    connections = sum(_count(part, epsilon) for part in weights)
    possible = sum(part.cost for part in weights)
    return Degrees(np.asarray(connections, dtype=np.int64), np.full(mlp.units.count, possible))


@torch.no_grad()
def row_degrees(mlp: Mlp, epsilon: float) -> Degrees:
    """Connections that enter each output of L_in (gated: of both) and of L_out: c_i of eq. 1, as figure 2 counts.

    Unlike eq. 1 a row may have none: the floor there only keeps the penalty finite.
    """
    weights = [matrix.weight for matrix in (*mlp.inputs, mlp.output)]
    connections = [(weight.abs() >= epsilon).sum(1).cpu().numpy() for weight in weights]
    possible = [np.full(weight.shape[0], weight.shape[1]) for weight in weights]
    return Degrees(np.concatenate(connections), np.concatenate(possible))


@torch.no_grad()
def head_graph(attention: Attention, kept: Tensor, theta: float) -> HeadGraph:
    """The similarity of a layer's heads (groups).

    Args:
        attention: Of one layer.
        kept: Bool [k], the heads that are part of the graph.
        theta: Heads that differ by no more than this (l_inf) are similar.
    """
    count = int(kept.sum())
    similar = similarity(attention, kept, theta)
    dominating = set(representatives(attention, kept, theta)[kept].tolist())
    return HeadGraph(count, (int(similar.sum()) - count) // 2, len(dominating))


@torch.no_grad()
def head_importance(attention: Attention) -> Tensor:
    """Sum of |W_O| over the weights that leave each head (group), figure 7's measure, [k]."""
    (output,) = attention.units.writes
    return output.values.flatten(1).abs().sum(1).cpu()


def removed_importance(dense: Anatomy, plan: Plan) -> float | None:
    """Mean importance of the removed heads over that of the kept ones, with the dense model's weights.

    Around 1 the choice had nothing to do with importance, which is what removal by redundancy looks like (figure 7).

    Returns:
        None where no head went, or none stayed, or those that stayed have no weights.
    """
    importance, kept = [], []
    for attention in dense.attentions:
        importance.append(head_importance(attention))
        stays = torch.tensor(plan.kept(attention.units), dtype=torch.long)
        kept.append(torch.isin(torch.arange(attention.groups), stays))
    values, mask = torch.cat(importance), torch.cat(kept)
    if not bool(mask.any()) or bool(mask.all()) or not bool(values[mask].any()):
        return None
    return float(values[~mask].mean() / values[mask].mean())


@torch.no_grad()
def zero_shares(layer: Layer) -> dict[str, float]:
    """Share of weights that are zero, 0 … 1, by kind of matrix (`MATRIX_KINDS`); of all of a kind together."""
    slices: dict[str, list[Slice]] = {kind: [] for kind in MATRIX_KINDS}
    for attention in layer.attentions:
        for kind, part in (("query", attention.query), ("key", attention.key), ("value", attention.value)):
            slices[kind].append(part.weight)
        slices["attention_output"] += attention.units.writes
    for mlp in layer.mlps:
        slices["mlp_input"] += [part.weight for part in mlp.factors]
        slices["mlp_output"] += mlp.units.writes
    return {kind: _zero_share(slices[kind]) for kind in MATRIX_KINDS}


def _zero_share(slices: list[Slice]) -> float:
    weights = [part.values for part in slices]
    entries = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / entries if entries else 0.0


def _count(part: Slice, epsilon: float) -> NDArray[np.int64]:
    """Connections that each unit has in this slice."""
    counts: NDArray[np.int64] = (part.values.abs() >= epsilon).flatten(1).sum(1).cpu().numpy()
    return counts
