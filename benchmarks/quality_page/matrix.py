"""The matrix of all cases, methods and sparsities: its summaries, and a table a case."""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from math import sqrt
from statistics import mean, median, stdev
from textwrap import fill

from benchmarks.quality import BASELINES, CASES, CLOSE, COMPARED, CONTROL, ONE_SHOT, UNCOMPENSATED, runs
from benchmarks.quality_page.values import Result, cell, kept_quality, of, quality

DRAWN = ("neuroprune", UNCOMPENSATED, *BASELINES)
"""All that train what they prune; the others would be too far off for a figure."""
METHODS = (CONTROL, *DRAWN, *ONE_SHOT)
"""Of the tables, in their order."""
LEAST_SEEDS = 3
"""After which a method that was better in each of them is named."""
LEAST_CASES = 4
"""Of which a standard error says something."""
NATS = "nats_per_token"
"""Of models that write, given beside a headline of what they wrote."""

ABOUT_SUMMARY = (
    "What is left of the dense model's headline metric, as a ratio (turned round where less is better): mean over the "
    "cases in which the method and NeuroPrune have both run, and NeuroPrune's on the same cases and seeds; in brackets "
    "NeuroPrune's lead in points, from four cases on with its standard error over them. The second table of each "
    f"size is of `{UNCOMPENSATED}`, which runs in the cases whose jobs compensate by default."
)


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


def about_matrix(matrix: Matrix) -> str:
    """Where its runs were made, and how many are still to come."""
    done, total = (sum(counts) for counts in zip(*map(partial(_progress, matrix.results), CASES), strict=True))
    devices = " and ".join(sorted({result["device"] for result in matrix.results}))
    return fill(
        f"Trained on: {devices}. {done} of {total} runs are done; what is not in the tables is still to be run. The "
        "figure shows a method's mean change against the dense model of each seed, from the mean of the dense ones; "
        "bars are its standard deviation, none where there is one seed. Methods of one sparsity stand a little beside "
        "each other.",
        120,
    )


def _progress(results: list[Result], name: str) -> tuple[int, int]:
    """How many of a case's runs are done, and how many there are."""
    found, case = of(results, case=name), CASES[name]
    planned = [
        {"seed": seed, "method": method, "target": target}
        for seed in case.all_seeds
        for method, target in runs(case, seed)
    ]
    return sum(bool(of(found, **run)) for run in planned), len(planned)


def summary(results: list[Result], ours: str) -> str:
    """What is left of the dense model's quality, mean over the cases in which a method and ours have run."""
    lines = [f"| method, and {ours} | " + " | ".join(f"{target:.0%} removed" for target in sorted(COMPARED)) + " |"]
    lines.append("|---|" + "---:|" * len(COMPARED))
    for method in (name for name in (*BASELINES, UNCOMPENSATED) if name != ours):
        cells = [beside(results, ours, method, target) for target in sorted(COMPARED)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def one_sided(results: list[Result]) -> list[str]:
    """A paragraph each of where NeuroPrune was behind or ahead of a close method with every seed, of several."""
    paragraphs = []
    for sign, said in ((-1, "Behind"), (1, "Ahead of")):
        found = [
            f"{method} at {target:.0%} on {CASES[case].title} ({len(pairs)})"
            for method in CLOSE
            for target in sorted(COMPARED)
            for case, pairs in _kept_by_both(results, "neuroprune", method, target).items()
            if len(pairs) >= LEAST_SEEDS and all(sign * (ours - theirs) > 0 for ours, theirs in pairs)
        ]
        if found:
            seeds = f"with every seed (their number in brackets, {LEAST_SEEDS} at least)"
            paragraphs.append(fill(f"{said}, {seeds}: {'; '.join(found)}.", 120, break_on_hyphens=False))
    return paragraphs


def beside(results: list[Result], ours: str, method: str, target: float) -> str:
    """One of NeuroPrune's variants and another method on the cases and seeds that both have run."""
    kept = _kept_by_both(results, ours, method, target)
    if not kept:
        return "not run"
    left, theirs = ([mean(pair[side] for pair in pairs) for pairs in kept.values()] for side in (0, 1))
    differences = [ours_left - theirs_left for ours_left, theirs_left in zip(left, theirs, strict=True)]
    error = f" ± {100 * stdev(differences) / sqrt(len(kept)):.1f}" if len(kept) >= LEAST_CASES else ""
    return (
        f"{mean(theirs):.1%}, {mean(left):.1%} ({100 * mean(differences):+.1f}{error}, "
        f"{len(kept)} case{'s' if len(kept) > 1 else ''})"
    )


def _kept_by_both(results: list[Result], ours: str, method: str, target: float) -> dict[str, list[tuple[float, float]]]:
    """What ours and another method keep with each seed that both have run, by case."""
    found = {m: {(r["case"], r["seed"]): r for r in of(results, method=m, target=target)} for m in (ours, method)}
    kept: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for run in sorted(found[ours].keys() & found[method].keys()):
        kept[run[0]].append((kept_quality(found[ours][run]), kept_quality(found[method][run])))
    return kept


def about_case(found: list[Result]) -> str:
    """What the runs of one case have in common."""
    first = found[0]
    dense = [quality(r, "dense") for r in {r["seed"]: r for r in found}.values()]
    return fill(
        f"{first['train_rows']:,} training examples, {max(r['steps'] for r in found)} steps of pruning, "
        f"{len({r['seed'] for r in found})} seed(s); dense {cell(dense)} {first['headline'].replace('_', ' ')}, "
        f"{first['encoder_parameters']['dense']:,} encoder parameters.",
        120,
        break_on_hyphens=False,
    )


def table(found: list[Result]) -> str:
    """The runs of one case: a line a sparsity and method, over its seeds."""
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
    in_nats = f" ({cell(nats)} nats)" if nats else ""
    return (
        f"| {target:.0%} | {method} | {cell(pruned)}{in_nats} | {change:+.2f} "
        f"| {median(r['encoder_parameters']['pruned'] for r in rows):,.0f} "
        f"| {median(r['speedup'] for r in rows):.2f}x | {median(r['seconds'] for r in rows):.0f} |"
    )
