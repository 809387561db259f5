"""The report's `topology` entry: the network's shape, dense beside pruned."""

from dataclasses import asdict
from typing import Any

import torch

from core.engine.anatomy import Anatomy
from core.engine.heavy_tail import fit_tail
from core.engine.plan import Plan
from core.engine.topology import (
    MATRIX_KINDS,
    head_graph,
    neuron_degrees,
    removed_importance,
    row_degrees,
    together,
    zero_shares,
)
from core.jobs.methods import Method, NeuroPrune


def describe_topology(dense: Anatomy, pruned: Anatomy, plan: Plan, method: Method) -> dict[str, Any]:
    """Degrees, similar heads and zeros of both models, as plain JSON types. To be called before compaction.

    Whatever was removed counts as zero, so that both models have the same neurons and weights. What a connection is and
    which heads are similar follows NeuroPrune's epsilon and theta, by default where the method is another.
    """
    options = method if isinstance(method, NeuroPrune) else NeuroPrune(name="neuroprune")
    # Were epsilon zero, zeros would be connections.
    epsilon = max(options.epsilon, torch.finfo(torch.float32).tiny)
    everything = [torch.ones(attention.groups, dtype=torch.bool) for attention in dense.attentions]
    kept = []
    for whole, attention in zip(everything, dense.attentions, strict=True):
        kept.append(torch.zeros_like(whole))
        kept[-1][list(plan.kept(attention.units))] = True
    return {
        "epsilon": epsilon,
        "theta": options.theta,
        "degree": {"dense": _degree(dense, epsilon), "pruned": _degree(pruned, epsilon)},
        "heads": {
            "similarity": {
                "dense": _graphs(dense, everything, options.theta),
                "pruned": _graphs(pruned, kept, options.theta),
            },
            "removed": [int((~mask).sum()) for mask in kept],
            "removed_over_kept_importance": removed_importance(dense, plan),
        },
        "zero_share": {"dense": _zeros(dense), "pruned": _zeros(pruned)},
    }


def _degree(anatomy: Anatomy, epsilon: float) -> dict[str, Any]:
    """Fractional degree of the MLP neurons, in percent; `rows` as the paper counts."""
    by_layer = [neuron_degrees(mlp, epsilon) for mlp in anatomy.mlps]
    neurons = together(by_layer)
    rows_by_layer = [row_degrees(mlp, epsilon) for mlp in anatomy.mlps]
    tail = fit_tail(neurons.connections)
    return {
        "mean": neurons.mean,
        "standard_deviation": neurons.standard_deviation,
        "standard_deviation_by_layer": [degrees.standard_deviation for degrees in by_layer],
        "rows": {
            "standard_deviation": together(rows_by_layer).standard_deviation,
            "standard_deviation_by_layer": [degrees.standard_deviation for degrees in rows_by_layer],
        },
        "histogram": neurons.histogram,
        "tail": {"verdict": "too few"} if tail is None else {"verdict": tail.verdict, **asdict(tail)},
    }


def _graphs(anatomy: Anatomy, kept: list[torch.Tensor], theta: float) -> list[dict[str, int]]:
    """One an attention."""
    attentions = zip(anatomy.attentions, kept, strict=True)
    return [asdict(head_graph(attention, mask, theta)) for attention, mask in attentions]


def _zeros(anatomy: Anatomy) -> dict[str, list[float]]:
    """By kind of matrix, then layer."""
    by_layer = [zero_shares(layer) for layer in anatomy.layers]
    return {kind: [shares[kind] for shares in by_layer] for kind in MATRIX_KINDS}
