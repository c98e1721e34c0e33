"""The life of a stage in SQL: claim, renew, succeed, fail, release, lose.

Every statement a worker causes names the fence it holds; with a stale fence it changes 0 rows. Locks are taken in
one order everywhere: stages by id, then jobs by id. Children are locked in a statement of their own before anyone
asks whether their parents are finished: under READ COMMITTED two parents finishing at once would else strand them.
"""

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    text,
    update,
)  # fmt: skip
from sqlalchemy.orm import Session

from store import events, tallies
from store.database import chunks, db_now, dialect_of, insert_in, storable
from store.models import (
    ARTIFACTS,
    ATTEMPTS,
    CHECKPOINTS,
    ENDED,
    EVALUATIONS,
    JOB_ENDED,
    JOBS,
    LIVE,
    PARENTS,
    RESULTS,
    STAGE_ARTIFACTS,
    STAGE_LOGS,
    STAGES,
    Artifact,
    Attempt,
    Checkpoint,
    Job,
    JobStage,
    JobState,
    Result,
    Stage,
    StageArtifact,
    StageLog,
    StageParent,
    StageState,
)

KEPT_CHECKPOINTS = 2
REFUSED = "refused"
"""How an attempt ends whose worker could not run the stage; store/refusals.py has the rest."""
MEASURED = 200
"""Newest trainings and craftings whose speed foretells that of the next."""
TELLING_SECONDS = 1.0
"""What takes less tells of files and start-up, and nothing of the device's speed."""
BACKOFF_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 60.0
JITTER = 0.25
"""Share by which a pause may differ, so that what failed together is not tried again together."""


def _is(state: StageState) -> Any:
    """Return the condition that a stage is in `state`, in a literal: a parameter would keep partial indexes out."""
    return STAGES.c.state == literal_column(f"'{state}'")


IS_READY, IS_BLOCKED, IS_RUNNING = _is(StageState.READY), _is(StageState.BLOCKED), _is(StageState.RUNNING)
IS_TRAIN, IS_DRAW = (STAGES.c.kind == literal_column(f"'{kind}'") for kind in ("train", "draw"))
"""Conditions on the rare kinds, which have partial indexes too."""
IS_TRAINED = and_(IS_TRAIN, _is(StageState.SUCCEEDED))


def backoff(seconds: float) -> float:
    """Return how long to wait before another attempt: `seconds`, at most MAX_BACKOFF_SECONDS, less up to JITTER."""
    return min(MAX_BACKOFF_SECONDS, seconds) * random.uniform(1 - JITTER, 1.0)


class StaleFence(Exception):
    """The stage has moved on since it was claimed; nothing was written."""


@dataclass(frozen=True)
class Claim:
    """The right to work on a stage, as long as its fence is the stage's."""

    stage_id: int
    fence: int
    key: str
    kind: str
    title: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class Bell:
    """A stage that became ready, for whoever rings the workers."""

    stage_id: int
    queue: str


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact that is already in the store, on its way into SQL."""

    name: str
    sha256: str
    size: int
    media_type: str


def is_due() -> Any:
    """Return the SQL condition that no backoff keeps a stage; one longer than any is of a clock that was set back."""
    return or_(STAGES.c.not_before <= db_now(), STAGES.c.not_before > db_now() + MAX_BACKOFF_SECONDS)


def is_held(stage_id: Any, fence: Any) -> Any:
    """Return the SQL condition that the stage runs under this fence: what every write of a worker asks."""
    return and_(STAGES.c.id == stage_id, STAGES.c.fence == fence, STAGES.c.state == StageState.RUNNING)


# Of an UPDATE below, a parameter that is named like a column is SET (state, error, failures, losses, fence); what is
# only compared has another name, as the fence that is held has.
_STAGE, _FENCE = bindparam("stage"), bindparam("under")
_BEST = (
    select(STAGES.c.id)
    .where(STAGES.c.queue == bindparam("of"), IS_READY, is_due())
    .order_by(STAGES.c.priority.desc(), STAGES.c.id)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_START = (
    update(STAGES)
    .where(STAGES.c.id == _STAGE, STAGES.c.state == StageState.READY)
    .values(
        state=StageState.RUNNING,
        fence=STAGES.c.fence + 1,
        lease_owner=bindparam("worker"),
        lease_expires=db_now() + bindparam("lease"),
        started_at=func.coalesce(STAGES.c.started_at, db_now()),
        progress=None,
    )
    .returning(STAGES.c.id, STAGES.c.fence, STAGES.c.key, STAGES.c.kind, STAGES.c.title, STAGES.c.spec)
)
_ATTEMPT = insert(ATTEMPTS).values(started_at=db_now())
_QUEUED = JOBS.c.state == JobState.QUEUED
_BEGIN = events.NUMBER.values(
    state=case((_QUEUED, JobState.RUNNING), else_=JOBS.c.state),
    started_at=case((_QUEUED, db_now()), else_=JOBS.c.started_at),
)
_HELD = select(STAGES.c.id).where(is_held(_STAGE, _FENCE)).with_for_update()
_LINES_SINCE = select(STAGE_LOGS.c.at, STAGE_LOGS.c.line).where(
    STAGE_LOGS.c.stage_id == _STAGE, STAGE_LOGS.c.fence == _FENCE, STAGE_LOGS.c.at >= bindparam("since")
)
_THIS_ATTEMPT = and_(ATTEMPTS.c.stage_id == _STAGE, ATTEMPTS.c.fence == _FENCE)
_LASTED = db_now() - select(ATTEMPTS.c.started_at).where(_THIS_ATTEMPT).scalar_subquery()
_END = (
    update(STAGES)
    .where(is_held(_STAGE, _FENCE))
    .values(
        lease_owner=None,
        lease_expires=None,
        cancel_requested=False,
        device_seconds=STAGES.c.device_seconds + case((_LASTED < 0, 0.0), else_=_LASTED),  # the clock was set back
    )
    .returning(STAGES.c.key, STAGES.c.kind, STAGES.c.title, STAGES.c.queue, STAGES.c.losses)
)
_END_FOR_GOOD = _END.values(finished_at=db_now())
_END_FOR_NOW = _END.values(finished_at=None, not_before=db_now() + bindparam("wait"))
_END_ATTEMPT = update(ATTEMPTS).where(_THIS_ATTEMPT).values(ended_at=db_now())
_RESULT = insert(RESULTS).values(created_at=db_now())
_FORGET_CHECKPOINTS = delete(CHECKPOINTS).where(CHECKPOINTS.c.stage_id == _STAGE)
_COUNT = update(EVALUATIONS).where(EVALUATIONS.c.stage_id == _STAGE)
_CHILDREN = (
    select(STAGES.c.id)
    .where(
        STAGES.c.id.in_(select(PARENTS.c.stage_id).where(PARENTS.c.parent_id == _STAGE)),
        STAGES.c.state == StageState.BLOCKED,
    )
    .order_by(STAGES.c.id)
    .with_for_update()
)
_SETTLE = events.NUMBER.values(unfinished=JOBS.c.unfinished - 1).returning(JOBS.c.unfinished, JOBS.c.cancel_requested)


def claim(
    session: Session, queues: Sequence[str], worker: str, lease_seconds: float,
    without: Collection[tuple[str, str]] = (),
) -> Claim | None:  # fmt: skip
    """Return the best ready stage of the first queue that has one, now running under a new fence.

    `without` are pairs of a queue and a dataset whose stages are left to other workers.
    """
    for queue in queues:
        left = [dataset for where, dataset in without if where == queue]
        best = _BEST.where(STAGES.c.dataset.not_in(left)) if left else _BEST
        stage_id = session.scalar(best, {"of": queue})
        if stage_id is not None:
            return _start(session, stage_id, worker, lease_seconds)
    return None


def claim_one_of(session: Session, keys: Sequence[str], worker: str, lease_seconds: float) -> Claim | None:
    """Return the first ready stage among `keys`, now running under a new fence, whatever its queue.

    The worker has its result already, so a backoff has nothing to wait for.
    """
    if not keys:
        return None
    ready = (
        select(Stage.id)
        .where(Stage.key.in_(keys), Stage.state == StageState.READY)
        .order_by(Stage.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    stage_id = session.scalar(ready)
    return None if stage_id is None else _start(session, stage_id, worker, lease_seconds)


def unheard_claim(session: Session, worker: str, lease_seconds: float, known: Claim | None = None) -> Claim | None:
    """Return what a worker holds without knowing, with its lease pushed out: the answer to its claim was lost.

    The last claim it has heard of, `known`, is not meant: work that it gave up is left to its lease.
    """
    heard = and_(Stage.id == known.stage_id, Stage.fence == known.fence) if known else false()
    held = session.execute(
        select(Stage.id, Stage.fence, Stage.key, Stage.kind, Stage.title, Stage.spec)
        .where(Stage.state == StageState.RUNNING, Stage.lease_owner == worker, ~heard)
        .order_by(Stage.id)
        .limit(1)
        .with_for_update()
    ).one_or_none()
    if held is None:
        return None
    renew(session, held.id, held.fence, lease_seconds, None)
    return Claim(held.id, held.fence, held.key, held.kind, held.title, held.spec)


def _start(session: Session, stage_id: int, worker: str, lease_seconds: float) -> Claim:
    stage = session.execute(_START, {"stage": stage_id, "worker": worker, "lease": lease_seconds}).one()
    session.execute(_ATTEMPT, {"stage_id": stage.id, "fence": stage.fence, "worker": worker})
    events.tell_jobs(session, [stage_id], "stage.running", {"key": stage.key, "title": stage.title}, _BEGIN)
    return Claim(stage.id, stage.fence, stage.key, stage.kind, stage.title, stage.spec)


def renew(
    session: Session, stage_id: int, fence: int, lease_seconds: float, progress: dict[str, Any] | None
) -> bool | None:
    """Return whether cancellation is asked for, after pushing the lease out; None where the claim is lost."""
    values: dict[str, Any] = {"lease_expires": db_now() + lease_seconds}
    if progress is not None:
        values["progress"] = progress
    return session.scalar(
        update(Stage).where(is_held(stage_id, fence)).values(**values).returning(Stage.cancel_requested)
    )


def write_log(session: Session, stage_id: int, fence: int, lines: Iterable[tuple[float, str]]) -> None:
    """Append lines to the stage's log, unless the fence is stale; those that are there already stay as they are.

    The answer to the write before may have been lost: its lines then come again.
    """
    if session.scalar(_HELD, {"stage": stage_id, "under": fence}) is not None:
        _append_log(session, stage_id, fence, lines)


def _append_log(session: Session, stage_id: int, fence: int, lines: Iterable[tuple[float, str]]) -> None:
    new = [(at, storable(line)) for at, line in lines]
    if not new:
        return
    since = min(at for at, _ in new)
    written = session.execute(_LINES_SINCE, {"stage": stage_id, "under": fence, "since": since})
    there = {(row.at, row.line) for row in written}
    rows = [
        {"stage_id": stage_id, "fence": fence, "at": at, "line": line} for at, line in new if (at, line) not in there
    ]
    if rows:
        session.execute(insert(STAGE_LOGS), rows)


def add_checkpoint(session: Session, stage_id: int, fence: int, stored: StoredArtifact) -> list[str]:
    """Return the sha256 of those that are now forgotten, after recording a checkpoint: all but the newest two.

    Raises:
        StaleFence: the claim is lost.
    """
    if session.scalar(_HELD, {"stage": stage_id, "under": fence}) is None:
        raise StaleFence
    _record_artifacts(session, [stored])
    newest = session.scalar(select(func.max(Checkpoint.number)).where(Checkpoint.stage_id == stage_id)) or 0
    session.execute(
        insert(Checkpoint).values(
            stage_id=stage_id, number=newest + 1, fence=fence, sha256=stored.sha256, created_at=db_now()
        )
    )
    outlived = (Checkpoint.stage_id == stage_id, Checkpoint.number <= newest + 1 - KEPT_CHECKPOINTS)
    return list(session.scalars(delete(Checkpoint).where(*outlived).returning(Checkpoint.sha256)))


def checkpoints(session: Session, stage_id: int) -> list[str]:
    """Return the sha256 of the stage's checkpoints, newest first."""
    query = select(Checkpoint.sha256).where(Checkpoint.stage_id == stage_id).order_by(Checkpoint.number.desc())
    return list(session.scalars(query))


def succeed(
    session: Session, stage_id: int, fence: int, payload: dict[str, Any], environment: dict[str, Any],
    artifacts: Sequence[StoredArtifact], lines: Iterable[tuple[float, str]] = (),
) -> list[Bell]:  # fmt: skip
    """Publish a stage's result, with the last `lines` of its log, and return the children it made ready.

    Repeating a published success is harmless.

    Raises:
        StaleFence: the claim is lost; nothing was written.
    """
    stage = _end(session, stage_id, fence, StageState.SUCCEEDED, "succeeded", None)
    if stage is None:
        if session.scalar(select(Result.fence).where(Result.stage_id == stage_id)) == fence:
            return []
        raise StaleFence
    result = {"stage_id": stage_id, "fence": fence, "payload": payload, "environment": environment}
    session.execute(_RESULT, result)
    _append_log(session, stage_id, fence, lines)
    if artifacts:
        _add_artifacts(session, stage_id, artifacts)
    session.execute(_FORGET_CHECKPOINTS, {"stage": stage_id})
    if stage.kind == "evaluate":
        session.execute(_COUNT, {"stage": stage_id, "n": payload["n"], "n_correct": payload["n_correct"]})
    bells = _wake_children(session, stage_id)
    _settle(session, stage_id, "stage.succeeded", {"key": stage.key, "title": stage.title})
    if stage.kind == "evaluate":
        tallies.add(session, stage_id)
    return bells


def fail(session: Session, stage_id: int, fence: int, error: dict[str, Any], *, final: bool, max_failures: int) -> None:
    """End an attempt that raised: back to ready after a backoff, or failed for good, with the cause.

    Where cancellation was asked for, the stage is not tried again for nobody: it is cancelled.

    Raises:
        StaleFence: the claim is lost; nothing was written.
    """
    held = session.execute(
        select(Stage.failures, Stage.cancel_requested).where(is_held(stage_id, fence)).with_for_update()
    ).one_or_none()
    if held is None:
        raise StaleFence
    failures = held.failures + 1
    if not final and held.cancel_requested:
        _cancel(session, stage_id, fence, "failed", error, failures=failures)
        return
    if not final and failures < max_failures:
        wait = backoff(BACKOFF_SECONDS * 2.0 ** (failures - 1))
        stage = _end(session, stage_id, fence, StageState.READY, "failed", error, wait, failures=failures)
        data = {"key": stage.key, "message": error.get("message"), "attempt": failures}
        events.tell_jobs(session, [stage_id], "stage.retrying", data)
        return
    stage = _end(session, stage_id, fence, StageState.FAILED, "failed", error, failures=failures)
    _end_descendants(session, stage_id, stage.title, error)


def release(
    session: Session, stage_id: int, fence: int, refused: dict[str, Any] | None = None, wait_seconds: float = 0.0
) -> list[Bell]:
    """Give a stage back unharmed, as a worker does that was asked to stop; return its bell.

    `refused` is why this worker cannot run it, where that is why. Where cancellation was asked for, also of a worker
    that had not heard of it, the stage is cancelled; where a job came meanwhile that wants a stage whose cancellation
    had been heard of, it gets it back.
    """
    cancelling = session.scalar(select(Stage.cancel_requested).where(is_held(stage_id, fence)).with_for_update())
    if cancelling is None:
        return []
    if cancelling:
        _cancel(session, stage_id, fence, "cancelled", None)
        return []
    outcome = "released" if refused is None else REFUSED
    stage = _end(session, stage_id, fence, StageState.READY, outcome, refused, wait_seconds)
    data = {"key": stage.key, "title": stage.title}
    events.tell_jobs(
        session, [stage_id], "stage.released", data if refused is None else {**data, "message": refused.get("message")}
    )
    return [Bell(stage_id, stage.queue)]


def lose(session: Session, stage_id: int, fence: int, why: str, max_losses: int) -> list[Bell]:
    """End an attempt whose worker is broken, as if that had died; return the bell, where it may run again.

    Raises:
        StaleFence: the claim is lost; nothing was written.
    """
    columns = (Stage.id, Stage.fence, Stage.cancel_requested, Stage.losses)
    row = session.execute(select(*columns).where(is_held(stage_id, fence)).with_for_update()).one_or_none()
    if row is None:
        raise StaleFence
    return end_as_lost(session, row, max_losses, why)


def end_as_lost(session: Session, row: Any, max_losses: int, why: str) -> list[Bell]:
    """End the attempt of a locked row (id, fence, cancel_requested, losses); return its bell where it may run again.

    The fence rises here too, so its old holder is inert from this commit on.
    """
    losses = row.losses + 1
    message = f"{why} (loss {losses} of {max_losses})"
    error = {"cause": "lost", "message": message}
    more = {"losses": losses, "fence": row.fence + 1}
    if row.cancel_requested:
        _cancel(session, row.id, row.fence, "lost", error, **more)
        return []
    if losses >= max_losses:
        stage = _end(session, row.id, row.fence, StageState.FAILED, "lost", error, **more)
        _end_descendants(session, row.id, stage.title, error)
        return []
    wait = backoff(2.0 ** (losses - 1) - 1)
    stage = _end(session, row.id, row.fence, StageState.READY, "lost", error, wait, **more)
    events.tell_jobs(session, [row.id], "stage.lost", {"key": stage.key, "message": message})
    return [Bell(row.id, stage.queue)]


def _cancel(
    session: Session, stage_id: int, fence: int, outcome: str, error: dict[str, Any] | None, /, **more: Any
) -> None:
    """End a held stage that nobody wants any more, and settle the jobs that wait for its end."""
    stage = _end(session, stage_id, fence, StageState.CANCELLED, outcome, error, **more)
    _settle(session, stage_id, "stage.cancelled", {"key": stage.key, "title": stage.title})


def revoke(session: Session, stage_id: int, fence: int, state: StageState, error: dict[str, Any]) -> None:
    """Take a running stage from its worker, who can write nothing more from this commit on: its fence rises."""
    _end(session, stage_id, fence, state, "released", error, fence=fence + 1)


def _end(
    session: Session, stage_id: int, fence: int, state: StageState, outcome: str, error: dict[str, Any] | None,
    wait: float = 0.0, /, **more: Any,
) -> Any:  # fmt: skip
    """Return the stage's row after moving it out of running under `fence`; None where the fence is stale.

    Where it has not ended, it may run again after `wait` seconds. `more` are further columns to set.
    """
    held = {"stage": stage_id, "under": fence}
    end, after = (_END_FOR_GOOD, {}) if state in ENDED else (_END_FOR_NOW, {"wait": wait})
    stage = session.execute(end, {**held, "state": state, "error": error, **after, **more}).one_or_none()
    if stage is not None:
        session.execute(_END_ATTEMPT, {**held, "outcome": outcome, "error": error})
    return stage


def add_artifact(session: Session, stage_id: int, stored: StoredArtifact) -> None:
    """Record an artifact that a succeeded stage's result named, and that came later than the result."""
    _add_artifacts(session, stage_id, [stored])


def _add_artifacts(session: Session, stage_id: int, artifacts: Sequence[StoredArtifact]) -> None:
    _record_artifacts(session, artifacts)
    rows = [{"stage_id": stage_id, "name": stored.name, "sha256": stored.sha256} for stored in artifacts]
    session.execute(insert(STAGE_ARTIFACTS), rows)


@cache
def _record_statement(dialect: str) -> Any:
    new = insert_in(dialect, ARTIFACTS).values(created_at=db_now())
    return new.on_conflict_do_update(index_elements=[ARTIFACTS.c.sha256], set_={"size": new.excluded.size})


def _record_artifacts(session: Session, artifacts: Sequence[StoredArtifact]) -> None:
    """Insert rows of artifacts; one that is there is locked, so that no collection deletes it before this is done."""
    rows = [
        {"sha256": stored.sha256, "size": stored.size, "media_type": stored.media_type}
        for stored in sorted(artifacts, key=lambda artifact: artifact.sha256)  # one order for all who store the same
    ]
    session.execute(_record_statement(dialect_of(session)), rows)


def unfinished_parents() -> Any:
    """Return the SQL condition that a stage has a parent which has not succeeded."""
    parent = STAGES.alias()
    return exists(
        select(literal(1))
        .select_from(PARENTS)
        .join(parent, parent.c.id == PARENTS.c.parent_id)
        .where(PARENTS.c.stage_id == STAGES.c.id, parent.c.state != StageState.SUCCEEDED)
    )


_WAKE = (
    update(STAGES)
    .where(
        STAGES.c.id.in_(bindparam("stages", expanding=True)),
        STAGES.c.state == StageState.BLOCKED,
        ~unfinished_parents(),
    )
    .values(state=StageState.READY, not_before=db_now())
    .returning(STAGES.c.id, STAGES.c.queue)
)


def _wake_children(session: Session, stage_id: int) -> list[Bell]:
    return wake(session, session.scalars(_CHILDREN, {"stage": stage_id}).all())


def wake(session: Session, locked: Sequence[int]) -> list[Bell]:
    """Make ready those of the locked, blocked stages whose parents have all succeeded; return their bells."""
    return [
        Bell(row.id, row.queue) for chunk in chunks(locked) for row in session.execute(_WAKE, {"stages": chunk})
    ]  # fmt: skip


def below(stage_id: int, *states: StageState) -> Select[int]:
    """Return the query for the stages in these states that need this one, directly or through others."""
    tree = select(PARENTS.c.stage_id).where(PARENTS.c.parent_id == stage_id).cte(recursive=True)
    tree = tree.union(select(PARENTS.c.stage_id).join(tree, PARENTS.c.parent_id == tree.c.stage_id))
    return select(STAGES.c.id).where(STAGES.c.id.in_(select(tree.c.stage_id)), STAGES.c.state.in_(states))


def _end_descendants(session: Session, stage_id: int, title: str, error: dict[str, Any]) -> None:
    """Cancel everything that needed a stage which failed for good, and settle the jobs: all of them want that one."""
    doomed = session.scalars(below(stage_id, *LIVE).order_by(STAGES.c.id).with_for_update()).all()
    reason = {"cause": "parent", "message": f"it needs a stage that failed: {title}: {error.get('message')}"}
    ended = {"state": StageState.CANCELLED, "error": reason, "finished_at": db_now()}
    for chunk in chunks(doomed):
        running = select(Stage.id, Stage.fence).where(Stage.id.in_(chunk), IS_RUNNING)
        for row in session.execute(running).all():  # a grandchild may, where the stage's first result was withdrawn
            revoke(session, row.id, row.fence, StageState.CANCELLED, reason)
        session.execute(update(STAGES).where(STAGES.c.id.in_(chunk)).values(ended))
    key = session.scalar(select(Stage.key).where(Stage.id == stage_id))
    told = {"key": key, "title": title, "message": error.get("message")}
    jobs = [job.id for job in events.tell_jobs(session, [stage_id], "stage.failed", told)]
    recount(session, jobs)
    for job_id in jobs:
        roll_up(session, job_id)


def _settle(session: Session, stage_id: int, event: str, data: dict[str, Any]) -> None:
    """Tell the jobs that wait for a stage which has just ended, and end those that wait for nothing more."""
    for job in events.tell_jobs(session, [stage_id], event, data, _SETTLE):
        if job.cancel_requested or not job.unfinished:
            roll_up(session, job.id)


def recount(session: Session, job_ids: Sequence[int]) -> None:
    """Count the unfinished stages of locked jobs anew: some have been given a new life."""
    live = (
        select(func.count())
        .select_from(JobStage)
        .join(Stage, Stage.id == JobStage.stage_id)
        .where(JobStage.job_id == Job.id, Stage.state.in_(LIVE))
        .scalar_subquery()
    )
    session.execute(
        update(Job)
        .where(Job.id.in_(job_ids))
        .values(unfinished=live)
        .execution_options(synchronize_session=False)
    )  # fmt: skip


def roll_up(session: Session, job_id: int) -> bool:
    """Return whether the locked job ended: its state becomes what its stages say, and freezes there.

    While the count of its unfinished stages says that it goes on, the stages themselves are not looked at.
    """
    query = select(Job.cancel_requested, Job.state, Job.unfinished).where(Job.id == job_id).with_for_update()
    job = session.execute(query).one()
    if job.state in JOB_ENDED or (job.unfinished and not job.cancel_requested):
        return False
    ended = _cancel_end(session, job_id) if job.cancel_requested else _job_end(session, job_id)
    if ended is None:
        return False
    session.execute(update(Job).where(Job.id == job_id).values(state=ended, finished_at=db_now()))
    events.append(session, [job_id], f"job.{ended}", {})
    return True


def _cancel_end(session: Session, job_id: int) -> JobState | None:
    """Return how a cancelled job ends: not before every stage that is being stopped for it has stopped."""
    mine = select(literal(1)).select_from(JobStage).join(Stage, Stage.id == JobStage.stage_id)
    stopping = exists(mine.where(JobStage.job_id == job_id, IS_RUNNING, Stage.cancel_requested.is_(True)))
    return None if session.scalar(select(stopping)) else JobState.CANCELLED


def _job_end(session: Session, job_id: int) -> JobState | None:
    """Return how a job ends that nobody cancelled: a cancelled stage of it needed one that failed."""
    mine = select(Stage.state).join(JobStage, JobStage.stage_id == Stage.id).where(JobStage.job_id == job_id)
    states = set(session.scalars(mine.distinct()))
    if states & set(LIVE):
        return None
    return JobState.SUCCEEDED if states <= {StageState.SUCCEEDED} else JobState.FAILED


def by_key(session: Session, key: str) -> Stage | None:
    """Return the stage of that key."""
    return session.scalar(select(Stage).where(Stage.key == key))


def keys_beginning(session: Session, digits: str, limit: int) -> Sequence[str]:
    """Return the keys that begin so, at most `limit` of them."""
    # a range would be quicker, and wrong where the database's collation has "aa" behind "z"
    return session.scalars(select(Stage.key).where(Stage.key.startswith(digits)).limit(limit)).all()


def result_of(session: Session, stage_id: int) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Return a succeeded stage's payload and artifacts (name -> sha256)."""
    payload = session.scalar(select(Result.payload).where(Result.stage_id == stage_id))
    if payload is None:
        return None
    rows = session.execute(
        select(StageArtifact.name, StageArtifact.sha256).where(StageArtifact.stage_id == stage_id)
    ).all()
    return payload, {row.name: row.sha256 for row in rows}


def wanted_by_live_job(other_than: int | None = None) -> Any:
    """Return the SQL condition that a live job, itself not cancelled and not `other_than`, wants the stage."""
    wanting = (
        select(literal(1))
        .select_from(JobStage)
        .join(Job, Job.id == JobStage.job_id)
        .where(JobStage.stage_id == Stage.id, Job.state.not_in(JOB_ENDED), Job.cancel_requested.is_(False))
    )
    return exists(wanting if other_than is None else wanting.where(Job.id != other_than))


_NEWEST = (
    select(STAGES.c.flop, STAGES.c.device_seconds)
    .where(
        STAGES.c.queue == bindparam("of"), text("stages.state = 'succeeded' AND stages.kind IN ('train', 'craft')")
    )
    .order_by(STAGES.c.id.desc())
    .limit(MEASURED)
    .subquery()
)  # fmt: skip
_RATE = select(func.sum(_NEWEST.c.flop), func.sum(_NEWEST.c.device_seconds)).where(
    _NEWEST.c.device_seconds >= TELLING_SECONDS
)


def measured_rate(session: Session, queue: str) -> float | None:
    """Return the floating-point operations per second of the queue's newest results, None before a telling one."""
    flop, seconds = session.execute(_RATE, {"of": queue}).one()
    return flop / seconds if seconds else None


@dataclass(frozen=True)
class Details:
    """Everything SQL knows of one stage."""

    stage: Stage
    parents: list[str]
    attempts: list[Attempt]
    result: Result | None
    artifacts: dict[str, str]


def details(session: Session, key: str) -> Details | None:
    """Return a stage with its parents, attempts and result."""
    stage = by_key(session, key)
    if stage is None:
        return None
    parents = session.scalars(
        select(Stage.key).join(StageParent, StageParent.parent_id == Stage.id).where(StageParent.stage_id == stage.id)
    )
    attempts = session.scalars(select(Attempt).where(Attempt.stage_id == stage.id).order_by(Attempt.fence))
    found = result_of(session, stage.id)
    return Details(stage, list(parents), list(attempts), session.get(Result, stage.id), found[1] if found else {})


def log_of(session: Session, stage_id: int, after: int, limit: int) -> list[StageLog]:
    """Return lines of a stage's log in order."""
    query = (
        select(StageLog).where(StageLog.stage_id == stage_id, StageLog.id > after).order_by(StageLog.id).limit(limit)
    )
    return list(session.scalars(query))


def artifact(session: Session, sha256: str) -> Artifact | None:
    """Return the row of a stored artifact."""
    return session.get(Artifact, sha256)


def keys_of(session: Session, stage_ids: Sequence[int]) -> dict[int, str]:
    """Return id -> key of a few stages."""
    rows = session.execute(select(Stage.id, Stage.key).where(Stage.id.in_(stage_ids)))
    return {row.id: row.key for row in rows}


def trainings_among(session: Session, keys: Sequence[str]) -> set[str]:
    """Return those of a few keys that are a train stage's."""
    return set(session.scalars(select(Stage.key).where(Stage.kind == "train", Stage.key.in_(keys))))
