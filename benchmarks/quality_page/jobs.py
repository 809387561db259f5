"""The sections after the matrix, each a text and a table: jobs with default options, with a budget, and ablations."""

from statistics import mean, median, stdev
from typing import Any

from benchmarks.ablations import IN_PROPORTION, VARIANTS
from benchmarks.default_jobs import CASES as DEFAULTS
from benchmarks.default_jobs import NOTHING
from benchmarks.metric_drop import BEYOND, MOST_DROP, TESTED
from benchmarks.quality import CASES, CONTROL, UNCOMPENSATED, Case
from benchmarks.quality_page.values import Result, cell, of, quality
from core.jobs.defaults import MOST_SPARING

ABOUT_DEFAULTS = (
    "NeuroPrune where a job names a model, a task and a sparsity and leaves all else to the defaults, from "
    "`benchmarks/results/default_jobs.jsonl` (`python -m benchmarks.default_jobs DATA`): a new head is trained for an "
    "epoch first, the dense model's only one, and sparser models get more epochs than in the tables above. SST-2 is "
    "cut to 33,000 of its 67,349 rows; the Llama reads blocks of 256 tokens. Worse by: points, or nats, on the "
    "validation rows, the mean and standard deviation over the seeds, and each of them; what is below zero is better "
    f"than dense. Allowed is what the project set out to reach. `{CONTROL}` is the dense model after as many epochs "
    "more as the job with half removed, from the same teacher. What is not in the table is still to be run."
)


def defaults(results: list[Result]) -> str:
    """A line a case and sparsity, over its seeds."""
    lines = [
        "| case | removed | dense | pruned | worse by | allowed | each seed | steps | speed, PyTorch | minutes |",
        "|---|---:|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for name, case in DEFAULTS.items():
        for target, allowed in ({NOTHING: None} | case.allowed).items():
            rows = sorted(of(results, case=name, target=target), key=lambda r: int(r["seed"]))
            if not rows:
                continue
            dense, pruned = ([quality(r, side) for r in rows] for side in ("dense", "pruned"))
            sign = 1 if rows[0]["higher_is_better"] else -1
            worse = [sign * (before - after) for before, after in zip(dense, pruned, strict=True)]
            removed = f"{target:.0%}" if target else f"0%, {CONTROL}"
            lines.append(
                f"| {case.title} | {removed} | {cell(dense)} | {cell(pruned)} | {_signed(worse)} "
                f"| {'' if allowed is None else f'{allowed:.2f}'} "
                f"| {', '.join(f'{drop:+.2f}' for drop in worse)} | {rows[0]['steps']:,} "
                f"| {median(r['speedup'] for r in rows):.2f}x | {median(r['seconds'] for r in rows) / 60:.0f} |"
            )
    return "\n".join(lines)


def _signed(values: list[float]) -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):+.2f}{spread}"


def about_budgets() -> str:
    """What the table of budgets shows."""
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


def budgets(results: list[Result]) -> str:
    """A line a level of each seed's search, the model that was found first."""
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


ABOUT_ABLATIONS = (
    "How the case trains in the tables above, and beside it one thing changed at a time, from "
    "`benchmarks/results/ablations.jsonl` (`python -m benchmarks.ablations DATA`). What has `no compensation` or "
    f"`{IN_PROPORTION}` behind its name ran before these were otherwise by default: compare it with the line that is "
    f"called so, or of an encoder with `{UNCOMPENSATED}` above, by how far it is from the dense model, which sometimes "
    "was another one; what has `no compensation` no script repeats. Single runs of one seed, and noisy. Decoders have "
    "`distillation 0.8` by default in jobs; a GPT-2 whose teacher has read no more than the rows gains nothing by it. "
    "Seconds are of a machine with other work to do."
)


def ablations(results: list[Result]) -> str:
    """A line a run: what was changed, and how far from the dense model it ended."""
    lines = [
        "| case | removed | variant | metric | against dense | steps | seconds |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for name, case in CASES.items():
        for target in sorted({r["target"] for r in of(results, case=name)}):
            for variant in VARIANTS:
                for r in of(results, case=name, target=target, variant=variant):
                    change = quality(r, "pruned") - quality(r, "dense")
                    label = ", ".join([variant, *_not_by_default(case, target, variant, r["options"])])
                    lines.append(
                        f"| {case.title} | {target:.0%} | {label} | {cell([quality(r, 'pruned')])} | {change:+.2f} "
                        f"| {r['steps']} | {r['seconds']:.0f} |"
                    )
    return "\n".join(lines)


def _not_by_default(case: Case, target: float, variant: str, options: dict[str, Any]) -> list[str]:
    """What was otherwise than it is by default now, beside what a variant changes."""
    marks = ["no compensation"] if case.compensates and not options["compensation"] else []
    if case.decoder and target <= MOST_SPARING and options["head_exponent"] == 1 and variant != IN_PROPORTION:
        marks.append(IN_PROPORTION)
    return marks
