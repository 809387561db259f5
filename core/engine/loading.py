"""Reads a model and its tokenizer from a folder: safetensors only, no code from the folder, nothing re-initialised."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from core.engine.data import Row
from core.engine.footprint import check_memory
from core.engine.inspection import (
    blaming_the_model,
    check_activation,
    check_layers,
    check_shapes,
    in_base_model,
    layer_pattern,
    most_tokens,
    named_as_now,
    weight_shapes,
)
from core.engine.paths_named import check_paths
from core.engine.tasks import Task
from core.errors import InvalidModelError
from core.families import FAMILIES, family_of
from core.family import Family
from core.progress import Reporter, Warned

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)
"""transformers makes an empty tokenizer where there is none of these."""

OF_LOADING = ("is_local", "local_files_only", "auto_map")
"""How a tokenizer was loaded, and with what code: transformers would write it among the tokenizer's own options."""

OF_SAVING = ("name_or_path", "tokenizer_file", "special_tokens_map_file")
"""Paths of where a tokenizer was saved, which are not read."""

BY_CLASS = ("vocab_file", "merges_file")
"""Paths that only those classes do not read that have such files of their own."""

MOST_LABELS = 100_000
"""That a config may have by number alone: transformers makes a name for each before anything can be checked."""

OF_OTHER_FILES = ("auto_map", "transformers_weights")
"""Entries of a config that name code, or weights other than those that are checked."""

PROCESSOR_FILE = "preprocessor_config.json"

LEAST_LENGTH = 8
"""Tokens a row that a model must take at least, as in the spec."""


def move(model: PreTrainedModel, device: str) -> None:
    """Move a model in place; transformers' own `to` is typed as if it took no device."""
    cast(nn.Module, model).to(device)


def load_tokenizer(folder: Path, *, pads: bool = False) -> PreTrainedTokenizerBase:
    """The folder's tokenizer.

    Args:
        pads: Whether it has to pad; where it has no token for that, its end token is.

    Raises:
        InvalidModelError: there is none, or it cannot be read.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InvalidModelError(
            f"The model's folder holds no tokenizer; one of {', '.join(TOKENIZER_FILES)} is needed.", param="/model"
        )
    check_paths(folder, "tokenizer_config.json", unread=(*OF_SAVING, *BY_CLASS))
    check_paths(folder, "special_tokens_map.json")
    with blaming_the_model("The model's tokenizer cannot be read"):
        none = dict.fromkeys(BY_CLASS)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True, **none)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(f"{type(tokenizer).__name__} is not one tokenizer but several")
    for name in (*OF_LOADING, *(name for name in BY_CLASS if tokenizer.init_kwargs.get(name) is None)):
        tokenizer.init_kwargs.pop(name, None)
    if pads and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_image_processor(folder: Path) -> BaseImageProcessor:
    """The folder's image processor, in the form that needs no torchvision and without code of its own.

    Raises:
        InvalidModelError: there is none, or it cannot be read.
    """
    if not (folder / PROCESSOR_FILE).is_file():
        raise InvalidModelError(f"The model's folder holds no {PROCESSOR_FILE}.", param="/model")
    for name in (PROCESSOR_FILE, "processor_config.json"):
        check_paths(folder, name)
    with blaming_the_model("The model's image processor cannot be read"):
        auto_class: Any = AutoImageProcessor
        processor: BaseImageProcessor = auto_class.from_pretrained(folder, backend="pil", local_files_only=True)
    vars(processor).pop("auto_map", None)
    return processor


def check_architecture(folder: Path, task_name: str) -> None:
    """Refuse, before anything is loaded, what cannot be pruned.

    Raises:
        InvalidModelError: no usable config, already pruned, or the architecture does not serve the task.
        UnknownFamilyError: the architecture is not supported.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidModelError(f"config.json is missing or names no model_type: {error!r}", param="/model") from error
    labels = config.get("num_labels")
    if isinstance(labels, int | float) and labels > MOST_LABELS:
        raise InvalidModelError(f"config.json: num_labels is more than {MOST_LABELS}.", param="/model")
    if config.get("configuration_files"):
        raise InvalidModelError(
            "config.json names other configuration_files, which would be read in its place: leave the entry out.",
            param="/model",
        )
    family = family_of(str(model_type))
    if not family.tasks:
        able = ", ".join(f.model_type for f in FAMILIES if task_name in f.tasks)
        raise InvalidModelError(
            f"This family has no task yet: {family.title}. The families that serve {task_name!r} are {able}.",
            param="/model",
        )
    if task_name not in family.tasks:
        raise InvalidModelError(
            f"{family.title} models do not serve {task_name!r}; they serve {', '.join(family.tasks)}.",
            param="/task/name",
        )
    if config.get("neuroprune"):
        raise InvalidModelError(
            "The model is already pruned by NeuroPrune; pruning twice is not supported yet: "
            "start from the dense model.",
            param="/model",
        )
    if not list(folder.glob("*.safetensors")):
        raise InvalidModelError(
            "The model's folder holds no .safetensors file; pickled weights are not read.", param="/model"
        )


def load_config(folder: Path) -> PreTrainedConfig:
    """The model's config, without the code of its own or other weights that it may name: none is read or delivered.

    Raises:
        InvalidModelError: it is not one that transformers accepts.
        UnknownFamilyError: the architecture is not supported.
    """
    with blaming_the_model("config.json cannot be used"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    for name in OF_OTHER_FILES:
        vars(config).pop(name, None)
    check_activation(config, family_of(config.model_type))
    return config


def fitting_length(asked: int, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, report: Reporter) -> int:
    """The tokens a row that were asked for, or as many as the model was made for, with a warning.

    Raises:
        InvalidModelError: the model takes hardly any.
    """
    positions = most_tokens(config)
    if positions is None:
        positions = asked
    if positions < LEAST_LENGTH:
        raise InvalidModelError(
            f"config.json: max_position_embeddings is {config.max_position_embeddings}; at least {LEAST_LENGTH} tokens "
            "must fit.",
            param="/model",
        )
    # A tokenizer without a limit says 1e30; one that says next to nothing is not to be believed.
    limit = tokenizer.model_max_length
    if not isinstance(limit, int) or limit < LEAST_LENGTH:
        limit = asked
    length = min(asked, positions, limit)
    if length < asked:
        whose = (
            "the model's {} positions" if positions == length else "the {} tokens of the tokenizer's model_max_length"
        )
        report(Warned(message=f"max_length {asked} exceeds {whose.format(length)}; {length} is used."))
    return length


def load_model(
    folder: Path, config: PreTrainedConfig, task: Task, rows: list[Row], report: Reporter
) -> tuple[PreTrainedModel, bool]:
    """Load in fp32 for a task.

    Args:
        config: The folder's; it is changed where the rows have other labels than the model was trained for.
        rows: All rows that training and hold-out are drawn from; they decide what the head answers.
        report: Warned where a trained head is replaced.

    Returns:
        The model, and whether its task head is new, that is, untrained.

    Raises:
        InvalidModelError: unreadable, NaN or infinite, or weights of the transformer itself are missing, superfluous
            or of another shape.
        OutOfMemoryError: this worker's memory, or its GPU's, cannot hold it while it is trained.
    """
    shapes = named_as_now(weight_shapes(folder), config)
    family = family_of(config.model_type)
    check_layers(config, family, shapes)
    changes = task.model_options(config, rows)
    config.update(changes)
    check_shapes(config, task.auto_class, shapes, head_is_new=bool(changes))
    check_memory(shapes, trains=task.training.trains)
    with blaming_the_model("The model cannot be loaded"):
        model, info = task.auto_class.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=bool(changes),
        )
    missing = {str(key) for key in info["missing_keys"]}
    reset = {str(key) for key, *_ in info["mismatched_keys"]}
    _check_body(model, family, missing | reset, {str(key) for key in info["unexpected_keys"]})
    if task.pads and not family.positions_after_padding:
        # Where one answer a row is read from its last token: that is the last one that is no padding, and it is the
        # tokenizer that pads, whatever the config says.
        model.config.pad_token_id = task.tokenizer.pad_token_id
    head_is_missing = any(not in_base_model(model, key) for key in missing)
    if changes:
        _renew_head(model)
        if not head_is_missing:
            report(Warned(message=f"The model's head does not fit the data's labels; {_new_head(config)}"))
    head_is_new = bool(changes) or head_is_missing
    if head_is_new:
        task.start_head(model, rows)
    _check_finite(model)
    return model, head_is_new


def _new_head(config: PreTrainedConfig) -> str:
    if config.num_labels == 1:
        return "a new one is trained for a number."
    names = [str(name) for name in (config.id2label or {}).values()]
    shown = ", ".join(name[:40] for name in names[:10]) + (", …" if len(names) > 10 else "")
    return f"a new one is trained for {len(names)}: {shown}."


def _check_body(model: PreTrainedModel, family: Family, missing: set[str], unexpected: set[str]) -> None:
    lacking = sorted(key for key in missing if _belongs_to_body(model, key))
    if lacking:
        raise InvalidModelError(f"The model's files lack weights, such as {lacking[0]!r}.", param="/model")
    derived = tuple(f".{name}" for name in family.derived)
    layers = [layer_pattern(stack) for stack in family.stacks]
    ignored = sorted(
        key for key in unexpected if any(layer.search(key) for layer in layers) and not key.endswith(derived)
    )
    if ignored:
        raise InvalidModelError(
            f"The model's files hold {ignored[0]!r}, which config.json does not ask for; it would be lost.",
            param="/model",
        )


def _check_finite(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise InvalidModelError(f"The tensor {name!r} holds NaN or infinity.", param="/model")


def _renew_head(model: PreTrainedModel) -> None:
    """Initialise what lies outside of the base model: a head that was trained for other labels is of no use."""
    fresh = type(model)(model.config).state_dict()
    model.load_state_dict({key: fresh[key] for key in fresh if not in_base_model(model, key)}, strict=False)


def _belongs_to_body(model: PreTrainedModel, key: str) -> bool:
    # The pooler is not needed, and often left out.
    return in_base_model(model, key) and not key.removeprefix(f"{model.base_model_prefix}.").startswith("pooler.")
