"""What a job's process says while it works: one JSON object a line, read by its supervisor.

The engine only calls a `Reporter`; where the messages go (a pipe to the supervisor, a progress bar, a list in a
test) is the caller's choice.
"""

from collections.abc import Callable
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, field_validator

from core.errors import ErrorCode

PHASES = (
    "loading",
    "baseline",
    "pruning",
    "compacting",
    "evaluating",
    "exporting",
    "verifying",
    "uploading",
)
"""The phases a job goes through, in this order. Clients must tolerate others."""


MOST_CHARACTERS = 2000
"""Longer texts are cut: a message is a sentence or two, and is stored with the job."""


def _sendable(text: object) -> object:
    """Without lone surrogates, which UTF-8 has no bytes for, and not too long."""
    if not isinstance(text, str):
        return text
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS - 1]}…"
    return text.encode(errors="replace").decode()


Text = Annotated[str, BeforeValidator(_sendable)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PhaseStarted(_Message):
    """The job entered a phase."""

    type: Literal["phase"] = "phase"
    phase: Text


class StepDone(_Message):
    """Work went on. `fraction` is of the whole job, 0 … 1; `eta_seconds` is what is left of the whole job."""

    type: Literal["progress"] = "progress"
    fraction: float = Field(ge=0, le=1)
    step: int | None = Field(None, description="Training steps done.")
    total_steps: int | None = None
    eta_seconds: float | None = None
    message: Text = ""
    metrics: dict[str, float] = Field(default_factory=dict, description="Current values, such as loss and sparsity.")

    @field_validator("metrics")
    @classmethod
    def _finite(cls, metrics: dict[str, float]) -> dict[str, float]:
        # JSON has no NaN: such a value would make the whole line unreadable.
        return {name: value for name, value in metrics.items() if isfinite(value)}


class Warned(_Message):
    """Something the user should know that does not end the job."""

    type: Literal["warning"] = "warning"
    message: Text


class CheckpointFile(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    size: int = Field(description="bytes")
    sha256: str


class Checkpointed(_Message):
    """A state of the training is whole in the store, from which another attempt can go on."""

    type: Literal["checkpoint"] = "checkpoint"
    stage: str = Field(description="Of the job's trainings the one that it belongs to.")
    step: int = Field(description="Optimiser steps of the stage that were done.")
    finished: bool = Field(description="Whether the stage was over.")
    key: str = Field(description="Prefix of the files in `core.storage`.")
    files: list[CheckpointFile]


class Artifact(BaseModel):
    """One file of a finished bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    size: int = Field(description="bytes")
    sha256: str
    media_type: str


class Succeeded(_Message):
    """The bundle is verified and stored."""

    type: Literal["succeeded"] = "succeeded"
    metrics_summary: dict[str, Any]
    artifacts: list[Artifact]


class Failed(_Message):
    """The job cannot be done; the message is for the user."""

    type: Literal["failed"] = "failed"
    code: ErrorCode
    message: Text
    param: Text | None = None
    retryable: bool = False


class Stopped(_Message):
    """The job ended because it was told to, where it can go on later."""

    type: Literal["stopped"] = "stopped"


Note = PhaseStarted | StepDone | Warned
"""What the engine says while it works."""
LastWord = Succeeded | Failed | Stopped
"""How a job's process says that it ended."""
AnyMessage = Note | Checkpointed | LastWord

Message = Annotated[AnyMessage, Field(discriminator="type")]
Reporter = Callable[[Note], None]

_adapter: TypeAdapter[AnyMessage] = TypeAdapter(Message)


def encode(message: BaseModel) -> bytes:
    """One line, newline included."""
    return message.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> AnyMessage:
    """Inverse of `encode`; raises `pydantic.ValidationError` for anything else."""
    return _adapter.validate_json(line)
