"""How much goes: exact numbers of heads, in-rows and neurons for a share of the transformer layers' parameters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.engine.anatomy import Anatomy
from core.engine.plan import Masks
from core.engine.structures import uniform_head_groups
from core.engine.units import Kind
from core.errors import InvalidModelError, UnreachableTargetError

TOLERANCE = 0.001
"""Share of the encoder's parameters by which a result may differ from the target: 0.1 percentage points."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A target bound to a model all of whose heads cost the same, and all neurons: remove `sparsity` of its layers.

    Heads go in proportion, unless they are spared or their number is given, and in-rows as many as are asked for;
    neurons, which are finer, make up the rest exactly. A cost is the parameters of one unit; a head and an in-row of an
    attention have `crossing` parameters in common. Whole experts go as many as are asked for; all of their neurons
    count as neurons, and only their rows of the router besides.

    Where all layers are to end with one width, they lose the same number of heads and of neurons each, at least what
    the target asks for, and keep one of either at least.

    Of a model that was pruned before, all numbers are those of the dense one: what is gone counts, and stays gone.
    """

    sparsity: float
    encoder_parameters: int
    heads: int
    """That may go."""
    head_cost: int
    neurons: int
    """That may go, those of whole experts not counted."""
    neuron_cost: int
    removed_heads: int | None = None
    attentions: int = 1
    mlps: int = 1
    inputs_each: int = 0
    """In-rows that go in every attention."""
    input_cost: int = 0
    crossing: int = 0
    experts: int = 0
    """That go."""
    expert_neurons: int = 0
    """In each."""
    router_cost: int = 0
    """Parameters that an expert has besides its neurons."""
    experts_per_token: int = 0
    """That stay in every layer, at least."""
    uniform_heads: tuple[int, ...] | None = None
    """Numbers of heads that may be gone in the end where all layers are to have one width; None where they may differ.
    """
    at_least: bool = False
    """Whether no less than the target may go, where whole units do not meet it exactly."""
    heads_gone: int = 0
    """Before: so many heads are gone at least, and neurons (those of whole experts not counted), in-rows and experts
    likewise.
    """
    neurons_gone: int = 0
    inputs_gone_each: int = 0
    experts_gone: int = 0

    @classmethod
    def of(
        cls,
        anatomy: Anatomy,
        sparsity: float,
        heads_kept: int | None = None,
        in_rows: float = 0.0,
        experts: float = 0.0,
        *,
        head_exponent: float = 1.0,
        uniform: bool = False,
        at_least: bool = False,
        gone: Masks | None = None,
    ) -> "Budget":
        """The budget of a model.

        Args:
            anatomy: The model.
            sparsity: Share of the encoder's parameters.
            heads_kept: How many heads stay in the whole model; None for as many as `head_exponent` leaves.
            head_exponent: The share of heads that go is this power of the proportional one; with `heads_kept` unused.
            in_rows: Share of each attention's input dimensions that go.
            experts: Share of the model's experts that go.
            uniform: Whether all layers are to end with one width.
            at_least: Whether no less than that share may go.
            gone: What is gone before.

        Raises:
            UnreachableTargetError: so many heads cannot stay, or not everywhere are in-rows to go, or so many experts
                cannot go, or even the nearest removal misses the target.
            InvalidModelError: heads or neurons differ in size, or the family has no uniform structure.
        """
        _check_costs(anatomy)
        attention, mlp = anatomy.attentions[0], anatomy.mlps[0]
        removed_experts = _experts_to_remove(anatomy, experts)
        expert_neurons, router_cost, experts_per_token = _sizes_of_experts(anatomy) if removed_experts else (0, 0, 0)
        attentions, mlps = len(anatomy.attentions), len(anatomy.mlps) - removed_experts
        heads = sum(attention.units.count for attention in anatomy.attentions)
        neurons = sum(mlp.units.count for mlp in anatomy.mlps) - removed_experts * expert_neurons
        groups = uniform_head_groups(anatomy) if uniform else None
        if heads_kept is not None:
            _check_heads_kept(heads_kept, heads, None if groups is None else [attentions * count for count in groups])
        if in_rows and not all(attention.inputs.count for attention in anatomy.attentions):
            # A head would cost more or less depending on where it is.
            raise UnreachableTargetError(
                f"{anatomy.family.title} models have attentions whose input dimensions cannot be removed.",
                param="/method/in_rows",
            )
        budget = cls(
            sparsity=sparsity,
            encoder_parameters=anatomy.encoder_parameters,
            heads=heads if groups is None else heads - attentions * groups[0],
            head_cost=attention.units.cost,
            neurons=neurons if groups is None else neurons - mlps,
            neuron_cost=mlp.units.cost,
            removed_heads=None if heads_kept is None else heads - heads_kept,
            attentions=attentions,
            mlps=mlps,
            inputs_each=int(in_rows * attention.inputs.count + 0.5),
            input_cost=attention.inputs.cost,
            crossing=attention.units.cost + attention.inputs.cost - attention.removed_parameters(1, 1),
            experts=removed_experts,
            expert_neurons=expert_neurons,
            router_cost=router_cost,
            experts_per_token=experts_per_token,
            uniform_heads=None if groups is None else tuple(heads - attentions * count for count in groups),
            at_least=at_least or uniform,
        )
        if gone is not None:
            budget = budget._going_on_from(gone)
        if heads_kept is None and head_exponent != 1:
            budget = budget._sparing_heads(head_exponent)
        budget._check(anatomy.family.title)
        return budget

    def counts(self, reached: float) -> dict[Kind, int]:
        """How many units of each kind are gone when this share (0 … 1) of the target is reached.

        Never more of any than in the end: removal is final, so on the way there the rounding of one kind must not be
        made up for by the other.
        """
        heads, neurons = self._end
        inputs_each = max(int(reached * self.inputs_each + 0.5), self.inputs_gone_each)
        if reached < 1:
            wanted = reached * self._wanted_beside_experts
            share = reached * heads if self.removed_heads is not None else self._share(wanted, inputs_each)
            heads = max(self.heads_gone, min(int(share + 0.5), heads))
            neurons = max(self.neurons_gone, min(self._neurons_beside(heads, inputs_each, wanted), neurons))
        experts = max(self.experts_gone, int(reached * self.experts))
        return {
            "heads": heads,
            "experts": experts,
            "neurons": experts * self.expert_neurons + neurons,
            "inputs": inputs_each * self.attentions,
        }

    def achieved(self, counts: dict[Kind, int]) -> float:
        """Share of the encoder's parameters that these numbers of units make up."""
        return self._parameters(counts) / self.encoder_parameters

    def is_met_by(self, removed: int) -> bool:
        """Whether so many parameters less are as near to the target as they have to be."""
        missed = removed - self._wanted
        # In a very small model, whole units come no nearer than the resolution.
        most = max(TOLERANCE * self.encoder_parameters, self._resolution)
        return (0 if self.at_least else -most) <= missed <= most

    @property
    def uniform(self) -> bool:
        """Whether all layers end with one width."""
        return self.uniform_heads is not None

    @property
    def most(self) -> int:
        """Parameters that are gone when all heads and neurons are that may go, and the experts that are to."""
        return self._attention_parameters(self.heads, 0) + self.neurons * self.neuron_cost + self._expert_parameters

    def nearest_heads(self, heads: float) -> int:
        """How many heads go in the end: of all numbers with which the target is met best, the nearest to `heads`."""
        everywhere = range(self.heads + 1) if self.uniform_heads is None else self.uniform_heads
        numbers = [number for number in everywhere if number >= self.heads_gone]

        def distance(number: int) -> tuple[float, float]:
            return max(self._missed_with(number), self._resolution), abs(number - heads)

        return min(numbers, key=distance)

    @property
    def _wanted(self) -> float:
        """Parameters that are to go; where no fewer may go, a whole number."""
        wanted = self.sparsity * self.encoder_parameters
        return round(wanted) if self.at_least else wanted

    @property
    def _wanted_beside_experts(self) -> float:
        """What is left of them for heads, in-rows and the neurons of other experts, 0 at least."""
        return max(0.0, self._wanted - self._expert_parameters)

    @property
    def _expert_parameters(self) -> int:
        """Those of the experts that go, their neurons included."""
        return self.experts * (self.expert_neurons * self.neuron_cost + self.router_cost)

    @property
    def _resolution(self) -> float:
        """Parameters by which whole neurons may miss the target: half a step; a whole one if no less may go."""
        return self._neuron_step * self.neuron_cost * (1.0 if self.at_least else 0.5)

    @property
    def _neuron_step(self) -> int:
        """Neurons that go together: with one width, one of every layer."""
        return self.mlps if self.uniform else 1

    @property
    def _heads_in_proportion(self) -> float:
        """Heads that go in the end in proportion to their parameters, not yet a whole number."""
        return self._share(self._wanted_beside_experts, self.inputs_each)

    @property
    def _end(self) -> tuple[int, int]:
        """Heads and neurons, those of whole experts not counted, of the removal nearest to the target; of equally near
        ones, heads nearest their share.
        """
        heads = self.removed_heads
        if heads is None:
            heads = self.nearest_heads(self._heads_in_proportion)
        return heads, self._neurons_in_the_end(heads)

    def _neurons_in_the_end(self, heads: int) -> int:
        if not self.at_least:
            return max(self.neurons_gone, self._neurons_beside(heads, self.inputs_each, self._wanted_beside_experts))
        left = max(0.0, self._wanted_beside_experts - self._attention_parameters(heads, self.inputs_each))
        step = self._neuron_step
        return max(self.neurons_gone, min(self.neurons, step * math.ceil(left / (step * self.neuron_cost))))

    def _missed_with(self, heads: int) -> float:
        """Parameters by which the target is missed with so many heads; infinity where no less than it may go."""
        neurons = self._neurons_in_the_end(heads)
        removed = self._attention_parameters(heads, self.inputs_each) + neurons * self.neuron_cost
        missed = removed - self._wanted_beside_experts
        return math.inf if self.at_least and missed < 0 else abs(missed)

    def _parameters(self, counts: dict[Kind, int]) -> int:
        attention = self._attention_parameters(counts["heads"], counts["inputs"] // self.attentions)
        return attention + counts["neurons"] * self.neuron_cost + counts["experts"] * self.router_cost

    def _attention_parameters(self, heads: int, inputs_each: int) -> int:
        """Those that go with so many heads and in-rows: every head is crossed by all in-rows of its attention."""
        inputs = inputs_each * self.attentions * self.input_cost
        return heads * self.head_cost + inputs - heads * inputs_each * self.crossing

    def _share(self, wanted: float, inputs_each: int) -> float:
        """Heads that go in proportion to their parameters, not yet a whole number."""
        inputs = self._attention_parameters(0, inputs_each)
        everything = self._attention_parameters(self.heads, inputs_each) + self.neurons * self.neuron_cost
        return min(self.heads, self.heads * max(0.0, wanted - inputs) / max(1, everything - inputs))

    def _neurons_beside(self, heads: int, inputs_each: int, wanted: float) -> int:
        """Neurons that make up what so many heads and in-rows leave of `wanted` parameters."""
        left = max(0.0, wanted - self._attention_parameters(heads, inputs_each))
        return min(self.neurons, int(left / self.neuron_cost + 0.5))

    def _going_on_from(self, gone: Masks) -> "Budget":
        """The same with what is gone before."""
        experts = sum(gone.removed("experts"))
        return replace(
            self,
            heads_gone=sum(gone.removed("heads")),
            neurons_gone=sum(gone.removed("neurons")) - experts * self.expert_neurons,
            inputs_gone_each=max(gone.removed("inputs")),
            experts_gone=experts,
        )

    def _sparing_heads(self, exponent: float) -> "Budget":
        """The same with fewer heads than go in proportion, and the neurons that they are worth besides."""
        removed = self.heads * (self._heads_in_proportion / max(1, self.heads)) ** exponent
        return replace(self, removed_heads=self.nearest_heads(removed))

    def _check(self, family: str) -> None:
        counts = self.counts(1.0)
        if self.is_met_by(self._parameters(counts)):
            return
        most = self.most / self.encoder_parameters
        everything = f"all that a uniform {family} model can lose" if self.uniform else "all heads and neurons"
        hint = "" if self.heads else " Its heads stay: their width follows from their number."
        raise UnreachableTargetError(
            f"A sparsity of {self.sparsity:.4f} cannot be met; nearest is {self.achieved(counts):.4f}, and with "
            f"{everything} gone it would be {most:.4f}.{hint}",
            param="/target",
        )


def _experts_to_remove(anatomy: Anatomy, share: float) -> int:
    """How many experts are this share of all.

    Raises:
        UnreachableTargetError: a layer would have fewer left than a token passes through, or there are none.
    """
    mixtures = anatomy.mixtures
    if not share:
        return 0
    if not mixtures:
        raise UnreachableTargetError(
            f"This {anatomy.family.title} model has no experts that could go.", param="/method/experts"
        )
    counts = [mixture.units.count for mixture in mixtures]
    removed = int(share * sum(counts) + 0.5)
    most = sum(mixture.units.count - mixture.experts_per_token for mixture in mixtures)
    if removed > most:
        raise UnreachableTargetError(
            f"{removed} of {sum(counts)} experts cannot go: a token passes through {mixtures[0].experts_per_token} in "
            f"every layer, so {most} may go.",
            param="/method/experts",
        )
    return removed


def _sizes_of_experts(anatomy: Anatomy) -> tuple[int, int, int]:
    """Neurons of an expert, its parameters besides, and how many a token passes through; the same in all layers."""
    mixture = anatomy.mixtures[0]
    return mixture.mlps[0].units.count, mixture.units.cost, mixture.experts_per_token


def _check_heads_kept(wanted: int, heads: int, allowed: Sequence[int] | None) -> None:
    """Refuse a number of heads that cannot stay in the whole model."""
    if wanted > heads:
        problem = f"the model has {heads}"
    elif allowed is not None and wanted not in allowed:
        problem = f"with structure uniform the model may keep {', '.join(map(str, allowed))}"
    else:
        return
    raise UnreachableTargetError(f"{wanted} heads cannot stay: {problem}.", param="/method/heads_kept")


def _check_costs(anatomy: Anatomy) -> None:
    for kind, parts in (("attention heads", anatomy.attentions), ("MLP neurons", anatomy.mlps)):
        costs = sorted({part.units.cost for part in parts})
        if len(costs) > 1:
            raise InvalidModelError(
                f"The model's {kind} differ in size, from {costs[0]} to {costs[-1]} parameters: that is not supported "
                "yet.",
                param="/model",
            )
