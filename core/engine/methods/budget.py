"""How much goes: exact numbers of heads, in-rows and neurons for a share of the transformer layers' parameters."""

from dataclasses import dataclass

from core.engine.anatomy import Anatomy, Kind
from core.errors import InvalidModelError, UnreachableTargetError

TOLERANCE = 0.001
"""Share of the encoder's parameters by which a result may differ from the target: 0.1 percentage points."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A target bound to a model all of whose heads cost the same, and all neurons: remove `sparsity` of its layers.

    Heads go in proportion, unless their number is given, and in-rows as many as are asked for; neurons, which are
    finer, make up the rest exactly. A cost is the parameters of one unit; a head and an in-row of an attention have
    `crossing` parameters in common.
    """

    sparsity: float
    encoder_parameters: int
    heads: int
    head_cost: int
    neurons: int
    neuron_cost: int
    removed_heads: int | None = None
    attentions: int = 1
    inputs_each: int = 0
    """In-rows that go in every attention."""
    input_cost: int = 0
    crossing: int = 0

    @classmethod
    def of(cls, anatomy: Anatomy, sparsity: float, heads_kept: int | None = None, in_rows: float = 0.0) -> "Budget":
        """The budget of a model.

        Args:
            anatomy: The model.
            sparsity: Share of the encoder's parameters.
            heads_kept: How many heads stay in the whole model; None for as many as their part of the budget leaves.
            in_rows: Share of each attention's input dimensions that go.

        Raises:
            UnreachableTargetError: the model has fewer heads, or not everywhere in-rows, or even the nearest removal
                misses the target.
            InvalidModelError: its heads or neurons differ in size.
        """
        _check_costs(anatomy)
        attention, mlp = anatomy.attentions[0], anatomy.mlps[0]
        heads = sum(attention.units.count for attention in anatomy.attentions)
        if heads_kept is not None and heads_kept > heads:
            raise UnreachableTargetError(
                f"{heads_kept} heads cannot stay: the model has {heads}.", param="/method/heads_kept"
            )
        if in_rows and not all(attention.inputs.count for attention in anatomy.attentions):
            # A head would cost more or less depending on where it is.
            raise UnreachableTargetError(
                f"{anatomy.family.title} models have attentions whose input dimensions cannot be removed.",
                param="/method/in_rows",
            )
        budget = cls(
            sparsity,
            anatomy.encoder_parameters,
            heads,
            attention.units.cost,
            sum(mlp.units.count for mlp in anatomy.mlps),
            mlp.units.cost,
            None if heads_kept is None else heads - heads_kept,
            len(anatomy.attentions),
            int(in_rows * attention.inputs.count + 0.5),
            attention.inputs.cost,
            attention.units.cost + attention.inputs.cost - attention.removed_parameters(1, 1),
        )
        budget._check()
        return budget

    def counts(self, reached: float) -> dict[Kind, int]:
        """How many units of each kind are gone when this share (0 … 1) of the target is reached.

        Never more of any than in the end: removal is final, so on the way there the rounding of one kind must not be
        made up for by the other.
        """
        heads, neurons = self._end
        inputs_each = int(reached * self.inputs_each + 0.5)
        wanted = reached * self.sparsity * self.encoder_parameters
        share = reached * heads if self.removed_heads is not None else self._share(wanted, inputs_each)
        heads_now = heads if reached >= 1 else min(int(share + 0.5), heads)
        neurons_now = min(self._neurons_beside(heads_now, inputs_each, wanted), neurons)
        return {"heads": heads_now, "neurons": neurons_now, "inputs": inputs_each * self.attentions}

    def achieved(self, counts: dict[Kind, int]) -> float:
        """Share of the encoder's parameters that these numbers of units make up."""
        attention = self._attention_parameters(counts["heads"], counts["inputs"] // self.attentions)
        return (attention + counts["neurons"] * self.neuron_cost) / self.encoder_parameters

    @property
    def _end(self) -> tuple[int, int]:
        """Heads and neurons of the removal nearest to the target; of equally near ones, heads nearest their share."""
        wanted, inputs = self.sparsity * self.encoder_parameters, self.inputs_each
        share = self._share(wanted, inputs)

        def distance(heads: int) -> tuple[float, float]:
            neurons = self._neurons_beside(heads, inputs, wanted)
            removed = self._attention_parameters(heads, inputs) + neurons * self.neuron_cost
            return max(abs(removed - wanted), 0.5 * self.neuron_cost), abs(heads - share)

        heads = min(range(self.heads + 1), key=distance) if self.removed_heads is None else self.removed_heads
        return heads, self._neurons_beside(heads, inputs, wanted)

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

    def _check(self) -> None:
        achieved = self.achieved(self.counts(1.0))
        # Half a neuron is as near as whole units can come in a very small model.
        nearest = max(TOLERANCE, 0.5 * self.neuron_cost / self.encoder_parameters)
        if abs(achieved - self.sparsity) > nearest:
            most = (self.heads * self.head_cost + self.neurons * self.neuron_cost) / self.encoder_parameters
            raise UnreachableTargetError(
                f"A sparsity of {self.sparsity:.4f} cannot be met; nearest is {achieved:.4f}, and with all heads and "
                f"neurons gone it would be {most:.4f}.",
                param="/target/sparsity",
            )


def _check_costs(anatomy: Anatomy) -> None:
    for kind, parts in (("attention heads", anatomy.attentions), ("MLP neurons", anatomy.mlps)):
        costs = sorted({part.units.cost for part in parts})
        if len(costs) > 1:
            raise InvalidModelError(
                f"The model's {kind} differ in size, from {costs[0]} to {costs[-1]} parameters: that is not supported "
                "yet.",
                param="/model",
            )
