"""A worker that cannot run a stage leaves it, and its like, to those that may; where nobody may, the stage says so."""

from typing import Any

import pytest

from store import refusals, stages, waiting, workers
from store.database import Database
from store.models import Stage
from store.stages import Claim, StaleFence
from tests import factories

ALIVE = 35.0


@pytest.fixture(autouse=True)
def _two_workers(database: Database) -> None:
    for name in ("bad", "good"):
        register(database, name)


def register(database: Database, name: str, queue: str = "cpu") -> None:
    row: dict[str, Any] = {
        "incarnation": name, "host": name, "pid": 1, "device": "cpu", "device_name": "", "queues": [queue],
        "versions": {},
    }  # fmt: skip
    with database.write() as session:
        workers.register(session, row)


def leave(database: Database, name: str) -> None:
    with database.write() as session:
        workers.leave(session, name)


def refuse(database: Database, claim: Claim, patience: float = 0.0, cause: str = "DatasetMissing") -> list[Any]:
    error = {"cause": cause, "message": "the files are not here", "refused_by": "a host"}
    with database.write() as session:
        return refusals.refuse(
            session, claim.stage_id, claim.fence, error, alive_seconds=ALIVE, patience=patience
        )  # fmt: skip


def claim(database: Database, worker: str) -> Claim | None:
    with database.write() as session:
        without = refusals.left_to_others(session, worker, ALIVE)
        return stages.claim(session, ["cpu"], worker, 60.0, without)


def row_of(database: Database, held: Claim) -> Stage:
    return factories.stage(database, held.stage_id)


def reason(database: Database, stage: Stage) -> str | None:
    with database.read() as session:
        return waiting.reasons(session, [stage], ALIVE).of(stage)


def test_is_left_to_the_other(database: Database):
    """Without a failure, a loss or a wait; and so is every stage of the dataset."""
    job_id = factories.post(database, factories.trainings([0, 1]))
    held = claim(database, "bad")
    assert held is not None
    assert [bell.stage_id for bell in refuse(database, held)] == [held.stage_id]
    row = row_of(database, held)
    assert (row.state, row.failures, row.losses) == ("ready", 0, 0)
    assert reason(database, row) == (
        "next in the queue cpu; the worker on a host left it to the others: the files are not here"
    )
    assert claim(database, "bad") is None
    with database.read() as session:
        assert refusals.by_worker(session) == {"bad": ["the files are not here"]}
    taken = [claim(database, "good"), claim(database, "good")]
    for one in taken:
        assert one is not None
        factories.succeed(database, one)
    assert factories.job(database, job_id).state == "succeeded"


def test_fails_where_every_live_worker_refused(database: Database):
    """Then the next stages fail at once too, by whoever claims them: nothing waits for ever."""
    job_id = factories.post(database, factories.trainings([0, 1]))
    for name in ("bad", "good", "good"):
        held = claim(database, name)
        assert held is not None
        refuse(database, held)
    assert set(factories.states(database, job_id).values()) == {"failed"}
    assert factories.job(database, job_id).state == "failed"
    assert row_of(database, held).error == {
        "cause": "DatasetMissing", "message": "the files are not here", "refused_by": "a host"
    }  # fmt: skip


def test_a_clock_that_was_set_back_remembers_no_refusal(database: Database):
    factories.post(database, factories.trainings())
    held = claim(database, "bad")
    assert held is not None
    refuse(database, held)
    with database.write() as session:
        session.execute(stages.update(stages.Attempt).values(ended_at=stages.Attempt.ended_at + 86400))
    with database.read() as session:
        assert refusals.by_worker(session) == {}
    assert claim(database, "bad") is not None


@pytest.mark.parametrize("gone", ["left", "drains", "silent", "serves another queue"])
def test_a_worker_that_cannot_take_it_is_none(database: Database, gone: str):
    factories.post(database, factories.trainings())
    held = claim(database, "bad")
    assert held is not None
    with database.write() as session:
        row = session.get_one(workers.Worker, "good")
        if gone == "drains":
            row.draining = True
        elif gone == "serves another queue":
            row.queues = ["gpu"]
        else:
            row.seen_at = 0.0 if gone == "left" else row.seen_at - ALIVE - 1
    refuse(database, held)
    assert row_of(database, held).state == "failed"


def test_comes_back_when_the_other_has_gone(database: Database):
    factories.post(database, factories.trainings())
    held = claim(database, "bad")
    assert held is not None
    refuse(database, held)
    leave(database, "good")
    again = claim(database, "bad")
    assert again is not None
    assert again.fence == held.fence + 1


def test_waits_for_a_worker_to_come(database: Database):
    """As in a rolling deployment: tried again every while, by whoever is there, and then given up."""
    leave(database, "good")
    factories.post(database, factories.trainings())
    held = claim(database, "bad")
    assert held is not None
    refuse(database, held, patience=600, cause="OtherCode")
    row = row_of(database, held)
    assert (row.state, row.failures) == ("ready", 0)
    assert reason(database, row) == "tries again in 15 s after: the files are not here"
    assert claim(database, "bad") is None
    factories.pass_time(database, 20)
    register(database, "new")
    again = claim(database, "new")
    assert again is not None
    refuse(database, again, patience=600, cause="OtherCode")
    with database.write() as session:
        session.execute(stages.update(stages.Attempt).values(started_at=stages.Attempt.started_at - 601))
    leave(database, "new")
    factories.pass_time(database, 20)
    last = claim(database, "bad")
    assert last is not None
    refuse(database, last, patience=600, cause="OtherCode")
    assert row_of(database, held).state == "failed"


def test_patience_begins_anew_after_an_attempt_that_was_not_refused(database: Database):
    leave(database, "good")
    factories.post(database, factories.trainings())
    for ago, refused in ((700, True), (0, False), (0, True)):
        factories.pass_time(database, 20)
        held = claim(database, "bad")
        assert held is not None
        with database.write() as session:
            attempt = session.get_one(stages.Attempt, (held.stage_id, held.fence))
            attempt.started_at -= ago
            if not refused:
                stages.release(session, held.stage_id, held.fence)
        if refused:
            refuse(database, held, patience=600)
        assert row_of(database, held).state == "ready"


def test_another_cause_is_another_matter(database: Database):
    """Who lacks the files may still be the one that has the code."""
    factories.post(database, factories.trainings([0, 1]))
    one, two = claim(database, "bad"), claim(database, "good")
    assert one is not None
    assert two is not None
    refuse(database, one, cause="DatasetMissing")
    refuse(database, two, cause="OtherCode")
    assert [row_of(database, held).state for held in (one, two)] == ["ready", "ready"]


def test_what_nobody_wants_is_cancelled(database: Database):
    from store import jobs

    job_id = factories.post(database, factories.trainings())
    held = claim(database, "bad")
    assert held is not None
    with database.write() as session:
        jobs.cancel(session, job_id)
    refuse(database, held)
    assert row_of(database, held).state == "cancelled"


def test_stale(database: Database):
    factories.post(database, factories.trainings())
    held = claim(database, "bad")
    assert held is not None
    factories.expire(database, held)
    factories.reap(database)
    before = factories.everything(database)
    with pytest.raises(StaleFence):
        refuse(database, held)
    with pytest.raises(StaleFence), database.write() as session:
        stages.lose(session, held.stage_id, held.fence, "its device broke", 5)
    assert factories.everything(database) == before


def test_a_broken_device_is_a_loss(database: Database):
    factories.post(database, factories.trainings())
    for loss in (1, 2):
        factories.pass_time(database, 100)
        held = claim(database, "bad")
        assert held is not None
        with database.write() as session:
            stages.lose(session, held.stage_id, held.fence, "its device broke", 2)
        row = row_of(database, held)
        assert (row.losses, row.failures, row.fence) == (loss, 0, held.fence + 1)
        assert row.error and row.error["message"] == f"its device broke (loss {loss} of 2)"
    assert row.state == "failed"
