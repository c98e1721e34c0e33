"""What READ COMMITTED allows, and the locks that shut it out: each race is shown to happen without its lock.

SQLite lets one writer in at a time and cannot show them.
"""

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from store import jobs, keeping, lost, stages, workers
from store.database import Database, db_now
from store.invariants import violations
from store.models import Job, Stage, StageParent
from store.stages import Bell, Claim, StaleFence
from tests import factories
from tests.factories import claim, post, succeed, trainings, transfer, try_claim

CHILD = "evaluate natural H, seed 0, FGSM eps=0.3 from fgsm_adv H"


def wake_without_lock(session: Session, stage_id: int) -> list[Bell]:
    """`stages._wake_children` without the lock on the children."""
    children = select(StageParent.stage_id).where(StageParent.parent_id == stage_id)
    blocked = session.scalars(select(Stage.id).where(Stage.id.in_(children), Stage.state == "blocked")).all()
    return stages.wake(session, blocked)


def found_without_lock(session: Session, keys: Sequence[str]) -> dict[str, Any]:
    """`jobs._lock` without the lock."""
    return {row.key: row for row in session.execute(select(*jobs._LOCKED).where(Stage.key.in_(keys)))}


def broken(database: Database) -> list[str]:
    with database.read() as session:
        return violations(session)


class TestTwoParentsAtOnce:
    """Each parent's transaction sees the other parent unfinished."""

    def run(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, wake: Callable[..., list[Bell]], *, locked: bool
    ) -> list[Bell]:
        post(database, transfer())
        trains = [claim(database), claim(database)]
        succeed(database, next(one for one in trains if "fgsm" in one.title))
        craft = next(one for one in iter(lambda: try_claim(database), None) if "craft" in one.title)
        parents = [craft, next(one for one in trains if "natural" in one.title)]
        both_ended, both_looked = threading.Barrier(2), threading.Barrier(2)

        def wait_then_wake(session: Session, stage_id: int) -> list[Bell]:
            both_ended.wait(10)
            bells = wake(session, stage_id)
            if not locked:  # with the lock the second waits here for the first to commit
                both_looked.wait(10)
            return bells

        monkeypatch.setattr(stages, "_wake_children", wait_then_wake)
        with ThreadPoolExecutor(2) as pool:
            return [bell for bells in pool.map(lambda parent: succeed(database, parent), parents) for bell in bells]

    def test_strand_the_child_without_the_lock(self, unchecked_postgres: Database, monkeypatch: pytest.MonkeyPatch):
        database = unchecked_postgres
        bells = self.run(database, monkeypatch, wake_without_lock, locked=False)
        child = factories.stages_by_title(database)[CHILD]
        assert child.state == "blocked"
        assert child.id not in {bell.stage_id for bell in bells}
        assert broken(database) == [f"stage {child.key} is blocked, but all its parents have succeeded"]
        with database.write() as session:  # the second net
            assert keeping.repair(session) == ([Bell(child.id, "cpu")], 1)
        assert broken(database) == []

    def test_wake_the_child_once(self, postgres: Database, monkeypatch: pytest.MonkeyPatch):
        bells = self.run(postgres, monkeypatch, stages._wake_children, locked=True)
        child = factories.stages_by_title(postgres)[CHILD]
        assert child.state == "ready"
        assert [bell.stage_id for bell in bells].count(child.id) == 1


class TestAttachWhileItCompletes:
    """The job has read that the stage runs, the stage's end does not see the job yet."""

    def run(self, database: Database, *, waits: bool) -> int:
        post(database, trainings())
        held = claim(database)
        with ThreadPoolExecutor(1) as pool:
            with database.write() as session:
                job_id, _ = factories.submit(session, trainings())
                ending: Future[Any] = pool.submit(succeed, database, held)
                assert finished_in_time(ending) != waits
            ending.result(10)
        return job_id

    def test_hangs_without_the_lock(self, unchecked_postgres: Database, monkeypatch: pytest.MonkeyPatch):
        database = unchecked_postgres
        monkeypatch.setattr(jobs, "_lock", found_without_lock)
        job_id = self.run(database, waits=False)
        assert factories.job(database, job_id).state == "running"
        assert broken(database) == [
            f"job {job_id} is running, but all its stages have ended",
            f"job {job_id} counts 1 unfinished stages, but has 0",
        ]
        with database.write() as session:  # the second net
            assert keeping.repair(session) == ([], 1)
        assert factories.job(database, job_id).state == "succeeded"
        assert broken(database) == []

    def test_ends_with_the_stage(self, postgres: Database):
        job_id = self.run(postgres, waits=True)
        assert factories.job(postgres, job_id).state == "succeeded"

    def test_the_other_way_round(self, postgres: Database):
        """The stage's end has not been committed when the job comes: the job waits for it, and finds it done."""
        post(postgres, trainings())
        held = claim(postgres)
        with ThreadPoolExecutor(1) as pool:
            with postgres.write() as session:
                stages.succeed(session, held.stage_id, held.fence, {}, {}, [])
                coming = pool.submit(post, postgres, trainings())
                assert not finished_in_time(coming)
            job_id = coming.result(10)
        assert factories.job(postgres, job_id).state == "succeeded"


class TestWithdrawnWhileAChildMayBegin:
    """Neither transaction sees the other: a child must not be ready whose parent runs again."""

    def crafted(self, database: Database) -> tuple[int, Claim]:
        """Return the training, done, and the crafting, which runs, that one blocked evaluation waits for."""
        post(database, transfer())
        trains = [claim(database), claim(database)]
        for train in trains:
            succeed(database, train)
        waiting = iter(lambda: try_claim(database), None)
        craft = next(one for one in waiting if "craft" in one.title and "fgsm_adv" in one.title)
        return next(train.stage_id for train in trains if "natural" in train.title), craft

    def withdraw(self, database: Database, stage_id: int) -> None:
        with database.write() as session:
            lost.withdraw(session, [stage_id], "lost")

    def test_its_other_parent_ends_meanwhile(self, postgres: Database):
        train, craft = self.crafted(postgres)
        with ThreadPoolExecutor(1) as pool:
            with postgres.write() as session:
                lost.withdraw(session, [train], "lost")
                ending = pool.submit(succeed, postgres, craft)
                assert not finished_in_time(ending)
            ending.result(10)
        assert factories.stages_by_title(postgres)[CHILD].state == "blocked"
        assert broken(postgres) == []

    def test_its_other_parent_has_ended(self, postgres: Database):
        train, craft = self.crafted(postgres)
        with ThreadPoolExecutor(1) as pool:
            with postgres.write() as session:
                stages.succeed(session, craft.stage_id, craft.fence, {}, {}, [])
                withdrawing = pool.submit(self.withdraw, postgres, train)
                assert not finished_in_time(withdrawing)
            withdrawing.result(10)
        assert factories.stages_by_title(postgres)[CHILD].state == "blocked"
        assert broken(postgres) == []

    def test_it_is_withdrawn_itself(self, postgres: Database):
        """A crafting whose own children have all ended, in a job that lives for the sake of another evaluation."""
        post(postgres, factories.body())
        train = claim(postgres)
        succeed(postgres, train)
        clean, craft = sorted((claim(postgres), claim(postgres)), key=lambda one: one.kind == "craft")
        succeed(postgres, craft)
        succeed(postgres, claim(postgres))
        with ThreadPoolExecutor(1) as pool:
            with postgres.write() as session:
                assert lost.withdraw(session, [craft.stage_id], "lost") == [Bell(craft.stage_id, "cpu")]
                withdrawing = pool.submit(self.withdraw, postgres, train.stage_id)
                assert not finished_in_time(withdrawing)
            withdrawing.result(10)
        states = [factories.stage(postgres, one.stage_id).state for one in (train, craft, clean)]
        assert states == ["ready", "blocked", "blocked"]
        assert broken(postgres) == []


def finished_in_time(future: Future[Any]) -> bool:
    try:
        future.result(0.5)
    except TimeoutError:
        return False
    return True


class TestLocksHeldByOthers:
    """A process stopped in the middle of a transaction holds its locks: the keeper goes round them."""

    @pytest.fixture
    def orphans(self, postgres: Database) -> list[int]:
        """Two trainings about to be lost for the last time, each with a child."""
        post(postgres, factories.body(seeds=[0, 1]))
        held = [claim(postgres), claim(postgres)]
        with postgres.write() as session:
            session.execute(update(Stage).where(Stage.state == "running").values(lease_expires=db_now() - 1, losses=4))
        return [one.stage_id for one in held]

    def test_reap_takes_no_stage_after_a_job(self, postgres: Database, orphans: list[int]):
        """It would else hold the job while it waits for a child, whose holder waits for the job: a deadlock."""
        with postgres.read() as session:
            children = select(func.min(StageParent.stage_id)).where(StageParent.parent_id == orphans[1])
            child = session.scalar(children)
        with ThreadPoolExecutor(1) as pool, postgres.write() as other:
            other.execute(select(Stage.id).where(Stage.id == child).with_for_update())
            reaping = pool.submit(factories.reap, postgres)
            assert reaping.result(5) == []
            other.execute(select(Job.id).with_for_update())
        assert [factories.stage(postgres, stage_id).state for stage_id in orphans] == ["failed", "running"]
        factories.reap(postgres)
        assert [factories.stage(postgres, stage_id).state for stage_id in orphans] == ["failed", "failed"]

    def test_reap_waits_for_no_job(self, postgres: Database):
        """The first orphan belongs to the later job; who holds the earlier one must still get the later one."""
        shared, earlier, later = (post(postgres, trainings([seed])) for seed in (0, 1, 0))
        with postgres.write() as session:
            jobs.cancel(session, shared)
        for _ in range(2):
            factories.expire(postgres, claim(postgres))
        with ThreadPoolExecutor(1) as pool, postgres.write() as other:
            other.execute(select(Job.id).where(Job.id == earlier).with_for_update())
            reaping = pool.submit(factories.reap, postgres)
            assert len(reaping.result(5)) == 1
            other.execute(select(Job.id).where(Job.id == later).with_for_update(nowait=True))
        assert len(factories.reap(postgres)) == 1

    def test_reap_goes_round_a_held_orphan(self, postgres: Database, orphans: list[int]):
        with ThreadPoolExecutor(1) as pool, postgres.write() as other:
            other.execute(select(Stage.id).where(Stage.id == orphans[0]).with_for_update())
            pool.submit(factories.reap, postgres).result(5)
        assert [factories.stage(postgres, stage_id).state for stage_id in orphans] == ["running", "failed"]
        factories.reap(postgres)

    def test_claims_and_bells_go_round_a_held_stage(self, postgres: Database):
        post(postgres, trainings([0, 1]))
        first, second = sorted(row.id for row in factories.stages_by_title(postgres).values())
        with postgres.write() as session:
            row = {"host": "h", "pid": 1, "device": "cpu", "device_name": "", "queues": ["cpu"], "versions": {}}
            for name in ("a", "b"):
                workers.register(session, {"incarnation": name, **row})

        def ring() -> list[Bell]:
            with postgres.write() as session:
                return keeping.unheard(session, 60.0, 3.0)

        with ThreadPoolExecutor(1) as pool, postgres.write() as other:
            other.execute(select(Stage.id).where(Stage.id == first).with_for_update())
            assert pool.submit(ring).result(5) == [Bell(second, "cpu")]
            assert pool.submit(claim, postgres).result(5).stage_id == second


def test_everybody_at_once(database: Database):
    """Users, workers and keepers in six threads: no deadlock, no error, and everything ends."""
    specs = [trainings([0, 1]), factories.body(), transfer(), factories.body(priority=3, seeds=[0, 1])]
    start = threading.Barrier(6)

    def act(number: int) -> None:
        choose = random.Random(number)
        start.wait(10)
        for _ in range(20):
            deed = choose.choice(DEEDS)
            with suppress(StaleFence):
                deed(database, choose, specs)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(act, range(6)))
    for _ in range(20):
        factories.pass_time(database, 3600)
        factories.reap(database, 1000)
        factories.finish(database)
    with database.write() as session:
        assert keeping.repair(session) == ([], 0)
        assert set(session.scalars(select(Job.state))) <= {"succeeded", "failed", "cancelled"}


def submit(database: Database, choose: random.Random, specs: list[dict[str, Any]]) -> None:
    post(database, choose.choice(specs))


def work(database: Database, choose: random.Random, specs: list[dict[str, Any]]) -> None:
    held = try_claim(database)
    if held is None:
        return
    with database.write() as session:
        asked = stages.renew(session, held.stage_id, held.fence, 60.0, None)
    if asked:
        with database.write() as session:
            stages.release(session, held.stage_id, held.fence)
    elif choose.random() < 0.7:
        succeed(database, held)
    elif choose.random() < 0.5:
        factories.fail(database, held, final=choose.random() < 0.3)
    else:
        factories.expire(database, held)


def cancel(database: Database, choose: random.Random, specs: list[dict[str, Any]]) -> None:
    with database.read() as session:
        ids = list(session.scalars(select(Job.id)))
    if ids:
        with database.write() as session:
            jobs.cancel(session, choose.choice(ids))


def keep(database: Database, choose: random.Random, specs: list[dict[str, Any]]) -> None:
    factories.reap(database, max_losses=2)
    with database.write() as session:
        keeping.repair(session)
    with database.write() as session:
        keeping.unheard(session, 60.0, 0.0)


DEEDS = [submit, submit, work, work, work, work, cancel, keep]
