"""What must hold of the database between any two transactions: the invariants of the design, one query each.

A rule is one statement, so on a live database it sees one moment of it. A new rule is one more entry of `RULES`.
"""

from dataclasses import dataclass

from sqlalchemy import Executable, and_, exists, func, literal, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, aliased

from store.database import Database, unhurried
from store.models import (
    ENDED,
    JOB_ENDED,
    LIVE,
    Attempt,
    Checkpoint,
    Evaluation,
    Event,
    Job,
    JobStage,
    JobState,
    LostResult,
    Result,
    Stage,
    StageArtifact,
    StageParent,
    StageState,
    Tally,
)
from store.stages import KEPT_CHECKPOINTS, unfinished_parents
from store.tallies import COUNTED, SORT, SUMS


@dataclass(frozen=True)
class Rule:
    """A query that finds nothing while the invariant holds; `says` makes a sentence of each row it finds."""

    says: str
    query: Executable


def violations(session: Session) -> list[str]:
    """Return a sentence for every row that breaks an invariant; none on a sound database."""
    return [rule.says.format(*row) for rule in RULES for row in session.execute(rule.query)]


def checked(database: Database) -> list[str]:
    """Return the violations on a live database however large: each rule in a transaction of its own, without haste.

    A rule that cannot be checked is among them, and does not hide what the others find.
    """
    return [sentence for rule in RULES for sentence in _checked(database, rule)]


def _checked(database: Database, rule: Rule) -> list[str]:
    try:
        with database.read() as session:
            unhurried(session)
            return [rule.says.format(*row) for row in session.execute(rule.query)]
    except SQLAlchemyError as error:
        return [f"could not be checked: {rule.says.format(*'?' * 9)}: {str(error).splitlines()[0]}"]


_parent = aliased(Stage)
_counted = COUNTED.subquery()
_its_tally = and_(*(getattr(Tally, name) == _counted.c[name] for name in SORT))
_with_parent = (
    select(Stage.key, Stage.state, _parent.key, _parent.state)
    .join(StageParent, StageParent.stage_id == Stage.id)
    .join(_parent, _parent.id == StageParent.parent_id)
)
_its_attempt = and_(Attempt.stage_id == Stage.id, Attempt.fence == Stage.fence)
_open = Attempt.ended_at.is_(None)
_stages_of_job = select(literal(1)).select_from(JobStage).join(Stage).where(JobStage.job_id == Job.id).correlate(Job)
_withdrawn = select(literal(1)).where(LostResult.stage_id == Stage.id).correlate(Stage, Attempt)
_withdrawn_of_parent = select(literal(1)).where(LostResult.stage_id == _parent.id).correlate(_parent)
_unfinished = (
    select(func.count())
    .select_from(JobStage)
    .join(Stage, Stage.id == JobStage.stage_id)
    .where(JobStage.job_id == Job.id, Stage.state.in_(LIVE))
    .correlate(Job)
    .scalar_subquery()
)
_wanting_jobs = (
    select(literal(1))
    .select_from(JobStage)
    .join(Job)
    .where(JobStage.stage_id == Stage.id, Job.state.not_in(JOB_ENDED))
    .correlate(Stage)
)

ATTEMPTS = (
    Rule(
        "stage {} has {} open attempts",
        select(Stage.key, func.count())
        .join(Attempt, Attempt.stage_id == Stage.id)
        .where(_open)
        .group_by(Stage.key)
        .having(func.count() > 1),
    ),
    Rule(
        "stage {} is {} under fence {}, but its attempt under fence {} is open",
        select(Stage.key, Stage.state, Stage.fence, Attempt.fence)
        .join(Attempt, Attempt.stage_id == Stage.id)
        .where(_open, or_(Stage.state != StageState.RUNNING, Attempt.fence != Stage.fence)),
    ),
    Rule(
        "stage {} is running under fence {} without an open attempt",
        select(Stage.key, Stage.fence).where(
            Stage.state == StageState.RUNNING, ~exists(select(literal(1)).where(_its_attempt, _open))
        ),
    ),
    Rule(
        "stage {} is at fence {}, below that of its attempt {}",
        select(Stage.key, Stage.fence, Attempt.fence)
        .join(Attempt, Attempt.stage_id == Stage.id)
        .where(Attempt.fence > Stage.fence),
    ),
    Rule(
        "stage {} is running, but nobody holds a lease on it",
        select(Stage.key).where(
            Stage.state == StageState.RUNNING, or_(Stage.lease_owner.is_(None), Stage.lease_expires.is_(None))
        ),
    ),
    Rule(
        "stage {} is {}, but {} still holds a lease on it",
        select(Stage.key, Stage.state, Stage.lease_owner).where(
            Stage.state != StageState.RUNNING, or_(Stage.lease_owner.is_not(None), Stage.lease_expires.is_not(None))
        ),
    ),
    Rule(
        "stage {} is {}, but is asked to stop as if it ran",
        select(Stage.key, Stage.state).where(Stage.state != StageState.RUNNING, Stage.cancel_requested.is_(True)),
    ),
)

RESULTS = (
    Rule(
        "stage {} has succeeded without a result",
        select(Stage.key)
        .outerjoin(Result, Result.stage_id == Stage.id)
        .where(Stage.state == StageState.SUCCEEDED, Result.stage_id.is_(None)),
    ),
    Rule(
        "stage {} is {}, but has a result",
        select(Stage.key, Stage.state)
        .join(Result, Result.stage_id == Stage.id)
        .where(Stage.state != StageState.SUCCEEDED),
    ),
    Rule(
        "the result of stage {} was written under fence {}, which is not that of a succeeded attempt",
        select(Stage.key, Result.fence)
        .join(Result, Result.stage_id == Stage.id)
        .outerjoin(
            Attempt,
            and_(
                Attempt.stage_id == Stage.id,
                Attempt.fence == Result.fence,
                Attempt.outcome == StageState.SUCCEEDED,
                Attempt.fence == Stage.fence,
            ),
        )
        .where(Attempt.stage_id.is_(None)),
    ),
    Rule(
        "stage {} has {} succeeded attempts",
        select(Stage.key, func.count())
        .join(Attempt, Attempt.stage_id == Stage.id)
        .where(Attempt.outcome == StageState.SUCCEEDED, ~exists(_withdrawn.where(LostResult.fence == Attempt.fence)))
        .group_by(Stage.key)
        .having(func.count() > 1),
    ),
    Rule(
        "the result of stage {} under fence {} is withdrawn and stands nevertheless",
        select(Stage.key, Result.fence)
        .join(Result, Result.stage_id == Stage.id)
        .join(LostResult, and_(LostResult.stage_id == Stage.id, LostResult.fence == Result.fence)),
    ),
    Rule(
        "stage {} is {}, but has the artifact {}",
        select(Stage.key, Stage.state, StageArtifact.name)
        .join(StageArtifact, StageArtifact.stage_id == Stage.id)
        .where(Stage.state != StageState.SUCCEEDED),
    ),
    Rule(
        "evaluate stage {} has succeeded, but its evaluation counts {} of {}",
        select(Stage.key, Evaluation.n_correct, Evaluation.n)
        .outerjoin(Evaluation, Evaluation.stage_id == Stage.id)
        .where(
            Stage.kind == "evaluate",
            Stage.state == StageState.SUCCEEDED,
            or_(
                Evaluation.n.is_(None),
                Evaluation.n_correct.is_(None),
                Evaluation.n < 1,
                Evaluation.n_correct < 0,
                Evaluation.n_correct > Evaluation.n,
            ),
        ),
    ),
    Rule(
        "evaluation {} counts {} of {}, its result {} of {}",
        select(
            Stage.key,
            Evaluation.n_correct,
            Evaluation.n,
            Result.payload["n_correct"].as_integer(),
            Result.payload["n"].as_integer(),
        )
        .join(Evaluation, Evaluation.stage_id == Stage.id)
        .join(Result, Result.stage_id == Stage.id)
        .where(
            or_(
                Evaluation.n != Result.payload["n"].as_integer(),
                Evaluation.n_correct != Result.payload["n_correct"].as_integer(),
            )
        ),
    ),
    Rule(
        "the tally of cell {}, same seed {}, says {} correct of {} evaluations, there are {} of {}",
        select(
            _counted.c.cell, _counted.c.same, Tally.total, Tally.evaluations, _counted.c.total, _counted.c.evaluations
        )
        .outerjoin(Tally, _its_tally)
        .where(
            or_(
                Tally.cell.is_(None),
                *(getattr(Tally, name) != _counted.c[name] for name in SUMS),
            )
        ),
    ),
    Rule(
        "the tally of cell {}, same seed {}, says {} correct of {} evaluations, there are none",
        select(Tally.cell, Tally.same, Tally.total, Tally.evaluations)
        .outerjoin(_counted, _its_tally)
        .where(_counted.c.cell.is_(None)),
    ),
    Rule(
        "evaluate stage {} is {}, but its evaluation counts {} of {}",
        select(Stage.key, Stage.state, Evaluation.n_correct, Evaluation.n)
        .join(Evaluation, Evaluation.stage_id == Stage.id)
        .where(Stage.state != StageState.SUCCEEDED, or_(Evaluation.n.is_not(None), Evaluation.n_correct.is_not(None))),
    ),
    Rule(
        "stage {} keeps {} checkpoints",
        select(Stage.key, func.count())
        .join(Checkpoint, Checkpoint.stage_id == Stage.id)
        .group_by(Stage.key)
        .having(func.count() > KEPT_CHECKPOINTS),
    ),
)

GRAPH = (
    Rule(
        "stage {} is {}, but its parent {} is {}",
        _with_parent.where(
            or_(
                Stage.state.in_([StageState.READY, StageState.RUNNING]),
                and_(Stage.state == StageState.SUCCEEDED, ~exists(_withdrawn_of_parent)),
            ),
            _parent.state != StageState.SUCCEEDED,
        ),
    ),
    Rule(
        "stage {} is blocked, but all its parents have succeeded",
        select(Stage.key).where(Stage.state == StageState.BLOCKED, ~unfinished_parents()),
    ),
    Rule(
        "stage {} is {} and waits for ever: its parent {} is {}",
        _with_parent.where(Stage.state.in_(LIVE), _parent.state.in_([StageState.FAILED, StageState.CANCELLED])),
    ),
    Rule(
        "stage {} is {}, but no live job wants it",
        select(Stage.key, Stage.state).where(Stage.state.in_(LIVE), ~exists(_wanting_jobs)),
    ),
    Rule(
        "stage {} is {} and not asked to stop, but every job that wants it is being cancelled",
        select(Stage.key, Stage.state).where(
            Stage.state.in_(LIVE),
            Stage.cancel_requested.is_(False),
            ~exists(_wanting_jobs.where(Job.cancel_requested.is_(False))),
        ),
    ),
    Rule(
        "stage {} is asked to stop, but job {} wants it",
        select(Stage.key, Job.id)
        .join(JobStage, JobStage.stage_id == Stage.id)
        .join(Job, Job.id == JobStage.job_id)
        .where(Stage.cancel_requested.is_(True), Job.state.not_in(JOB_ENDED), Job.cancel_requested.is_(False)),
    ),
    Rule(
        "stage {} is {} without a time of its end, or the other way round",
        select(Stage.key, Stage.state).where(Stage.state.in_(ENDED) != Stage.finished_at.is_not(None)),
    ),
)

JOBS = (
    Rule(
        "job {} is {}, but all its stages have ended",
        select(Job.id, Job.state).where(
            Job.state.not_in(JOB_ENDED), ~exists(_stages_of_job.where(Stage.state.in_(LIVE)))
        ),
    ),
    Rule(
        "job {} counts {} unfinished stages, but has {}",
        select(Job.id, Job.unfinished, _unfinished).where(
            Job.state.not_in(JOB_ENDED), Job.cancel_requested.is_(False), Job.unfinished != _unfinished
        ),
    ),
    Rule(
        "job {} is cancelling, but none of its stages is being stopped",
        select(Job.id).where(
            Job.state == JobState.CANCELLING,
            ~exists(_stages_of_job.where(Stage.state == StageState.RUNNING, Stage.cancel_requested.is_(True))),
        ),
    ),
    Rule(
        "job {} is queued, but its stage {} is running",
        select(Job.id, Stage.key)
        .join(JobStage, JobStage.job_id == Job.id)
        .join(Stage, Stage.id == JobStage.stage_id)
        .where(Job.state == JobState.QUEUED, Stage.state == StageState.RUNNING),
    ),
    Rule(
        "job {} has succeeded, but its stage {} is {}",
        select(Job.id, Stage.key, Stage.state)
        .join(JobStage, JobStage.job_id == Job.id)
        .join(Stage, Stage.id == JobStage.stage_id)
        .where(Job.state == JobState.SUCCEEDED, Stage.state != StageState.SUCCEEDED, ~exists(_withdrawn)),
    ),
    Rule(
        "job {} is {}, which does not agree with whether its cancellation was asked for",
        select(Job.id, Job.state).where(
            Job.state.in_([JobState.CANCELLING, JobState.CANCELLED]) != Job.cancel_requested
        ),
    ),
    Rule(
        "job {} is {} without a time of its end, or the other way round",
        select(Job.id, Job.state).where(Job.state.in_(JOB_ENDED) != Job.finished_at.is_not(None)),
    ),
)

EVENTS = (
    Rule(
        "job {} counts {} events, but has {} up to number {}",
        select(Job.id, Job.last_event, func.count(Event.seq), func.max(Event.seq))
        .outerjoin(Event, Event.job_id == Job.id)
        .group_by(Job.id, Job.last_event)
        .having(
            or_(
                func.count(Event.seq) != Job.last_event,
                func.max(Event.seq) != Job.last_event,
                func.min(Event.seq) != 1,
                Job.last_event < 1,
            )
        ),
    ),
    Rule(
        "job {} is {}, but its last event is {}",
        select(Job.id, Job.state, Event.kind)
        .join(Event, and_(Event.job_id == Job.id, Event.seq == Job.last_event))
        .where(Job.state.in_(JOB_ENDED), Event.kind != literal("job.") + Job.state),
    ),
    Rule(
        "job {} is {}, but its event {} says {}",
        select(Job.id, Job.state, Event.seq, Event.kind)
        .join(Event, Event.job_id == Job.id)
        .where(Event.kind.in_([f"job.{state}" for state in JOB_ENDED]), Event.kind != literal("job.") + Job.state),
    ),
)

RULES = ATTEMPTS + RESULTS + GRAPH + JOBS + EVENTS
