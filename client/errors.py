"""What a client raises where a service refuses, or is none; the rest is in `core.errors`."""

from http import HTTPStatus

import httpx

from client.answers import Json
from client.connection import KEY_VARIABLE
from core.errors import NeuroPruneError


class ApiError(NeuroPruneError):
    """The service refused a request; `problem` is its answer (RFC 9457)."""

    def __init__(self, status: int, problem: Json) -> None:
        faults = problem.get("errors") or []
        if len(faults) > 1:
            lines = [f"{f.get('pointer') or f.get('parameter') or 'request'}: {f.get('detail')}" for f in faults]
        else:
            lines = [str(problem.get("detail") or problem.get("title") or f"The service answered {status}.")]
        if status == HTTPStatus.UNAUTHORIZED:
            lines.append(f"{KEY_VARIABLE} has to hold one of its keys.")
        super().__init__("\n".join(lines))
        self.status = status
        self.problem = problem

    def __reduce__(self) -> tuple[type["ApiError"], tuple[int, Json]]:
        return type(self), (self.status, self.problem)


class UnreachableError(NeuroPruneError):
    """No service answers at the URL, or what does is none of ours; `status` is that of its refusal, if it has one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def may_be_done(error: ApiError | UnreachableError) -> bool:
    """Whether the service may have done what it was asked for: the answer got lost, or who passes it on failed."""
    cause = error.__cause__
    if cause is not None:
        return not isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout)
    return error.status is not None and error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
