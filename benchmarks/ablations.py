"""What each choice within NeuroPrune is worth: a case as it runs by default, and one thing changed at a time.

    python -m benchmarks.ablations DATA [--case stsb] [--sparsity 0.7] [--variant "no distillation"] [--work FOLDER]

Cases, data and dense models are those of `benchmarks.quality`. Results are kept in
`benchmarks/results/ablations.jsonl`, and what is there is not run again; `benchmarks.quality_page` shows them.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.quality import CASES, WORK
from benchmarks.trials import Dense, Results, Trial, run_method

RESULTS = Results(Path(__file__).parent / "results" / "ablations.jsonl")
IN_PROPORTION = "heads in proportion"
"""By default anyhow, but in decoders with up to 90 % removed."""
METHOD: dict[str, dict[str, Any]] = {
    "default": {},
    "equal shares for all layers": {"layer_floor": 1.0},
    "ranked over all layers": {"layer_floor": 0.0},
    "connectivity, not saliency": {"importance": False},
    "no redundancy rule": {"redundancy": False},
    "heads similar within 0.6": {"theta": 0.6},
    "no penalties": {"alpha": 0.0, "beta": 0.0},
    IN_PROPORTION: {"head_exponent": 1.0},
    "heads spared": {"head_exponent": 1.6},
}
"""Options of the method, by what they mean."""
TRAINING: dict[str, dict[str, Any]] = {
    "no distillation": {"distillation": 0.0},
    "distillation 0.8": {"distillation": 0.8},
    "distillation alone": {"distillation": 1.0},
    "hidden states distilled, too": {"hidden_distillation": 1.0},
    "three times the learning rate": {"learning_rate": 3.0},
    "a third of the learning rate": {"learning_rate": 1 / 3},
    "recovery 0.6 of the steps": {"recovery_fraction": 0.6},
    "recovery 0.75 of the steps": {"recovery_fraction": 0.75},
    "twice as long": {"num_train_epochs": 2.0},
    "four times as long": {"num_train_epochs": 4.0},
    "recovery of its own": {"recovery_epochs": 1.0},
}
"""Options of training, by what they mean; those of `MULTIPLES` are multiples of the case's own."""
MULTIPLES = ("learning_rate", "num_train_epochs", "recovery_epochs")
VARIANTS = (*METHOD, *TRAINING)
SEED = 0


def training_of(trial: Trial, variant: str) -> dict[str, Any]:
    """What a variant changes in a trial's training."""
    usual = trial.spec({"name": "neuroprune"}, 0.5, SEED).training
    own = {name: getattr(usual, name) for name in MULTIPLES} | {"recovery_epochs": usual.num_train_epochs}
    changed = TRAINING.get(variant, {})
    return {name: value * own[name] if name in MULTIPLES else value for name, value in changed.items()}


def main(
    data: Path,
    case: Annotated[list[str] | None, typer.Option(help="Cases to run.")] = None,
    sparsity: Annotated[list[float] | None, typer.Option(help="Shares removed.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Variants to run; all by default.")] = None,
    work: Annotated[Path, typer.Option(help="Where dense models are kept.")] = WORK,
) -> None:
    """Run what is missing."""
    for name in case or ["stsb"]:
        trial, dense = CASES[name].trial(data, work), None
        for target in sparsity or [0.7]:
            for changed in variant or VARIANTS:
                key = {"case": name, "variant": changed, "target": target, "seed": SEED}
                method = {"name": "neuroprune", **METHOD.get(changed, {})}
                spec = trial.spec(method, target, SEED, **training_of(trial, changed))
                key |= {"options": spec.method.model_dump(mode="json", exclude={"name"})} | trial.recipe(spec)
                with RESULTS.claim(key) as is_ours:
                    if is_ours:
                        dense = dense or Dense(trial, SEED, work)
                        RESULTS.add({**key, **run_method(dense, spec, f"{name} at {target:.0%}, {changed}")})


if __name__ == "__main__":
    typer.run(main)
