"""What a bundle's JSON files must hold; checked before anything is built from them."""

import json
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.engine.export.modeling_neuroprune import FORMAT, MANIFEST_FILE, MANIFEST_FORMAT, in_newest_format
from core.engine.tasks import TASKS
from core.errors import VerificationError

CONFIG_FILE = "config.json"

Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class ManifestEntry(_Part):
    """One file as it was delivered."""

    size: Count
    sha256: str


class Manifest(_Part):
    """`manifest.json`."""

    format: Literal[1]
    files: dict[str, ManifestEntry]


class _Bias(_Part):
    argument: str
    table: str | None
    has_table: str | None


class _Attention(_Part):
    core: str
    query: str
    key: str
    value: str
    output: str
    head_counts: list[str]
    widths: list[str]
    key_value_head_counts: list[str]
    further_projections: list[str]
    further_inputs: list[str]
    cross: bool
    returns: Count
    norm: str | None
    bias: _Bias | None
    by_head: list[str]
    residual: str | None


class _Mlp(_Part):
    inputs: Annotated[list[str], Field(min_length=1)]
    output: str


class _Experts(_Part):
    module: str
    router: str


class _Stack(_Part):
    layers: str
    attentions: list[_Attention]
    mlps: list[_Mlp]
    experts: _Experts | None = None


class _Family(_Part):
    stacks: list[_Stack]


class _Heads(_Part):
    heads: Count
    key_value_heads: Count
    head_dim: Annotated[int, Field(gt=0)]
    inputs: Count | None = None


class _Neurons(_Part):
    neurons: Count


class _Layer(_Part):
    attentions: list[_Heads]
    mlps: list[_Neurons]
    experts: list[_Neurons] | None = None


class Description(_Part):
    """The `neuroprune` entry of `config.json`; where each layer keeps its parts is `core.families`' to explain."""

    family: _Family
    layers: list[_Layer]
    architecture: str
    task: str


class _Config(_Part):
    neuroprune: Description


class _StockConfig(_Part):
    architectures: Annotated[list[str], Field(min_length=1)]


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest.

    Raises:
        VerificationError: it is missing, of an unknown format, or not a manifest.
    """
    content = _read_object(folder / MANIFEST_FILE)
    _check_format(content, range(1, MANIFEST_FORMAT + 1), MANIFEST_FILE)
    return _parse(Manifest, content, MANIFEST_FILE)


def read_description(folder: Path) -> Description | None:
    """How the folder's model is built; None where its stock class can do that.

    Raises:
        VerificationError: there is no `config.json`, as in the folder of a frontier, or it does not describe a pruned
            model that this version knows.
    """
    _check_is_no_frontier(folder)
    content = _read_object(folder / CONFIG_FILE)
    if "neuroprune" not in content:
        return None
    entry = content["neuroprune"]
    if not isinstance(entry, dict):
        raise VerificationError("config.json describes no pruned model: its entry 'neuroprune' is no JSON object.")
    _check_format(entry, range(1, FORMAT + 1), "config.json, entry 'neuroprune',")
    try:
        newest = in_newest_format(entry)
    except (KeyError, TypeError) as error:
        raise VerificationError(f"config.json is not as it was delivered; entry 'neuroprune': {error!r}.") from error
    description = _parse(_Config, content | {"neuroprune": newest}, CONFIG_FILE).neuroprune
    if description.task not in TASKS:
        raise VerificationError(f"config.json names the task {description.task!r}; known are {', '.join(TASKS)}.")
    return description


def read_architecture(folder: Path) -> str:
    """The class that the folder's config names.

    Raises:
        VerificationError: there is no `config.json`, or it names none.
    """
    return _parse(_StockConfig, _read_object(folder / CONFIG_FILE), CONFIG_FILE).architectures[0]


def _check_is_no_frontier(folder: Path) -> None:
    """Refuse the folder around a frontier's bundles, which is none itself."""
    levels = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    if levels and not (folder / CONFIG_FILE).exists():
        raise VerificationError(f"{folder} is the folder of a frontier. Load one of its levels: {', '.join(levels)}.")


def _check_format(content: dict[str, object], known: range, what: str) -> None:
    if content.get("format") not in known:
        raise VerificationError(
            f"{what} has format {content.get('format')!r}; this version reads format {' and '.join(map(str, known))}. "
            "Use the version that wrote the bundle, or a newer one."
        )


_Model = TypeVar("_Model", bound=BaseModel)


def _parse(model: type[_Model], content: dict[str, object], name: str) -> _Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise VerificationError(f"{name} is not as it was delivered; at {where}: {first['msg']}.") from error


def _read_object(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise VerificationError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise VerificationError(f"{path.name} is not a JSON object.")
    return content
