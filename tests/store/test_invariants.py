"""Each invariant notices the damage it is there for; a sound database has none to report."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from store import jobs, stages
from store.database import Database, db_now
from store.invariants import RULES, violations
from store.models import (
    Artifact,
    Attempt,
    Checkpoint,
    Evaluation,
    Event,
    Job,
    LostResult,
    Result,
    Stage,
    StageArtifact,
    StageParent,
    Tally,
)
from tests import factories
from tests.factories import body, claim, expire, fail, finish, post, reap, trainings, transfer

Damage = Callable[[Session], Any]


@pytest.fixture
def lived_in(unchecked: Database) -> Database:
    """Jobs and stages in every state."""
    post(unchecked, transfer())
    finish(unchecked)
    cancelled = post(unchecked, trainings([1]))
    with unchecked.write() as session:
        jobs.cancel(session, cancelled)
    post(unchecked, body(seeds=[2]))
    fail(unchecked, claim(unchecked))
    post(unchecked, body(seeds=[3, 4]))
    expire(unchecked, claim(unchecked))
    reap(unchecked)
    held = claim(unchecked)
    with unchecked.write() as session:
        for number in range(3):
            stages.add_checkpoint(session, held.stage_id, held.fence, factories.stored("c", str(number)))
    cancelling = post(unchecked, trainings([5], priority=9))
    claim(unchecked)
    with unchecked.write() as session:
        jobs.cancel(session, cancelling)
    post(unchecked, trainings([6], priority=-9))
    with unchecked.read() as session:
        assert set(session.scalars(select(Stage.state))) == {
            "blocked", "ready", "running", "succeeded", "failed", "cancelled",
        }  # fmt: skip
        assert set(session.scalars(select(Job.state))) == {
            "queued", "running", "cancelling", "succeeded", "failed", "cancelled",
        }  # fmt: skip
        assert violations(session) == []
    return unchecked


def change(table: Any, *where: Any, **values: Any) -> Damage:
    return lambda session: session.execute(update(table).where(*where).values(**values))


def of(session: Session, state: str, kind: str | None = None) -> Stage:
    query = select(Stage).where(Stage.state == state).order_by(Stage.id)
    return session.scalars(query if kind is None else query.where(Stage.kind == kind)).first() or Stage()


def add_attempt(state: str, fence: int, outcome: str | None) -> Damage:
    def damage(session: Session) -> None:
        found = of(session, state)
        row = {"worker": "w", "started_at": 0.0, "ended_at": None if outcome is None else 1.0, "outcome": outcome}
        session.execute(insert(Attempt).values(stage_id=found.id, fence=found.fence + fence, **row))

    return damage


def add_result(session: Session) -> None:
    row = {"fence": 1, "payload": {}, "environment": {}, "created_at": 0.0}
    session.execute(insert(Result).values(stage_id=of(session, "failed").id, **row))


def add_artifact(session: Session) -> None:
    sha256 = session.scalars(select(Artifact.sha256)).first()
    session.execute(insert(StageArtifact).values(stage_id=of(session, "failed").id, name="x", sha256=sha256))


def add_checkpoint(session: Session) -> None:
    stage_id = session.scalars(select(Checkpoint.stage_id)).first()
    session.execute(insert(Checkpoint).values(stage_id=stage_id, number=99, fence=1, sha256="0", created_at=0.0))


def turn(state: str, into: str, kind: str = "evaluate") -> Damage:
    return lambda session: change(Stage, Stage.id == of(session, state, kind).id, state=into)(session)


def put_under_failed(session: Session) -> None:
    """Give a blocked stage a parent that will never succeed."""
    session.execute(insert(StageParent).values(stage_id=of(session, "blocked").id, parent_id=of(session, "failed").id))


def end_all_jobs(session: Session) -> None:
    session.execute(update(Job).values(state="failed", finished_at=db_now()))


def end_all_stages(session: Session) -> None:
    session.execute(update(Stage).values(state="succeeded", lease_owner=None, lease_expires=None))


def withdraw_without_taking(session: Session) -> None:
    found = session.scalars(select(Result)).first() or Result()
    row = {"payload": {}, "environment": {}, "artifacts": {}, "reason": "", "created_at": 0.0, "withdrawn_at": 0.0}
    session.execute(insert(LostResult).values(stage_id=found.stage_id, fence=found.fence, **row))


HELD, CANCELLING = Stage.state == "running", Job.state == "cancelling"
DAMAGES: list[tuple[str, Damage]] = [
    ("has 2 open attempts", add_attempt("running", -1, None)),
    ("its attempt under fence 1 is open", add_attempt("ready", 1, None)),
    ("without an open attempt", change(Attempt, Attempt.ended_at.is_(None), ended_at=1.0)),
    ("below that of its attempt", change(Stage, Stage.state == "succeeded", fence=0)),
    ("nobody holds a lease on it", change(Stage, HELD, lease_owner=None)),
    ("nobody holds a lease on it", change(Stage, HELD, lease_expires=None)),
    ("still holds a lease on it", change(Stage, Stage.state == "ready", lease_expires=1.0)),
    ("as if it ran", change(Stage, Stage.state == "ready", cancel_requested=True)),
    ("succeeded without a result", lambda session: session.execute(delete(Result))),
    ("is failed, but has a result", add_result),
    ("not that of a succeeded attempt", change(Result, fence=77)),
    ("not that of a succeeded attempt", change(Attempt, Attempt.outcome == "succeeded", outcome="lost")),
    ("is withdrawn and stands nevertheless", withdraw_without_taking),
    ("has 2 succeeded attempts", add_attempt("succeeded", -1, "succeeded")),
    ("has the artifact x", add_artifact),
    ("its evaluation counts None of None", change(Evaluation, n=None, n_correct=None)),
    ("its evaluation counts 11 of 10", change(Evaluation, Evaluation.n.is_not(None), n_correct=11)),
    ("its evaluation counts None of None", lambda session: session.execute(delete(Evaluation))),
    ("counts 6 of 10, its result 7 of 10", change(Evaluation, Evaluation.n.is_not(None), n_correct=6)),
    ("says None correct of None evaluations", lambda session: session.execute(delete(Tally))),
    ("says 8 correct of 1 evaluations", change(Tally, total=Tally.total + 1)),
    ("says 7 correct of 1 evaluations", change(Tally, highest=9)),
    ("1 evaluations, there are none", change(Evaluation, whitebox=True)),
    ("is blocked, but its evaluation counts", change(Evaluation, n=10, n_correct=7)),
    ("keeps 3 checkpoints", add_checkpoint),
    ("is ready, but its parent", turn("blocked", "ready")),
    ("is running, but its parent", turn("blocked", "running")),
    ("is blocked, but all its parents have succeeded", turn("ready", "blocked", "train")),
    ("waits for ever", put_under_failed),
    ("no live job wants it", end_all_jobs),
    ("every job that wants it is being cancelled", change(Job, Job.state == "queued", cancel_requested=True)),
    ("is asked to stop, but job", change(Job, CANCELLING, cancel_requested=False)),
    ("without a time of its end", change(Stage, Stage.state == "failed", finished_at=None)),
    ("without a time of its end", change(Stage, Stage.state == "ready", finished_at=1.0)),
    ("but all its stages have ended", end_all_stages),
    ("unfinished stages, but has", change(Job, Job.state == "running", unfinished=Job.unfinished + 1)),
    ("none of its stages is being stopped", change(Stage, HELD, cancel_requested=False)),
    ("is queued, but its stage", change(Job, Job.state == "running", state="queued")),
    ("has succeeded, but its stage", change(Job, Job.state == "failed", state="succeeded")),
    ("does not agree with whether its cancellation", change(Job, Job.state == "cancelled", cancel_requested=False)),
    ("does not agree with whether its cancellation", change(Job, Job.state == "running", cancel_requested=True)),
    ("without a time of its end", change(Job, Job.state == "failed", finished_at=None)),
    ("events, but has", lambda session: session.execute(delete(Event).where(Event.seq == 2))),
    ("events, but has", lambda session: session.execute(delete(Event).where(Event.seq == 1))),
    ("events, but has", change(Job, last_event=Job.last_event + 1)),
    ("events, but has 0 up to number None", lambda session: session.execute(delete(Event))),
    ("but its last event is", change(Job, Job.state == "failed", state="cancelled")),
    ("says job.failed", change(Job, Job.state == "failed", state="running", finished_at=None)),
]  # fmt: skip


def test_every_invariant_notices_its_damage(lived_in: Database):
    noticed: set[str] = set()
    for says, damage in DAMAGES:
        with lived_in.read() as session:  # never committed
            damage(session)
            assert any(says in sentence for sentence in violations(session)), says
            noticed |= {rule.says for rule in RULES if session.execute(rule.query).first()}
    assert noticed == {rule.says for rule in RULES}
