"""Every error that NeuroPrune raises on purpose.

NeuroPruneError
├── InvalidInputError            the user can mend it: `param` says where, the message what is allowed
│   ├── InvalidModelError
│   │   └── ModelNotFoundError   it is not on the Hub, or not for us
│   ├── InvalidDataError
│   ├── UnknownFamilyError
│   └── UnreachableTargetError
├── NotFoundError                no such job, file or artifact
├── ConflictError                the thing exists but is in the wrong state for this
│   ├── IllegalTransitionError
│   └── LeaseLostError           another attempt owns the job now: change nothing
├── VerificationError            a bundle does not reproduce the model it was made from
├── NumericalError               training ran into NaN or infinity
├── OutOfMemoryError             the worker's memory cannot hold the job
│   └── OutOfGpuMemoryError      nor its GPU's
├── StorageError                 the artifact store refused, or did not answer
│   └── StorageFullError         it, or the disk, has no room
└── ConfigurationError           the service itself is set up wrongly

`Interrupted` stands beside the tree, as KeyboardInterrupt does beside Exception: it is no error.
"""

import reprlib
from collections.abc import Iterable
from itertools import islice
from typing import Literal

SHOWN_CHARACTERS = 100
"""What a message repeats of a value of the user's."""

SHOWN_NAMES = 10

ErrorCode = Literal[
    "invalid_input",
    "model_not_found",
    "out_of_memory_gpu",
    "out_of_memory_host",
    "numerical_failure",
    "verification_failed",
    "timeout",
    "worker_lost",
    "storage_full",
    "storage_unavailable",
    "internal",
]
"""The closed list of reasons for which a job fails."""


def shown(value: object) -> str:
    """A value of the user's as a message repeats it: its `repr`, the middle left out where it is long."""
    short = reprlib.Repr()
    short.maxlevel = 2
    short.maxstring = short.maxother = short.maxlong = SHOWN_CHARACTERS
    text = short.repr(value)
    half = SHOWN_CHARACTERS // 2
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:half]}...{text[-half:]}"


def shown_names(names: Iterable[str]) -> str:
    """Names of the user's as a message lists them: the first `SHOWN_NAMES`."""
    first = list(islice(names, SHOWN_NAMES + 1))
    return ", ".join([*map(shown, first[:SHOWN_NAMES]), *(["…"] if len(first) > SHOWN_NAMES else [])])


def encodable(text: str) -> str:
    """Without lone surrogates, which JSON can spell and nothing can encode."""
    return text.encode(errors="replace").decode()


class NeuroPruneError(Exception):
    """Root of the tree.

    Args:
        message: One or two sentences for the user: what was wrong, where, and what is allowed.
        param: JSON pointer into the job's spec (`/task/data/train`), where one field is to blame.
    """

    code: ErrorCode = "internal"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidInputError(NeuroPruneError):
    """The user's input cannot be used, and can be mended by the user."""

    code: ErrorCode = "invalid_input"


class InvalidModelError(InvalidInputError):
    """The model's files are missing, corrupt, or not in a form that is accepted."""


class ModelNotFoundError(InvalidModelError):
    """The Hub has no such model, does not let us have it, or cannot be reached."""

    code: ErrorCode = "model_not_found"


class InvalidDataError(InvalidInputError):
    """The data is missing, corrupt, or lacks a column; the message names file, line and field."""


class UnknownFamilyError(InvalidInputError):
    """No row of `core.families` describes this architecture."""


class UnreachableTargetError(InvalidInputError):
    """The target cannot be met with this model."""


class NotFoundError(NeuroPruneError):
    """No such job, file or artifact."""

    code: ErrorCode = "invalid_input"


class ConflictError(NeuroPruneError):
    """The request does not fit the state that the thing is in."""

    code: ErrorCode = "invalid_input"


class IllegalTransitionError(ConflictError):
    """A job cannot go from its status to the one that was asked for."""


class LeaseLostError(ConflictError):
    """This attempt no longer owns the job; it must stop and change nothing."""


class VerificationError(NeuroPruneError):
    """A bundle does not reproduce the model it was made from; it is not delivered."""

    code: ErrorCode = "verification_failed"


class NumericalError(NeuroPruneError):
    """A loss or a weight became NaN or infinite."""

    code: ErrorCode = "numerical_failure"


class OutOfMemoryError(NeuroPruneError):
    """The worker's memory cannot hold the model, its teacher and what training them takes."""

    code: ErrorCode = "out_of_memory_host"


class OutOfGpuMemoryError(OutOfMemoryError):
    """The memory of the worker's GPU cannot."""

    code: ErrorCode = "out_of_memory_gpu"


class StorageError(NeuroPruneError):
    """The artifact store refused to read or write, or did not answer; another attempt may succeed."""

    code: ErrorCode = "storage_unavailable"


class StorageFullError(StorageError):
    """There is no room for what was to be written."""

    code: ErrorCode = "storage_full"


class ConfigurationError(NeuroPruneError):
    """The service is set up wrongly; the operator has to act."""


class Interrupted(BaseException):
    """The job was told to stop and has stopped where it can go on later; nothing may take it for a failure."""
