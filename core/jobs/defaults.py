"""What a job gets where its spec is silent."""

from dataclasses import dataclass

from core.jobs.methods import LAYER_FLOOR, Gradual, NeuroPrune, has_floor, takes_target, trains
from core.jobs.spec import JobSpec, Seq2Seq, headline_of
from core.jobs.targets import AnyTarget, FrontierTarget, SparsityTarget, SpeedupTarget


@dataclass(frozen=True, slots=True)
class TrainingDefaults:
    """Defaults of one task; units as in `core.jobs.spec.Training`. Epochs are those of a sparsity of up to 0.5."""

    num_train_epochs: float
    learning_rate: float
    distillation: float | None


TRAINING_DEFAULTS: dict[str, TrainingDefaults] = {
    "sentence-embedding": TrainingDefaults(num_train_epochs=3, learning_rate=6e-4, distillation=None),
    "sequence-classification": TrainingDefaults(num_train_epochs=2, learning_rate=1e-4, distillation=0.5),
    "regression": TrainingDefaults(num_train_epochs=4, learning_rate=1e-4, distillation=0.5),
    # A pretrained decoder has read more than the rows of a job: it knows more of the next token than one text says.
    "causal-lm": TrainingDefaults(num_train_epochs=3, learning_rate=5e-4, distillation=0.8),
    "masked-lm": TrainingDefaults(num_train_epochs=3, learning_rate=2e-4, distillation=0.5),
    "image-classification": TrainingDefaults(num_train_epochs=3, learning_rate=1e-4, distillation=0.5),
    "seq2seq": TrainingDefaults(num_train_epochs=3, learning_rate=2e-4, distillation=0.5),
}

COMPENSATES = {"causal-lm", "sequence-classification", "regression"}
"""Tasks for which compensation pays in most of the benchmark's cases; others gained nothing by it, or were not tried
(ADR 0016)."""

HEAD_EXPONENTS = {"causal-lm": 1.6}
"""Where heads do not go in proportion: decoders lose less if fewer heads and more neurons go (ADR 0018)."""

MOST_SPARING = 0.9
"""Sparsity up to which that is so."""

LAYER_FLOORS = {"seq2seq": 0.5}
"""Where it is not the usual one: the layers of an encoder and of a decoder do different work (ADR 0017)."""


def _pace(target: AnyTarget | None) -> float:
    """How many times the usual epochs a job takes: sparser models recover more slowly, so 0.7 takes 1.5, 0.9 takes 2.

    A frontier's are those of its first level; of other targets, nobody knows the sparsity before the model is read.
    """
    match target:
        case SparsityTarget():
            sparsity = target.sparsity
        case FrontierTarget():
            sparsity = target.frontier[0]
        case _:
            return 1.0
    return max(1.0, 1 + (sparsity - 0.5) / 0.4)


def _spares_heads(spec: JobSpec) -> bool:
    """Whether fewer heads may go than in proportion.

    Not with one width for all layers, which leaves few numbers of heads to choose from, nor where `check_target`
    refuses it, nor where the job says how many stay.
    """
    if isinstance(spec.method, NeuroPrune) and spec.method.heads_kept is not None:
        return False
    if spec.structure == "uniform" or isinstance(spec.target, FrontierTarget | SpeedupTarget):
        return False
    return not isinstance(spec.target, SparsityTarget) or spec.target.sparsity <= MOST_SPARING


def resolve(spec: JobSpec) -> JobSpec:
    """The same spec with the task's defaults filled in; `dense_epochs` stays open until the model is read."""
    defaults = TRAINING_DEFAULTS[spec.task.name]
    asked, epochs = spec.training.distillation, spec.training.num_train_epochs
    usual_epochs = defaults.num_train_epochs * _pace(spec.target) if trains(spec.method) else 0.0
    training = spec.training.model_copy(
        update={
            "num_train_epochs": usual_epochs if epochs is None else epochs,
            "learning_rate": spec.training.learning_rate or defaults.learning_rate,
            "distillation": defaults.distillation if asked is None else asked,
        }
    )
    task, method = spec.task, spec.method
    if isinstance(method, NeuroPrune) and method.takes_units and method.compensation is None:
        method = method.model_copy(update={"compensation": task.name in COMPENSATES})
    if isinstance(method, Gradual) and method.takes_units and method.head_exponent is None:
        exponent = HEAD_EXPONENTS.get(task.name, 1.0) if _spares_heads(spec) else 1.0
        method = method.model_copy(update={"head_exponent": exponent})
    if has_floor(method) and method.layer_floor is None:
        competes = spec.structure != "uniform" and takes_target(method)
        floor = LAYER_FLOORS.get(task.name, LAYER_FLOOR) if competes else LAYER_FLOOR
        method = method.model_copy(update={"layer_floor": floor})
    if isinstance(task, Seq2Seq):
        task = task.model_copy(update={"metric": headline_of(task)})
    return spec.model_copy(update={"training": training, "task": task, "method": method})
