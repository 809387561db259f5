"""The model card: the bundle's README.md, from the report's numbers."""

from typing import Any

from core.engine.report.plot import STRUCTURE_PLOT, TOPOLOGY_PLOT
from core.engine.report.usage import usage
from core.wording import LEAST_SHARE, against_target, speed_change


def model_card(report: dict[str, Any]) -> str:
    """Markdown with a front matter, readable on its own."""
    rows = [
        f"| {name.replace('_', ' ')} ({metric['unit']}) | {_number(metric['dense'])} | {_number(metric['pruned'])} |"
        for name, metric in report["metrics"].items()
    ]
    parameters, method, sparsity = report["parameters"], report["method"], report["sparsity"]
    for part in ("encoder", "total"):
        rows.append(f"| {part} parameters | {parameters[part]['dense']:,} | {parameters[part]['pruned']:,} |")
    if sparsity["zero"] >= LEAST_SHARE:
        rows.append(f"| zeros in the encoder | {sparsity['zero_in_dense']:.1%} | {sparsity['zero']:.1%} |")
    size = report["size_bytes"]
    rows.append(f"| model.safetensors (MB) | {size['dense'] / 1e6:.1f} | {size['pruned'] / 1e6:.1f} |")
    if "compressed" in size:
        rows.append(f"| the same, compressed (MB) | | {size['compressed'] / 1e6:.1f} |")
    rows += _performance(report)
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [neuroprune, pruned]",
            "---",
            "",
            f"# {report['model']['name']}, {sparsity['achieved']:.1%} of its encoder {_how(sparsity)}",
            "",
            f"Pruned for {report['task']['name']} by NeuroPrune, method `{_method(method)}` ({method['paper']}). "
            f"{_what_is_gone(sparsity)} {against_target(report['target'])}".rstrip(),
            "",
            "| | dense | pruned |",
            "|---|---:|---:|",
            *rows,
            "",
            f"{_settings(report)} Metrics on {report['task']['held_out_rows']} held-out rows.",
            "",
            f"![Heads and neurons kept in each layer]({STRUCTURE_PLOT})",
            *_topology(sparsity),
            *warnings_section(report["warnings"]),
            "",
            "## Use",
            "",
            *_use(report),
            "",
            "`report.json` lists every head and neuron that was kept, `manifest.json` the sha256 of each file, and "
            "`probe.safetensors` inputs with the outputs that a correct load, in fp32, must give.",
            "",
        ]
    )


def warnings_section(warnings: list[str]) -> list[str]:
    """What the job warned of, if it did; lines after a paragraph."""
    return ["", "## Warnings", "", *(f"- {' '.join(warning.split())}" for warning in warnings)] if warnings else []


def _performance(report: dict[str, Any]) -> list[str]:
    """Rows of the table: what both models cost to run."""
    rows = []
    for runtime, latency in report["latency_ms"].items():
        dense, pruned = latency["dense"]["median"], latency["pruned"]["median"]
        rows.append(f"| latency, {runtime} (ms, median) | {dense:.2f} | {pruned:.2f} ({speed_change(dense, pruned)}) |")
    for runtime, rate in report["throughput_sequences_per_second"].items():
        rows.append(f"| throughput, {runtime} (sequences/s) | {rate['dense']:.1f} | {rate['pruned']:.1f} |")
    for runtime, peak in report["peak_memory_bytes"].items():
        rows.append(f"| peak memory, {runtime} (MB) | {peak['dense'] / 1e6:.1f} | {peak['pruned'] / 1e6:.1f} |")
    flops = report["flops"]
    return [*rows, f"| FLOPs (billions) | {flops['dense'] / 1e9:.3f} | {flops['pruned'] / 1e9:.3f} |"]


def _settings(report: dict[str, Any]) -> str:
    """For which inputs the figures hold."""
    latency, throughput, memory = (report[f"{name}_setting"] for name in ("latency", "throughput", "peak_memory"))
    length = f", each of length {latency['length']}" if "length" in latency else ""
    return (
        f"Latency and FLOPs at batch {latency['batch']}, throughput at batch {throughput['batch']}, peak memory at "
        f"batch {memory['batch']}{length}; {latency['threads']} threads, dense and pruned "
        "in turns. Peak memory is what a process that loads and runs the model takes for it, weights included."
        + _precision(report["model"]["dtype"])
    )


def _precision(dtype: str) -> str:
    """Where weights are saved otherwise than they are computed with."""
    if dtype == "float32":
        return ""
    return f" Weights are saved as {dtype}, as the original's; all figures are of these weights computed with in fp32."


def _use(report: dict[str, Any]) -> list[str]:
    """How to load the model."""
    return [
        "```python",
        *usage(report),
        "```",
        "",
        _WHAT_IT_TAKES[report["structure"]] + ': `from client.load import load; model = load("path/to/this/folder")`.',
    ]


_STOCK = "transformers' own class builds it. The NeuroPrune client checks all files before it loads them"
_WHAT_IT_TAKES = {
    "ragged": "`modeling_neuroprune.py` builds the layers, each with its own width. Without remote code, the "
    "NeuroPrune client loads it",
    "uniform": f"All layers have the same width, so {_STOCK}",
    "masked": "`model.safetensors.zst` holds the same weights for transport; `zstd -d` unpacks it. All shapes are the "
    f"dense model's, so {_STOCK}",
}


def _method(method: dict[str, Any]) -> str:
    """Name, mode where there are several, granularity."""
    options = method["options"]
    return ", ".join(filter(None, (method["name"], options.get("mode"), options["granularity"])))


def _how(sparsity: dict[str, Any]) -> str:
    """What became of the pruned part; shares that would be shown as 0.0% are left unsaid."""
    removed, zero = (sparsity[part] >= LEAST_SHARE for part in ("removed", "zero"))
    return ("removed or zero" if removed else "set to zero") if zero else "removed"


def _what_is_gone(sparsity: dict[str, Any]) -> str:
    match _how(sparsity):
        case "removed":
            return "What was pruned is gone from the weights, not set to zero."
        case "set to zero":
            return (
                "What was pruned is set to zero. No head or neuron is gone, so zeros alone make the model neither "
                "smaller nor faster."
            )
        case _:
            return (
                f"{sparsity['removed']:.1%} of the encoder's parameters are gone from the weights; "
                f"{sparsity['zero']:.1%} are zeros, which alone make the model neither smaller nor faster."
            )


def _topology(sparsity: dict[str, Any]) -> list[str]:
    alternative = "How connected the MLP neurons are, and where weights are zero"
    return ["", f"![{alternative}]({TOPOLOGY_PLOT})"] if sparsity["achieved"] > 0 else []


def _number(value: float) -> str:
    return f"{value:.4f}"
