"""A picture of what was removed: heads and neurons, layer by layer."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

PLOT_FILE = "structure.png"
KEPT, MERGED, REMOVED = "#1f5f8b", "#e2a03f", "#dfe3e6"


def plot_structure(layers: list[dict[str, Any]], path: Path) -> None:
    """Draw the report's `layers` entry: one row a layer, the first at the bottom."""
    figure = Figure(figsize=(9, 1.6 + 0.32 * len(layers)), layout="constrained")
    heads, neurons = figure.subplots(1, 2, sharey=True)
    _draw_heads(heads, layers)
    _draw_neurons(neurons, layers)
    heads.set_yticks(range(len(layers)), [str(layer["layer"]) for layer in layers])
    heads.set_ylabel("layer")
    for axes in (heads, neurons):
        axes.spines[["top", "right"]].set_visible(False)
    names = {KEPT: "kept", REMOVED: "removed"}
    if any(layer["heads"]["merged"] for layer in layers):
        names[MERGED] = "merged into another"
    handles = [Patch(color=color, label=name) for color, name in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=120)


def _draw_heads(axes: Axes, layers: list[dict[str, Any]]) -> None:
    """One square a head (group), at its index in the dense model."""
    for row, layer in enumerate(layers):
        kept = set(layer["heads"]["kept_indices"])
        merged = {merge["removed"] for merge in layer["heads"]["merged"]}
        count = layer["heads"]["dense"]
        colors = [KEPT if i in kept else MERGED if i in merged else REMOVED for i in range(count)]
        axes.barh([row] * count, [0.8] * count, left=[i - 0.4 for i in range(count)], height=0.7, color=colors)
    grouped = layers[0]["heads"]["query_heads_per_group"] > 1
    axes.set_title("attention heads" + (" (groups sharing a key and value)" if grouped else ""), fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("index in the dense model")


def _draw_neurons(axes: Axes, layers: list[dict[str, Any]]) -> None:
    """How many of a layer's MLP neurons stay."""
    rows = range(len(layers))
    axes.barh(rows, [layer["neurons"]["dense"] for layer in layers], height=0.7, color=REMOVED)
    axes.barh(rows, [layer["neurons"]["kept"] for layer in layers], height=0.7, color=KEPT)
    for row, layer in enumerate(layers):
        axes.annotate(f" {layer['neurons']['kept']}", (layer["neurons"]["kept"], row), va="center", fontsize=8)
    axes.set_title("MLP neurons", fontsize=11)
    axes.set_xlabel("neurons")
