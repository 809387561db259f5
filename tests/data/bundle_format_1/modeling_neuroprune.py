"""Builds a transformer whose layers differ in width, as the `neuroprune` entry of its config describes.

This file is part of every bundle and needs nothing but torch and transformers. `config.json` carries how many heads
and neurons each layer kept, and where the architecture keeps them, so the same code serves every family:

    {"format": 1, "family": {"layers": "encoder.layer", ...}, "head_dim": 32,
     "layers": [{"heads": 6, "key_value_heads": 6, "neurons": 700}, ...]}

A layer whose attention reads but some of the hidden dimensions says how many, as "inputs"; which ones lie with the
weights, as the buffer `read_dimensions`.

The classes that `config.json` names, such as `PrunedBertModel`, are made from transformers' own when asked for.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel

FORMAT = 1
MANIFEST_FORMAT = 1
MANIFEST_FILE = "manifest.json"
MODELING_FILE = "modeling_neuroprune.py"
READ_DIMENSIONS = "read_dimensions"


class NoHeads(nn.Module):
    """Stands in for an attention that lost all of its heads: it passes on nothing but the output's bias.

    Keeps the cache's length right, so that generation counts positions as before.
    """

    def __init__(self, core: nn.Module, output: str | None, layer: int) -> None:
        super().__init__()
        self.output_name = output
        self.layer = layer
        for name, child in core.named_children():
            self.add_module(name, child)

    def forward(self, hidden_states: torch.Tensor, *_: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """[batch, length, h] → [batch, length, h], or [batch, length, 0] where the output lies outside."""
        # Found by its type: what the argument is called differs between architectures.
        cache = next((argument for argument in kwargs.values() if isinstance(argument, Cache)), None)
        if cache is not None:
            batch, length = hidden_states.shape[:2]
            # One zero a position and not none: a cache without any elements counts as one without any positions.
            placeholder = hidden_states.new_zeros(batch, 1, length, 1)
            cache.update(placeholder, placeholder, self.layer)
        nothing_read = hidden_states[..., :0]
        return (self.get_submodule(self.output_name)(nothing_read) if self.output_name else nothing_read), None


def pruned(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A model class like `base` that takes its layers' widths from `config.neuroprune`."""

    class Pruned(base):  # type: ignore[misc, valid-type]
        def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            narrow(self, config.neuroprune)

        def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
            """Save as every model does, and what is needed to load it again."""
            super().save_pretrained(save_directory, *args, **kwargs)
            copy_code(Path(save_directory))
            write_manifest(Path(save_directory))

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


def write_manifest(folder: Path, generator: str = "neuroprune") -> None:
    """Record size and sha256 of every file in the folder; written last."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST_FILE
    }
    manifest = {"format": MANIFEST_FORMAT, "generator": generator, "files": files}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def narrow(model: PreTrainedModel, description: dict[str, Any]) -> None:
    """Give every layer the widths of `description`, in place; new weights are uninitialised.

    Raises:
        ValueError: unknown format, or as many layers described as the model does not have.
    """
    if description.get("format") != FORMAT:
        raise ValueError(
            f"This bundle has format {description.get('format')!r}; this code reads format {FORMAT}. "
            "Use the version of the code that wrote the bundle, or a newer one."
        )
    family = description["family"]
    layers = list(model.base_model.get_submodule(family["layers"]).children())
    if len(layers) != len(description["layers"]):
        raise ValueError(f"The config describes {len(description['layers'])} layers, the model has {len(layers)}.")
    for index, (layer, widths) in enumerate(zip(layers, description["layers"], strict=True)):
        _narrow_attention(layer, index, family["attention"], widths, description["head_dim"])
        _narrow_mlp(layer, family["mlp"], widths["neurons"])


def _narrow_attention(layer: nn.Module, index: int, row: dict[str, Any], widths: dict[str, int], head_dim: int) -> None:
    query_width, key_value_width = widths["heads"] * head_dim, widths["key_value_heads"] * head_dim
    inputs = widths.get("inputs")
    _resize(layer, row["query"], inputs, query_width)
    _resize(layer, row["key"], inputs, key_value_width)
    _resize(layer, row["value"], inputs, key_value_width)
    _resize(layer, row["output"], in_features=query_width)
    for path in row["head_counts"]:
        _set_attribute(layer, path, widths["heads"])
    for path in row["widths"]:
        _set_attribute(layer, path, query_width)
    if not widths["heads"]:
        core, output = row["core"], row["output"]
        inside = output.removeprefix(core + ".") if output.startswith(core + ".") else None
        layer.set_submodule(core, NoHeads(layer.get_submodule(core), inside, index))
    elif inputs is not None:
        _read_some(layer.get_submodule(row["core"]), inputs)


def _read_some(core: nn.Module, count: int) -> None:
    """Let an attention see `count` of the hidden dimensions, those of a buffer that is saved with the weights."""
    core.register_buffer(READ_DIMENSIONS, torch.arange(count))
    core.register_forward_pre_hook(_select_dimensions, with_kwargs=True)


def _select_dimensions(core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """[batch, length, h] → [batch, length, count], the first argument of an attention's forward."""
    dimensions = core.get_buffer(READ_DIMENSIONS)
    if args:
        return (args[0].index_select(-1, dimensions), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].index_select(-1, dimensions)}


def _narrow_mlp(layer: nn.Module, row: dict[str, Any], neurons: int) -> None:
    for path in row["inputs"]:
        _resize(layer, path, out_features=neurons)
    _resize(layer, row["output"], in_features=neurons)


def _resize(layer: nn.Module, path: str, in_features: int | None = None, out_features: int | None = None) -> None:
    module = layer.get_submodule(path)
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{path} is a {type(module).__name__}, not a Linear layer.")
    module.in_features = module.in_features if in_features is None else in_features
    module.out_features = module.out_features if out_features is None else out_features
    module.weight = nn.Parameter(module.weight.new_empty(module.out_features, module.in_features))
    if module.bias is not None and out_features is not None:
        module.bias = nn.Parameter(module.bias.new_empty(module.out_features))


def _set_attribute(layer: nn.Module, path: str, value: int) -> None:
    owner, _, name = path.rpartition(".")
    setattr(layer.get_submodule(owner), name, value)
