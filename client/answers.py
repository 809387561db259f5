"""What a service answers: whether it is what such a service could have said."""

import re
from collections.abc import Callable
from typing import Any, TypeGuard

import httpx

Json = dict[str, Any]
Check = Callable[[Any], TypeGuard[Json]]
"""Whether an answer is of a kind."""


def parsed(response: httpx.Response) -> Any:
    """The answer's JSON, None if it is none."""
    try:
        return response.json()
    except ValueError:
        return None


def is_object(answer: Any) -> TypeGuard[Json]:
    return isinstance(answer, dict)


def is_job(answer: Any) -> TypeGuard[Json]:
    return is_object(answer) and answer.get("object") == "job" and isinstance(answer.get("id"), str)


def is_file(answer: Any) -> TypeGuard[Json]:
    return is_object(answer) and answer.get("object") == "file" and isinstance(answer.get("id"), str)


def is_artifact(answer: Any) -> TypeGuard[Json]:
    return (
        is_object(answer)
        and all(isinstance(answer.get(name), str) for name in ("name", "sha256", "url"))
        and type(answer.get("bytes")) is int
        # A path of this service; any other address is none that it could have given.
        and re.match(r"/[^/]", answer["url"]) is not None
    )


def is_problem(answer: Any) -> TypeGuard[Json]:
    return is_object(answer) and _are_all(is_object, answer.get("errors", []))


def is_list_of(is_right: Check) -> Check:
    def is_list(answer: Any) -> TypeGuard[Json]:
        return is_object(answer) and _are_all(is_right, answer.get("data"))

    return is_list


def _are_all(is_right: Check, items: Any) -> bool:
    return isinstance(items, list) and all(map(is_right, items))
