"""Idempotency-Keys: one request of a key at a time, one job of a key for ever, and one answer.

A request first takes the key for itself, in a transaction of its own, for as long as a lease lasts: one that dies
blocks its key no longer. The job and the key's tie to it are one transaction.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, insert, or_, select, update
from sqlalchemy.orm import Session

from store.database import db_now, insert_for
from store.models import IdempotencyKey


@dataclass(frozen=True)
class Known:
    """A key that a request has taken."""

    request_sha256: str
    owner: str | None
    job_id: int | None
    """None while that request is in progress."""
    answer: str | None


def known(session: Session, key: str) -> Known | None:
    """Return what is known of a key, None where it is new or its request has died."""
    row = session.execute(
        select(IdempotencyKey.request_sha256, IdempotencyKey.owner, IdempotencyKey.job_id, IdempotencyKey.answer)
        .where(IdempotencyKey.key == key)
        .where(IdempotencyKey.job_id.is_not(None) | ~_died())
    ).one_or_none()
    return None if row is None else Known(*row)


def _died() -> ColumnElement[bool]:
    """Return the SQL condition that a request has had its time, as one from before a clock was set back has."""
    return or_(IdempotencyKey.expires <= db_now(), IdempotencyKey.created_at > db_now())


def take(session: Session, key: str, request_sha256: str, owner: str, seconds: float) -> bool:
    """Return whether the request of `owner` has the key now, for so long."""
    mine = {"request_sha256": request_sha256, "owner": owner, "expires": db_now() + seconds, "created_at": db_now()}
    taken = (
        insert_for(session, IdempotencyKey)
        .values(key=key, **mine)
        .on_conflict_do_update(
            index_elements=[IdempotencyKey.key],
            set_=mine,
            where=IdempotencyKey.job_id.is_(None) & _died(),
        )
        .returning(IdempotencyKey.owner)
    )
    return session.scalar(taken) == owner


def tie(session: Session, key: str, owner: str, job_id: int) -> bool:
    """Return whether the key is now tied to its job; not where its request took too long and lost it."""
    tied = update(IdempotencyKey).where(*_taken(key, owner)).values(job_id=job_id, expires=None)
    return session.scalar(tied.returning(IdempotencyKey.key)) is not None


def remember(session: Session, key: str, request_sha256: str, job_id: int) -> None:
    """Tie a new key to the job that was made in this same transaction, as an import does."""
    session.execute(
        insert(IdempotencyKey).values(key=key, request_sha256=request_sha256, job_id=job_id, created_at=db_now())
    )


def let_go(session: Session, key: str, owner: str) -> None:
    """Forget a key whose request has failed, so that it can be repeated at once."""
    session.execute(delete(IdempotencyKey).where(*_taken(key, owner)))


def _taken(key: str, owner: str) -> tuple[ColumnElement[bool], ...]:
    return IdempotencyKey.key == key, IdempotencyKey.owner == owner, IdempotencyKey.job_id.is_(None)


def settle(session: Session, key: str, answer: str) -> str:
    """Return the one answer of a key that has a job: the first that anybody wanted to give."""
    session.execute(
        update(IdempotencyKey)
        .where(IdempotencyKey.key == key, IdempotencyKey.answer.is_(None))
        .values(answer=answer)
    )  # fmt: skip
    return session.scalars(select(IdempotencyKey.answer).where(IdempotencyKey.key == key)).one() or answer
