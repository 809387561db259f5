"""Writes the page, section by section, and its figures."""

from collections import Counter
from pathlib import Path
from textwrap import fill

from benchmarks.ablations import RESULTS as ABLATIONS
from benchmarks.default_jobs import RESULTS as DEFAULT_JOBS
from benchmarks.metric_drop import RESULTS as BUDGETS
from benchmarks.quality import CASES, CONTROL, RESULTS, UNCOMPENSATED
from benchmarks.quality_page.figure import draw
from benchmarks.quality_page.jobs import (
    ABOUT_ABLATIONS,
    ABOUT_DEFAULTS,
    ablations,
    about_budgets,
    budgets,
    defaults,
)
from benchmarks.quality_page.matrix import ABOUT_SUMMARY, about_case, about_matrix, matrices, one_sided, summary, table
from benchmarks.quality_page.values import Result, of, quality

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
PAGE = ROOT / "docs" / "results.md"
SAME = 1e-6
"""Metrics of one dense model, in the tables' units, differ by no more on different machines."""


def document(results: list[Result]) -> str:
    """The page."""
    parts = matrices(results)
    sections = [_introduction(), "## Over all cases", fill(ABOUT_SUMMARY, 120)]
    for matrix in parts:
        sections += [f"### All cases, {matrix.title}", about_matrix(matrix)]
        sections += [summary(matrix.results, method) for method in ("neuroprune", UNCOMPENSATED)]
        sections += one_sided(matrix.results)
        sections.append(f"![Quality against what is left of the encoder, {matrix.title}](figures/{matrix.figure})")
    for name, case in CASES.items():
        found = [(matrix.title, rows) for matrix in parts if (rows := of(matrix.results, case=name))]
        if found:
            sections.append(f"## {case.title}")
        for title, rows in found:
            sections += [f"### {case.title}, {title}", about_case(rows), table(rows)]
    if DEFAULT_JOBS.all():
        sections += ["## Jobs with default options", fill(ABOUT_DEFAULTS, 120), defaults(DEFAULT_JOBS.all())]
    if BUDGETS.all():
        sections += ["## A budget instead of a sparsity", fill(about_budgets(), 120), budgets(BUDGETS.all())]
    if ABLATIONS.all():
        sections += ["## NeuroPrune's own choices", fill(ABOUT_ABLATIONS, 120), ablations(ABLATIONS.all())]
    return "\n\n".join(["# What pruning costs, and what it keeps", *sections]) + "\n"


def _introduction() -> str:
    command = "python -m benchmarks.quality DATA"
    what = f"""Written by `python -m benchmarks.quality_page` from `benchmarks/results/quality.jsonl`, which
        `{command}` makes on two cores, and `{command} --full`, with every training row and two to five times the
        steps, on a GPU. All methods start from the same dense model and get the same rows, steps, schedule, learning
        rate and distillation, and their default options; wanda and sparsegpt, which take single weights and do not
        train, are given for comparison. Whole heads and neurons leave the weights otherwise. A pruned model has been
        trained for longer than its dense one, and may end above it: `{CONTROL}` is the dense model after as many steps
        more, with the same schedule and teacher. The dense models of GPT-2 and T5 are trained by this benchmark from
        nothing. An example is a row, or for decoders a block of tokens. Metrics are of the validation splits, shares
        and correlations times 100. Jobs train longer than the runs of the two-core tables: see Jobs with default
        options."""
    chosen = f"""What was chosen by looking at these numbers, which are flattered by it: NeuroPrune's ranking, the
        decay of its saliencies, alpha, beta and the floors of all methods, by STS-B and SST-2, seed 0. That what
        stays takes over what goes (compensation) everywhere but in T5, by GPT-2 on Shakespeare, the Llama,
        Multi30k, CoLA, STS-B and RTE, seed 0; it was kept after a look at SST-2, and where it is the default, runs
        without it are `{UNCOMPENSATED}`. That decoders spare heads (`head_exponent`), in all methods but SMART,
        which learns how many, by NeuroPrune's runs of the Llama and both GPT-2s (magnitude, l1 and random still
        have theirs in proportion there); with more heads, STS-B, CoLA, Multi30k and SciTLDR were looked at, too,
        and left as they were. The runs in full were made before, with heads in proportion. A job's default
        distillation of 0.8 for decoders, by the Llama, half of it removed; in these tables all train with 0.5. That
        layers of a T5 keep at least half of their even share, and not 0.8 of it, in all methods that have this
        floor, by nats on Multi30k, seeds 0 and 1, and SciTLDR; the others stayed at 0.8 after a look at CoLA, the
        Llama and Shakespeare as well."""
    doubts = """Single runs are noisy, as a look at neighbouring sparsities shows: small differences mean
        nothing, least of all on RTE, whose dense model hardly does better than guessing, and in ratios on CoLA. STS-B,
        Multi30k and SST-2 got three seeds after their first was seen; CoLA, STS-B and RTE, quickest to run, got two,
        two and one more of NeuroPrune, SMART and importance, as many as there was time for, as three did not tell
        which is ahead at 70 %; at the last, the decoders and SciTLDR, until then of one seed, got two more of these
        methods, as decided before any of those runs. Of CoLA and RTE, whose differences between seeds decided the mean
        over all cases, these methods then got nine and eight seeds; ten and eight had been set before any of the new
        runs, and for the tenth there was no time. Multi30k's runs were made anew with all 1,014 rows, as was decided
        after those of the first seed: of 300 rows, BLEU went up and down between methods whose nats per token, in
        brackets, are alike. On CoLA SMART's lead at 70 % is one in Matthews and accuracy, not in the area under the
        ROC curve ([of three seeds](decisions/0005-exact-targets-by-saliency.md#alternatives), by hand). The T5 of
        SciTLDR learns too little from 2,000 rows to write summaries, so nats are its metric; it was ROUGE until the
        first runs were seen, and every line of the results has both. Speed (PyTorch on the CPU of the machine that
        trained) and seconds were measured while other runs kept the machine busy, and compare only roughly."""
    paragraphs = (fill(" ".join(text.split()), 120, break_on_hyphens=False) for text in (what, chosen, doubts))
    return "\n\n".join(paragraphs)


def check(results: list[Result]) -> None:
    """Every run is there once, and all of a case and seed have the same dense model.

    Raises:
        SystemExit: a run is there twice, or a dense model was trained anew in between and came out different.
    """
    runs = Counter((r["case"], r["full"], r["method"], r["target"], r["seed"]) for r in results)
    if twice := [run for run, count in runs.items() if count > 1]:
        raise SystemExit(f"Runs are there twice, with other options: {twice}. Take out the older ones.")
    dense: dict[tuple[str, bool, int], float] = {}
    for result in results:
        key = result["case"], result["full"], result["seed"]
        if abs(dense.setdefault(key, quality(result, "dense")) - quality(result, "dense")) > SAME:
            raise SystemExit(f"Runs of {key} start from different dense models: make them anew from one.")


def main() -> None:
    """Write the figures and the page."""
    results = RESULTS.all()
    check(results)
    for matrix in matrices(results):
        draw(matrix.results, FIGURES / matrix.figure)
    PAGE.write_text(document(results))
    print(f"Wrote {PAGE} and the figures of {FIGURES}.")


if __name__ == "__main__":
    main()
