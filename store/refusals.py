"""Stages that a worker could not run through no fault of theirs: they go back unharmed, and are left to other workers.

A worker that lacks a dataset, a device or the right code would else fail every stage it claims, faster than healthy
workers can run them. It leaves the dataset's stages to those that have not refused them for the same reason; where
nobody is left, it takes them again, and after `patience` a stage fails with the reason.
"""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store import stages, workers
from store.database import db_now
from store.models import Attempt, Stage, Worker
from store.stages import REFUSED, Bell, StaleFence

REMEMBERED_SECONDS = 300.0
"""For so long a worker leaves to others what it has refused; the files may have come meanwhile."""
AGAIN_SECONDS = 15.0
"""Between two attempts at a stage that every live worker has refused."""


def refuse(
    session: Session, stage_id: int, fence: int, error: dict[str, Any], *, alive_seconds: float, patience: float
) -> list[Bell]:
    """Return the bell of a stage given back; it fails where every live worker refused it, `patience` seconds long.

    `error` holds the `cause`, which says what other stages of the dataset would meet too, and the `message`.

    Raises:
        StaleFence: the claim is lost; nothing was written.
    """
    held = session.execute(
        select(Stage.queue, Stage.dataset, Stage.lease_owner).where(stages.is_held(stage_id, fence)).with_for_update()
    ).one_or_none()
    if held is None:
        raise StaleFence
    if _others(session, held.lease_owner, held.queue, held.dataset, error["cause"], alive_seconds):
        return stages.release(session, stage_id, fence, error)
    if _refused_for(session, stage_id) < patience:
        stages.release(session, stage_id, fence, error, AGAIN_SECONDS)
    else:
        stages.fail(session, stage_id, fence, error, final=True, max_failures=1)
    return []


def left_to_others(session: Session, worker: str, alive_seconds: float) -> set[tuple[str, str]]:
    """Return the pairs of a queue and a dataset that `worker` has refused lately, and another live one has not."""
    cause = Attempt.error["cause"].as_string()
    mine = select(Stage.queue, Stage.dataset, cause).join(Stage, Stage.id == Attempt.stage_id).distinct()
    rows = session.execute(mine.where(Attempt.worker == worker, *_lately()))
    return {
        (queue, dataset) for queue, dataset, why in rows if _others(session, worker, queue, dataset, why, alive_seconds)
    }


def by_worker(session: Session) -> dict[str, list[str]]:
    """Return worker -> what it could not run lately, and why."""
    message = Attempt.error["message"].as_string()
    found: dict[str, list[str]] = {}
    for worker, why in session.execute(select(Attempt.worker, message).where(*_lately()).distinct()):
        found.setdefault(worker, []).append(why)
    return found


def _lately() -> tuple[Any, ...]:
    """Return the SQL conditions of what was refused lately; long after now ends what a clock saw that was set back."""
    return (
        Attempt.outcome == REFUSED,
        Attempt.ended_at > db_now() - REMEMBERED_SECONDS,
        Attempt.ended_at <= db_now() + REMEMBERED_SECONDS,
    )


def _others(session: Session, worker: str, queue: str, dataset: str, cause: str, alive_seconds: float) -> bool:
    """Return whether another live worker serves the queue that has not refused this dataset for this cause."""
    refused = (
        select(Attempt.worker)
        .join(Stage, Stage.id == Attempt.stage_id)
        .where(*_lately(), Stage.dataset == dataset, Attempt.error["cause"].as_string() == cause)
    )
    others = select(Worker.queues).where(
        workers.is_alive(alive_seconds),
        Worker.draining.is_(False),
        Worker.incarnation != worker,
        Worker.incarnation.not_in(refused),
    )
    return any(queue in queues for queues in session.scalars(others))


def _refused_for(session: Session, stage_id: int) -> float:
    """Return the seconds since the first of the stage's newest attempts that were all refused."""
    mine = Attempt.stage_id == stage_id
    last_other = select(func.max(Attempt.fence)).where(mine, Attempt.outcome != REFUSED).scalar_subquery()
    first = select(func.min(Attempt.started_at)).where(
        mine, Attempt.outcome == REFUSED, Attempt.fence > func.coalesce(last_other, 0)
    )
    since = session.scalar(select(db_now() - first.scalar_subquery()))
    return max(0.0, since or 0.0)
