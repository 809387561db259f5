"""What becomes of a pruned model's shapes: every layer its own width, one width for all layers, or none other.

Of a ragged model, stock classes can build nothing; `compact` shrinks it. A uniform one keeps in each layer that layer's
best units, as many as in all others, and its config says so with entries that the stock class knows. A masked one keeps
its shapes: what was pruned is zero.
"""

from core.engine.anatomy import Anatomy
from core.engine.compact import compact, describe, shrink
from core.engine.experts import join
from core.engine.in_rows import gather_where_faster
from core.engine.plan import Plan
from core.engine.units import Kind
from core.errors import InvalidModelError
from core.family import UniformRow
from core.jobs.spec import Structure


def give_structure(structure: Structure, anatomy: Anatomy, plan: Plan) -> None:
    """Bring the bound model, in place, into the shape that was asked for; with the removed units at zero beforehand,
    the outputs do not change. `anatomy` is stale afterwards: bind anew.
    """
    match structure:
        case "ragged":
            compact(anatomy, gather_where_faster(anatomy, plan))
        case "uniform":
            make_uniform(anatomy, plan)
        case "masked":
            join_experts(anatomy)


def join_experts(anatomy: Anatomy) -> None:
    """Bring the bound model, in place, into the form of its stock class, which all other bound models have anyway."""
    for layer in anatomy.layers:
        if layer.mixture is not None:
            join(layer.module, layer.mixture.row)


def uniform_row(anatomy: Anatomy) -> UniformRow:
    """Which entries of the config say how wide all layers are.

    Raises:
        InvalidModelError: the family has none.
    """
    if anatomy.family.uniform is None:
        raise InvalidModelError(
            f"{anatomy.family.title} models cannot be built with another width by their stock class: structure uniform "
            "is not possible, ragged and masked are.",
            param="/structure",
        )
    return anatomy.family.uniform


def uniform_head_groups(anatomy: Anatomy) -> list[int]:
    """Numbers of head groups that every layer may keep, ascending, so that the stock class can build it; never none.

    Raises:
        InvalidModelError: the family has no uniform structure.
    """
    row, attention = uniform_row(anatomy), anatomy.attentions[0]
    if row.heads is None:
        return [attention.groups]
    # Every number of heads divides 0: without the entry, all are allowed.
    dividend = getattr(anatomy.model.config, row.heads_divide) if row.heads_divide else 0
    counts = range(1, attention.groups + 1)
    return [count for count in counts if dividend % (count * attention.queries_per_group) == 0]


def make_uniform(anatomy: Anatomy, plan: Plan) -> None:
    """Shrink the bound model in place to the smallest uniform width that holds all of `plan`.

    Raises:
        InvalidModelError: the family has no uniform structure.
    """
    row, even = uniform_row(anatomy), evened(anatomy, plan)
    shrink(anatomy, even, describe(anatomy, even))
    attention, config = anatomy.attentions[0], anatomy.model.config
    groups, neurons = len(even.kept(attention.units)), len(even.kept(anatomy.mlps[0].units))
    widths = {row.neurons: neurons}
    if row.heads is not None:
        widths[row.heads] = groups * attention.queries_per_group
    if row.key_value_heads is not None:
        widths[row.key_value_heads] = groups
    if row.head_dim is not None:
        widths[row.head_dim] = attention.head_dim
    for entry, width in widths.items():
        setattr(config, entry, width)


def evened(anatomy: Anatomy, plan: Plan) -> Plan:
    """The smallest plan of one width that keeps what `plan` does.

    Layers differ where one lost units beyond its share, because they did nothing. They get some back, as zeros.
    """
    most_heads = max(len(plan.kept(attention.units)) for attention in anatomy.attentions)
    heads = next(count for count in uniform_head_groups(anatomy) if count >= most_heads)
    neurons = max(1, *(len(plan.kept(mlp.units)) for mlp in anatomy.mlps))
    widths: dict[Kind, int] = {"heads": heads, "neurons": neurons}
    # In-rows all stay.
    return Plan(tuple(_filled(plan.kept(u), u.count, widths.get(u.kind, u.count)) for u in anatomy.units))


def _filled(kept: tuple[int, ...], count: int, wanted: int) -> tuple[int, ...]:
    """`wanted` of `count` indices, ascending: those that are kept, and the first of the others."""
    others = sorted(set(range(count)) - set(kept))
    return tuple(sorted((*kept, *others[: wanted - len(kept)])))
