"""How much goes: exact numbers of heads and neurons for a share of the encoder's parameters."""

from dataclasses import dataclass

from core.engine.anatomy import Anatomy, Kind
from core.errors import UnreachableTargetError

TOLERANCE = 0.001
"""Share of the encoder's parameters by which a result may differ from the target: 0.1 percentage points."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A target bound to a model: remove `sparsity` of `encoder_parameters`.

    Heads go in proportion; neurons, which are finer, make up the rest exactly.
    """

    sparsity: float
    encoder_parameters: int
    heads: int
    head_cost: int
    neurons: int
    neuron_cost: int

    @classmethod
    def of(cls, anatomy: Anatomy, sparsity: float) -> "Budget":
        """The budget of a model all of whose layers are alike.

        Raises:
            UnreachableTargetError: even the nearest removal of whole heads and neurons misses the target.
        """
        heads = [layer.attention.units for layer in anatomy.layers]
        neurons = [layer.mlp.units for layer in anatomy.layers]
        budget = cls(
            sparsity,
            anatomy.encoder_parameters,
            sum(u.count for u in heads),
            heads[0].cost,
            sum(u.count for u in neurons),
            neurons[0].cost,
        )
        budget._check(anatomy)
        return budget

    def counts(self, reached: float) -> dict[Kind, int]:
        """How many heads and neurons are gone when this share (0 … 1) of the target is reached.

        Never more of either than in the end: removal is final, so on the way there the rounding of one kind must not
        be made up for by the other.
        """
        end = self._end
        wanted = reached * self.sparsity * self.encoder_parameters
        heads = min(int(self._share(wanted) + 0.5), end["heads"])
        return {"heads": heads, "neurons": min(self._neurons_beside(heads, wanted), end["neurons"])}

    @property
    def _end(self) -> dict[Kind, int]:
        """The removal nearest to the target; among equally near ones that with heads nearest to their share."""
        wanted = self.sparsity * self.encoder_parameters
        share = self._share(wanted)

        def distance(heads: int) -> tuple[float, float]:
            removed = heads * self.head_cost + self._neurons_beside(heads, wanted) * self.neuron_cost
            return max(abs(removed - wanted), 0.5 * self.neuron_cost), abs(heads - share)

        heads = min(range(self.heads + 1), key=distance)
        return {"heads": heads, "neurons": self._neurons_beside(heads, wanted)}

    def _share(self, wanted: float) -> float:
        """Heads that go in proportion, not yet a whole number."""
        return self.heads * wanted / (self.heads * self.head_cost + self.neurons * self.neuron_cost)

    def _neurons_beside(self, heads: int, wanted: float) -> int:
        """Neurons that make up what so many heads leave of `wanted` parameters."""
        left = max(0.0, wanted - heads * self.head_cost)
        return min(self.neurons, int(left / self.neuron_cost + 0.5))

    def achieved(self, counts: dict[Kind, int]) -> float:
        """Share of the encoder's parameters that these numbers of units make up."""
        return (counts["heads"] * self.head_cost + counts["neurons"] * self.neuron_cost) / self.encoder_parameters

    def _check(self, anatomy: Anatomy) -> None:
        achieved = self.achieved(self.counts(1.0))
        # Half a neuron is as near as whole units can come in a very small model.
        nearest = max(TOLERANCE, 0.5 * self.neuron_cost / self.encoder_parameters)
        if abs(achieved - self.sparsity) > nearest:
            most = anatomy.removable_parameters / self.encoder_parameters
            raise UnreachableTargetError(
                f"A sparsity of {self.sparsity:.4f} cannot be met; nearest is {achieved:.4f}, and with all heads and "
                f"neurons gone it would be {most:.4f}.",
                param="/target/sparsity",
            )
