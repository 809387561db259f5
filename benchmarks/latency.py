"""How fast BERT-base is with zeros, and with its units removed: ONNX Runtime and torch, on one thread.

    python -m benchmarks.latency

Weights are random and plans made up, for only shapes matter here. What is compared is timed in turns, in one process,
at batch 1 and length 128, and every comparison is made several times. Results are kept in
`benchmarks/results/latency.jsonl`, and what is there is not run again; from them come `docs/figures/latency.svg` and
`docs/speed.md`. It takes about ten minutes and 12 GB of memory.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from textwrap import fill
from typing import Any

import onnxruntime
import torch
import transformers
import typer
from matplotlib import rc_context
from matplotlib.figure import Figure
from transformers import BertConfig, BertModel, PreTrainedModel, set_seed

from benchmarks.trials import Results
from core.engine.anatomy import bind
from core.engine.compact import compact
from core.engine.export.onnx import export_onnx, open_session, run_session
from core.engine.in_rows import GATHER_COST, gather_where_faster
from core.engine.measure import Latency, Runs, full_batch, interleave
from core.engine.plan import Plan
from core.engine.tasks import TASKS
from core.engine.units import KINDS

ROOT = Path(__file__).parent.parent
RESULTS = Results(Path(__file__).parent / "results" / "latency.jsonl")
FIGURE = ROOT / "docs" / "figures" / "latency.svg"
PAGE = ROOT / "docs" / "speed.md"
TASK = TASKS["sentence-embedding"]
INPUTS = ("input_ids", "attention_mask")
RUNTIMES = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch"}
ALL_FUSIONS = "onnxruntime, all fusions"
"""ONNX Runtime as it is by default, with those of `SLOW_FUSIONS`."""
REPEATS, ROUNDS, IN_ROW_ROUNDS = 5, 20, 60
BERT_BASE = BertConfig()
LAYERS, HEADS = BERT_BASE.num_hidden_layers, BERT_BASE.num_attention_heads
NEURONS, HIDDEN = BERT_BASE.intermediate_size, BERT_BASE.hidden_size
WIDTHS = ((6, 1536), (5, 1000), (2, 614))
"""Heads and neurons that layers keep on average."""
SWING = 0.8
"""Ragged layers keep from 0.2 to 1.8 times the average."""
IN_ROW_HEADS = (12, 6, 2)
IN_ROW_SHARES = (0.1, 0.25, 0.5, 0.75)
COLORS = {"onnxruntime": "#1f5f8b", "torch": "#e2a03f"}


def even(heads: int, neurons: int) -> Plan:
    """As many heads and neurons in every layer."""
    return Plan((tuple(range(heads)), tuple(range(neurons)), tuple(range(HIDDEN))) * LAYERS)


def ragged(heads: int, neurons: int) -> Plan:
    """As many in all, from few heads and many neurons in the first layer to the opposite in the last."""
    indices: list[tuple[int, ...]] = []
    for layer in range(LAYERS):
        # Layers at the same distance from either end deviate oppositely: the sum is exact.
        away = 1 - 2 * min(layer, LAYERS - 1 - layer) / (LAYERS - 1)
        sign = -1 if 2 * layer < LAYERS else 1
        fewer, more = (round(SWING * away * count) for count in (heads, neurons))
        kept = heads + sign * fewer, neurons - sign * more
        indices += tuple(range(kept[0])), tuple(range(kept[1])), tuple(range(HIDDEN))
    return Plan(tuple(indices))


def bert(plan: Plan | None = None) -> PreTrainedModel:
    """BERT-base of as many layers as the plan has, narrowed to it; random, the same every time."""
    set_seed(0)
    layers = LAYERS if plan is None else len(plan.indices) // len(KINDS)
    model: PreTrainedModel = BertModel(BertConfig(num_hidden_layers=layers))
    model.train(False)
    if plan is not None:
        compact(bind(model), plan)
    return model


@torch.no_grad()
def mostly_zeros() -> PreTrainedModel:
    """Nine in ten weights of every projection zero, at random places."""
    model = bert()
    for matrix in bind(model).matrices:
        matrix.weight[torch.rand(matrix.weight.shape) < 0.9] = 0
    return model


def sizes() -> dict[str, PreTrainedModel]:
    """BERT-base whole, with zeros, and narrowed in several ways."""
    models = {"dense": bert(), "90 % zeros": mostly_zeros()}
    for heads, neurons in WIDTHS:
        models[name_of(heads, neurons)] = bert(even(heads, neurons))
        models[f"{name_of(heads, neurons)}, ragged"] = bert(ragged(heads, neurons))
    return models


def name_of(heads: int, neurons: int) -> str:
    """A narrowed model's."""
    return f"{heads} heads, {neurons:,} neurons"


def in_rows(heads: int, share: float) -> dict[str, PreTrainedModel]:
    """One layer of so many heads whose attention reads all dimensions, or gathers all but this share."""
    gone = set(torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(0))[: round(share * HIDDEN)].tolist())
    neurons = tuple(range(NEURONS * heads // HEADS))
    read = tuple(i for i in range(HIDDEN) if i not in gone)
    plans = {"zeros": tuple(range(HIDDEN)), "gather": read}
    return {name: bert(Plan((tuple(range(heads)), neurons, inputs))) for name, inputs in plans.items()}


def compare(key: dict[str, Any], build: Callable[[], dict[str, PreTrainedModel]], rounds: int) -> None:
    """Time models in turns, in both runtimes, as often as results are missing."""
    missing = [{**key, "repeat": repeat} for repeat in range(REPEATS) if not RESULTS.has({**key, "repeat": repeat})]
    if not missing:
        return
    models = build()
    with TemporaryDirectory() as folder, torch.inference_mode():
        runs = prepared(models, Path(folder))
        for run in missing:
            print(run, flush=True)
            times = {runtime: interleave(calls, rounds) for runtime, calls in runs.items()}
            RESULTS.add({**run, **described(times), "encoder_parameters": encoder_parameters(models)})


def prepared(models: dict[str, PreTrainedModel], folder: Path) -> dict[str, Runs]:
    """A call of each model by runtime, on one row."""
    one, two = (full_batch(INPUTS, BERT_BASE, rows) for rows in (1, 2))
    runs: dict[str, Runs] = {"onnxruntime": {}, ALL_FUSIONS: {}, "torch": {}}
    for name, model in models.items():
        export_onnx(TASK, model, two, folder / "model.onnx")
        session = open_session(folder / "model.onnx", 1)
        runs["onnxruntime"][name] = partial(run_session, session, one)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        default = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        runs[ALL_FUSIONS][name] = partial(run_session, default, one)
        runs["torch"][name] = partial(TASK.outputs, model, one)
    return runs


def described(times: dict[str, dict[str, Latency]]) -> dict[str, Any]:
    """Medians in milliseconds, and the setting."""
    medians = {runtime: {k: round(v.median, 4) for k, v in found.items()} for runtime, found in times.items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"milliseconds": medians, **versions, "onnxruntime": onnxruntime.__version__, "batch": 1, "length": 128}


def encoder_parameters(models: dict[str, PreTrainedModel]) -> dict[str, int]:
    """Of each model's transformer layers."""
    return {name: bind(model).encoder_parameters for name, model in models.items()}


def speedups(results: Iterable[dict[str, Any]], runtime: str, name: str, base: str) -> list[float]:
    """How many times as fast as `base` a model was in each repeat, slowest first."""
    found = [result["milliseconds"][runtime] for result in results]
    return sorted(times[base] / times[name] for times in found)


def of_sizes(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The repeats of the comparison of whole models."""
    return [result for result in results if result["compared"] == "sizes"]


def of_in_rows(results: list[dict[str, Any]], heads: int, share: float) -> list[dict[str, Any]]:
    """The repeats of a comparison of one layer."""
    key = {"compared": "in-rows", "heads": heads, "share": share}
    return [result for result in results if key.items() <= result.items()]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Left how much faster what is removed makes it, right what a gather does; the same bytes for the same results."""
    path.parent.mkdir(exist_ok=True)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_sizes(left, of_sizes(results))
    draw_in_rows(right, results)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    with rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, metadata={"Date": None})


def draw_sizes(axes: Any, results: list[dict[str, Any]]) -> None:
    """Bars from the slowest to the fastest model, with the range of the repeats."""
    names = list(results[0]["encoder_parameters"])
    for offset, (runtime, title) in zip((-0.2, 0.2), RUNTIMES.items(), strict=True):
        found = [speedups(results, runtime, name, "dense") for name in names]
        middle = [median(each) for each in found]
        spread = [[m - each[0] for m, each in zip(middle, found, strict=True)]]
        spread.append([each[-1] - m for m, each in zip(middle, found, strict=True)])
        places = [place + offset for place in range(len(names))]
        axes.barh(places, middle, 0.38, xerr=spread, color=COLORS[runtime], label=title, error_kw={"elinewidth": 0.8})
        for place, value, each in zip(places, middle, found, strict=True):
            axes.text(each[-1] + 0.06, place, f"{value:.2f}", va="center", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.6)
    axes.set_xlabel("times as fast as dense")
    axes.set_title("BERT-base, batch 1, length 128, one thread", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def draw_in_rows(axes: Any, results: list[dict[str, Any]]) -> None:
    """A line for each number of heads."""
    for heads, color in zip(IN_ROW_HEADS, ("#1f5f8b", "#5a9a68", "#b0413e"), strict=True):
        for runtime, style in zip(RUNTIMES, ("o-", "s:"), strict=True):
            found = [speedups(of_in_rows(results, heads, s), runtime, "gather", "zeros") for s in IN_ROW_SHARES]
            gains = [100 * (median(each) - 1) for each in found]
            label = f"{heads} heads, {RUNTIMES[runtime]}"
            axes.plot([100 * s for s in IN_ROW_SHARES], gains, style, color=color, label=label, markersize=4)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks([100 * share for share in IN_ROW_SHARES])
    axes.set_xlabel("in-rows removed, %")
    axes.set_ylabel("%")
    axes.set_title("A layer that gathers, faster by", fontsize=10)
    axes.legend(frameon=False, fontsize=7)


def document(results: list[dict[str, Any]]) -> str:
    """The markdown page."""
    whole = of_sizes(results)
    versions = f"torch {whole[0]['torch']}, transformers {whole[0]['transformers']}"
    setting = f"""Written by `python -m benchmarks.latency`: BERT-base with random weights, batch 1, length 128, one
        thread, {versions}, ONNX Runtime {whole[0]["onnxruntime"]}. All models of a table are timed in turns in one
        process, {ROUNDS} times in each of {REPEATS} repeats; a speedup is the median over the repeats of the ratio of a
        repeat's medians, and in brackets stand the least and the largest. Ragged layers keep as much on average, but
        from {1 - SWING:.1f} to {1 + SWING:.1f} times that, few heads beside many neurons and the other way round."""
    figure = f"![How many times as fast as dense, and what a gather of in-rows gains](figures/{FIGURE.name})"
    return (
        "\n\n".join(
            [
                "# How fast pruned models are",
                paragraph(setting),
                figure,
                size_table(whole),
                *map(paragraph, size_findings(whole)),
                "## In-rows",
                paragraph(in_row_setting()),
                in_row_table(results),
                paragraph(in_row_finding(results)),
            ]
        )
        + "\n"
    )


def paragraph(text: str) -> str:
    """Wrapped as the other pages are."""
    return fill(" ".join(text.split()), 120, break_on_hyphens=False)


def size_table(results: list[dict[str, Any]]) -> str:
    """One row a model."""
    lines = [
        "| | encoder parameters | ms, ONNX Runtime | speedup | ms, PyTorch | speedup |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    parameters = results[0]["encoder_parameters"]
    for name, count in parameters.items():
        cells = [f"{count:,} ({count / parameters['dense']:.0%})"]
        for runtime in RUNTIMES:
            found = speedups(results, runtime, name, "dense")
            cells.append(f"{median(result['milliseconds'][runtime][name] for result in results):.1f}")
            cells.append(f"{median(found):.2f}x ({found[0]:.2f} … {found[-1]:.2f})" if name != "dense" else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def size_findings(results: list[dict[str, Any]]) -> list[str]:
    """What the table says."""

    def speedup(name: str) -> float:
        return median(speedups(results, "onnxruntime", name, "dense"))

    def milliseconds(runtime: str) -> float:
        return float(median(result["milliseconds"][runtime]["dense"] for result in results))

    def by_default(name: str) -> float:
        return median(speedups(results, ALL_FUSIONS, name, "dense"))

    half, third, fifth = (name_of(*widths) for widths in WIDTHS)
    uneven = ", ".join(f"{speedup(f'{name}, ragged'):.2f}x" for name in (half, third, fifth))
    parameters = results[0]["encoder_parameters"]
    return [
        f"""**Zeros are not faster.** With nine in ten weights zero the model runs {speedup("90 % zeros"):.2f} times as
        fast in ONNX Runtime: they are multiplied like everything else.""",
        f"""**Removal is.** Half of the heads and neurons gone: {speedup(half):.2f}x;
        {parameters[third] / parameters["dense"]:.0%} of the encoder's parameters left: {speedup(third):.2f}x;
        {parameters[fifth] / parameters["dense"]:.0%}: {speedup(fifth):.2f}x. Layers of different width: {uneven}.""",
        f"""**One fusion of ONNX Runtime is left out**, `SkipLayerNormFusion`: on CPUs version
        {results[0]["onnxruntime"]} has a fast kernel for norms, but not for norms fused with the sum before them. Jobs
        measure without it, too, and so should who runs `model.onnx`: `InferenceSession(path,
        disabled_optimizers=["SkipLayerNormFusion"])`. With it the dense model takes
        {milliseconds(ALL_FUSIONS) / milliseconds("onnxruntime"):.2f} times as long, and because norms cost the same
        however narrow a layer is, the speedups are {by_default(half):.2f}x, {by_default(third):.2f}x and
        {by_default(fifth):.2f}x.""",
    ]


def in_row_setting() -> str:
    """How in-rows were measured."""
    return f"""An attention that no longer reads some of the hidden dimensions can do without their weights, if it first
        gathers the others. One layer of BERT-base with so many heads (and neurons in proportion), in-rows gone by a
        gather against the same layer with zeros in their place: how much faster it is, {IN_ROW_ROUNDS} rounds in each
        of {REPEATS} repeats. Negative: slower."""


def in_row_table(results: list[dict[str, Any]]) -> str:
    """One row for each number of heads and share of in-rows."""
    lines = ["| heads | in-rows removed | ONNX Runtime | PyTorch | leave the weights |", "|---:|---:|---:|---:|---|"]
    for heads, share in product(IN_ROW_HEADS, IN_ROW_SHARES):
        cells = [f"{100 * (gain(results, heads, share, runtime) - 1):+.1f} %" for runtime in RUNTIMES]
        lines.append(f"| {heads} | {share:.0%} | {' | '.join(cells)} | {'yes' if leave(heads, share) else 'no'} |")
    return "\n".join(lines)


def gain(results: list[dict[str, Any]], heads: int, share: float, runtime: str) -> float:
    """How many times as fast a layer is with a gather."""
    return median(speedups(of_in_rows(results, heads, share), runtime, "gather", "zeros"))


def leave(heads: int, share: float) -> bool:
    """Whether a job would remove these in-rows from the weights."""
    kept = tuple(range(HIDDEN - round(share * HIDDEN)))
    plan = Plan((tuple(range(heads)), (0,), kept))
    anatomy = bind(BertModel(BertConfig(num_hidden_layers=1)))
    return len(gather_where_faster(anatomy, plan).kept(anatomy.attentions[0].inputs)) < HIDDEN


def in_row_finding(results: list[dict[str, Any]]) -> str:
    """The rule, and how it fits."""
    cases = list(product(IN_ROW_HEADS, IN_ROW_SHARES, RUNTIMES))
    gains = {case: gain(results, *case) - 1 for case in cases}
    missed = [100 * value for (heads, share, _), value in gains.items() if leave(heads, share) != (value > 0)]
    fit = (
        "in all cases"
        if not missed
        else (
            f"in all but {len(missed)} of the {len(cases)} cases, where the difference is at most "
            f"{max(map(abs, missed)):.1f} %"
        )
    )
    return f"""**It pays for many heads, or when most in-rows go.** The gather costs the same for each dimension it
        reads; what it saves grows with the in-rows removed and with the width of query, key and value. In-rows leave
        the weights of a layer where removed in-rows x width exceeds read in-rows x {GATHER_COST} (last column), and
        stay as zeros elsewhere. The rule chooses what was faster {fit}."""


def main() -> None:
    """Run what is missing, write the figure and the page."""
    torch.set_num_threads(1)
    compare({"compared": "sizes"}, sizes, ROUNDS)
    for heads, share in product(IN_ROW_HEADS, IN_ROW_SHARES):
        key = {"compared": "in-rows", "heads": heads, "share": share}
        compare(key, partial(in_rows, heads, share), IN_ROW_ROUNDS)
    results = RESULTS.all()
    draw(results, FIGURE)
    PAGE.write_text(document(results))


if __name__ == "__main__":
    typer.run(main)
