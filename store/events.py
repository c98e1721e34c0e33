"""What happened to a job, in order: appended under the job's row lock, so that `seq` has no gaps."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from store.database import db_now
from store.models import JOB_ENDED, Event, Job, JobStage


def append(session: Session, job_id: int, kind: str, data: dict[str, Any]) -> None:
    """Append one event to a job."""
    seq = session.scalar(
        update(Job).where(Job.id == job_id).values(last_event=Job.last_event + 1).returning(Job.last_event)
    )
    session.execute(insert(Event).values(job_id=job_id, seq=seq, at=db_now(), kind=kind, data=data))


def lock_jobs(session: Session, stage_ids: Iterable[int], *, skip_locked: bool = False) -> list[int]:
    """Return the live jobs that want one of the stages, locked, in id order; maybe without those others hold."""
    jobs = session.scalars(
        select(Job.id)
        .where(
            Job.id.in_(select(JobStage.job_id).where(JobStage.stage_id.in_(list(stage_ids)))),
            Job.state.not_in(JOB_ENDED),
        )
        .order_by(Job.id)
        .with_for_update(skip_locked=skip_locked)
    )
    return list(jobs)


def tell_jobs(session: Session, stage_ids: Iterable[int], kind: str, data: dict[str, Any]) -> list[int]:
    """Append an event to every live job that wants one of the stages; return those jobs, locked, in id order."""
    jobs = lock_jobs(session, stage_ids)
    for job_id in jobs:
        append(session, job_id, kind, data)
    return jobs


def since(session: Session, job_id: int, seq: int, limit: int = 500) -> list[Event]:
    """Return the events of a job after `seq`, oldest first."""
    query = select(Event).where(Event.job_id == job_id, Event.seq > seq).order_by(Event.seq).limit(limit)
    return list(session.scalars(query))
