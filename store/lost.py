"""Results whose bytes the store has lost: withdrawn, kept on record, and their stages run again.

The one exception to "results never change". What was computed from the lost bytes stands, for they were verified when
they were read: it is withdrawn only where the stage comes to other bytes when it runs again.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Select, and_, bindparam, delete, exists, func, insert, literal, select, update
from sqlalchemy.orm import Session, aliased

from core.stages import DESCRIPTIONS
from store import events, stages, tallies
from store.database import chunks, db_now
from store.models import (
    LOST_RESULTS,
    Checkpoint,
    Evaluation,
    LostResult,
    Result,
    Stage,
    StageArtifact,
    StageLog,
    StageParent,
    StageState,
)
from store.stages import Bell, StaleFence, StoredArtifact

MAX_WITHDRAWN = 3
"""Results of a stage that workers may find lost. A store that loses them again and again needs a person."""


def report(session: Session, stage_id: int, fence: int, sha256: str, reason: str) -> list[Bell] | None:
    """Return the bells of the stages that run again, because a worker found an artifact of their result lost.

    The worker's own stage, which cannot go on without it, waits for them, and no failure is counted. None where
    nothing is to be had by running anything again.

    Raises:
        StaleFence: the worker's claim is lost; nothing was written.
    """
    holders = _holders(session, sha256)
    _lock(session, [*holders, stage_id], _children(session, holders))
    if session.scalar(select(Stage.id).where(stages.is_held(stage_id, fence))) is None:
        raise StaleFence
    often = (
        select(LostResult.stage_id)
        .where(LostResult.stage_id.in_(select(StageArtifact.stage_id).where(StageArtifact.sha256 == sha256)))
        .group_by(LostResult.stage_id)
        .having(func.count() >= MAX_WITHDRAWN)
    )
    if not holders or session.scalars(often).first() is not None:
        return None
    return withdraw(session, holders, reason)


def lacks_parent(session: Session, stage_id: int) -> bool:
    """Return whether a parent of the stage has no result, or has it no more."""
    return session.scalar(select(Stage.id).where(Stage.id == stage_id, stages.unfinished_parents())) is not None


def _holders(session: Session, sha256: str) -> list[int]:
    """Return the stages whose result has the artifact."""
    query = select(StageArtifact.stage_id).where(StageArtifact.sha256 == sha256).order_by(StageArtifact.stage_id)
    return list(dict.fromkeys(session.scalars(query)))


def withdraw_artifact(session: Session, sha256: str, reason: str) -> list[Bell]:
    """Return the bells of the stages that run again because this artifact of theirs is lost.

    A checkpoint that is lost is forgotten: the one before it is as good.
    """
    session.execute(delete(Checkpoint).where(Checkpoint.sha256 == sha256))
    return withdraw(session, _holders(session, sha256), reason)


def withdraw(session: Session, stage_ids: Sequence[int], reason: str) -> list[Bell]:
    """Return the bells of those of the stages that have succeeded, after putting their results on record and aside.

    Where a live job wants such a stage it runs again now; else the next job that asks for it revives it. What waited
    for it, or had begun, is blocked until it has succeeded.
    """
    _lock(session, stage_ids, _children(session, stage_ids))
    children = _children(session, stage_ids)  # a job may have come until now, and can no more
    _lock(session, children)
    succeeded = select(Stage.id).where(Stage.state == StageState.SUCCEEDED)
    mine = [row.id for row in _rows(session, succeeded, stage_ids)]
    if not mine:
        return []
    jobs = events.lock_jobs(session, [*mine, *children])
    for stage_id in mine:
        _put_aside(session, stage_id, reason)
    _block(session, children, reason)
    _revive(session, mine, reason)
    for row in _rows(session, select(Stage.id, Stage.key, Stage.title), mine):
        told = {"key": row.key, "title": row.title, "message": reason}
        events.tell_jobs(session, [row.id], "stage.withdrawn", told)
    bells = stages.wake(session, mine)
    stages.recount(session, jobs)
    for job_id in jobs:
        stages.roll_up(session, job_id)
    tallies.recount(session, mine)
    return bells


def _rows(session: Session, query: Select[*tuple[Any, ...]], stage_ids: Iterable[int]) -> list[Any]:
    """Return the rows of a query on stages for those among so many, by id."""
    return [
        row
        for chunk in chunks(sorted(set(stage_ids)))
        for row in session.execute(query.where(Stage.id.in_(chunk)).order_by(Stage.id))
    ]


def _children(session: Session, stage_ids: Sequence[int]) -> list[int]:
    """Return the children that have begun, and those that may by the hand of somebody who sees no withdrawal yet.

    Another parent's success makes a blocked one ready, its own withdrawal one that has succeeded. Jobs, which revive
    the failed and cancelled ones, lock the parents first.
    """
    dead = (StageState.FAILED, StageState.CANCELLED)
    query = select(Stage.id).join(StageParent, StageParent.stage_id == Stage.id).where(Stage.state.not_in(dead))
    of = (query.where(StageParent.parent_id.in_(chunk)) for chunk in chunks(stage_ids))
    return [child for some in of for child in session.scalars(some)]


def _lock(session: Session, *stage_ids: Sequence[int]) -> None:
    _rows(session, select(Stage.id).with_for_update(), {one for some in stage_ids for one in some})


def _put_aside(session: Session, stage_id: int, reason: str) -> None:
    """Move the stage's result among the lost ones, and say so in its log."""
    found = session.execute(select(Result.__table__).where(Result.stage_id == stage_id)).mappings().one()
    here = select(StageArtifact.name, StageArtifact.sha256).where(StageArtifact.stage_id == stage_id)
    artifacts = {row.name: row.sha256 for row in session.execute(here)}
    session.execute(insert(LostResult).values(**found, artifacts=artifacts, reason=reason, withdrawn_at=db_now()))
    for table in (StageArtifact, Result):
        session.execute(delete(table).where(table.stage_id == stage_id))
    session.execute(update(Evaluation).where(Evaluation.stage_id == stage_id).values(n=None, n_correct=None))
    line = f"its result under fence {found['fence']} is withdrawn: {reason}"
    session.execute(insert(StageLog).values(stage_id=stage_id, fence=found["fence"], at=db_now(), line=line))


def _block(session: Session, children: Sequence[int], reason: str) -> None:
    """Take back what has begun to work on the withdrawn results, and let all that needs them wait."""
    running = select(Stage.id, Stage.fence, Stage.cancel_requested).where(Stage.state == StageState.RUNNING)
    error = {"cause": "parent", "message": f"it waits for a stage that runs again: {reason}"}
    for child in _rows(session, running, children):
        state = StageState.CANCELLED if child.cancel_requested else StageState.BLOCKED
        stages.revoke(session, child.id, child.fence, state, error)
    for chunk in chunks(children):
        session.execute(
            update(Stage)
            .where(Stage.id.in_(chunk), Stage.state == StageState.READY)
            .values(state=StageState.BLOCKED, error=error)
        )


def _revive(session: Session, mine: Sequence[int], reason: str) -> None:
    """Give the stages a new life where a live job wants them and what they need can be had; end the others."""
    parent = aliased(Stage)
    hopeless = exists(
        select(literal(1))
        .select_from(StageParent)
        .join(parent, parent.id == StageParent.parent_id)
        .where(
            StageParent.stage_id == Stage.id,
            parent.state.in_([StageState.FAILED, StageState.CANCELLED]),
        )
    )
    error = {"cause": "lost", "message": f"its result is withdrawn; a job that asks for it runs it again: {reason}"}
    fresh = {"failures": 0, "losses": 0, "not_before": 0.0, "announced_at": 0.0, "error": error}
    for stage_id in mine:  # parents come before their children
        lives = and_(stages.wanted_by_live_job(), ~hopeless)
        wanted = session.scalar(select(lives).select_from(Stage).where(Stage.id == stage_id))
        ended = {"state": StageState.CANCELLED, "finished_at": db_now()}
        values = {"state": StageState.BLOCKED, "finished_at": None} if wanted else ended
        session.execute(update(Stage).where(Stage.id == stage_id).values(**fresh, **values))


def succeed(
    session: Session, stage_id: int, fence: int, payload: dict[str, Any], environment: dict[str, Any],
    artifacts: Sequence[StoredArtifact], lines: Iterable[tuple[float, str]] = (),
) -> list[Bell]:  # fmt: skip
    """Publish a stage's result as `stages.succeed` does; what rests upon other bytes of an earlier result goes.

    Raises:
        StaleFence: the claim is lost; nothing was written.
    """
    outdated = _resting_on_other_bytes(session, stage_id, artifacts)
    if outdated:
        children = session.scalars(select(StageParent.stage_id).where(StageParent.parent_id == stage_id))
        _lock(session, [stage_id], outdated, list(children), _children(session, outdated))
        title = session.scalar(select(Stage.title).where(stages.is_held(stage_id, fence)))
        if title is not None:  # before the result is there: a job ends with the last of its stages
            withdraw(session, outdated, f"{title} came to other bytes when it ran again")
    return stages.succeed(session, stage_id, fence, payload, environment, artifacts, lines)


_LAST_LOST = (
    select(LOST_RESULTS.c.artifacts)
    .where(LOST_RESULTS.c.stage_id == bindparam("stage"))
    .order_by(LOST_RESULTS.c.fence.desc())
    .limit(1)
)


def _resting_on_other_bytes(session: Session, stage_id: int, artifacts: Sequence[StoredArtifact]) -> list[int]:
    """Return the succeeded stages below one whose withdrawn result had other bytes than these."""
    before = session.scalars(_LAST_LOST, {"stage": stage_id}).first()
    after = {artifact.name: artifact.sha256 for artifact in artifacts}
    if before is None or _without_descriptions(before) == _without_descriptions(after):
        return []
    return list(session.scalars(stages.below(stage_id, StageState.SUCCEEDED)))


def _without_descriptions(artifacts: dict[str, str]) -> dict[str, str]:
    return {name: sha256 for name, sha256 in artifacts.items() if name not in DESCRIPTIONS}
