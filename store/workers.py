"""Workers and named leases in SQL."""

from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, delete, insert, or_, select, update
from sqlalchemy.orm import Session

from store.database import db_now, insert_for
from store.models import WORKERS, Lease, Worker

KEEPER = "keeper"
"""Name of the lease that the acting keeper holds."""
KEPT = "keeper, all duties"
"""Name of the lease that nobody ever holds: it expired when a keeper had last done all its duties."""
KEPT_SECONDS, KEPT_TICKS = 60.0, 20
"""A keeper is well that has done all its duties within so long, or so many of its ticks where that is longer."""
LONGEST_SECONDS = 60.0
"""No named lease is taken for longer, unless what is now asked for is."""
FORGET_SECONDS = 7 * 86400.0


def is_alive(alive_seconds: Any) -> ColumnElement[bool]:
    """Return the SQL condition that a worker lives.

    What it reported in the future it reported before the database's clock was set back.
    """
    return and_(WORKERS.c.seen_at > db_now() - alive_seconds, WORKERS.c.seen_at < db_now() + alive_seconds)


_QUEUES = select(WORKERS.c.queues).where(is_alive(bindparam("alive")), WORKERS.c.draining.is_(False))
_QUEUES_OF_CUDA = _QUEUES.where(WORKERS.c.device == "cuda")
_REPORT = (
    update(WORKERS)
    .where(WORKERS.c.incarnation == bindparam("me"))
    .values(seen_at=db_now())
    .returning(WORKERS.c.incarnation)
)


def register(session: Session, row: dict[str, Any]) -> None:
    """Enter a worker process that has just started."""
    session.execute(insert(Worker).values(**row, started_at=db_now(), seen_at=db_now()))


def report(session: Session, incarnation: str, stage_id: int | None, draining: bool) -> bool:
    """Return whether the worker is known, after noting that it lives and what it works on."""
    return session.scalar(_REPORT, {"me": incarnation, "stage_id": stage_id, "draining": draining}) is not None


def leave(session: Session, incarnation: str) -> None:
    """Note that a worker has ended."""
    session.execute(update(Worker).where(Worker.incarnation == incarnation).values(stage_id=None, seen_at=0.0))


def all_workers(session: Session, alive_seconds: float) -> list[tuple[Worker, bool, float]]:
    """Return every known worker with whether it is alive and the seconds since it reported, newest first."""
    age = db_now() - Worker.seen_at
    rows = session.execute(select(Worker, age).where(Worker.seen_at > 0).order_by(Worker.started_at.desc()))
    return [(worker, abs(float(seconds)) <= alive_seconds, float(seconds)) for worker, seconds in rows]


def live_queues(session: Session, alive_seconds: float) -> set[str]:
    """Return the queues that at least one live worker takes stages of; one that drains takes no more."""
    return {queue for queues in session.scalars(_QUEUES, {"alive": alive_seconds}) for queue in queues}


def has_live_cuda(session: Session, alive_seconds: float) -> bool:
    """Return whether a live worker that goes on takes the stages of a CUDA device."""
    return any("gpu" in queues for queues in session.scalars(_QUEUES_OF_CUDA, {"alive": alive_seconds}))


def forget_old(session: Session) -> None:
    """Delete workers that have not been seen for a week."""
    session.execute(delete(Worker).where(Worker.seen_at < db_now() - FORGET_SECONDS))


def hold(session: Session, name: str, owner: str, seconds: float) -> bool:
    """Return whether `owner` holds the named lease, taking it where it is free or expired.

    One that ends later than any would is of a clock that was set back.
    """
    claim = insert_for(session, Lease).values(name=name, owner=owner, expires=db_now() + seconds)
    taken = claim.on_conflict_do_update(
        index_elements=[Lease.name],
        set_={"owner": owner, "expires": db_now() + seconds},
        where=or_(
            Lease.owner == owner,
            Lease.expires <= db_now(),
            Lease.expires > db_now() + max(LONGEST_SECONDS, seconds),
        ),
    ).returning(Lease.owner)
    return session.scalar(taken) == owner


def lease_age(session: Session, name: str) -> float | None:
    """Return the seconds until the named lease expires (negative: expired), None where nobody ever held it."""
    return session.scalar(select(Lease.expires - db_now()).where(Lease.name == name))


def keeper_trouble(session: Session, keeper_seconds: float) -> str | None:
    """Return what is wrong with the keeper, None where one acts and does all its duties."""
    longest = max(KEPT_SECONDS, KEPT_TICKS * keeper_seconds)  # ahead, too: a clock may have been set back
    if not 0 < (lease_age(session, KEEPER) or 0.0) <= longest:
        return "no keeper is running: start one with `python -m worker.keeper`"
    kept = lease_age(session, KEPT)
    if kept is None or abs(kept) > longest:
        return "a duty of the keeper fails each time: its log says which and why"
    return None
