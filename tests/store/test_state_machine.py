"""Any order of what users, workers, the keeper, the clock and the broker may do leaves the invariants standing.

Bells are hints: they lie in a bag, from which any may be heard, lost or doubled. At the end of every run the keeper
and one worker alone must bring every job to its end.
"""

from collections.abc import Callable
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from store import jobs, keeping, lost, stages, workers
from store.database import Database, db_now
from store.invariants import violations
from store.models import JOB_ENDED, Event, Job, JobStage, Result, Stage, StageParent, StageState
from store.stages import Bell, Claim, StaleFence
from tests import factories

MAX_LOSSES = 3
MAX_FAILURES = 2
SPECS: list[dict[str, Any]] = [
    factories.trainings([0]),
    factories.trainings([0, 1]),
    factories.body(),
    factories.body(priority=5),
    factories.transfer(),
]
PLANS = [factories.planned(spec) for spec in SPECS]
WORKERS = ("a", "b", "c")
claims = st.integers(0, 10**6)


def pick(items: list[Any], number: int) -> Any:
    return items[number % len(items)]


class Service(RuleBasedStateMachine):
    """One database; three workers; what each of them believes to hold."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        factories.empty(self.database)
        with self.database.write() as session:
            for name in WORKERS:
                workers.register(
                    session,
                    {"incarnation": name, "host": "h", "pid": 1, "device": "cpu", "device_name": "", "queues": ["cpu"],
                     "versions": {}},
                )  # fmt: skip
        self.bells: list[Bell] = []
        self.held: dict[int, Claim] = {}  # by stage: whose fence is the stage's
        self.stale: list[Claim] = []
        self.fences: dict[int, int] = {}
        self.wanted: set[str] = set()
        self.ended: dict[int, tuple[str, int]] = {}
        self.results: dict[int, Any] = {}

    # what users do

    @initialize(number=claims)
    def first_job(self, number: int) -> None:
        self.submit(number)

    @rule(number=claims)
    def submit(self, number: int) -> None:
        spec, plan = pick(SPECS, number), pick(PLANS, number)
        with self.database.write() as session:
            job_id, bells = factories.submit(session, spec)
            reused = {row.key for row, reused in jobs.stages_of(session, job_id) if reused}
            done = {row.key for row, _ in jobs.stages_of(session, job_id) if row.state == StageState.SUCCEEDED}
        assert reused == done
        self.bells += bells
        self.wanted |= set(plan.stages)

    @precondition(lambda self: self.live_jobs())
    @rule(number=claims)
    def cancel(self, number: int) -> None:
        with self.database.write() as session:
            jobs.cancel(session, pick(self.live_jobs(), number))

    @precondition(lambda self: self.held)
    @rule(number=claims)
    def cancel_what_runs(self, number: int) -> None:
        """All jobs that want one of the running stages go, one after the other."""
        stage_id = pick(list(self.held), number)
        with self.database.read() as session:
            wanting = list(session.scalars(select(JobStage.job_id).where(JobStage.stage_id == stage_id)))
        for job_id in wanting:
            with self.database.write() as session:
                jobs.cancel(session, job_id)

    def live_jobs(self) -> list[int]:
        with self.database.read() as session:
            return list(session.scalars(select(Job.id).where(Job.state.not_in(JOB_ENDED)).order_by(Job.id)))

    # what workers do

    @precondition(lambda self: self.bells)
    @rule(number=claims, worker=st.sampled_from(WORKERS))
    def hear(self, number: int, worker: str) -> None:
        """In any order; a bell may find nothing left to do, or find something else."""
        self.bells.pop(number % len(self.bells))
        self.claim(worker)

    def claim(self, worker: str) -> Claim | None:
        found = factories.try_claim(self.database, worker)
        if found is not None:
            assert found.stage_id not in self.held, "claimed twice"
            assert found.fence > self.fences.get(found.stage_id, 0)
            self.held[found.stage_id] = found
        return found

    def release_held(self, number: int) -> Claim:
        claim = pick(list(self.held.values()), number)
        self.stale.append(self.held.pop(claim.stage_id))
        return claim

    @precondition(lambda self: self.held)
    @rule(number=claims)
    def renew(self, number: int) -> None:
        claim = pick(list(self.held.values()), number)
        with self.database.write() as session:
            heard = stages.renew(session, claim.stage_id, claim.fence, factories.LEASE, {"done": 1, "total": 2})
            assert heard is session.get_one(Stage, claim.stage_id).cancel_requested
            stages.write_log(session, claim.stage_id, claim.fence, [(0.0, "on it")])
            stages.add_checkpoint(session, claim.stage_id, claim.fence, factories.stored("c", str(number)))

    @precondition(lambda self: self.held)
    @rule(number=claims)
    def succeed(self, number: int) -> None:
        self.bells += factories.succeed(self.database, self.release_held(number), number % 11)

    @precondition(lambda self: self.held)
    @rule(number=claims, final=st.booleans())
    def fail(self, number: int, final: bool) -> None:
        factories.fail(self.database, self.release_held(number), final=final, at_most=MAX_FAILURES)

    @precondition(lambda self: self.held)
    @rule(number=claims)
    def drain(self, number: int) -> None:
        claim = self.release_held(number)
        with self.database.write() as session:
            self.bells += stages.release(session, claim.stage_id, claim.fence)

    @precondition(lambda self: self.held)
    @rule()
    def hear_of_cancellation(self) -> None:
        for claim in list(self.held.values()):
            with self.database.write() as session:
                asked = stages.renew(session, claim.stage_id, claim.fence, factories.LEASE, None)
            if asked:
                self.stale.append(self.held.pop(claim.stage_id))
                with self.database.write() as session:
                    assert stages.release(session, claim.stage_id, claim.fence) == []

    @precondition(lambda self: self.held)
    @rule(number=claims)
    def crash_or_pause(self, number: int) -> None:
        """One holder's lease ends: it is gone, or will come back too late."""
        factories.expire(self.database, pick(list(self.held.values()), number))

    @precondition(lambda self: self.stale)
    @rule(number=claims)
    def come_back_too_late(self, number: int) -> None:
        claim = pick(self.stale, number)
        before = factories.everything(self.database)
        for write in late_writes(claim):
            try:
                with self.database.write() as session:
                    assert not write(session)
            except StaleFence:
                pass
        assert factories.everything(self.database) == before

    @precondition(lambda self: self.results)
    @rule(number=claims)
    def lose_an_artifact(self, number: int) -> None:
        """A stage's result is withdrawn; who has begun to work on it is stopped."""
        stage_id = pick(sorted(self.results), number)
        with self.database.write() as session:
            self.bells += lost.withdraw(session, [stage_id], "lost")
            assert session.get(Result, stage_id) is None
            children = select(StageParent.stage_id).where(StageParent.parent_id == stage_id)
            self.stale += [self.held.pop(child) for child in session.scalars(children) if child in self.held]
        self.results.pop(stage_id)

    # what the keeper, the broker and the clock do

    @rule()
    def keep(self) -> None:
        self.reap()
        self.repair()
        self.ring_again()

    def reap(self) -> None:
        with self.database.read() as session:
            expired = set(
                session.scalars(
                    select(Stage.id).where(Stage.state == StageState.RUNNING, Stage.lease_expires <= db_now())
                )
            )
        self.bells += factories.reap(self.database, MAX_LOSSES)
        assert expired <= set(self.held)
        self.stale += [self.held.pop(stage_id) for stage_id in expired]

    def repair(self) -> None:
        with self.database.write() as session:
            assert keeping.repair(session) == ([], 0), "the repair found work: something was stranded"

    def ring_again(self) -> None:
        with self.database.write() as session:
            self.bells += keeping.unheard(session, 1e6, 3.0)

    @precondition(lambda self: self.bells)
    @rule(number=claims, lost=st.booleans())
    def lose_or_double_a_bell(self, number: int, lost: bool) -> None:
        bell = pick(self.bells, number)
        if lost:
            self.bells.remove(bell)
        else:
            self.bells.append(bell)

    @rule(seconds=st.sampled_from([-3600.0, 1.0, 5.0, 61.0, 3600.0]))
    def clock_jumps(self, seconds: float) -> None:
        factories.pass_time(self.database, seconds)

    # what must hold whatever they do

    @invariant()
    def sound(self) -> None:
        with self.database.read() as session:
            assert violations(session) == []
            self._holders(session)
            self._results_never_change(session)
            self._ended_jobs_are_frozen(session)

    def _holders(self, session: Any) -> None:
        for row in session.scalars(select(Stage)):
            assert row.fence >= self.fences.get(row.id, 0), "a fence went down"
            assert row.key in self.wanted
            self.fences[row.id] = row.fence
            running = row.state == StageState.RUNNING
            assert running == (row.id in self.held)
            assert not running or self.held[row.id].fence == row.fence
        assert len(self.fences) == len(self.wanted), "a stage is there twice, or is missing"

    def _results_never_change(self, session: Any) -> None:
        now = {row.stage_id: (row.fence, row.payload) for row in session.scalars(select(Result))}
        assert {stage_id: now.get(stage_id) for stage_id in self.results} == self.results
        self.results = now

    def _ended_jobs_are_frozen(self, session: Any) -> None:
        now = {row.id: (row.state, row.last_event) for row in session.scalars(select(Job)) if row.state in JOB_ENDED}
        assert {job_id: now.get(job_id) for job_id in self.ended} == self.ended
        self.ended = now

    def teardown(self) -> None:
        """Everybody is gone and every bell lost: the keeper and a worker that starts now bring all jobs to an end."""
        self.bells.clear()
        factories.pass_time(self.database, -3600.0)  # the clock is set back, and they need not wait for it
        self.reap()
        for _ in range(40):
            if not self.live_jobs():
                break
            factories.pass_time(self.database, stages.MAX_BACKOFF_SECONDS + 1)
            self.reap()
            self.ring_again()
            while self.bells and (claim := self.claim("a")) is not None:
                self.held.pop(claim.stage_id)
                factories.succeed(self.database, claim)
            self.bells.clear()
        self.repair()
        self.sound()
        assert self.live_jobs() == [], "stuck"
        with self.database.read() as session:
            for job_id, state in session.execute(select(Job.id, Job.state)):
                kinds = session.scalars(select(Event.kind).where(Event.job_id == job_id).order_by(Event.seq)).all()
                assert fold(list(kinds)) == state


def late_writes(claim: Claim) -> list[Callable[[Any], Any]]:
    """Return every write that a worker may try, each of which returns something false where it changed nothing."""
    stage_id, fence = claim.stage_id, claim.fence
    error = {"cause": "late", "message": "late"}
    late = factories.stored("weights", "late")
    return [
        lambda s: stages.renew(s, stage_id, fence, 600.0, {"done": 9, "total": 9}) is not None,
        lambda s: stages.write_log(s, stage_id, fence, [(0.0, "late")]),
        lambda s: stages.add_checkpoint(s, stage_id, fence, late),
        lambda s: stages.succeed(s, stage_id, fence, {"n": 1, "n_correct": 1}, {}, [late]),
        lambda s: stages.fail(s, stage_id, fence, error, final=True, max_failures=1),
        lambda s: stages.fail(s, stage_id, fence, error, final=False, max_failures=99),
        lambda s: stages.release(s, stage_id, fence),
    ]


def fold(kinds: list[str]) -> str:
    """Return a job's state from what happened to it."""
    state = ""
    for kind in kinds:
        subject, _, what = kind.partition(".")
        if subject == "job":
            state = what
        elif what == "running" and state == "queued":
            state = "running"
    return state


def test_every_order_of_things_keeps_the_invariants(unchecked: Database):
    run_state_machine_as_test(
        type("ServiceHere", (Service,), {"database": unchecked}),
        settings=settings(
            max_examples=30 if unchecked.is_sqlite else 15,
            stateful_step_count=30,
            database=None,
            phases=[Phase.generate],  # shrinking would take minutes; the steps are printed
        ),
    )
