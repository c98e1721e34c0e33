"""What the keeper does to stages: takes back those of dead workers, rings unheard ones again, mends stranded ones."""

from sqlalchemy import and_, exists, func, literal, or_, select, update
from sqlalchemy.orm import Session

from store import events, stages, workers
from store.database import chunks, db_now
from store.models import JOB_LIVE, LIVE, STAGES, Job, JobStage, JobState, Stage, Worker
from store.stages import IS_BLOCKED, IS_READY, IS_RUNNING, Bell

_EXPIRED = (IS_RUNNING, STAGES.c.lease_expires <= db_now())


def shorten(session: Session, lease_seconds: float) -> None:
    """Let no lease end much later than one that is granted now: it is of a clock that was set back.

    A worker that lives renews its own long before; that of a dead one would keep its stage for as long as the jump was.
    """
    ahead = (IS_RUNNING, STAGES.c.lease_expires > db_now() + 2 * lease_seconds)
    found = session.scalars(select(Stage.id).where(*ahead).order_by(Stage.id).with_for_update(skip_locked=True)).all()
    for some in chunks(found):
        session.execute(update(Stage).where(Stage.id.in_(some)).values(lease_expires=db_now() + lease_seconds))


def orphans(session: Session, limit: int = 100) -> list[int]:
    """Return running stages whose lease has expired."""
    return list(session.scalars(select(Stage.id).where(*_EXPIRED).order_by(Stage.id).limit(limit)))


def reap(session: Session, stage_id: int, max_losses: int) -> list[Bell]:
    """Take back a stage whose lease has expired; return its bell, where it may run again.

    Where somebody else holds one of the rows this changes, a stopped process maybe, it waits for the next time.
    """
    row = session.execute(
        select(Stage.id, Stage.fence, Stage.cancel_requested, Stage.losses, Stage.lease_owner)
        .where(Stage.id == stage_id, *_EXPIRED)
        .with_for_update(skip_locked=True)
    ).one_or_none()
    if row is None:
        return []
    if row.losses + 1 >= max_losses and not _lock_all_below_now(session, stage_id):
        return []
    if not events.lock_all_jobs_now(session, stage_id):
        return []
    return stages.end_as_lost(session, row, max_losses, f"worker {row.lease_owner} stopped renewing its lease")


def _lock_all_below_now(session: Session, stage_id: int) -> bool:
    """Return whether all that ends with the stage is locked."""
    doomed = stages.below(stage_id, *LIVE)
    locked = session.scalars(doomed.order_by(STAGES.c.id).with_for_update(skip_locked=True)).all()
    return session.scalar(select(func.count()).select_from(doomed.subquery())) == len(locked)


def next_blocked(session: Session, after: int, limit: int = 5_000) -> range:
    """Return the ids among which the next `limit` blocked stages after that id are; empty behind the last."""
    some = select(Stage.id).where(IS_BLOCKED, Stage.id > after).order_by(Stage.id).limit(limit).subquery()
    first, last = session.execute(select(func.min(some.c.id), func.max(some.c.id))).one()
    return range(0) if first is None else range(first, last + 1)


def repair(session: Session, among: range | None = None, limit: int = 200) -> tuple[list[Bell], int]:
    """Return what should have been woken or rolled up and was not, now mended: bells, and a count that should be 0.

    Blocked stages are looked at `among` those ids only, where it is given: the keeper takes them in turns.
    """
    chosen = [IS_BLOCKED] if among is None else [IS_BLOCKED, Stage.id >= among.start, Stage.id < among.stop]
    stranded = session.scalars(
        select(Stage.id)
        .where(*chosen, ~stages.unfinished_parents())
        .order_by(Stage.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    bells = stages.wake(session, stranded)
    live = exists(
        select(literal(1))
        .select_from(JobStage)
        .join(Stage, Stage.id == JobStage.stage_id)
        .where(JobStage.job_id == Job.id, Stage.state.in_(LIVE))
    )
    finished = session.scalars(
        select(Job.id)
        .where(or_(Job.state == JobState.CANCELLING, and_(Job.state.in_(JOB_LIVE), ~live)))
        .order_by(Job.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    stages.recount(session, finished)
    return bells, len(bells) + sum(stages.roll_up(session, job_id) for job_id in finished)


def unheard(session: Session, alive_seconds: float, resend_seconds: float) -> list[Bell]:
    """Return ready stages to ring again: as many per queue as it has idle workers, none rung a moment ago.

    What was rung in the future was rung before the database's clock was set back.
    """
    idle = session.execute(
        select(Worker.queues).where(
            workers.is_alive(alive_seconds), Worker.stage_id.is_(None), Worker.draining.is_(False)
        )
    ).all()
    bells: list[Bell] = []
    for queue in sorted({queue for (queues,) in idle for queue in queues}):
        hands = sum(queue in queues for (queues,) in idle)
        ready = session.scalars(
            select(Stage.id)
            .where(
                Stage.queue == queue,
                IS_READY,
                stages.is_due(),
                or_(Stage.announced_at <= db_now() - resend_seconds, Stage.announced_at > db_now()),
            )
            .order_by(Stage.priority.desc(), Stage.id)
            .limit(hands)
            .with_for_update(skip_locked=True)
        ).all()
        bells += [Bell(stage_id, queue) for stage_id in ready]
    session.execute(update(Stage).where(Stage.id.in_([bell.stage_id for bell in bells])).values(announced_at=db_now()))
    return bells
