"""Jobs: submit, look up, list; cancel, pause, resume, retry, delete; their attempts."""

import asyncio
import hashlib
import re
import time
from collections.abc import Sequence
from typing import Annotated

import structlog
from fastapi import APIRouter, BackgroundTasks, Body, Header, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from api.conditional import is_named
from api.deps import JobDispatcher, JobId, Provided, Services, Store
from api.errors import problems
from api.pages import link_to_next
from api.schemas import AttemptList, AttemptObject, JobObject, JobPage, JobQueue, JobRequest
from core.jobs.records import Job
from core.jobs.state import TERMINAL, Status
from core.jobs.store import JobStore

logger = structlog.get_logger(__name__)

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

LONGEST_WAIT_SECONDS = 60
POLL_SECONDS = 0.5
WORKER_SILENT_SECONDS = 30.0
"""A worker that was not seen for so long is not counted on."""

EXAMPLES = {
    "builtin": {
        "summary": "Half of a sentence encoder, no uploads needed",
        "value": {
            "name": "demo",
            "model": {"source": "builtin", "name": "all-MiniLM-L6-v2"},
            "task": {"name": "sentence-embedding", "data": {"source": "builtin", "name": "python-docs"}},
            "target": {"sparsity": 0.5},
        },
    },
    "uploads": {
        "summary": "A classifier on uploaded rows",
        "value": {
            "model": {"source": "builtin", "name": "all-MiniLM-L6-v2"},
            "task": {
                "name": "sequence-classification",
                "data": {"source": "upload", "train": "file_" + "0" * 32},
                "text_column": "sentence",
                "label_column": "label",
            },
            "target": {"sparsity": 0.7},
            "training": {"num_train_epochs": 3, "seed": 1},
            "labels": {"team": "search"},
        },
    },
}


@router.post("", status_code=202, response_model=JobObject, responses=problems(400, 409, 413, 422, 503))
def create_job(
    body: Annotated[JobRequest, Body(openapi_examples=EXAMPLES)],
    services: Provided,
    background: BackgroundTasks,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            pattern=r"^[\x21-\x7e]+$",
            description="Send the same key with a repeated request: the job is made once. Remembered for 24 hours.",
        ),
    ] = None,
) -> JobObject:
    """Queue a job. `Location` names it; look there, or follow its events."""
    store = services.store
    job, replayed = store.create(body.spec(), name=body.name, labels=body.labels, idempotency_key=idempotency_key)
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    else:
        logger.info("job accepted", job_id=job.id)
        background.add_task(_dispatch, services.dispatcher, store, job.id)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    response.headers["Retry-After"] = "1"
    return _present(services, [job])[0]


@router.get("", response_model=JobPage, responses=problems(422, 503))
def list_jobs(
    services: Provided,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=100, description="Jobs on the page.")] = 20,
    cursor: Annotated[str | None, Query(pattern=r"^job_[0-9a-f]{32}$", description="`next_cursor` of a page.")] = None,
    status: Annotated[Status | None, Query(description="Only jobs in this status.")] = None,
) -> JobPage:
    """Jobs, newest first."""
    found, next_cursor = services.store.page(limit, cursor, status)
    if next_cursor is not None:
        link_to_next(response, "/v1/jobs", limit=limit, cursor=next_cursor, status=status)
    return JobPage(data=_present(services, found), has_more=next_cursor is not None, next_cursor=next_cursor)


@router.get(
    "/{job_id}",
    response_model=JobObject,
    responses=problems(404, 422, 503) | {304: {"description": "Not changed since If-None-Match."}},
)
async def get_job(
    job_id: JobId,
    request: Request,
    services: Provided,
    if_none_match: Annotated[str | None, Header()] = None,
    prefer: Annotated[
        str | None, Header(description="`wait=N`: answer when the job changed (If-None-Match) or has ended; N ≤ 60 s.")
    ] = None,
) -> Response:
    """A job as it stands."""
    wait = _wait_seconds(prefer)
    deadline = time.monotonic() + (wait or 0)
    while True:
        job = await run_in_threadpool(services.store.get, job_id)
        [shown] = await run_in_threadpool(_present, services, [job])
        body = shown.model_dump_json()
        etag = f'W/"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'
        unchanged = is_named(etag, if_none_match)
        pending = job.status not in TERMINAL and (unchanged or not if_none_match)
        if not pending or not await _may_have_changed(services.store, job, request, deadline):
            break
    headers = {"ETag": etag} | ({} if wait is None else {"Preference-Applied": f"wait={wait}"})
    if unchanged:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


@router.post(
    "/{job_id}/cancel",
    response_model=JobObject,
    responses=problems(404, 409, 422, 503)
    | {202: {"model": JobObject, "description": "A worker was asked to stop it."}},
)
def cancel_job(job_id: JobId, services: Provided, response: Response) -> JobObject:
    """Cancel a job: a queued one at once (200), a running one as soon as its worker has stopped it (202)."""
    job = services.store.request_cancel(job_id)
    if job.status is Status.CANCELLING:
        response.status_code = 202
    return _present(services, [job])[0]


@router.post(
    "/{job_id}/pause",
    response_model=JobObject,
    responses=problems(404, 409, 422, 503)
    | {202: {"model": JobObject, "description": "Its worker was asked to stop it at a checkpoint."}},
)
def pause_job(job_id: JobId, services: Provided, response: Response) -> JobObject:
    """Hold a job back: a queued one at once (200), a running one when its state is stored (202)."""
    job = services.store.request_pause(job_id)
    if job.status is Status.PAUSING:
        response.status_code = 202
    return _present(services, [job])[0]


@router.post("/{job_id}/resume", response_model=JobObject, responses=problems(404, 409, 422, 503))
def resume_job(job_id: JobId, services: Provided, background: BackgroundTasks) -> JobObject:
    """Queue a paused job again; it goes on from where it was."""
    job = services.store.resume(job_id)
    background.add_task(_dispatch, services.dispatcher, services.store, job_id)
    return _present(services, [job])[0]


@router.post("/{job_id}/retry", response_model=JobObject, responses=problems(404, 409, 422, 503))
def retry_job(job_id: JobId, services: Provided, background: BackgroundTasks) -> JobObject:
    """Queue a failed, cancelled or expired job again; it goes on from its last checkpoint while that is kept."""
    job = services.store.retry(job_id)
    background.add_task(_dispatch, services.dispatcher, services.store, job_id)
    return _present(services, [job])[0]


@router.delete("/{job_id}", status_code=204, response_class=Response, responses=problems(404, 409, 422, 503))
def delete_job(job_id: JobId, store: Store) -> None:
    """Delete a job that has ended, with its history and its bundle.

    It is gone from here at once, and its bytes as soon as a worker has removed them.
    """
    store.delete_job(job_id)


@router.get("/{job_id}/attempts", response_model=AttemptList, responses=problems(404, 422, 503))
def list_attempts(job_id: JobId, store: Store) -> AttemptList:
    """Who worked at the job, when, and how each attempt ended."""
    return AttemptList(data=[AttemptObject.model_validate(attempt) for attempt in store.attempts(job_id)])


def _dispatch(dispatcher: JobDispatcher, store: JobStore, job_id: str) -> None:
    if dispatcher.job_ready(job_id):
        store.mark_dispatched(job_id)


async def _may_have_changed(store: JobStore, job: Job, request: Request, deadline: float) -> bool:
    """Wait until it is worth while to look at the job again; False once nobody waits any more."""
    while time.monotonic() < deadline and not await request.is_disconnected():
        await asyncio.sleep(POLL_SECONDS)
        # A place in the queue changes without its job.
        if job.status is Status.QUEUED or await run_in_threadpool(store.standing, job.id) != (job.status, job.version):
            return True
    return False


def _present(services: Services, found: Sequence[Job]) -> list[JobObject]:
    store = services.store
    waiting = [job.id for job in found if job.status is Status.QUEUED]
    places = store.queue_positions(waiting) if waiting else {}
    reason = ""
    if places:
        awake = store.live_workers(WORKER_SILENT_SECONDS)
        reason = "Waits for a free worker." if awake else "No worker that can take jobs is running."
    queues = {job_id: JobQueue(position=place, reason=reason) for job_id, place in places.items()}
    return [JobObject.of(job, queues.get(job.id), services.settings.retention_seconds) for job in found]


def _wait_seconds(prefer: str | None) -> int | None:
    match = re.search(r"(?:^|[,;\s])wait=(\d{1,9})(?:$|[,;\s])", prefer or "")
    return min(int(match[1]), LONGEST_WAIT_SECONDS) if match else None
