"""The contract's targets: what decides how much of a model goes. A job names exactly one."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator

from core.jobs.base import MisfitError, Spec
from core.jobs.methods import Gradual, NeuroPrune, goes_on, removes_units

MOST_SPARSITY = 0.95
Sparsity = Annotated[float, Field(ge=0, le=MOST_SPARSITY)]

LEAST_STEP = 0.01
"""Between two levels of a frontier."""
LEAST_LEVELS, MOST_LEVELS = 2, 8

_SHARE, _CORRELATION, _SCORE = (0, 1), (-1, 1), (0, 100)
RANGES = {
    **dict.fromkeys(("accuracy", "macro_f1", "rouge_1", "rouge_2", "rouge_l"), _SHARE),
    **dict.fromkeys(("matthews", "pearson", "spearman", "cosine_to_dense", "similarity_spearman"), _CORRELATION),
    **dict.fromkeys(("bleu", "chrf"), _SCORE),
}
"""The worst and the best value of a metric; nats and perplexity have no worst."""


class SparsityTarget(Spec):
    """Remove this share of the parameters in the transformer layers (embeddings and task head not counted)."""

    sparsity: Sparsity = Field(
        description="Share removed, 0 … 0.95. Whole units: met within 0.1 percentage points, or half a neuron if that"
        " is more; with structure uniform, the nearest width that removes at least this share, so up to "
        "one neuron of every layer more. Single weights: this share becomes zero, and units left without "
        "connections leave on top.",
    )


class ParametersTarget(Spec):
    """Leave at most so many parameters in the whole model, embeddings and task head included."""

    parameters: int = Field(
        ge=1,
        description="Parameters of the delivered model, at most; less than one neuron fewer (with structure uniform, "
        "one of every layer), or 0.1 % of the transformer layers where heads make that impossible. Out of"
        " reach: refused before training, with the reachable range.",
    )


class SizeTarget(Spec):
    """Leave at most so many bytes in the file of weights."""

    size_bytes: int = Field(
        ge=1,
        description="Bytes of the delivered model.safetensors, at most; fp32, header included. As near and as surely "
        "refused as `parameters`.",
    )


class SpeedupTarget(Spec):
    """Be so many times as fast as the dense model, measured side by side on the worker's CPU."""

    speedup: float = Field(
        gt=1,
        le=100,
        description="Median latency of the dense model over that of the pruned one: one row of 128 tokens, or as many"
        " as the model takes. How much has to go is found before training, by timing stand-ins of the "
        "same widths; a factor that no stand-in reaches is refused. Met within 5 %: where the trained "
        "model is slower than that, a little more goes, up to three times, each with a recovery of half "
        "of num_train_epochs. Timing varies from run to run; the report has target, expected and "
        "measured.",
    )
    runtime: Literal["onnxruntime", "torch"] = Field(
        "onnxruntime", description="onnxruntime: model.onnx, which must be among the exports. torch: PyTorch, eager."
    )


class MetricDropTarget(Spec):
    """Find the smallest model that is hardly worse than the dense one."""

    max_metric_drop: float = Field(
        ge=0,
        description="How much worse than the dense model's the task's headline metric may be, in its own unit: 0.01 "
        "is one point of accuracy; of perplexity and the like, how much higher. As much as the metric's whole range is "
        "refused, and, once it is measured, as much as the dense model has of it. Decided on the validation rows, with "
        "the standard error of the difference on top (half of the budget at most), reported on the test rows. "
        "Sparsities of 0.05, 0.10 … 0.95 are bisected, then the next above the best are tried, each reached from the "
        "dense model: mostly 5 to 7 times num_train_epochs in all, at most 9.",
    )


class FrontierTarget(Spec):
    """Deliver a model at each of several sparsities, all from one training run, and compare them."""

    frontier: tuple[Sparsity, ...] = Field(
        min_length=LEAST_LEVELS,
        max_length=MOST_LEVELS,
        description="Sparsities, as in `sparsity`, at least 0.01 apart. The first takes num_train_epochs; each of the"
        " others goes on from the one before and takes the share of num_train_epochs that it removes of "
        "what is left, at least half. Each is a bundle in a folder of its own, such as `sparsity-0.5`.",
    )

    @field_validator("frontier", mode="before")
    @classmethod
    def _counts(cls, levels: Any) -> Any:
        """In our words: pydantic's speak of tuples."""
        if not isinstance(levels, list | tuple) or not LEAST_LEVELS <= len(levels) <= MOST_LEVELS:
            raise ValueError(f"Name {LEAST_LEVELS} to {MOST_LEVELS} sparsities, such as [0.5, 0.7]")
        return levels

    @field_validator("frontier")
    @classmethod
    def _ascends(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        ascending = tuple(sorted(levels))
        for lower, higher in pairwise(ascending):
            if higher - lower < LEAST_STEP - 1e-9:
                raise ValueError(f"sparsities must be at least {LEAST_STEP} apart; {lower} and {higher} are not")
        return ascending


def _named(target: Any) -> str | None:
    """The one target that an input names."""
    given = type(target).model_fields if isinstance(target, BaseModel) else target
    found = [name for name in TARGETS if isinstance(given, Mapping) and name in given]
    return found[0] if len(found) == 1 else None


AnyTarget = SparsityTarget | ParametersTarget | SizeTarget | SpeedupTarget | MetricDropTarget | FrontierTarget
TARGETS: dict[str, type[Spec]] = {next(iter(each.model_fields)): each for each in get_args(AnyTarget)}
"""By the name that tells it from the others."""

Target = Annotated[
    Annotated[SparsityTarget, Tag("sparsity")]
    | Annotated[ParametersTarget, Tag("parameters")]
    | Annotated[SizeTarget, Tag("size_bytes")]
    | Annotated[SpeedupTarget, Tag("speedup")]
    | Annotated[MetricDropTarget, Tag("max_metric_drop")]
    | Annotated[FrontierTarget, Tag("frontier")],
    Discriminator(
        _named,
        custom_error_type="target",
        custom_error_message=f"Name exactly one of: {', '.join(TARGETS)}",
    ),
]


def name_of(target: AnyTarget) -> str:
    """The field that tells a target from the others, and holds what is asked for."""
    return next(iter(type(target).model_fields))


def is_decided_on_validation(target: AnyTarget | None) -> bool:
    """Whether the validation rows decide how much goes, so that other rows must tell how good the result is."""
    return isinstance(target, MetricDropTarget)


def check_drop(target: MetricDropTarget, metric: str) -> None:
    """Refuse a drop that leaves nothing to decide: every model is within it.

    Raises:
        MisfitError: says how far the metric runs.
    """
    if metric not in RANGES:
        return
    worst, best = RANGES[metric]
    if target.max_metric_drop >= best - worst:
        raise MisfitError(
            f"{metric} runs from {worst} to {best}: every model is within {target.max_metric_drop:g} of the dense one; "
            f"five points are {0.05 * best:g}",
            f"/target/{name_of(target)}",
        )


def check_target(target: AnyTarget, method: Any, structure: str, formats: tuple[str, ...]) -> None:
    """Refuse a target that cannot be met with a method, a structure, or these exports.

    Raises:
        MisfitError: says what does not fit.
    """
    pointer = f"/target/{name_of(target)}"
    if isinstance(target, ParametersTarget | SizeTarget | SpeedupTarget):
        if not removes_units(method):
            raise MisfitError("needs granularity structured: zeros make a model neither smaller nor faster", pointer)
        if structure == "masked":
            raise MisfitError("is not possible with structure masked, which keeps the zeros", pointer)
    if isinstance(target, ParametersTarget | SizeTarget) and isinstance(method, NeuroPrune) and method.in_rows:
        raise MisfitError("is not possible with in_rows: in some layers they stay, as zeros", pointer)
    if isinstance(target, SpeedupTarget | FrontierTarget) and not goes_on(method):
        raise MisfitError(
            f"prunes in several steps, each going on from the one before, which {method.name} cannot; "
            "neuroprune, importance, magnitude, l1 and random can",
            pointer,
        )
    if isinstance(target, SpeedupTarget | FrontierTarget) and isinstance(method, Gradual) and method.spares_heads:
        raise MisfitError(
            "is not possible with a head_exponent above 1: it prunes in several steps, and one could leave the next "
            "too few neurons",
            pointer,
        )
    if isinstance(target, SpeedupTarget) and target.runtime == "onnxruntime" and "onnx" not in formats:
        raise MisfitError("onnxruntime needs onnx among export.formats", "/target/runtime")
