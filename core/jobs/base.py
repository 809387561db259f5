"""What all parts of the contract have in common."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Base of all parts of the contract. NaN and infinity are no JSON, and no option means anything with them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
