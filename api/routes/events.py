"""A job's history, as JSON pages or as a live event stream (SSE)."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from api.deps import JobId, Store
from api.errors import problems
from api.pages import link_to_next
from api.schemas import EventObject, EventPage
from core.errors import NotFoundError
from core.jobs.state import TERMINAL

POLL_SECONDS = 0.5
BATCH = 500

router = APIRouter(prefix="/v1/jobs/{job_id}/events", tags=["jobs"])

After = Annotated[int, Query(ge=0, lt=2**31, description="Only events with a higher `seq`.")]


class EventStreamRoute(APIRoute):
    """Matches requests that accept `text/event-stream`; others go on to the next route of the same path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As any route, but for the Accept header."""
        if "text/event-stream" not in Headers(scope=scope).get("accept", ""):
            return Match.NONE, {}
        return super().matches(scope)


@dataclass(frozen=True, slots=True)
class _Start:
    job_id: str
    after: int


def _start(
    job_id: JobId,
    store: Store,
    after: After = 0,
    last_event_id: Annotated[int, Header(ge=0, lt=2**31)] = 0,
) -> _Start:
    """Where the stream resumes; all that can go wrong does so here, before the answer has begun.

    Raises:
        NotFoundError: no such job.
        HTTPException: 204, which tells an EventSource not to come back: the job has ended and all was sent.
    """
    status, version = store.standing(job_id)
    if last_event_id >= version and status in TERMINAL:
        raise HTTPException(204)
    return _Start(job_id, max(after, last_event_id))


async def stream_events(start: Annotated[_Start, Depends(_start)], store: Store) -> AsyncIterator[ServerSentEvent]:
    """Events from where the client left off, then as they come; `done` is the last."""
    sent = start.after
    while True:
        try:
            # The job first: a job that has ended makes no events after those that are read next.
            status, version = await run_in_threadpool(store.standing, start.job_id)
            events = await run_in_threadpool(store.events, start.job_id, sent, BATCH)
        except NotFoundError:  # it has ended and was deleted; who asks again is told so
            return
        for event in events:
            sent = event.seq
            yield ServerSentEvent(id=str(event.seq), event=event.type, data=EventObject.of(event))
        if status in TERMINAL and sent >= version:
            yield ServerSentEvent(event="done", data={"status": status})
            return
        if len(events) < BATCH:
            await asyncio.sleep(POLL_SECONDS)


router.add_api_route(
    "",
    stream_events,
    methods=["GET"],
    response_class=EventSourceResponse,
    route_class_override=EventStreamRoute,
    include_in_schema=False,
)


@router.get(
    "",
    response_model=EventPage,
    responses=problems(404, 422, 503)
    | {
        200: {
            "description": "A page; or with `Accept: text/event-stream` a stream that ends with the event `done`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "Stream only: the job has ended and `Last-Event-ID` was its last event."},
    },
)
def list_events(
    job_id: JobId,
    store: Store,
    response: Response,
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Events on the page.")] = 100,
) -> EventPage:
    """A job's events in order: JSON, or a live stream for `Accept: text/event-stream`."""
    found = store.events(job_id, after, limit + 1)
    page = [EventObject.of(event) for event in found[:limit]]
    has_more = len(found) > limit
    if has_more:
        link_to_next(response, f"/v1/jobs/{job_id}/events", after=page[-1].seq, limit=limit)
    return EventPage(data=page, has_more=has_more)
