"""Transactions that are committed and whose answer is lost: asking again is harmless, and nobody is left holding."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from store import idempotency, jobs, keeping, stages
from store.database import Database, db_now
from store.idempotency import Known
from store.models import Job, Stage, StageLog, StageState
from store.stages import Claim, StaleFence
from tests import factories
from tests.answers import AnswerLost, Plan, losing
from tests.store.test_state_machine import MAX_FAILURES, MAX_LOSSES, SPECS, WORKERS, Service, claims, pick

Write = Callable[[Session, Claim], Any]
FAILURE = {"cause": "Test", "message": "broken"}


@contextmanager
def unanswered() -> Iterator[None]:
    """Lose the answer to the one transaction of the block, which is committed."""
    with losing(Plan(every=1)) as plan, suppress(AnswerLost):
        yield
    assert plan.lost == 1


def _succeed(session: Session, held: Claim) -> Any:
    payload, artifacts = factories.result(held)
    return stages.succeed(session, held.stage_id, held.fence, payload, {}, artifacts)


def _fail(session: Session, held: Claim, final: bool) -> None:
    stages.fail(session, held.stage_id, held.fence, FAILURE, final=final, max_failures=MAX_FAILURES)


ENDS: dict[str, Write] = {
    "succeed": _succeed,
    "fail for good": lambda s, c: _fail(s, c, True),
    "fail": lambda s, c: _fail(s, c, False),
    "release": lambda s, c: stages.release(s, c.stage_id, c.fence),
}
"""What a worker repeats until it is answered, or told that its fence is stale."""


def repeated(database: Database, held: Claim, write: Write) -> None:
    """Have a write committed unheard, and again: the second time it changes nothing."""
    with unanswered(), database.write() as session:
        write(session, held)
    before = factories.everything(database)
    with suppress(StaleFence), database.write() as session:
        assert not write(session, held)
    assert factories.everything(database) == before


@pytest.mark.parametrize("cancelling", [False, True])
@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_an_attempt_is_repeated_harmlessly(database: Database, name: str, cancelling: bool):
    job_id = factories.post(database, factories.transfer())
    held = factories.claim(database)
    if cancelling:
        with database.write() as session:
            jobs.cancel(session, job_id)
    repeated(database, held, ENDS[name])


def test_a_success_is_known_to_be_published(database: Database):
    """Not taken for a stale fence: the worker would say that its result was dropped."""
    factories.post(database)
    held = factories.claim(database)
    with unanswered(), database.write() as session:
        _succeed(session, held)
    assert factories.succeed(database, held) == []


def test_a_claim_whose_answer_was_lost_is_the_workers_still(database: Database):
    factories.post(database, factories.trainings([0, 1]))
    with unanswered():
        factories.try_claim(database, "a", lease=1.0)
    factories.claim(database, "b")
    with database.write() as session:
        held = stages.unheard_claim(session, "a", 100.0)
        assert held is not None
        row = session.get_one(Stage, held.stage_id)
        assert (row.lease_owner, row.fence, row.key) == ("a", held.fence, held.key)
        assert (row.lease_expires or 0) - (session.scalar(select(db_now())) or 0) > 90
    factories.succeed(database, held)
    with database.write() as session:
        assert stages.unheard_claim(session, "a", 100.0) is None


def test_a_claim_that_was_heard_is_left_to_its_lease(database: Database):
    """Its work was given up: it counts as lost, so that work which is given up again and again comes to an end."""
    factories.post(database, factories.trainings([0, 1]))
    known = factories.claim(database, "a")
    with database.write() as session:
        assert stages.unheard_claim(session, "a", 100.0, known) is None
    with unanswered():
        factories.try_claim(database, "a")
    with database.write() as session:
        unheard = stages.unheard_claim(session, "a", 100.0, known)
    assert unheard is not None
    assert unheard.stage_id != known.stage_id


def test_lines_are_written_once(database: Database):
    """A heartbeat whose answer was lost takes its lines back, and sends them again with newer ones."""
    factories.post(database, factories.trainings())
    held = factories.claim(database)
    lines = [(1.25, "one"), (2.5, "two"), (2.5, "two"), (2.75, "nul \x00")]
    with unanswered(), database.write() as session:
        stages.write_log(session, held.stage_id, held.fence, lines)
    with database.write() as session:
        stages.write_log(session, held.stage_id, held.fence, [*lines, (2.75, "three"), (3.0, "two")])
    with database.read() as session:
        found = session.execute(select(StageLog.at, StageLog.line).order_by(StageLog.id)).all()
    assert [tuple(row) for row in found] == [
        (1.25, "one"), (2.5, "two"), (2.5, "two"), (2.75, "nul \ufffd"), (2.75, "three"), (3.0, "two"),
    ]  # fmt: skip


class ForgetfulService(Service):
    """The state machine again, where any answer may be lost."""

    names = 0

    @rule()
    def claim_unheard(self) -> None:
        """By a process of its own, which asks again; later it may crash, be cancelled or finish like any other."""
        self.names += 1
        worker = f"{pick(list(WORKERS), self.names)}{self.names}"
        with unanswered():
            factories.try_claim(self.database, worker)
        with self.database.write() as session:
            held = stages.unheard_claim(session, worker, factories.LEASE)
            assert held == stages.unheard_claim(session, worker, factories.LEASE)
        if held is not None:
            assert held.stage_id not in self.held
            assert held.fence > self.fences.get(held.stage_id, 0)
            self.held[held.stage_id] = held

    @precondition(lambda self: self.held)
    @rule(number=claims, name=st.sampled_from(sorted(ENDS)))
    def end_unheard(self, number: int, name: str) -> None:
        """The bells go with the answer."""
        repeated(self.database, self.release_held(number), ENDS[name])

    @rule(number=claims)
    def submit_unheard(self, number: int) -> None:
        """Under an Idempotency-Key: whoever asks again finds the job that was made."""
        spec, plan, key = pick(SPECS, number), factories.planned(pick(SPECS, number)), f"key {self.jobs_made()}"
        before = self.jobs_made()
        with unanswered(), self.database.write() as session:
            job_id, _ = factories.submit(session, spec)
            idempotency.remember(session, key, "sha", job_id)
        with self.database.read() as session:
            assert idempotency.known(session, key) == Known("sha", None, job_id, None)
        assert self.jobs_made() == before + 1
        self.wanted |= set(plan.stages)

    def jobs_made(self) -> int:
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(Job)) or 0

    @precondition(lambda self: self.live_jobs())
    @rule(number=claims)
    def cancel_unheard(self, number: int) -> None:
        job_id = pick(self.live_jobs(), number)
        with unanswered(), self.database.write() as session:
            first = jobs.cancel(session, job_id)
        before = factories.everything(self.database)
        with self.database.write() as session:
            assert jobs.cancel(session, job_id) == first
        assert factories.everything(self.database) == before

    @rule()
    def keep_unheard(self) -> None:
        """What was taken back is noted as rung, though its bell was lost: it is rung again later."""
        with self.database.read() as session:
            expired = set(
                session.scalars(
                    select(Stage.id).where(Stage.state == StageState.RUNNING, Stage.lease_expires <= db_now())
                )
            )
        for stage_id in expired:
            with unanswered(), self.database.write() as session:
                keeping.reap(session, stage_id, MAX_LOSSES)
        self.stale += [self.held.pop(stage_id) for stage_id in expired]
        with unanswered(), self.database.write() as session:
            keeping.unheard(session, 1e6, 3.0)


def explore(database: Database, examples: int) -> None:
    """Run the state machine."""
    run_state_machine_as_test(
        type("ForgetfulServiceHere", (ForgetfulService,), {"database": database}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            database=None,
            phases=[Phase.generate],
        ),
    )


@pytest.mark.slow
def test_every_order_of_things_keeps_the_invariants(unchecked: Database):
    explore(unchecked, 15 if unchecked.is_sqlite else 8)


@pytest.mark.parametrize("unchecked", ["sqlite"], indirect=True)
def test_it_finds_a_claim_that_nobody_knows_of(unchecked: Database, monkeypatch: pytest.MonkeyPatch):
    """A deliberate bug: the worker does not ask what it holds already."""
    monkeypatch.setattr(stages, "unheard_claim", lambda *_: None)
    with pytest.raises(AssertionError):
        explore(unchecked, 100)  # as soon as it is found this ends
