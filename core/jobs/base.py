"""What all parts of the contract have in common."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

MAX_COLUMN_NAME = 200
"""Characters that the name of a column may have."""


class MisfitError(ValueError):
    """Fields that do not fit each other. Pydantic reports a ValueError of ours among its own, and nothing else.

    Args:
        message: What does not fit.
        pointer: JSON pointer to the field that is to blame, from the part of the contract that raises this.
    """

    def __init__(self, message: str, pointer: str) -> None:
        super().__init__(f"{pointer}: {message}")
        self.message = message
        self.pointer = pointer


class Spec(BaseModel):
    """Base of all parts of the contract. NaN and infinity are no JSON, and no option means anything with them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def an_object(example: str) -> BeforeValidator:
    """Refuse what is no object by showing one, as JSON; of itself pydantic would speak of dictionaries."""

    def check(value: Any) -> Any:
        if not isinstance(value, Mapping | BaseModel):
            raise ValueError(f"Must be an object, such as {example}")
        return value

    return BeforeValidator(check)
