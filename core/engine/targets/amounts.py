"""From parameters and bytes that may stay to the share of the transformer layers that has to go."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

from core.engine.anatomy import Anatomy, bind, count_parameters
from core.engine.export.bundle import write_model
from core.engine.ladder import Ladder, Level
from core.engine.measure import saved_bytes
from core.engine.methods.budget import Budget
from core.engine.plan import Masks, Plan
from core.engine.structures import give_structure
from core.errors import UnreachableTargetError

HEADER_BYTES = 8
"""By which a tensor's entry in the header may be longer than in another model of so many parameters."""


def level_of_parameters(ladder: Ladder, parameters: int) -> Level:
    """What has to go for at most so many parameters to stay in the whole model.

    Raises:
        UnreachableTargetError: more stay whatever goes.
    """
    total, most = count_parameters(ladder.prepared.model), removable_parameters(ladder)
    if parameters < total - most:
        raise UnreachableTargetError(
            f"The model cannot have {parameters:,} parameters: {most:,} of its {total:,} are of heads and neurons that "
            f"can go, so {total - most:,} is the least.",
            param="/target/parameters",
        )
    return _removing(ladder, total - parameters)


def level_of_bytes(ladder: Ladder, size: int) -> Level:
    """What has to go for the weights to be saved in at most so many bytes.

    Raises:
        UnreachableTargetError: they take more whatever goes.
    """
    most, whole = removable_parameters(ladder), _whole_bytes(ladder)
    bytes_per_parameter = ladder.prepared.dtype.itemsize
    if whole <= size:
        return _removing(ladder, 0)
    estimate = min(most, math.ceil((whole - size) / bytes_per_parameter))
    # Every other model of these numbers of units has as many parameters, and a header that is hardly longer.
    with_nothing_gone = _stand_in_bytes(ladder, _removing(ladder, estimate))
    least = with_nothing_gone - bytes_per_parameter * most
    if size < least:
        raise UnreachableTargetError(
            f"model.safetensors cannot be saved in {size:,} bytes: with nothing removed it takes {whole:,}, and "
            f"{least:,} at least.",
            param="/target/size_bytes",
        )
    return _removing(ladder, math.ceil((with_nothing_gone - size) / bytes_per_parameter))


def removable_parameters(ladder: Ladder) -> int:
    """Parameters of all heads and neurons that may go."""
    uniform = ladder.spec.structure == "uniform"
    return Budget.of(bind(ladder.prepared.model), 0.0, uniform=uniform).most


def removable_share(ladder: Ladder) -> float:
    """The same as a share of the transformer layers' parameters."""
    return removable_parameters(ladder) / bind(ladder.prepared.model).encoder_parameters


def _removing(ladder: Ladder, parameters: int) -> Level:
    return Level(max(0, parameters) / bind(ladder.prepared.model).encoder_parameters, at_least=True)


def _whole_bytes(ladder: Ladder) -> int:
    """Bytes of the model from which nothing is gone, as it would be delivered."""
    anatomy = bind(ladder.dense_copy())
    return _delivered_bytes(ladder, anatomy, Masks(anatomy).plan())


def _stand_in_bytes(ladder: Ladder, level: Level) -> int:
    """Bytes of a stand-in as delivered, and of all that went from it."""
    pruner = ladder.stand_in(level)
    tensors, removed = len(list(pruner.anatomy.model.parameters())), pruner.masks.removed_parameters()
    delivered = _delivered_bytes(ladder, pruner.anatomy, pruner.plan())
    return delivered + HEADER_BYTES * tensors + ladder.prepared.dtype.itemsize * removed


def _delivered_bytes(ladder: Ladder, anatomy: Anatomy, plan: Plan) -> int:
    """Bytes of a model as saved with what a plan keeps; its anatomy is stale afterwards."""
    prepared = ladder.prepared
    give_structure(ladder.spec.structure, anatomy, plan)
    with TemporaryDirectory() as folder:
        write_model(anatomy.model, prepared.task.processor, prepared.task, Path(folder), prepared.dtype)
        return saved_bytes(Path(folder))
