"""Makes `docs/results.md` and the figures `docs/figures/quality*.svg` of what `benchmarks.quality` measured.

python -m benchmarks.quality_page
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import mean, median, stdev
from textwrap import fill
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.ablations import RESULTS as ABLATIONS
from benchmarks.ablations import VARIANTS
from benchmarks.default_jobs import CASES as DEFAULTS
from benchmarks.default_jobs import RESULTS as DEFAULT_JOBS
from benchmarks.metric_drop import BEYOND, MOST_DROP, TESTED
from benchmarks.metric_drop import RESULTS as BUDGETS
from benchmarks.quality import BASELINES, CASES, COMPARED, CONTROL, ONE_SHOT, RESULTS, UNCOMPENSATED, runs

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "docs" / "figures"
PAGE = ROOT / "docs" / "results.md"
DRAWN = ("neuroprune", UNCOMPENSATED, *BASELINES)
METHODS = (CONTROL, *DRAWN, *ONE_SHOT)
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
SAME = 1e-4
"""Metrics of one dense model, in the tables' units, differ by no more on different machines."""

LEAST_CASES = 4
"""Of which a standard error says something."""
OUT_OF_HUNDRED = ("bleu", "chrf")
"""Metrics that are given so."""
NATS = "nats_per_token"
"""Of models that write, given beside a headline of what they wrote."""

Result = dict[str, Any]

_ABOUT_SUMMARY = (
    "What is left of the dense model's headline metric, as a ratio (turned round where less is better): mean over the "
    "cases in which the method and NeuroPrune have both run, and NeuroPrune's on the same cases and seeds; in brackets "
    "NeuroPrune's lead in points, from four cases on with its standard error over them. The second table of each "
    f"size is of `{UNCOMPENSATED}`, which ran in all cases but those of T5."
)
_ABOUT_DEFAULTS = (
    "NeuroPrune where a job names a model, a task and a sparsity and leaves all else to the defaults, from "
    "`benchmarks/results/default_jobs.jsonl` (`python -m benchmarks.default_jobs DATA`): a new head is trained for an "
    "epoch first, the dense model's only one, and sparser models get more epochs than in the tables above. SST-2 is "
    "cut to 33,000 of its 67,349 rows; the Llama reads blocks of 256 tokens. Worse by: points, or nats, on the "
    "validation rows, the mean and standard deviation over the seeds, and each of them; what is below zero is better "
    "than dense. Allowed is what the project set out to reach. What is not in the table is still to be run."
)
_ABOUT_ABLATIONS = (
    "How the case trains in the tables above, and beside it one thing changed at a time, from "
    "`benchmarks/results/ablations.jsonl` (`python -m benchmarks.ablations DATA`). What is marked `no compensation` "
    f"ran before that was the default: compare it with `{UNCOMPENSATED}` above, by how far it is from the dense model, "
    "which sometimes was another one. Single runs of one seed, and noisy. Decoders have `distillation 0.8` by default "
    "in jobs; a GPT-2 whose teacher has read no more than the rows gains nothing by it. Seconds are of a machine with "
    "other work to do."
)


def quality(result: Result, side: str) -> float:
    """The headline metric of the dense or pruned model; shares and correlations times 100, nats as they are."""
    value = float(result[side][result["headline"]])
    return value * (100 if result["higher_is_better"] and result["headline"] not in OUT_OF_HUNDRED else 1)


def kept_quality(result: Result) -> float:
    """What is left of the dense model's quality, 1 for all of it: the ratio, turned round where lower is better."""
    dense, pruned = quality(result, "dense"), quality(result, "pruned")
    return pruned / dense if result["higher_is_better"] else dense / pruned


@dataclass(frozen=True, slots=True)
class Matrix:
    """The runs of one size: as it fits two cores, or in full.

    Args:
        title: For headings.
        figure: File name of its figure.
        results: Its runs.
    """

    title: str
    figure: str
    results: list[Result]


def matrices(results: list[Result]) -> list[Matrix]:
    """Both sizes, as far as there are runs of them."""
    both = (
        Matrix("sized for two cores", "quality.svg", of(results, full=False)),
        Matrix("in full", "quality-full.svg", of(results, full=True)),
    )
    return [matrix for matrix in both if matrix.results]


def of(results: Iterable[Result], **key: Any) -> list[Result]:
    """The results with these values."""
    return [result for result in results if key.items() <= result.items()]


def draw(results: list[Result], path: Path) -> None:
    """A panel a case, its first seed: the metric against what is left of the encoder.

    The same results make the same bytes.

    Methods that do not train are left to the tables: they are so far off that the others would look alike.
    """
    names = [name for name in CASES if of(results, case=name)]
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for name, axes in zip(names, panels, strict=False):
        _panel(axes, of(results, case=name, seed=0), CASES[name].title)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    handles = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    path.parent.mkdir(exist_ok=True)
    with rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, metadata={"Date": None})


def _panel(axes: Any, results: list[Result], title: str) -> None:
    for method in DRAWN:
        found = of(results, method=method)
        targets = sorted({r["target"] for r in found})
        left = [100 * (1 - target) for target in targets]
        values = [mean(quality(r, "pruned") for r in of(found, target=target)) for target in targets]
        style = "o-" if method == "neuroprune" else "s"
        axes.plot(left, values, style, color=COLORS[method], label=method, markersize=4, zorder=len(DRAWN) - len(left))
    dense = mean(quality(r, "dense") for r in results)
    axes.axhline(dense, color="black", linewidth=0.8, linestyle=":", label="dense")
    unit = results[0]["headline"].replace("_", " ")
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(unit + ("" if results[0]["higher_is_better"] else " (lower is better)"), fontsize=8)
    axes.set_xlabel("of the encoder left", fontsize=8)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def document(results: list[Result]) -> str:
    """The page."""
    parts = matrices(results)
    sections = [_introduction(), "## Over all cases", fill(_ABOUT_SUMMARY, 120)]
    for matrix in parts:
        sections += [f"### All cases, {matrix.title}", _about_matrix(matrix)]
        sections += [_summary(matrix.results, method) for method in ("neuroprune", UNCOMPENSATED)]
        sections.append(f"![Quality against what is left of the encoder, {matrix.title}](figures/{matrix.figure})")
    for name, case in CASES.items():
        found = [(matrix.title, rows) for matrix in parts if (rows := of(matrix.results, case=name))]
        if found:
            sections.append(f"## {case.title}")
        for title, rows in found:
            sections += [f"### {case.title}, {title}", _about(rows), _table(rows)]
    if DEFAULT_JOBS.all():
        sections += ["## Jobs with default options", fill(_ABOUT_DEFAULTS, 120), _defaults(DEFAULT_JOBS.all())]
    if BUDGETS.all():
        sections += ["## A budget instead of a sparsity", fill(_about_budgets(), 120), _budgets(BUDGETS.all())]
    if ABLATIONS.all():
        sections += ["## NeuroPrune's own choices", fill(_ABOUT_ABLATIONS, 120), _ablations(ABLATIONS.all())]
    return "\n\n".join(["# What pruning costs, and what it keeps", *sections]) + "\n"


def _about_matrix(matrix: Matrix) -> str:
    done, total = (sum(counts) for counts in zip(*map(partial(_progress, matrix.results), CASES), strict=True))
    devices = " and ".join(sorted({result["device"] for result in matrix.results}))
    return fill(
        f"Trained on: {devices}. {done} of {total} runs are done; what is not in the tables is still to be run. The "
        "figure shows the first seed.",
        120,
    )


def _introduction() -> str:
    command = "python -m benchmarks.quality DATA"
    text = f"""Written by `python -m benchmarks.quality_page` from `benchmarks/results/quality.jsonl`, which
        `{command}` makes on two cores, and `{command} --full`, with every training row and two to five times the
        steps, on a GPU. All methods start from the same dense model and get the same rows, steps, schedule, learning
        rate and distillation, and their default options; wanda and sparsegpt, which take single weights and do not
        train, are given for comparison. Whole heads and neurons leave the weights otherwise. A pruned model has been
        trained for longer than its dense one, and may end above it: `{CONTROL}` is the dense model after as many steps
        more, with the same schedule and teacher. The dense models of GPT-2 and T5 are trained by this benchmark from
        nothing. An example is a row, or for decoders a block of tokens. Metrics are of the validation splits, shares
        and correlations times 100. NeuroPrune's ranking, the decay of its saliencies, alpha, beta and the floors of
        all methods were chosen by looking at STS-B and SST-2, seed 0: what these say of it is flattered. That what
        stays takes over what goes (compensation) everywhere but in T5 was chosen by looking at GPT-2 on Shakespeare,
        the Llama, Multi30k, CoLA, STS-B and RTE, seed 0, and was kept after a look at SST-2; where it is the default,
        runs without it are `{UNCOMPENSATED}`. A job's default distillation of 0.8 for decoders was chosen by looking
        at the Llama, half of it removed; in these tables all train with 0.5. That layers of a T5 keep at least half of
        their even share, and not 0.8 of it, in all methods that have this floor, was chosen by looking at nats on
        Multi30k, seeds 0 and 1, and SciTLDR. The others stayed at 0.8 after a look at CoLA, the Llama and Shakespeare
        as well. Nothing was chosen on GPT-2's TinyStories. Single runs are noisy, as a look at neighbouring sparsities
        shows: small differences mean nothing, least of all on RTE, whose dense model hardly does better than guessing,
        and in ratios on CoLA. STS-B and Multi30k got three seeds after their first was seen, SST-2 is to get them;
        Multi30k's BLEU, of 300 rows, goes up and down between methods whose nats per token, in brackets, are alike. The
        T5 of SciTLDR learns too little from 2,000 rows to write summaries, so nats are its metric; it was ROUGE until
        the first runs were seen, and every line of the results has both. Speed (PyTorch on the CPU of the machine that
        trained) and seconds were measured while other runs kept the machine busy, and compare only roughly. Jobs train
        longer than the runs of the two-core tables: see Jobs with default options."""
    return fill(" ".join(text.split()), 120, break_on_hyphens=False)


def _progress(results: list[Result], name: str) -> tuple[int, int]:
    """How many of a case's runs are done, and how many there are."""
    found, case = of(results, case=name), CASES[name]
    planned = [
        {"seed": seed, "method": method, "target": target}
        for seed in range(case.seeds)
        for method, target in runs(case, seed)
    ]
    return sum(bool(of(found, **run)) for run in planned), len(planned)


def _summary(results: list[Result], ours: str) -> str:
    """What is left of the dense model's quality, mean over the cases in which a method and ours have run."""
    lines = [f"| method, and {ours} | " + " | ".join(f"{target:.0%} removed" for target in sorted(COMPARED)) + " |"]
    lines.append("|---|" + "---:|" * len(COMPARED))
    for method in (name for name in (*BASELINES, UNCOMPENSATED) if name != ours):
        cells = [beside(results, ours, method, target) for target in sorted(COMPARED)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def beside(results: list[Result], ours: str, method: str, target: float) -> str:
    """One of NeuroPrune's variants and another method on the cases and seeds that both have run."""
    pair = (ours, method)
    found = {m: {(r["case"], r["seed"]): r for r in of(results, method=m, target=target)} for m in pair}
    seeds: dict[str, list[int]] = defaultdict(list)
    for case, seed in found[ours].keys() & found[method].keys():
        seeds[case].append(seed)
    if not seeds:
        return "not run"
    left, theirs = (
        [mean(kept_quality(found[m][case, seed]) for seed in seeds[case]) for case in sorted(seeds)] for m in pair
    )
    differences = [ours_left - theirs_left for ours_left, theirs_left in zip(left, theirs, strict=True)]
    error = f" ± {100 * stdev(differences) / sqrt(len(seeds)):.1f}" if len(seeds) >= LEAST_CASES else ""
    return (
        f"{mean(theirs):.1%}, {mean(left):.1%} ({100 * mean(differences):+.1f}{error}, "
        f"{len(seeds)} case{'s' if len(seeds) > 1 else ''})"
    )


def _about(found: list[Result]) -> str:
    first = found[0]
    dense = [quality(r, "dense") for r in {r["seed"]: r for r in found}.values()]
    return (
        f"{first['train_rows']:,} training examples, {max(r['steps'] for r in found)} steps of pruning, "
        f"{len({r['seed'] for r in found})} seed(s); dense {_cell(dense)} {first['headline'].replace('_', ' ')}, "
        f"{first['encoder_parameters']['dense']:,} encoder parameters."
    )


def _table(found: list[Result]) -> str:
    lines = ["| removed | method | metric | against dense | encoder parameters | speed, PyTorch | seconds |"]
    lines.append("|---:|---|---:|---:|---:|---:|---:|")
    seeds = len({r["seed"] for r in found})
    for target in sorted({r["target"] for r in found}):
        for method in METHODS:
            rows = of(found, target=target, method=method)
            if rows:
                name = method if len(rows) == seeds else f"{method}, {len(rows)} seed(s)"
                lines.append(_row(target, name, rows))
    return "\n".join(lines)


def _row(target: float, method: str, rows: list[Result]) -> str:
    pruned = [quality(r, "pruned") for r in rows]
    change = mean(quality(r, "pruned") - quality(r, "dense") for r in rows)
    nats = [r["pruned"][NATS] for r in rows if NATS in r["pruned"] and r["headline"] != NATS]
    in_nats = f" ({_cell(nats)} nats)" if nats else ""
    return (
        f"| {target:.0%} | {method} | {_cell(pruned)}{in_nats} | {change:+.2f} "
        f"| {median(r['encoder_parameters']['pruned'] for r in rows):,.0f} "
        f"| {median(r['speedup'] for r in rows):.2f}x | {median(r['seconds'] for r in rows):.0f} |"
    )


def _defaults(results: list[Result]) -> str:
    lines = [
        "| case | removed | dense | pruned | worse by | allowed | each seed | steps | speed, PyTorch | minutes |",
        "|---|---:|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for name, case in DEFAULTS.items():
        for target, allowed in case.allowed.items():
            rows = sorted(of(results, case=name, target=target), key=lambda r: int(r["seed"]))
            if not rows:
                continue
            dense, pruned = ([quality(r, side) for r in rows] for side in ("dense", "pruned"))
            sign = 1 if rows[0]["higher_is_better"] else -1
            worse = [sign * (before - after) for before, after in zip(dense, pruned, strict=True)]
            lines.append(
                f"| {case.title} | {target:.0%} | {_cell(dense)} | {_cell(pruned)} | {_signed(worse)} | {allowed:.2f} "
                f"| {', '.join(f'{drop:+.2f}' for drop in worse)} | {rows[0]['steps']:,} "
                f"| {median(r['speedup'] for r in rows):.2f}x | {median(r['seconds'] for r in rows) / 60:.0f} |"
            )
    return "\n".join(lines)


def _about_budgets() -> str:
    return (
        f"`max_metric_drop` {MOST_DROP:g} on SST-2, from `benchmarks/results/metric_drop.jsonl` "
        "(`python -m benchmarks.metric_drop DATA`). Of the sentences of the training file some are held out to decide "
        "on, others to test on beside the validation file's, which are named apart as well; phrases of the sentences "
        "that are left are trained on. Nothing is decided by the test rows. Drops are in points of accuracy, with "
        "their standard errors. Below each seed's model, single jobs: all levels that the search tried, and the next "
        f"{BEYOND} above its model that it had not, as they come out of jobs that name these sparsities. Within the "
        "budget is what the search goes by, the drop with its error (which counts for half of the budget at most); in "
        "brackets, by the drop alone, before rounding."
    )


def _budgets(results: list[Result]) -> str:
    lines = [
        "| seed | rows: trained on, decided on, test (validation file) | dense, test (validation file) | removed "
        "| drop, deciding rows | within | drop, test | drop, validation file |",
        "|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for result in sorted(results, key=lambda r: int(r["training"]["seed"])):
        seed = result["training"]["seed"]
        if "unreachable" in result:
            lines.append(f"| {seed} | | | no sparsity was within the budget | | | | |")
            continue
        rows = "{train:,}, {validation:,}, {test:,} ({official:,})".format(**result["rows"])
        dense = "{:.2f} ({:.2f})".format(*(100 * result["dense"][part] for part in TESTED))
        levels = sorted((*result["tried"], *result["beyond"]), key=lambda level: float(level["sparsity"]))
        (found,) = (level for level in levels if level["sparsity"] == result["sparsity"])
        lines.append(f"| **{seed}** | {rows} | {dense} {_level(found, strong=True)}")
        lines += [f"| {seed} | | {_level(level)}" for level in levels if level is not found]
    return "\n".join(lines)


def _level(level: dict[str, Any], *, strong: bool = False) -> str:
    """The columns of one model of a budget's search."""
    within = "yes" if level["is_good"] else "no"
    if not level["is_good"] and level["drop"] is not None and level["drop"] <= MOST_DROP:
        within += " (yes)"
    sparsity = f"**{level['sparsity']:.0%}**" if strong else f"{level['sparsity']:.0%}"
    drop = "not defined" if level["drop"] is None else _points(level["drop"], level["standard_error"])
    tested = (_points(**level[part]) for part in TESTED)
    return f"| {sparsity} | {drop} | {within} | {' | '.join(tested)} |"


def _points(drop: float, standard_error: float | None) -> str:
    error = "" if standard_error is None else f" ± {100 * standard_error:.2f}"
    return f"{100 * drop:+.2f}{error}"


def _ablations(results: list[Result]) -> str:
    lines = [
        "| case | removed | variant | metric | against dense | steps | seconds |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for name, case in CASES.items():
        for target in sorted({r["target"] for r in of(results, case=name)}):
            for variant in VARIANTS:
                for r in of(results, case=name, target=target, variant=variant):
                    change = quality(r, "pruned") - quality(r, "dense")
                    marked = case.compensates and not r["options"]["compensation"]
                    label = variant + (", no compensation" if marked else "")
                    lines.append(
                        f"| {case.title} | {target:.0%} | {label} | {_cell([quality(r, 'pruned')])} | {change:+.2f} "
                        f"| {r['steps']} | {r['seconds']:.0f} |"
                    )
    return "\n".join(lines)


def _signed(values: list[float]) -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):+.2f}{spread}"


def _cell(values: list[float]) -> str:
    digits = 2 if max(values) > 10 else 3
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def check_dense_models(results: list[Result]) -> None:
    """All runs of a case and seed have the same dense model.

    Raises:
        SystemExit: a dense model was trained anew in between and came out different.
    """
    dense: dict[tuple[str, bool, int], float] = {}
    for result in results:
        key = result["case"], result["full"], result["seed"]
        if abs(dense.setdefault(key, quality(result, "dense")) - quality(result, "dense")) > SAME:
            raise SystemExit(f"Runs of {key} start from different dense models: make them anew from one.")


def main() -> None:
    """Write the figures and the page."""
    results = RESULTS.all()
    check_dense_models(results)
    for matrix in matrices(results):
        draw(matrix.results, FIGURES / matrix.figure)
    PAGE.write_text(document(results))
    print(f"Wrote {PAGE} and the figures of {FIGURES}.")


if __name__ == "__main__":
    main()
