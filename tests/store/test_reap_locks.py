"""A process that stops in the middle of a transaction holds its locks: the keeper takes what it can, the rest later."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from store import keeping
from store.database import Database
from store.models import Job, Stage
from tests import factories

PATIENCE = text("SET LOCAL lock_timeout = '300ms'")
"""Less than any pause: a reaper that waits for a lock fails here."""


@contextmanager
def asleep(database: Database) -> Iterator[Session]:
    """Yield the transaction of a process that has stopped in its middle."""
    with Session(database.engine) as session:
        yield session
        session.rollback()


def orphans(database: Database, number: int) -> tuple[list[int], list[int]]:
    """Return jobs of one training each and their stages, whose leases have ended."""
    jobs = [factories.post(database, factories.trainings([seed])) for seed in range(number)]
    claims = [factories.claim(database) for _ in jobs]
    for claim in claims:
        factories.expire(database, claim)
    return jobs, [claim.stage_id for claim in claims]


def reap(database: Database, max_losses: int = 5) -> list[int]:
    with database.read() as session:
        found = keeping.orphans(session)
    return [stage_id for stage_id in found if taken_back(database, stage_id, max_losses)]


def taken_back(database: Database, stage_id: int, max_losses: int) -> bool:
    with database.write() as session:
        session.execute(PATIENCE)
        return bool(keeping.reap(session, stage_id, max_losses))


def test_a_job_that_somebody_holds(postgres: Database):
    """Its orphan waits for the next time; it does not hold up the orphans of other jobs."""
    jobs, held = orphans(postgres, 3)
    with asleep(postgres) as sleeper:
        sleeper.execute(select(Job.id).where(Job.id == jobs[1]).with_for_update())
        assert reap(postgres) == [held[0], held[2]]
        assert reap(postgres) == []
    assert reap(postgres) == [held[1]]


def test_a_stage_that_somebody_holds(postgres: Database):
    _, held = orphans(postgres, 2)
    with asleep(postgres) as sleeper:
        sleeper.execute(select(Stage.id).where(Stage.id == held[0]).with_for_update())
        assert reap(postgres) == [held[1]]
    assert reap(postgres) == [held[0]]


def test_what_needs_an_orphan_that_is_lost_for_good(postgres: Database):
    """Its descendants end with it, so it waits for them, too, and for all their jobs."""
    job_id = factories.post(postgres, factories.body())
    other = factories.post(postgres, factories.body(attacks=[{"kind": "none"}]))
    claim = factories.claim(postgres)
    factories.expire(postgres, claim)
    with asleep(postgres) as sleeper:
        sleeper.execute(select(Job.id).where(Job.id == other).with_for_update())
        assert reap(postgres, max_losses=1) == []
        assert factories.stage(postgres, claim.stage_id).state == "running"
    assert reap(postgres, max_losses=1) == []
    assert factories.stage(postgres, claim.stage_id).state == "failed"
    assert {factories.job(postgres, number).state for number in (job_id, other)} == {"failed"}
