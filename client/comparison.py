"""What came of a job, as tables: the dense model beside the pruned one, or beside those of a frontier."""

from rich.table import Table
from rich.text import Text

from client.answers import Json
from core.wording import LEAST_SHARE, against_target, speed_change

_RUNTIMES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}


def comparison(summary: Json, title: str) -> Table:
    """A job's `metrics_summary`."""
    return _frontier(summary, title) if "frontier" in summary else _dense_and_pruned(summary, title)


def _dense_and_pruned(summary: Json, title: str) -> Table:
    table = Table(title=title, caption=Text(against_target(summary["target"])), caption_justify="left")
    table.add_column("", overflow="fold")
    for heading in ("dense", "pruned", "change"):
        table.add_column(heading, justify="right", overflow="fold")
    for name, metric in summary["metrics"].items():
        dense, pruned = metric["dense"], metric["pruned"]
        table.add_row(name.replace("_", " "), f"{dense:.4f}", f"{pruned:.4f}", f"{pruned - dense:+.4f}")
    for name, count in summary["parameters"].items():
        table.add_row(f"{name} parameters", f"{count['dense']:,}", f"{count['pruned']:,}", _share(count))
    _add_zeros(table, summary["sparsity"])
    table.add_row("weights on disk", *_pair(summary["size_bytes"], 1e6, " MB"), _share(summary["size_bytes"]))
    for runtime, sides in summary["latency_ms"].items():
        median = _medians(sides)
        table.add_row(f"latency, {_titled(runtime)}", *_pair(median, 1, " ms"), speed_change(*median.values()))
    return table


def _add_zeros(table: Table, sparsity: Json) -> None:
    """How much became zero instead of leaving, where something did; older jobs do not tell what was zero before."""
    dense, pruned = sparsity.get("zero_in_dense"), sparsity["zero"]
    if pruned >= LEAST_SHARE:
        before, change = ("", "") if dense is None else (f"{dense:.1%}", f"{100 * (pruned - dense):+.1f} points")
        table.add_row("zeros in the encoder", before, f"{pruned:.1%}", change)


def _frontier(summary: Json, title: str) -> Table:
    """A row a level; in brackets those that another beats."""
    levels, headline = summary["frontier"], summary["headline_metric"]
    runtimes = list(levels[0]["latency_ms"])
    table = Table(title=title)
    table.add_column("", overflow="fold")
    for heading in (headline.replace("_", " "), "encoder", *(f"latency, {_titled(runtime)}" for runtime in runtimes)):
        table.add_column(heading, justify="right", overflow="fold")
    for name, side, level in [("dense", "dense", levels[0]), *((each["folder"], "pruned", each) for each in levels)]:
        metric, count = level["metrics"].get(headline), level["parameters"]["encoder"][side]
        cells = ["" if metric is None else f"{metric[side]:.4f}", f"{count:,}"]
        for runtime in runtimes:
            median = _medians(level["latency_ms"][runtime])
            change = "" if side == "dense" else f", {speed_change(*median.values())}"
            cells.append(f"{median[side]:.2f} ms{change}")
        is_beaten = side == "pruned" and level["is_dominated"]
        table.add_row(f"({name})" if is_beaten else name, *cells)
    return table


def _titled(runtime: str) -> str:
    return _RUNTIMES.get(runtime, runtime)


def _medians(sides: Json) -> dict[str, float]:
    return {side: sides[side]["median"] for side in ("dense", "pruned")}


def _pair(sides: dict[str, float], unit: float, suffix: str) -> tuple[str, str]:
    return f"{sides['dense'] / unit:.2f}{suffix}", f"{sides['pruned'] / unit:.2f}{suffix}"


def _share(sides: dict[str, float]) -> str:
    return f"{sides['pruned'] / sides['dense'] - 1:+.1%}"
