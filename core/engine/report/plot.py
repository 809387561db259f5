"""Pictures of a pruned model: heads and neurons kept, layer by layer; and the topology that is left."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

STRUCTURE_PLOT = "structure.png"
TOPOLOGY_PLOT = "topology.png"
MOST_LABELLED_LAYERS = 24
KEPT, MERGED, REMOVED = "#1f5f8b", "#e2a03f", "#dfe3e6"


def plot_structure(layers: list[dict[str, Any]], path: Path) -> None:
    """Draw the report's `layers` entry: one row an attention or MLP, the first layer's at the bottom."""
    attentions = [(layer["layer"], attention) for layer in layers for attention in layer["attentions"]]
    mlps = [(layer["layer"], mlp["neurons"]) for layer in layers for mlp in layer["mlps"]]
    figure = Figure(figsize=(9, 1.6 + 0.32 * max(len(attentions), len(mlps))), layout="constrained")
    heads, neurons = figure.subplots(1, 2)
    _draw_heads(heads, [attention["heads"] for _, attention in attentions])
    _draw_neurons(neurons, [units for _, units in mlps])
    labels = [f"{layer} cross" if attention["cross"] else str(layer) for layer, attention in attentions]
    heads.set_yticks(range(len(labels)), labels)
    heads.set_ylabel("layer")
    neurons.set_yticks(range(len(mlps)), [str(layer) for layer, _ in mlps])
    for axes in (heads, neurons):
        axes.spines[["top", "right"]].set_visible(False)
    names = {KEPT: "kept", REMOVED: "removed"}
    if any(attention["heads"]["merged"] for _, attention in attentions):
        names[MERGED] = "merged into another"
    handles = [Patch(color=color, label=name) for color, name in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=120)


def _draw_heads(axes: Axes, attentions: list[dict[str, Any]]) -> None:
    """One square a head (group), at its index in the dense model."""
    for row, heads in enumerate(attentions):
        kept = set(heads["kept_indices"])
        merged = {merge["removed"] for merge in heads["merged"]}
        count = heads["dense"]
        colors = [KEPT if i in kept else MERGED if i in merged else REMOVED for i in range(count)]
        axes.barh([row] * count, [0.8] * count, left=[i - 0.4 for i in range(count)], height=0.7, color=colors)
    grouped = attentions[0]["query_heads_per_group"] > 1
    axes.set_title("attention heads" + (" (groups sharing a key and value)" if grouped else ""), fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("index in the dense model")


def _draw_neurons(axes: Axes, mlps: list[dict[str, Any]]) -> None:
    """How many of an MLP's neurons stay."""
    rows = range(len(mlps))
    axes.barh(rows, [neurons["dense"] for neurons in mlps], height=0.7, color=REMOVED)
    axes.barh(rows, [neurons["kept"] for neurons in mlps], height=0.7, color=KEPT)
    for row, neurons in enumerate(mlps):
        axes.annotate(f" {neurons['kept']}", (neurons["kept"], row), va="center", fontsize=8)
    axes.set_title("MLP neurons", fontsize=11)
    axes.set_xlabel("neurons")


def plot_topology(topology: dict[str, Any], path: Path) -> None:
    """Draw the report's `topology` entry: neurons' degrees before and after, and where the zeros are."""
    layers = len(topology["zero_share"]["pruned"]["query"])
    figure = Figure(figsize=(9, 1.8 + 0.3 * max(layers, 6)), layout="constrained")
    degrees, zeros = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_degrees(degrees, topology["degree"])
    _draw_zeros(zeros, topology["zero_share"]["pruned"])
    figure.savefig(path, dpi=120)


def _draw_degrees(axes: Axes, degree: dict[str, Any]) -> None:
    """Histograms of dense and pruned neurons, in percent of each."""
    for side, color in (("dense", MERGED), ("pruned", KEPT)):
        counts, deviation = degree[side]["histogram"], degree[side]["standard_deviation"]
        shares = [100 * count / max(1, sum(counts)) for count in counts]
        edges = [100 * i / len(shares) for i in range(len(shares) + 1)]
        label = f"{side} (standard deviation {deviation:.2g}%)"
        axes.stairs(shares, edges, fill=True, color=color, alpha=0.45)
        axes.stairs(shares, edges, color=color, linewidth=1.5, label=label)
    axes.set_title("How connected the MLP neurons are", fontsize=11)
    axes.set_xlabel("weights of a neuron that are connections")
    axes.set_ylabel("neurons")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 125)
    axes.set_yticks(range(0, 101, 20))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(decimals=0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _draw_zeros(axes: Axes, zero_share: dict[str, list[float]]) -> None:
    """A heat map: one row a layer, the first at the bottom, one column a kind of matrix."""
    kinds, layers = list(zero_share), len(zero_share["query"])
    shares = [[zero_share[kind][layer] for kind in kinds] for layer in range(layers)]
    colors = LinearSegmentedColormap.from_list("zeros", ["#ffffff", KEPT])
    columns, rows = range(len(kinds)), range(layers)
    axes.pcolormesh(columns, rows, shares, cmap=colors, vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
    if layers <= MOST_LABELLED_LAYERS:
        for layer, row in enumerate(shares):
            for column, share in enumerate(row):
                color = "white" if share > 0.5 else "black"
                axes.text(column, layer, f"{share:.0%}", ha="center", va="center", fontsize=8, color=color)
    axes.set_title("Weights that are zero or removed", fontsize=11)
    axes.set_xticks(columns, [kind.replace("mlp", "MLP").replace("_", "\n") for kind in kinds], fontsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
