"""Compares a model's config with its weights before anything is built: from the headers of its safetensors files."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from core.errors import InvalidModelError, NeuroPruneError
from core.families import family_of
from core.family import Family, StackRow
from core.resources import is_out_of_gpu_memory, is_out_of_memory

Shapes = dict[str, tuple[int, ...]]

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@contextmanager
def blaming_the_model(problem: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into an `InvalidModelError`; lack of memory is not the model's fault."""
    try:
        yield
    except NeuroPruneError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or is_out_of_gpu_memory(error):
            raise
        # torch lets its C++ stack follow.
        reason = " ".join(str(error).partition("\nException raised from")[0].split())[:300]
        raise InvalidModelError(f"{problem}: {reason} ({type(error).__name__}).", param="/model") from error


def weight_shapes(folder: Path) -> Shapes:
    """Name and shape of every tensor in a model's folder.

    Raises:
        InvalidModelError: there are no weights, a file is missing, or one is not a safetensors file.
    """
    shapes: Shapes = {}
    for path in weight_files(folder):
        with blaming_the_model(f"{path.name} cannot be read"), safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def named_as_now(shapes: Shapes, config: PreTrainedConfig) -> Shapes:
    """The same tensors as today's classes call them: files may have older names, which loading translates."""
    base_class: Any = MODEL_MAPPING[type(config)]
    mapping: Callable[[str], list[Any] | None] = get_checkpoint_conversion_mapping
    found = mapping(base_class.__name__) or mapping(config.model_type) or []
    renamings = [transform for transform in found if isinstance(transform, WeightRenaming)]

    def renamed(name: str) -> str:
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        return name

    return {renamed(name): shape for name, shape in shapes.items()}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder: one, or those that its index names.

    Raises:
        InvalidModelError: there are none, or one of them is missing.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        raise InvalidModelError(
            f"The model's folder holds neither {WEIGHTS_FILE} nor {INDEX_FILE}; other weights are not read.",
            param="/model",
        )
    with blaming_the_model(f"{INDEX_FILE} cannot be read"):
        names = sorted(set(json.loads((folder / INDEX_FILE).read_text())["weight_map"].values()))
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise InvalidModelError(f"{INDEX_FILE} names {name!r}, which is not in the folder.", param="/model")
    return [folder / name for name in names]


def check_activation(config: PreTrainedConfig, family: Family) -> None:
    """Refuse an activation that transformers does not know."""
    entries = {mlp.activation for stack in family.stacks for mlp in stack.mlps if mlp.fixed_activation is None}
    entries |= {stack.experts.activation for stack in family.stacks if stack.experts is not None}
    for entry in sorted(entries):
        name = getattr(config, entry, None)
        if isinstance(name, str) and name not in ACT2FN:
            raise InvalidModelError(
                f"config.json: {entry} {name[:100]!r} is not known; known are {', '.join(sorted(ACT2FN))}.",
                param="/model",
            )


def most_tokens(config: PreTrainedConfig) -> int | None:
    """The longest row that a model has positions for; None where it has no limit."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None or not family_of(config.model_type).positions_after_padding:
        return positions
    return positions - (config.pad_token_id or 0) - 1


def check_layers(config: PreTrainedConfig, family: Family, shapes: Shapes) -> None:
    """Refuse a config that asks for more or fewer layers than the files hold, before the time is spent to build them.

    Raises:
        InvalidModelError: there are no layers, or their numbers differ.
    """
    for stack in family.stacks:
        layer = layer_pattern(stack)
        found = {match[1] for match in map(layer.search, shapes) if match}
        path = stack.layers.replace("*", "0")
        if not found:
            raise InvalidModelError(
                f"The model's files hold no transformer layers; a {family.title} model's are called {path}.0 "
                "and so on.",
                param="/model",
            )
        asked = prod(getattr(config, entry) for entry in stack.depth)
        if asked != len(found):
            raise InvalidModelError(
                f"config.json asks for {asked} layers ({' times '.join(stack.depth)}), the model's files hold "
                f"{len(found)}.",
                param="/model",
            )


def layer_pattern(stack: StackRow) -> re.Pattern[str]:
    """Finds a layer of this stack in the name of a tensor that belongs to it."""
    path = r"\.".join(r"\d{1,9}" if step == "*" else re.escape(step) for step in stack.layers.split("."))
    return re.compile(rf"(?:^|\.)({path}\.\d{{1,9}})\.")


def check_shapes(config: PreTrainedConfig, auto_class: Any, shapes: Shapes, *, head_is_new: bool) -> None:
    """Refuse weights of other shapes than the config asks for, before memory is taken for them.

    Args:
        auto_class: The transformers Auto class that will build the model.
        shapes: What the model's files hold.
        head_is_new: Whether the task head starts anew, so that its shapes do not matter.

    Raises:
        InvalidModelError: config.json describes no model, or a tensor is of another shape.
    """
    with blaming_the_model("No model can be built from config.json"), torch.device("meta"):
        skeleton: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32)
    prefix = f"{skeleton.base_model_prefix}."
    held = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    for name, tensor in skeleton.state_dict().items():
        asked = tuple(tensor.shape)
        shape = held.get(name.removeprefix(prefix), asked)
        if shape != asked and (in_base_model(skeleton, name) or not head_is_new):
            raise InvalidModelError(
                f"The tensor {name!r} has the shape {list(shape)} in the model's files; config.json asks for "
                f"{list(asked)}.",
                param="/model",
            )


def in_base_model(model: PreTrainedModel, name: str) -> bool:
    """Whether a parameter belongs to the transformer, not to the head that a task puts on it."""
    return model.base_model is model or name.startswith(f"{model.base_model_prefix}.")
