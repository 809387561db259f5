"""What a frontier's bundles have in common: a report that compares them, a table for the card, a picture."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from core.engine.report.card import warnings_section
from core.engine.report.target import SHARE, speedup
from core.wording import speed_change

FRONTIER_PLOT = "frontier.png"
SHARED = ("format", "model", "task", "method", "structure", "headline_metric", "latency_setting", "spec", "environment")
"""Entries of a bundle's report that are the same in all."""

EACH = ("sparsity", "metrics", "parameters", "size_bytes", "latency_ms", "flops")
"""Entries in which they differ."""


def build_frontier(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The report of all levels, from those of their bundles by folder, the least pruned first.

    `is_dominated` marks a level that another beats: with no more parameters and no worse metric.
    """
    every = list(reports.values())
    return {
        **{key: every[0][key] for key in SHARED},
        "target": {
            "name": "frontier",
            "requested": [report["target"]["requested"] for report in every],
            "achieved": [report["target"]["achieved"] for report in every],
            "unit": SHARE,
        },
        "frontier": [
            {
                "folder": folder,
                **{key: report[key] for key in EACH},
                "is_dominated": any(_beats(other, report) for other in every if other is not report),
            }
            for folder, report in reports.items()
        ],
        "warnings": every[-1]["warnings"],
        "seconds": every[-1]["seconds"],
    }


def frontier_card(document: dict[str, Any]) -> str:
    """Markdown: the levels side by side."""
    headline, levels = document["headline_metric"], document["frontier"]
    runtimes = list(levels[0]["latency_ms"])
    titles = ["", f"{headline.replace('_', ' ')}", "encoder parameters", *(f"latency, {name}" for name in runtimes)]
    rows = [
        _row("dense", "dense", levels[0], headline),
        *(_row(_link(each), "pruned", each, headline) for each in levels),
    ]
    return "\n".join(
        [
            f"# {document['model']['name']} at {len(levels)} sparsities",
            "",
            f"Pruned for {document['task']['name']} by NeuroPrune in one run of training, each level going on from the "
            f"one before. Metrics on {document['task']['held_out_rows']} held-out rows. Each folder is a bundle that "
            "can be used alone; its own card says how.",
            "",
            f"| {' | '.join(titles)} |",
            f"|---|{'---:|' * (len(titles) - 1)}",
            *rows,
            "",
            "A level in brackets is beaten by another, which has no more parameters and no worse a metric.",
            "",
            f"![The metric against parameters and speed]({FRONTIER_PLOT})",
            *warnings_section(document["warnings"]),
            "",
        ]
    )


def plot_frontier(document: dict[str, Any], path: Path) -> None:
    """Draw the headline metric against encoder parameters, and against measured speed."""
    levels, headline = document["frontier"], document["headline_metric"]
    shown = [level for level in levels if headline in level["metrics"]]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    size, speed = figure.subplots(1, 2, sharey=True)
    if shown:
        dense = shown[0]["metrics"][headline]["dense"]
        quality = [dense, *(level["metrics"][headline]["pruned"] for level in shown)]
        encoder = [level["parameters"]["encoder"] for level in shown]
        counts = [encoder[0]["dense"], *(each["pruned"] for each in encoder)]
        _draw(size, [count / 1e6 for count in counts], quality, headline)
        for runtime in shown[0]["latency_ms"]:
            _draw(speed, [1.0, *(speedup(level, runtime) for level in shown)], quality, runtime)
        speed.legend(frameon=False, fontsize=8)
    size.set_xlabel("encoder parameters (millions)")
    size.set_ylabel(headline.replace("_", " "))
    speed.set_xlabel("times as fast as dense")
    figure.savefig(path, dpi=120)


def _draw(axes: Axes, across: list[float], quality: list[float], label: str) -> None:
    axes.plot(across, quality, marker="o", label=label)
    axes.annotate("dense", (across[0], quality[0]), textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one level makes another pointless; of two alike, neither."""
    headline = one["headline_metric"]
    if headline not in one["metrics"] or headline not in other["metrics"]:
        return False
    sign = 1 if one["metrics"][headline]["higher_is_better"] else -1
    gain: float = sign * (one["metrics"][headline]["pruned"] - other["metrics"][headline]["pruned"])
    saved: int = other["parameters"]["encoder"]["pruned"] - one["parameters"]["encoder"]["pruned"]
    return gain >= 0 and saved >= 0 and (gain > 0 or saved > 0)


def _link(level: dict[str, Any]) -> str:
    link = f"[{level['folder']}]({level['folder']}/README.md)"
    return f"({link})" if level["is_dominated"] else link


def _row(title: str, side: str, level: dict[str, Any], headline: str) -> str:
    metric = level["metrics"].get(headline)
    cells = [title, "" if metric is None else f"{metric[side]:.4f}", f"{level['parameters']['encoder'][side]:,}"]
    for latency in level["latency_ms"].values():
        dense, own = latency["dense"]["median"], latency[side]["median"]
        cells.append(f"{own:.2f} ms" + ("" if side == "dense" else f" ({speed_change(dense, own)})"))
    return f"| {' | '.join(cells)} |"
