"""What happened to a job, as server-sent events that can be replayed from any point."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from api.errors import RESPONSES, Invalid, NotFound
from api.forms import json_answer
from api.routes.jobs import JobId
from api.schemas import EventReply
from api.service import Service, ServiceDep
from store import events, jobs
from store.database import AWAY
from store.models import JOB_ENDED

router = APIRouter(tags=["jobs"], responses=RESPONSES)

POLL_SECONDS = 0.5
STREAM_SECONDS = 600.0
"""A stream ends after this long; the client reconnects with Last-Event-ID and misses nothing."""


@router.get("/jobs/{job_id}/history", response_model=list[EventReply])
def history(
    job_id: JobId,
    service: ServiceDep,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Events up to this number are left out.")] = 0,
    limit: Annotated[int, Query(ge=1, le=5000, description="Events at most.")] = 1000,
) -> Response:
    """List what happened to a job, oldest first; numbers have no gaps."""
    found, _ = _read(service, job_id, after, limit)
    return json_answer(found)


def _start(
    job_id: JobId,
    service: ServiceDep,
    last_event_id: Annotated[str | None, Header(max_length=20, description="Where to go on from.")] = None,
) -> int:
    """Return the event to go on from. A dependency, so that what is wrong is said before the stream begins."""
    if last_event_id and not (last_event_id.isascii() and last_event_id.isdecimal()):
        raise Invalid("Last-Event-ID must be the id of an event of this stream, a whole number")
    seen = min(int(last_event_id or 0), 2**31 - 1)
    found, ended = _read(service, job_id, seen, 1)
    if last_event_id and ended and not found:
        raise NothingFollows
    return seen


class NothingFollows(Exception):
    """Who asks has seen the job's last event. A browser that meets 204 asks no more; after a stream's end it would."""


def on_nothing_follows(*_: object) -> Response:
    """Answer with nothing, for good."""
    return Response(status_code=204)


ENDED: dict[int | str, dict[str, Any]] = {204: {"description": "The job's last event is the one Last-Event-ID names."}}


@router.get("/jobs/{job_id}/events", response_class=EventSourceResponse, responses=ENDED)
async def stream(
    job_id: JobId, service: ServiceDep, seen: Annotated[int, Depends(_start)]
) -> AsyncIterator[ServerSentEvent]:
    """Stream what happens to a job: first what has happened since Last-Event-ID, then the rest as it comes.

    The stream ends with the job, after ten minutes, or when the service stops.
    """
    until = time.monotonic() + STREAM_SECONDS
    while not service.stopping and time.monotonic() < until:
        try:
            found, ended = await run_in_threadpool(_read, service, job_id, seen, 500)
        except AWAY:
            found, ended = [], False  # the stream waits; a browser that met 503 instead would give up for good
        for event in found:
            seen = event.seq
            yield ServerSentEvent(id=str(event.seq), event=event.kind, data=event.model_dump(mode="json"))
        if ended and not found:
            return
        if not found:
            await asyncio.sleep(POLL_SECONDS)


def _read(service: Service, job_id: int, after: int, limit: int) -> tuple[list[EventReply], bool]:
    """Return events after `after`, and whether the job had ended before they were read."""
    with service.database.read() as session:
        job = jobs.by_id(session, job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id}")
        ended = job.state in JOB_ENDED
        rows: list[Any] = events.since(session, job_id, after, limit)
        return [EventReply(seq=row.seq, at=row.at, kind=row.kind, data=row.data) for row in rows], ended
