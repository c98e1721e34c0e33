"""What happened to a job, in order: appended under the job's row lock, so that `seq` has no gaps."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from store.database import CHUNK, chunks, db_now
from store.models import EVENTS, JOB_ENDED, JOB_STAGES, JOBS, Event

_STAGES, _TOLD = bindparam("stages", expanding=True), bindparam("told", expanding=True)
_WANTING = (
    select(JOBS.c.id)
    .where(
        JOBS.c.id.in_(select(JOB_STAGES.c.job_id).where(JOB_STAGES.c.stage_id.in_(_STAGES))),
        JOBS.c.state.not_in(JOB_ENDED),
    )
    .order_by(JOBS.c.id)
)
_LOCK, _LOCK_FREE = _WANTING.with_for_update(), _WANTING.with_for_update(skip_locked=True)
_LOCK_MANY = (
    select(JOBS.c.id).where(JOBS.c.id.in_(_TOLD), JOBS.c.state.not_in(JOB_ENDED)).order_by(JOBS.c.id).with_for_update()
)
NUMBER = (
    update(JOBS)
    .where(JOBS.c.id.in_(_TOLD))
    .values(last_event=JOBS.c.last_event + 1)
    .returning(JOBS.c.id, JOBS.c.last_event)
)
"""Takes the next number of jobs; whoever changes more of them with the event adds to it."""
_APPEND = insert(EVENTS).values(at=db_now())


def first(session: Session, job_id: int, kind: str, data: dict[str, Any]) -> None:
    """Write the first event of a job made in this transaction with `last_event` 1."""
    session.execute(_APPEND, {"job_id": job_id, "seq": 1, "kind": kind, "data": data})


def append(
    session: Session, job_ids: Sequence[int], kind: str, data: dict[str, Any], number: Any = NUMBER, **more: Any
) -> list[Any]:
    """Append one event to each of the locked jobs; return the rows of `number`, which takes the parameters `more`."""
    if not job_ids:
        return []
    told = sorted(session.execute(number, {"told": job_ids, **more}))
    rows = [{"job_id": job.id, "seq": job.last_event, "kind": kind, "data": data} for job in told]
    session.execute(_APPEND, rows)
    return told


def lock_jobs(session: Session, stage_ids: Iterable[int]) -> list[int]:
    """Return the live jobs that want one of the stages, locked, in id order."""
    wanted = list(stage_ids)
    if not wanted:
        return []
    if len(wanted) <= CHUNK:
        return list(session.scalars(_LOCK, {"stages": wanted}))
    found = {job_id for chunk in chunks(wanted) for job_id in session.scalars(_WANTING, {"stages": chunk})}
    return [job_id for chunk in chunks(sorted(found)) for job_id in session.scalars(_LOCK_MANY, {"told": chunk})]


def lock_all_jobs_now(session: Session, stage_id: int) -> bool:
    """Return whether all live jobs that want the stage are locked; none that somebody else holds is waited for."""
    locked = session.scalars(_LOCK_FREE, {"stages": [stage_id]}).all()
    return len(session.scalars(_WANTING, {"stages": [stage_id]}).all()) == len(locked)


def tell_jobs(
    session: Session, stage_ids: Iterable[int], kind: str, data: dict[str, Any], number: Any = NUMBER, **more: Any
) -> list[Any]:
    """Append an event, as `append` does, to every live job that wants one of the stages, locked in id order."""
    return append(session, lock_jobs(session, stage_ids), kind, data, number, **more)


def since(session: Session, job_id: int, seq: int, limit: int = 500) -> list[Event]:
    """Return the events of a job after `seq`, oldest first."""
    query = select(Event).where(Event.job_id == job_id, Event.seq > seq).order_by(Event.seq).limit(limit)
    return list(session.scalars(query))
