"""Whether the process lives, and whether jobs would run."""

from collections.abc import Callable

import sqlalchemy as sa
import structlog
from fastapi import APIRouter, Request
from fastapi.responses import Response

from api.deps import Provided, Services
from api.errors import Fault, problem, problems
from api.routes.jobs import WORKER_SILENT_SECONDS
from api.schemas import Health, Readiness
from core.errors import NeuroPruneError

logger = structlog.get_logger(__name__)
router = APIRouter(tags=["health"])


class NotReadyError(NeuroPruneError):
    """A part is missing; the message says which and what to do."""


@router.get("/healthz")
async def healthz() -> Health:  # waits for no thread, as those may all wait for the database
    """The process answers."""
    return Health()


@router.get("/readyz", response_model=Readiness, responses=problems(503))
def readyz(services: Provided, request: Request) -> Readiness | Response:
    """Database, schema, broker, storage and a worker are there; a 503 names those that are not.

    Without a database, or without its schema, what it would say of the rest is not asked.
    """
    faults: list[Fault] = []
    for name, check in _CHECKS.items():
        if any(fault.parameter in _NEEDS.get(name, ()) for fault in faults):
            continue
        try:
            check(services)
        except (NeuroPruneError, sa.exc.SQLAlchemyError) as error:
            # What a store or a database says names accounts and addresses, and this is asked without a key.
            logger.warning("not ready", part=name, error=str(error))
            detail = (
                error.message
                if isinstance(error, NotReadyError)
                else "It does not answer, or refuses; the log says why."
            )
            faults.append(Fault(parameter=name, detail=detail))
    if faults:
        missing = "; ".join(f"{fault.parameter}: {fault.detail}" for fault in faults)
        return problem(request, 503, missing, code="not_ready", errors=faults)
    return Readiness(checks=dict.fromkeys(_CHECKS, "ok"))


def _check_database(services: Services) -> None:
    services.store.answers()


def _check_schema(services: Services) -> None:
    if not services.store.is_migrated():
        raise NotReadyError("It is not the one of this version; run the migrations.")


def _check_broker(services: Services) -> None:
    if not services.dispatcher.is_reachable():
        raise NotReadyError("It does not answer; jobs are accepted and will run once it does.")


def _check_storage(services: Services) -> None:
    services.storage.check_writable()


def _check_worker(services: Services) -> None:
    if not services.store.live_workers(WORKER_SILENT_SECONDS):
        silent = f"{WORKER_SILENT_SECONDS:.0f} seconds"
        raise NotReadyError(f"None that can take jobs was seen in the last {silent}; start one, or see its log.")


_CHECKS: dict[str, Callable[[Services], None]] = {
    "database": _check_database,
    "schema": _check_schema,
    "broker": _check_broker,
    "storage": _check_storage,
    "worker": _check_worker,
}
_NEEDS = {"schema": ("database",), "worker": ("database", "schema")}
