"""From pydantic's account of an invalid body to a JSON pointer into that body, and what is allowed there.

Pydantic's locations also name the branch of a union that was taken (`task`, `sentence-embedding`, `text_column`).
Those names are in no body, so the location is followed along the models, which know where their unions are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

from core.errors import SHOWN_CHARACTERS
from core.jobs.base import MisfitError


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a body: the pointer, and the model whose field its last part names (if it is one's)."""

    pointer: str
    owner: type[BaseModel] | None


def locate(model: type[BaseModel], location: Sequence[str | int]) -> Place:
    """Follow a location of pydantic's (without FastAPI's leading `body`) from the body's model."""
    parts: list[str] = []
    owner: type[BaseModel] | None = None
    inner: type[BaseModel] | None = model
    branches: Mapping[str, type[BaseModel]] = {}
    for element in location:
        if element == "[key]":  # pydantic's mark that the key itself is at fault
            continue
        if branches:
            inner, branches = branches.get(str(element)), {}
            continue
        parts.append(_brief(str(element)).replace("~", "~0").replace("/", "~1"))
        owner = inner
        field = owner.model_fields.get(str(element)) if owner else None
        inner, branches = _below(field) if field else (None, {})
    return Place("".join(f"/{part}" for part in parts), owner)


def describe(error: Mapping[str, Any], model: type[BaseModel]) -> tuple[str, str]:
    """Pointer and message of one of pydantic's errors; the message says what is allowed."""
    context = error.get("ctx", {})
    place = locate(model, error["loc"][1:])
    match error["type"]:
        case "json_invalid":
            return "", f"The body is not JSON: {context['error']} at character {error['loc'][-1]}."
        case "union_tag_invalid" | "union_tag_not_found":
            name = context["discriminator"].strip("'")
            tags = context.get("expected_tags") or "the documented values"
            wanted = "Required; one of" if error["type"] == "union_tag_not_found" else "Must be one of"
            return f"{place.pointer}/{name}", f"{wanted} {tags}."
        case "extra_forbidden" if place.owner:
            return place.pointer, f"Unknown field; allowed here: {', '.join(place.owner.model_fields)}."
        case "model_attributes_type" | "model_type" | "missing" if not place.pointer:
            return "", "Send a JSON object with Content-Type: application/json."
        case "missing":
            return place.pointer, "Required."
        case "tuple_type" | "list_type":
            return place.pointer, "Must be a list."
        case "dict_type":
            return place.pointer, "Must be an object."
        case "value_error" if error["loc"] == ("body", "file"):  # of an upload, sent as text
            return place.pointer, "Must be a file with its name; with curl: -F file=@NAME."
        case "value_error":
            fault = context["error"]
            if isinstance(fault, MisfitError):
                return place.pointer + fault.pointer, f"{fault.message}."
            return place.pointer, f"{fault}."
    return place.pointer, f"{error['msg']}."


def _brief(name: str) -> str:
    """No field of ours has a longer name: an unknown one is not repeated in full."""
    return name if len(name) <= SHOWN_CHARACTERS else f"{name[: SHOWN_CHARACTERS - 1]}…"


def _below(field: FieldInfo) -> tuple[type[BaseModel] | None, Mapping[str, type[BaseModel]]]:
    """The model that the field holds, or the branches of its union by tag."""
    candidates = get_args(field.annotation) or (field.annotation,)
    models = [each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)]
    if isinstance(field.discriminator, str):
        return None, {tag: each for each in models for tag in _tags(each, field.discriminator)}
    return (models[0] if models else None), {tag: each for union in candidates for tag, each in _tagged(union)}


def _tags(model: type[BaseModel], discriminator: str) -> tuple[str, ...]:
    return get_args(model.model_fields[discriminator].annotation)


def _tagged(union: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The members of a union that carry pydantic's tags."""
    for member in get_args(get_args(union)[0]) if get_origin(union) is Annotated else ():
        model, *metadata = get_args(member) or (member,)
        yield from ((mark.tag, model) for mark in metadata if isinstance(mark, Tag))
