"""The contract's pruning methods: what each is called and which options it takes."""

import re
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import AfterValidator, Field, model_validator

from core.jobs.base import MisfitError, Spec, an_object

_N_OF_M = "[1-9][0-9]?:[1-9][0-9]?"


def _granular(*names: str) -> AfterValidator:
    """Take these names, and patterns N:M that leave some weights and take some; refuse others in words, not a regex."""

    def check(granularity: str) -> str:
        if granularity not in names and not re.fullmatch(_N_OF_M, granularity):
            raise ValueError(f"Must be {', '.join(names)} or a pattern such as 2:4")
        pattern = pattern_of(granularity)
        if pattern is not None and pattern[0] >= pattern[1]:
            raise ValueError(f"in a pattern N:M, N weights of each M stay, so N must be below M; {granularity} is not")
        return granularity

    return AfterValidator(check)


def pattern_of(granularity: str) -> tuple[int, int] | None:
    """N and M where the granularity is a pattern N:M."""
    if granularity in ("structured", "unstructured"):
        return None
    stay, of = granularity.split(":")
    return int(stay), int(of)


WeightGranularity = Annotated[
    str,
    Field(json_schema_extra={"pattern": f"^(unstructured|{_N_OF_M})$"}),
    _granular("unstructured"),
]
"""Single weights, freely or by a pattern N:M."""

Granularity = Annotated[
    str,
    Field(json_schema_extra={"pattern": f"^(structured|unstructured|{_N_OF_M})$"}),
    _granular("structured", "unstructured"),
]
"""Whole units, or single weights."""

_STRUCTURED = "structured: whole heads and MLP neurons, which leave the weights. "
_UNSTRUCTURED = (
    "unstructured: single weights, which become zero; the target counts these, and heads and neurons left without "
    "connections leave on top. "
)
_PATTERN = "N:M, as 2:4: of each M consecutive weights of a row N stay, and the target follows from it. "

LAYER_FLOOR = 0.8
"""Usual share of its even part of the budget that every layer keeps."""

_LAYER_FLOOR = (
    "Share of its even part of the budget that every layer keeps, rounded down but not to none where that part is one "
    "or more, 0 (rank over all layers) … 1 (the same in each). Default: 0.5 for seq2seq, 0.8 for other tasks. Not with "
    "structure uniform, a pattern N:M or mode faithful, where layers do not compete."
)


class Gradual(Spec):
    """Options of every method that removes along the schedule while the model trains."""

    granularity: Granularity = Field("structured", description=_STRUCTURED + _UNSTRUCTURED + _PATTERN)
    layer_floor: float | None = Field(None, ge=0, le=1, description=_LAYER_FLOOR)
    head_exponent: float | None = Field(
        None,
        ge=1,
        le=3,
        description="How heads are spared: the share of them that goes is this power of the share that goes of heads "
        "and neurons together, and neurons make up the rest of the target. 1: heads go in proportion to their "
        "parameters. Default: 1.6 for causal-lm with structure ragged or masked and a target other than a sparsity "
        "above 0.9, frontier and speedup; 1 otherwise.",
    )
    experts: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Of models with experts: share of them that go whole, 0 … 1, those of least importance; the router "
        "chooses among the others. They count in the same target, of which heads and other neurons make up the rest.",
    )

    @model_validator(mode="after")
    def _layers_share_a_budget(self) -> "Gradual":
        if self.granularity != "structured":
            # A resolved job names an exponent of 1 as well, which changes nothing.
            of_units = {"experts"} | ({"head_exponent"} if self.spares_heads else set())
            self._refuse_changed(of_units, f"with granularity {self.granularity}")
        if pattern_of(self.granularity) is not None:
            self._refuse_changed({"layer_floor"}, f"with granularity {self.granularity}, the same in every layer")
        return self

    @property
    def floor(self) -> float:
        """`layer_floor`, or where it is open, as in no resolved job, the usual one."""
        return LAYER_FLOOR if self.layer_floor is None else self.layer_floor

    @property
    def exponent(self) -> float:
        """`head_exponent`, or where it is open, heads in proportion."""
        return 1.0 if self.head_exponent is None else self.head_exponent

    @property
    def names_floor(self) -> bool:
        """Whether a floor was asked for; a resolved job names the usual one where none is read."""
        return self.layer_floor not in (None, LAYER_FLOOR)

    @property
    def spares_heads(self) -> bool:
        """Whether fewer heads are to go than in proportion."""
        return self.head_exponent not in (None, 1)

    @property
    def takes_units(self) -> bool:
        """Whether whole heads and neurons go while the model trains."""
        return self.granularity == "structured"

    def _refuse_changed(self, names: set[str], where: str) -> None:
        """Options that would be ignored must have their defaults.

        Compared by value: a stored spec names all of its options.
        """
        fields = type(self).model_fields
        changed = sorted(name for name in names if getattr(self, name) != fields[name].default)
        if "layer_floor" in changed and not self.names_floor:
            changed.remove("layer_floor")
        if changed:
            raise MisfitError(f"{', '.join(changed)} cannot be set {where}", f"/{changed[0]}")


class NeuroPrune(Gradual):
    """NeuroPrune (Dhurandhar et al., ACL Findings 2024, https://arxiv.org/abs/2404.01306).

    targeted: the target is met exactly. While the model trains, the paper's two penalties shrink poorly connected
    neurons and sparse input groups, outside of the optimiser; heads that another can stand for are merged into it
    first; of the rest the least important go, and where `compensation` is on, what stays takes over from them.

    faithful: as published. The penalties are part of the loss, redundant heads go after each epoch, and the sparsity is
    what comes out of alpha, beta and theta: a job takes no target.
    """

    name: Literal["neuroprune"]
    mode: Literal["targeted", "faithful"] = Field("targeted", description="See the method's description.")
    alpha: float | None = Field(
        None,
        ge=0,
        description="Weight of the preferential-attachment penalty on the MLPs (eq. 1). Default: 1e-3 targeted, "
        "1e-5 faithful; the paper searches 1e-7 … 1e-1.",
    )
    beta: float | None = Field(
        None, ge=0, description="Weight of the group-sparsity penalty on attention (eq. 2). Defaults as alpha's."
    )
    theta: float = Field(
        0.15,
        ge=0,
        description="Heads of a layer whose weights differ by no more than this (l_inf) are merged, not dropped; but "
        "none where each has a position bias of its own (BLOOM, MPNet, self attention of T5).",
    )
    epsilon: float = Field(1e-4, ge=0, description="A weight of at least this magnitude is a connection.")
    redundancy: bool = Field(
        True, description="Merge heads that another can stand for before others go; off for ablation."
    )
    importance: bool = Field(
        True,
        description="Let first-order saliency decide among what is not redundant; off (for ablation), connectivity "
        "decides: the poorly connected lose. Single weights always go by magnitude and connectivity.",
    )
    compensation: bool | None = Field(
        None,
        description="Let the heads and neurons that stay take over what goes, as well as they can (least squares on "
        "what they compute in a training step). Default: for sequence-classification, regression and causal-lm.",
    )
    heads_kept: int | None = Field(
        None,
        ge=0,
        description="Attention heads that stay in the whole model (those with a key and value of their own); neurons "
        "make up the rest of the target. Default: as many as head_exponent leaves.",
    )
    in_rows: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the hidden dimensions that each layer's attention no longer reads, 0 … 1; they count in "
        "the same target. They leave the weights of layers where that is faster, and are zeros in the others.",
    )

    @model_validator(mode="after")
    def _options_fit_mode(self) -> "NeuroPrune":
        faithful, single = self.mode == "faithful", self.granularity != "structured"
        structured_only = {"theta", "redundancy", "importance", "heads_kept", "in_rows"}
        # A resolved job says that it does without; that is no reason to refuse it with another mode or granularity.
        if self.compensation:
            structured_only.add("compensation")
        if faithful:
            exponent = {"head_exponent"} if self.spares_heads else set()
            others = {"granularity", "layer_floor", "experts"} | exponent
            self._refuse_changed((structured_only - {"theta"}) | others, "with mode faithful")
        elif single:
            self._refuse_changed(structured_only, f"with granularity {self.granularity}")
        if self.heads_kept is not None and self.spares_heads:
            raise MisfitError("cannot be set with heads_kept, which says how many stay", "/head_exponent")
        return self

    @property
    def takes_units(self) -> bool:
        return self.mode == "targeted" and super().takes_units

    def strengths(self) -> tuple[float, float]:
        """alpha and beta, with the mode's default where they are left out."""
        default = 1e-3 if self.mode == "targeted" else 1e-5
        return (default if self.alpha is None else self.alpha), (default if self.beta is None else self.beta)


class Importance(Gradual):
    """Magnitude and sensitivity: the lowest mix of both goes, little by little, then training under the held mask.

    Sensitivity is the first-order change in loss, |w · dL/dw|, averaged over batches.
    """

    name: Literal["importance"]
    sensitivity_share: float = Field(
        0.5, ge=0, le=1, description="Weight of sensitivity in the mix, 0 (magnitude alone) … 1 (sensitivity alone)."
    )


class Smart(Spec):
    """SMART (Ding et al., https://arxiv.org/abs/2403.19969): a learnt score a unit, a differentiable top-k over all.

    The number kept is exact at every step; the temperature falls until each unit is either kept or gone.
    """

    name: Literal["smart"]
    granularity: Literal["structured", "unstructured"] = Field("structured", description=_STRUCTURED + _UNSTRUCTURED)
    score_learning_rate: float = Field(0.01, gt=0, le=10, description="Adam's for the scores, next to the weights'.")
    initial_temperature: float = Field(1.0, gt=0, le=100, description="Temperature of the top-k at the start.")
    final_temperature: float = Field(
        0.01, gt=0, le=100, description="Temperature when the target is reached; it falls exponentially."
    )

    @model_validator(mode="after")
    def _temperature_falls(self) -> "Smart":
        if self.final_temperature > self.initial_temperature:
            raise MisfitError("must not exceed initial_temperature", "/final_temperature")
        return self


class Magnitude(Gradual):
    """Gradual magnitude pruning (GMP*, Kurtic & Alistarh 2022): the smallest go along a cubic schedule."""

    name: Literal["magnitude"]


class L1(Gradual):
    """Plain l1 regularisation, the same for every weight; the smallest go along the schedule."""

    name: Literal["l1"]
    strength: float = Field(
        0.03, ge=0, description="Weight of the l1 penalty; each step shrinks every weight by learning rate times this."
    )


class Random(Gradual):
    """Whatever chance picks goes: what any other method has to beat."""

    name: Literal["random"]


class _OneShot(Spec):
    """Options of the methods that need a few rows and no training."""

    granularity: WeightGranularity = Field("unstructured", description=_UNSTRUCTURED + _PATTERN)
    calibration_rows: int = Field(128, ge=1, le=100_000, description="Training rows that activations are taken from.")


class Wanda(_OneShot):
    """Wanda (Sun et al., ICLR 2024): in each output, weights with the smallest |weight| times input norm go at once."""

    name: Literal["wanda"]


class SparseGPT(_OneShot):
    """SparseGPT (Frantar & Alistarh, ICML 2023): weights go at once, the remaining ones make up for the error."""

    name: Literal["sparsegpt"]
    damping: float = Field(0.01, gt=0, le=1, description="Added to the Hessian's diagonal, as a share of its mean.")
    block_size: int = Field(128, ge=1, le=4096, description="Columns whose mask is chosen together.")


Method = Annotated[
    NeuroPrune | Importance | Smart | Magnitude | L1 | Random | Wanda | SparseGPT,
    Field(discriminator="name"),
    an_object('{"name": "wanda"}'),
]


def takes_target(method: Any) -> bool:
    """Whether the amount is the user's to choose: not in faithful mode, nor with a pattern."""
    if isinstance(method, NeuroPrune) and method.mode == "faithful":
        return False
    return pattern_of(method.granularity) is None


def trains(method: Any) -> bool:
    """Whether the method removes while the model trains."""
    return not isinstance(method, _OneShot)


def has_floor(method: Any) -> TypeGuard[NeuroPrune | Importance | Magnitude | L1 | Random]:
    """Whether layers may compete for one budget, each with a guaranteed rest."""
    return isinstance(method, Gradual)


def removes_units(method: Any) -> bool:
    """Whether whole heads and neurons are what goes, so that the weights get fewer."""
    return bool(method.granularity == "structured")


def goes_on(method: Any) -> bool:
    """Whether a model that the method has pruned can be pruned further in another run of training."""
    return isinstance(method, Gradual)


def check_masked(method: Any) -> None:
    """Refuse what cannot be set to zero in the dense model's shapes.

    Raises:
        MisfitError: says what.
    """
    if isinstance(method, Gradual) and method.experts:
        raise MisfitError(
            "masked is not possible with experts: a stock router chooses among experts of zeros as well; ragged is",
            "/structure",
        )


def check_uniform(method: Any) -> None:
    """Refuse options with which layers cannot all have one width.

    Raises:
        MisfitError: says which.
    """
    if isinstance(method, NeuroPrune) and method.mode == "faithful":
        raise MisfitError(
            "uniform is not possible with mode faithful, where every layer loses its own number", "/structure"
        )
    if method.granularity != "structured":
        raise MisfitError(
            f"uniform is not possible with granularity {method.granularity}: single weights leave no unit of every "
            "layer; masked loads in the stock class as well",
            "/structure",
        )
    if isinstance(method, NeuroPrune) and method.in_rows:
        raise MisfitError(
            "uniform is not possible with in_rows: stock classes read all hidden dimensions", "/structure"
        )
    if isinstance(method, Gradual) and method.experts:
        raise MisfitError(
            "uniform is not possible with experts: no stock class is narrowed so yet; ragged is", "/structure"
        )
    if isinstance(method, Gradual) and method.names_floor:
        raise MisfitError("cannot be set with structure uniform, the same in every layer", "/method/layer_floor")
