"""Builds a transformer whose layers differ in width, as the `neuroprune` entry of its config describes.

This file is part of every bundle and needs nothing but torch and transformers. `config.json` carries how many heads
and neurons each layer kept, and where the architecture keeps them, so the same code serves every family:

    {"format": 2, "family": {"stacks": [{"layers": "encoder.layer", ...}], ...},
     "layers": [{"attentions": [{"heads": 6, "key_value_heads": 6, "head_dim": 32}], "mlps": [{"neurons": 700}]}, ...]}

The layers are those of all stacks, one stack after the other. An attention that reads but some of the hidden
dimensions says how many, as "inputs"; which ones lie with the weights, as the buffer `read_dimensions`. A layer with a
mixture of experts has "experts", too: [{"neurons": 700}, ...], the width of each that is left. Format 1 knew one stack,
and one attention and one MLP a layer.

The classes that `config.json` names, such as `PrunedBertModel`, are made from transformers' own when asked for.
"""

import copy
import hashlib
import inspect
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import Cache, EncoderDecoderCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

FORMAT = 2
MANIFEST_FORMAT = 1
MANIFEST_FILE = "manifest.json"
MODELING_FILE = "modeling_neuroprune.py"
MODEL_FILES = ("config.json", "generation_config.json", MODELING_FILE, "*.safetensors", "*.safetensors.index.json")
"""What a model is saved as."""
READ_DIMENSIONS = "read_dimensions"
KEPT_HEADS = "kept_heads"


class NoHeads(nn.Module):
    """Stands in for an attention that lost all of its heads: it passes on nothing but the output's bias.

    Keeps the cache's length right, so that generation counts positions as before.
    """

    def __init__(self, core: nn.Module, row: dict[str, Any], layer: int) -> None:
        """For the attention `core` of this row, in layer `layer` of its stack."""
        super().__init__()
        self.output, self.norm = (_inside(row["core"], row[name]) for name in ("output", "norm"))
        self.layer = layer
        # What is read from another stack is not counted.
        self.counts_positions = not row["cross"]
        self.returns = row["returns"]
        self.residual = None if row["residual"] is None else (row["residual"], _position(core, row["residual"]))
        for name, child in core.named_children():
            self.add_module(name, child)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
        """[batch, length, h] → [batch, length, h], or [batch, length, 0] where the output lies outside."""
        # Found by its type: what the argument is called differs between architectures.
        cache = next((argument for argument in kwargs.values() if isinstance(argument, Cache)), None)
        if cache is not None and self.counts_positions:
            self._count(hidden_states, cache)
        passed_on = hidden_states[..., :0]
        if self.output is not None:
            passed_on = self.get_submodule(self.output)(passed_on)
        if self.residual is not None:
            name, position = self.residual
            passed_on = passed_on + (kwargs[name] if name in kwargs else args[position - 1])
        if self.norm is not None:
            passed_on = self.get_submodule(self.norm)(hidden_states + passed_on)
        return passed_on, *[None] * (self.returns - 1)

    def _count(self, hidden_states: torch.Tensor, cache: Cache) -> None:
        batch, length = hidden_states.shape[:2]
        # One zero a position and not none: a cache without any elements counts as one without any positions.
        placeholder = hidden_states.new_zeros(batch, 1, length, 1)
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        own.update(placeholder, placeholder, self.layer)


def _inside(core: str, path: str | None) -> str | None:
    """The path from the core of an attention, None if it does not lie inside."""
    return path.removeprefix(f"{core}.") if path is not None and path.startswith(f"{core}.") else None


class HeadColumns(nn.Module):
    """A stack's table of biases as one of its layers reads it: the columns of the heads that the layer kept.

    The table lies in the first layer, as before pruning; the other layers refer to it.
    """

    def __init__(self, table: nn.Module, heads: int, *, is_first: bool) -> None:
        super().__init__()
        if is_first:
            self.weight = table.weight
        # In a tuple, so that the table is no part of the layers that refer to it; on another device it may lie, too.
        self.table: tuple[Any] = (self if is_first else table,)
        self.register_buffer(KEPT_HEADS, torch.arange(heads))

    def forward(self, indices: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """[…] → […, heads]; those `kept`, or this layer's own."""
        kept = self.get_buffer(KEPT_HEADS) if kept is None else kept
        table: Any = self.table[0]
        if table is self:
            weight: Any = self.weight
            return nn.functional.embedding(indices, weight.index_select(1, kept))
        found: torch.Tensor
        if isinstance(table, HeadColumns):
            found = table(indices, kept)
        else:
            found = table(indices).to(kept.device).index_select(-1, kept)
        return found.to(indices.device)


class Constant(Conv1D):
    """A `Conv1D` without inputs, which passes on its bias; transformers' own needs at least one."""

    def __init__(self, module: Conv1D) -> None:
        super().__init__(module.nf, 0)  # type: ignore[no-untyped-call]
        self.weight, self.bias = module.weight, module.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, 0] → […, out]."""
        return self.bias.expand(*x.shape[:-1], self.nf)


class NoInputs(nn.Linear):
    """A `Linear` without inputs, which passes on its bias; torch's own cannot be quantised."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, 0] → […, out]."""
        empty = x.new_zeros(*x.shape[:-1], self.out_features)
        return empty if self.bias is None else empty + self.bias


class Expert(nn.Module):
    """A gated MLP without biases, one of a layer's experts."""

    def __init__(self, hidden_size: int, neurons: int, act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden_size, 2 * neurons, bias=False)
        self.down = nn.Linear(neurons, hidden_size, bias=False)
        self.act_fn = act_fn

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[tokens, h] → [tokens, h]."""
        gate, up = self.gate_up(hidden_states).chunk(2, dim=-1)
        down: torch.Tensor = self.down(self.act_fn(gate) * up)
        return down


class Experts(nn.ModuleList):
    """A layer's experts, each with its own width, in the place of transformers' own, whose weights are one tensor.

    The names of its parameters are none that transformers would gather into such a tensor when it loads them.
    """

    def __init__(self, stock: Any, widths: Iterable[int]) -> None:
        """Experts of so many neurons each, of the kind that `stock` holds."""
        super().__init__(Expert(stock.hidden_dim, neurons, stock.act_fn) for neurons in widths)
        self.to(stock.down_proj)

    @property
    def experts(self) -> list[Expert]:
        """The experts, in the router's order."""
        return [expert for expert in self if isinstance(expert, Expert)]

    def forward(self, hidden_states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """[tokens, h] → [tokens, h]; the `chosen` experts of each token and their `weights` are [tokens, top_k]."""
        mixed = torch.zeros_like(hidden_states)
        for index, expert in enumerate(self.experts):
            tokens, places = torch.where(chosen == index)
            output = expert(hidden_states[tokens]) * weights[tokens, places, None]
            mixed = mixed.index_add(0, tokens, output.to(mixed.dtype))
        return mixed


def expert_paths(module: str, index: int) -> dict[str, Any]:
    """Where in a layer the projections of one of its experts are, as an MLP's row says it."""
    path = f"{module}.{index}"
    return {"inputs": (f"{path}.gate_up", f"{path}.gate_up"), "output": f"{path}.down"}


_PRUNED: dict[type[PreTrainedModel], type[PreTrainedModel]] = {}
"""By the class that it was made from: pickle asks for a model's class by name, and wants the model's own."""


def pruned(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The model class like `base` that takes its layers' widths from `config.neuroprune`."""
    if base not in _PRUNED:
        _PRUNED[base] = _made(base)
    return _PRUNED[base]


def _made(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    # Named itself, so that transformers does not make another class of this one, which pickle would not find.
    bases = (base, GenerationMixin) if issubclass(base, GenerationMixin) else (base,)

    class Pruned(*bases):  # type: ignore[misc]
        def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            narrow(self, config.neuroprune)

        def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
            """Switch layers, too, that have a config of their own, which says how wide they are."""
            super().set_attn_implementation(*args, **kwargs)
            for module in self.modules():
                own = getattr(module, "config", None)
                if isinstance(own, PreTrainedConfig) and not isinstance(module, PreTrainedModel):
                    own._attn_implementation = self.config._attn_implementation

        def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
            """Save as every model does, and what is needed to load it again: as this class, which may be another."""
            self.config.neuroprune = {**self.config.neuroprune, "architecture": base.__name__}
            super().save_pretrained(save_directory, *args, **kwargs)
            folder = Path(save_directory)
            copy_code(folder)
            # Others may write into the folder, too, and go on writing.
            write_manifest(folder, files=[path for pattern in MODEL_FILES for path in folder.glob(pattern)])

    Pruned.__name__ = Pruned.__qualname__ = f"Pruned{base.__name__}"
    return Pruned


def __getattr__(name: str) -> type[PreTrainedModel]:
    """`PrunedX` for a model class X of transformers."""
    base = getattr(transformers, name.removeprefix("Pruned"), None) if name.startswith("Pruned") else None
    if not (isinstance(base, type) and issubclass(base, PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pruned(base)


def copy_code(folder: Path) -> None:
    """Put this file into a model's folder."""
    shutil.copyfile(__file__, folder / MODELING_FILE)


def write_manifest(folder: Path, generator: str = "neuroprune", files: Iterable[Path] | None = None) -> None:
    """Record size and sha256 of these files of the folder, or of all; written last."""
    recorded = {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir() if files is None else files)
        if path.is_file() and path.name != MANIFEST_FILE
    }
    manifest = {"format": MANIFEST_FORMAT, "generator": generator, "files": recorded}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def narrow(model: PreTrainedModel, description: dict[str, Any]) -> None:
    """Give every layer the widths of `description`, in place; it keeps the first of the weights it has.

    Raises:
        ValueError: unknown format, or other layers described than the model has.
    """
    description = in_newest_format(description)
    rows = description["family"]["stacks"]
    stacks = [layers_of(model.base_model, row["layers"]) for row in rows]
    count = sum(map(len, stacks))
    if count != len(description["layers"]):
        raise ValueError(f"The config describes {len(description['layers'])} layers, the model has {count}.")
    described = iter(description["layers"])
    for row, layers in zip(rows, stacks, strict=True):
        for index in range(len(layers)):
            _narrow_layer(layers, index, row, next(described))


def in_newest_format(description: dict[str, Any]) -> dict[str, Any]:
    """The same description in format 2.

    Raises:
        ValueError: unknown format.
    """
    if description.get("format") == FORMAT:
        return description
    if description.get("format") != 1:
        raise ValueError(
            f"This bundle has format {description.get('format')!r}; this code reads format 1 to {FORMAT}. "
            "Use the version of the code that wrote the bundle, or a newer one."
        )
    family, head_dim = description["family"], description["head_dim"]
    # With what format 1 did not know.
    attention = {
        "key_value_head_counts": [],
        "further_projections": [],
        "further_inputs": [],
        "cross": False,
        "returns": 2,
        "norm": None,
        "bias": None,
        "by_head": [],
        "residual": None,
        **family["attention"],
    }
    stack = {"layers": family["layers"], "attentions": [attention], "mlps": [family["mlp"]]}
    layers = [{"attentions": [{"head_dim": head_dim, **widths}], "mlps": [widths]} for widths in description["layers"]]
    return {**description, "format": FORMAT, "family": {**family, "stacks": [stack]}, "layers": layers}


def layers_of(model: nn.Module, path: str) -> list[nn.Module]:
    """The layers of the list that lies at `path`, in which `*` stands for every child.

    Raises:
        AttributeError: there is no such list.
    """
    modules = [model]
    for step in path.split("."):
        modules = list(chain(*([*m.children()] if step == "*" else [m.get_submodule(step)] for m in modules)))
    return [layer for module in modules for layer in module.children()]


def has(layer: nn.Module, path: str) -> bool:
    """Whether there is such a module."""
    try:
        layer.get_submodule(path)
    except AttributeError:
        return False
    return True


def _narrow_layer(layers: list[nn.Module], index: int, row: dict[str, Any], widths: dict[str, Any]) -> None:
    """Narrow one of a stack's layers."""
    layer = layers[index]
    attentions = [attention for attention in row["attentions"] if has(layer, attention["core"])]
    mlps = [mlp for mlp in row["mlps"] if has(layer, mlp["inputs"][0])]
    for attention, described in zip(attentions, widths["attentions"], strict=True):
        _narrow_attention(layers, index, attention, described)
    for mlp, described in zip(mlps, widths["mlps"], strict=True):
        _narrow_mlp(layer, mlp, described["neurons"])
    # Older bundles know no experts.
    experts = row.get("experts")
    if experts is not None and has(layer, experts["module"]):
        _narrow_experts(layer, experts, widths["experts"])


def _narrow_attention(layers: list[nn.Module], index: int, row: dict[str, Any], widths: dict[str, int]) -> None:
    layer, inputs = layers[index], widths.get("inputs")
    query_width, key_value_width = (widths[heads] * widths["head_dim"] for heads in ("heads", "key_value_heads"))
    projections: Counter[str] = Counter()
    for name, width in (("query", query_width), ("key", key_value_width), ("value", key_value_width)):
        # Fused projections are one module.
        projections[row[name]] += width
    projections.update({path: query_width for path in row["further_projections"] if has(layer, path)})
    for path, width in projections.items():
        _resize(layer, path, inputs, width)
    _resize(layer, row["output"], in_features=query_width)
    for path in row["head_counts"]:
        _set_attribute(layer, path, widths["heads"])
    for path in row["key_value_head_counts"]:
        _set_attribute(layer, path, widths["key_value_heads"])
    for path in row["widths"]:
        _set_attribute(layer, path, query_width)
    core = layer.get_submodule(row["core"])
    if not widths["heads"]:
        layer.set_submodule(row["core"], NoHeads(core, row, index))
        return
    if inputs is not None:
        _read_some(core, inputs, row["further_inputs"])
    if row["bias"] is not None:
        _make_own_bias(layers, index, core, row["bias"], widths["heads"])
    if row["by_head"]:
        core.register_buffer(KEPT_HEADS, torch.arange(widths["heads"]))
    for argument in row["by_head"]:
        hook = partial(_select_heads, argument, _position(core, argument))
        core.register_forward_pre_hook(hook, with_kwargs=True)


def _position(core: nn.Module, argument: str) -> int:
    """Where among its arguments a module's forward takes this one."""
    return list(inspect.signature(core.forward).parameters).index(argument)


def _select_heads(
    argument: str, position: int, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """[batch, all heads, …] → [batch, kept heads, …], one argument of an attention's forward.

    Or [batch * all heads, …, …] → [batch * kept heads, …, …], where the hidden states are the first by position.
    """
    kept = core.get_buffer(KEPT_HEADS)
    given = kwargs[argument] if argument in kwargs else args[position]
    if given.ndim == 3:
        own = given.unflatten(0, (args[0].shape[0], -1)).index_select(1, kept).flatten(0, 1)
    else:
        own = given.index_select(1, kept)
    if argument in kwargs:
        return args, {**kwargs, argument: own}
    return (*args[:position], own, *args[position + 1 :]), kwargs


def _make_own_bias(layers: list[nn.Module], index: int, core: nn.Module, bias: dict[str, Any], heads: int) -> None:
    """Let an attention make the bias of its own heads: that of another layer has other heads."""
    core.register_forward_pre_hook(partial(_forget, bias["argument"]), with_kwargs=True)
    if bias["table"] is not None:
        table = layers[0].get_submodule(bias["table"])
        layers[index].set_submodule(bias["table"], HeadColumns(table, heads, is_first=index == 0))
        _set_attribute(layers[index], bias["has_table"], True)


def _forget(argument: str, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Call a module without one of its keyword arguments."""
    return args, {name: value for name, value in kwargs.items() if name != argument}


def _read_some(core: nn.Module, count: int, further: Sequence[str]) -> None:
    """Let an attention see `count` of the hidden dimensions, those of a buffer that is saved with the weights.

    Args:
        further: Keyword arguments of its forward, besides the hidden states, that it reads the same dimensions of.
    """
    core.register_buffer(READ_DIMENSIONS, torch.arange(count))
    core.register_forward_pre_hook(partial(_select_dimensions, names=("hidden_states", *further)), with_kwargs=True)


def _select_dimensions(
    core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, names: Sequence[str]
) -> tuple[Any, Any]:
    """[…, h] → […, count], the first argument of an attention's forward and those of these names."""
    dimensions = core.get_buffer(READ_DIMENSIONS)
    if args:
        args = args[0].index_select(-1, dimensions), *args[1:]
    given = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
    return args, kwargs | {name: tensor.index_select(-1, dimensions) for name, tensor in given.items()}


def _narrow_mlp(layer: nn.Module, row: dict[str, Any], neurons: int) -> None:
    for path, fused in Counter(row["inputs"]).items():
        _resize(layer, path, out_features=fused * neurons)
    _resize(layer, row["output"], in_features=neurons)


def _narrow_experts(layer: nn.Module, row: dict[str, Any], widths: list[dict[str, int]]) -> None:
    """Leave as many experts as there are `widths`; the router chooses among them as if there had never been others."""
    experts = layer.get_submodule(row["module"])
    if not isinstance(experts, Experts):
        # What has no neuron is made with one: torch warns of initial weights without entries.
        experts = Experts(experts, [max(1, described["neurons"]) for described in widths])
        layer.set_submodule(row["module"], experts)
    for index, described in enumerate(widths):
        _narrow_mlp(layer, expert_paths(row["module"], index), described["neurons"])
    router: Any = layer.get_submodule(row["router"])
    router.weight = _first(router.weight, len(widths))
    router.num_experts = len(widths)
    router.top_k = min(router.top_k, len(widths))


def _resize(layer: nn.Module, path: str, in_features: int | None = None, out_features: int | None = None) -> None:
    module = layer.get_submodule(path)
    if isinstance(module, Conv1D):
        module.nx = module.nx if in_features is None else in_features
        module.nf = module.nf if out_features is None else out_features
        shape = module.nx, module.nf
    elif isinstance(module, nn.Linear):
        module.in_features = module.in_features if in_features is None else in_features
        module.out_features = module.out_features if out_features is None else out_features
        shape = module.out_features, module.in_features
    else:
        raise TypeError(f"{path} is a {type(module).__name__}, neither a Linear layer nor a Conv1D.")
    module.weight = _first(module.weight, *shape)
    if module.bias is not None and out_features is not None:
        module.bias = _first(module.bias, out_features)
    if isinstance(module, Conv1D) and not module.nx:
        layer.set_submodule(path, Constant(module))
    if isinstance(module, nn.Linear) and not module.in_features:
        # Not made anew: torch warns of initial weights without entries.
        module.__class__ = NoInputs


def _first(tensor: torch.Tensor, *shape: int) -> nn.Parameter:
    """The beginning of a parameter, in each dimension: as its class initialises it, where no weights are loaded."""
    return nn.Parameter(tensor.detach()[tuple(slice(size) for size in shape)].clone())


def _set_attribute(layer: nn.Module, path: str, value: int) -> None:
    *owners, name = path.split(".")
    owner: Any = layer
    for step in owners:
        parent, owner = owner, getattr(owner, step)
        if isinstance(owner, PreTrainedConfig):
            # All layers share it.
            owner = copy.copy(owner)
            setattr(parent, step, owner)
    setattr(owner, name, value)
