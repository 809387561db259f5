"""The figure of a matrix: quality against what is left of the encoder."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.quality import CASES, UNCOMPENSATED
from benchmarks.quality_page.matrix import DRAWN
from benchmarks.quality_page.values import Result, of, quality

COLORS = {
    "neuroprune": "#1f5f8b",
    UNCOMPENSATED: "#8fb8d6",
    "magnitude": "#e2a03f",
    "l1": "#a35d3a",
    "importance": "#5b8c5a",
    "smart": "#8d5a97",
    "random": "#9a9a9a",
}
COLUMNS = 3
APART = 0.9
"""Points between neighbours of one sparsity."""


def draw(results: list[Result], path: Path) -> None:
    """A panel a case: the metric against what is left of the encoder.

    Points are means over the seeds of a method, bars their standard deviation. As methods have different seeds, each
    is its change against the seed's dense model, added to the mean of all dense ones. The same results make the same
    bytes.

    Methods that do not train are left to the tables: they are so far off that the others would look alike.
    """
    names = [name for name in CASES if of(results, case=name)]
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for name, axes in zip(names, panels, strict=False):
        _panel(axes, of(results, case=name), CASES[name].title)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    handles = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    path.parent.mkdir(exist_ok=True)
    with rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, metadata={"Date": None})


def _panel(axes: Any, results: list[Result], title: str) -> None:
    dense = mean({r["seed"]: quality(r, "dense") for r in results}.values())
    for place, method in enumerate(DRAWN):
        found = of(results, method=method)
        if not found:
            continue
        targets = sorted({r["target"] for r in found})
        # NeuroPrune where it is, the others to its left and right: on one spot they would hide each other.
        beside = APART * ((place + 1) // 2) * (-1) ** place
        left = [100 * (1 - target) + beside for target in targets]
        changes = [[quality(r, "pruned") - quality(r, "dense") for r in of(found, target=t)] for t in targets]
        axes.errorbar(
            left,
            [dense + mean(of_seeds) for of_seeds in changes],
            [stdev(of_seeds) if len(of_seeds) > 1 else 0.0 for of_seeds in changes],
            fmt="o-" if method == "neuroprune" else "s",
            color=COLORS[method],
            label=method,
            markersize=4,
            elinewidth=0.8,
            zorder=len(DRAWN) - len(left),
        )
    axes.axhline(dense, color="black", linewidth=0.8, linestyle=":", label="dense")
    unit = results[0]["headline"].replace("_", " ")
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(unit + ("" if results[0]["higher_is_better"] else " (lower is better)"), fontsize=8)
    axes.set_xlabel("of the encoder left", fontsize=8)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
