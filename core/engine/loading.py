"""Reads a model and its tokenizer from a folder: safetensors only, no code from the folder, nothing re-initialised."""

import json
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from core.engine.data import Row
from core.engine.tasks import Task
from core.errors import InvalidModelError
from core.families import family_of


def move(model: PreTrainedModel, device: str) -> None:
    """Move a model in place; transformers' own `to` is typed as if it took no device."""
    cast(nn.Module, model).to(device)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, with its end token for padding where it has no padding token.

    Raises:
        InvalidModelError: there is none, or it cannot be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise InvalidModelError(f"The model's tokenizer cannot be read: {_brief(error)}", param="/model") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def check_architecture(folder: Path, task_name: str) -> None:
    """Refuse, before anything is loaded, what cannot be pruned.

    Raises:
        InvalidModelError: no usable config, or the architecture does not serve the task.
        UnknownFamilyError: the architecture is not supported.
    """
    try:
        model_type = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidModelError(f"config.json is missing or names no model_type: {error!r}", param="/model") from error
    family = family_of(str(model_type))
    if task_name not in family.tasks:
        raise InvalidModelError(
            f"{family.title} models do not serve {task_name!r}; they serve {', '.join(family.tasks)}.",
            param="/task/name",
        )
    if not list(folder.glob("*.safetensors")):
        raise InvalidModelError(
            "The model's folder holds no .safetensors file; pickled weights are not read.", param="/model"
        )


def load_model(folder: Path, task: Task, rows: list[Row]) -> tuple[PreTrainedModel, bool]:
    """Load in fp32 for a task.

    Args:
        rows: All rows that training and hold-out are drawn from; they decide which classes there are.

    Returns:
        The model, and whether its task head is new, that is, untrained.

    Raises:
        InvalidModelError: unreadable, or weights of the transformer itself are missing or of another shape.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise InvalidModelError(f"config.json cannot be used: {_brief(error)}", param="/model") from error
    changes = task.model_options(config, rows)
    try:
        config.update(changes)
        model, info = task.auto_class.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise InvalidModelError(f"The model cannot be loaded: {_brief(error)}", param="/model") from error
    missing = {str(key) for key in info["missing_keys"]}
    body = sorted(key for key in missing if _belongs_to_body(model, key))
    if body:
        raise InvalidModelError(f"The model's files lack weights, such as {body[0]!r}.", param="/model")
    if changes:
        _renew_head(model)
    return model, bool(changes) or any(not _belongs_to_body(model, key) and "pooler." not in key for key in missing)


def _renew_head(model: PreTrainedModel) -> None:
    """Initialise what lies outside of the base model: a head that was trained for other classes is of no use."""
    fresh = type(model)(model.config).state_dict()
    model.load_state_dict({key: fresh[key] for key in fresh if not _belongs_to_body(model, key)}, strict=False)


def _belongs_to_body(model: PreTrainedModel, key: str) -> bool:
    prefix = f"{model.base_model_prefix}."
    name = key.removeprefix(prefix)
    return (model.base_model is model or key.startswith(prefix)) and not name.startswith("pooler.")


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
