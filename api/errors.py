"""Every answer that is not a success is a problem detail (RFC 9457), whoever noticed the problem."""

from collections.abc import Mapping, Sequence
from http import HTTPMethod, HTTPStatus
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from api.pointers import describe
from api.schemas import JobRequest
from core.db import UNAVAILABLE
from core.errors import (
    ConflictError,
    InvalidInputError,
    NeuroPruneError,
    NotFoundError,
    StorageError,
    StorageFullError,
)
from core.resources import is_out_of_space

MEDIA_TYPE = "application/problem+json"
MOST_ERRORS = 20
"""Faults listed in one answer."""

_CODES = {413: "content_too_large", 416: "range_not_satisfiable"}
"""Where the name in RFC 9110 is not the one that Python's `HTTPStatus` has."""

_NOT_JSON = "The body is not JSON: send one object as UTF-8 text, not nested deeply, without endless numbers."

_LATER = {"Retry-After": "5"}
"""Where a part of the service is away, in seconds."""

logger = structlog.get_logger(__name__)


class Fault(BaseModel):
    """One thing that is wrong: in the body (`pointer`), or in a query or header parameter."""

    pointer: str | None = Field(None, description="JSON pointer into the request's body; of a form, `/` and the field.")
    parameter: str | None = Field(None, description="Name of the query or header parameter.")
    detail: str


class Problem(BaseModel):
    """A problem detail (RFC 9457)."""

    type: str = Field(description="Names the kind of problem; the same for every one of a kind.")
    title: str
    status: int
    detail: str = Field(description="What is wrong with this request, and what is allowed.")
    instance: str = Field(description="The path that was asked for.")
    code: str = Field(description="Short name of the kind, for programs.")
    request_id: str
    errors: list[Fault] = []


EXAMPLE: dict[str, Any] = {
    "type": "urn:neuroprune:problem:invalid_input",
    "title": "Unprocessable Entity",
    "status": 422,
    "detail": "/target/sparsity: Input should be less than or equal to 0.95.",
    "instance": "/v1/jobs",
    "code": "invalid_input",
    "request_id": "5f0e1f4b0d1c4c0a9d6a7b1d9c1e2f30",
    "errors": [{"pointer": "/target/sparsity", "detail": "Input should be less than or equal to 0.95."}],
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: these statuses are answered with a problem detail."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def problem(
    request: Request,
    status: int,
    detail: str,
    *,
    code: str | None = None,
    errors: Sequence[Fault] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer itself; the code is the status' own name unless given."""
    code = code or _CODES.get(status) or HTTPStatus(status).name.lower()
    body = Problem(
        type=f"urn:neuroprune:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=quote(request.scope["path"]),
        code=code,
        request_id=request.scope["state"]["request_id"],
        errors=list(errors),
    )
    return JSONResponse(
        body.model_dump(exclude_none=True), status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {})
    )


def install(app: FastAPI) -> None:
    """Answer the errors of the framework, of the domain and of the database."""
    app.exception_handler(RequestValidationError)(_invalid_request)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(NeuroPruneError)(_domain)
    for kind in (*UNAVAILABLE, sa.exc.InterfaceError, sa.exc.ProgrammingError, sa.exc.TimeoutError):
        app.exception_handler(kind)(_no_database)


async def _invalid_request(request: Request, error: RequestValidationError) -> Response:
    errors = _without_echoes(error.errors())
    faults = [_fault(each) for each in errors[:MOST_ERRORS]]
    status = 400 if any(each["type"] == "json_invalid" for each in errors) else 422
    return problem(request, status, _summary(faults), code="invalid_input", errors=faults)


def _without_echoes(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All but those of lists that are too short because pydantic does not count the faulty items, told beside them."""

    def is_echo(error: Mapping[str, Any]) -> bool:
        place = error["loc"]
        return error["type"] == "too_short" and any(
            other["loc"] != place and other["loc"][: len(place)] == place for other in errors
        )

    return [error for error in errors if not is_echo(error)]


def _fault(error: Mapping[str, Any]) -> Fault:
    source, *rest = error["loc"]
    if source == "body":
        pointer, detail = describe(error, JobRequest)
        return Fault(pointer=pointer, detail=detail)
    detail = "Required." if error["type"] == "missing" else f"{error['msg']}."
    return Fault(parameter=".".join(map(str, rest)), detail=detail)


def _summary(faults: Sequence[Fault]) -> str:
    first = faults[0]
    where = first.pointer or first.parameter
    more = f" (and {len(faults) - 1} more, see errors)" if len(faults) > 1 else ""
    return (f"{where}: {first.detail}" if where else first.detail) + more


async def _http(request: Request, error: HTTPException) -> Response:
    if is_out_of_space(error.__cause__):  # while the body was put aside, which the framework takes for a bad request
        return problem(request, 507, "The service has no room for the request's body.", code="storage_full")
    if error.status_code in (204, 304):
        return Response(status_code=error.status_code, headers=error.headers)
    detail = error.detail
    if error.status_code == 404:
        detail = f"There is nothing at {request.url.path}; /docs lists what there is."
    elif error.status_code == 405:
        allowed = ", ".join(_allowed_methods(request))
        detail = f"{request.url.path} does not take {request.method}; it takes {allowed}."
        return problem(request, 405, detail, headers={"Allow": allowed})
    elif isinstance(error.__cause__, ValueError | RecursionError) and "json" in request.headers.get("content-type", ""):
        return problem(request, 400, _NOT_JSON, code="invalid_input", errors=[Fault(pointer="", detail=_NOT_JSON)])
    return problem(request, error.status_code, detail, headers=error.headers)


def _allowed_methods(request: Request) -> list[str]:
    """All that the path takes; the framework itself names those of the first route only."""
    router = request.app.router
    scopes = {method: {**request.scope, "method": method} for method in HTTPMethod}
    return [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in router.routes)
    ]


_STATUSES: tuple[tuple[type[NeuroPruneError], int, str], ...] = (
    (NotFoundError, 404, "not_found"),
    (ConflictError, 409, "conflict"),
    (InvalidInputError, 422, "invalid_input"),
    (StorageFullError, 507, "storage_full"),
    (StorageError, 503, "storage_unavailable"),
)


async def _domain(request: Request, error: NeuroPruneError) -> Response:
    for kind, status, code in _STATUSES:
        if isinstance(error, kind):
            faults = [] if error.param is None else [Fault(pointer=error.param, detail=error.message)]
            headers = _LATER if status == 503 else {}
            return problem(request, status, error.message, code=code, errors=faults, headers=headers)
    logger.error("request failed", exc_info=error)
    return problem(request, 500, "The service is set up wrongly; its operator finds the reason in the log.")


async def _no_database(request: Request, error: Exception) -> Response:
    """It is down, out of connections, or (PostgreSQL's ProgrammingError) lacks our tables."""
    logger.error("database unavailable", error=str(error))
    return problem(request, 503, "The database does not answer; try again shortly.", headers=_LATER)
