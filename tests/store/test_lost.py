"""A result whose bytes are lost is withdrawn, and its stage runs again; what rests upon it stands or goes with them."""

from pathlib import Path

import pytest
from sqlalchemy import select

from store import lost
from store.admin import doctor, recompute, repair
from store.artifacts import FolderStore
from store.database import Database
from store.jobs import cancel
from store.models import Event, LostResult, Result, StageLog
from store.ownership import Owner
from store.results import Filters, stamp, whitebox
from store.stages import Bell, Claim, StaleFence
from tests import factories
from tests.factories import body, claim, finish, post, states, succeed, trainings, transfer


def weights_of(key: str) -> str:
    return factories.stored("weights", key).sha256


def report(database: Database, held: Claim, sha256: str) -> list[Bell] | None:
    with database.write() as session:
        return lost.report(session, held.stage_id, held.fence, sha256, "artifact x is missing")


def again(database: Database, held: Claim, content: str) -> list[Bell]:
    """Publish a training that came to these bytes."""
    with database.write() as session:
        weights = [factories.stored("weights", content)]
        return lost.succeed(session, held.stage_id, held.fence, {"iterations": 1}, {}, weights)


def trained(database: Database) -> tuple[int, Claim]:
    """Post a job and finish its training."""
    job_id = post(database, body())
    train = claim(database)
    assert train.kind == "train"
    succeed(database, train)
    return job_id, train


def test_a_job_that_finds_an_artifact_lost_gets_to_its_end(database: Database):
    """The finder waits for what it needs, as does a sibling that had begun; no failure is counted."""
    job_id, train = trained(database)
    finder, sibling = claim(database, "finder"), claim(database, "sibling")
    assert report(database, finder, weights_of(train.key)) == [Bell(train.stage_id, "cpu")]
    found = states(database, job_id)
    assert sorted(found.values()) == ["blocked", "blocked", "blocked", "ready"]
    assert factories.stage(database, finder.stage_id).failures == 0
    for late in (finder, sibling):
        with pytest.raises(StaleFence):
            succeed(database, late)
    finish(database)
    assert set(states(database, job_id).values()) == {"succeeded"}
    assert factories.job(database, job_id).state == "succeeded"
    with database.read() as session:
        (record,) = session.scalars(select(LostResult)).all()
        assert (record.stage_id, record.fence, record.artifacts) == (
            train.stage_id, train.fence, {"weights": weights_of(train.key)},
        )  # fmt: skip
        assert "stage.withdrawn" in session.scalars(select(Event.kind).where(Event.job_id == job_id)).all()
        assert "is withdrawn: artifact x is missing" in str(session.scalars(select(StageLog.line)).all())


def test_a_stale_finder_withdraws_nothing(database: Database):
    _, train = trained(database)
    finder = claim(database)
    factories.expire(database, finder)
    factories.reap(database)
    before = factories.everything(database)
    with pytest.raises(StaleFence):
        report(database, finder, weights_of(train.key))
    assert factories.everything(database) == before


def test_a_store_that_loses_it_again_and_again_needs_a_person(database: Database):
    """So does an artifact that no result has."""
    _, train = trained(database)
    for _ in range(lost.MAX_WITHDRAWN):
        finder = claim(database)
        assert report(database, finder, weights_of(train.key))
        succeed(database, claim(database))
    finder = claim(database)
    assert report(database, finder, weights_of(train.key)) is None
    assert report(database, finder, "0" * 64) is None
    finish(database)
    factories.fail(database, finder)


def done(database: Database) -> tuple[int, Claim]:
    job_id, train = trained(database)
    finish(database)
    return job_id, train


def withdraw(database: Database, held: Claim) -> list[Bell]:
    with database.write() as session:
        return lost.withdraw(session, [held.stage_id], "lost")


def test_nobody_wants_it_until_a_job_asks_for_it(database: Database):
    """What was computed from it stands, and so does the job; the next job is not poisoned."""
    job_id, train = done(database)
    with database.read() as session:
        before, counted = stamp(session), whitebox(session, Filters())
    assert withdraw(database, train) == []
    row = factories.stage(database, train.stage_id)
    assert (row.state, (row.error or {})["cause"]) == ("cancelled", "lost")
    assert factories.job(database, job_id).state == "succeeded"
    with database.read() as session:
        assert stamp(session) != before
        assert whitebox(session, Filters()).cells == counted.cells
    next_job = post(database, body())
    assert [one.key for one in finish(database)] == [train.key]
    assert factories.job(database, next_job).state == "succeeded"


@pytest.mark.parametrize("same", [True, False])
def test_what_rests_on_other_bytes_goes(database: Database, same: bool):
    """Where the same bytes come again all that was computed from them is as good as before."""
    _, train = done(database)
    withdraw(database, train)
    next_job = post(database, body())
    bells = again(database, claim(database), train.key if same else "other bytes")
    assert len(bells) == (0 if same else 2)
    assert sorted(states(database, next_job).values()) == (
        ["succeeded"] * 4 if same else ["blocked", "ready", "ready", "succeeded"]
    )
    with database.read() as session:
        assert len(session.scalars(select(Result)).all()) == (4 if same else 1)
        assert len(session.scalars(select(LostResult)).all()) == (1 if same else 4)
    assert factories.job(database, next_job).state == ("succeeded" if same else "running")
    finish(database)
    assert factories.job(database, next_job).state == "succeeded"


def test_a_withdrawn_evaluation_counts_nothing(database: Database):
    done(database)
    evaluation = next(row for row in factories.stages_by_title(database).values() if row.kind == "evaluate")
    with database.write() as session:
        lost.withdraw(session, [evaluation.id], "lost")
    with database.read() as session:
        (missing,) = [cell.missing for cell in whitebox(session, Filters()).cells.values() if cell.missing]
    assert "its result is withdrawn" in str(missing)


def test_what_is_being_cancelled_is_not_run_again(database: Database):
    job_id, train = trained(database)
    held = claim(database)
    with database.write() as session:
        cancel(session, job_id)
    withdraw(database, train)
    assert factories.job(database, job_id).state == "cancelled"
    assert factories.stage(database, held.stage_id).state == "cancelled"
    assert factories.stage(database, train.stage_id).state == "cancelled"


def evaluating(database: Database) -> tuple[int, Claim, Claim]:
    """Return a job's id, its last evaluation, which runs on, and the training of the substitute, which is withdrawn."""
    job_id = post(database, transfer())
    running = claimed(database, "evaluate natural H, seed 0, FGSM eps=0.3 from fgsm_adv H")
    assert finish(database)[-1].kind == "evaluate"
    train = next(row for row in factories.stages_by_title(database).values() if "train fgsm_adv" in row.title)
    with database.write() as session:
        assert lost.withdraw(session, [train.id], "lost") == [Bell(train.id, "cpu")]
    return job_id, running, claim(database, "again")


def claimed(database: Database, title: str) -> Claim:
    """Run everything until there is a stage of that title, and claim it."""
    while (one := claim(database)).title != title:
        succeed(database, one)
    return one


def assert_taken(database: Database, held: Claim) -> None:
    row = factories.stage(database, held.stage_id)
    assert (row.state, row.fence, row.lease_owner, row.cancel_requested) == ("cancelled", held.fence + 1, None, False)
    assert "it needs a stage that failed: train fgsm_adv" in (row.error or {})["message"]
    with pytest.raises(StaleFence):
        succeed(database, held)


@pytest.mark.parametrize("loses", [False, True])
def test_an_evaluation_that_runs_ends_with_the_training_that_fails_the_second_time(database: Database, loses: bool):
    """Its own parents stand, so the withdrawal let it go on. A new job runs both."""
    job_id, running, again = evaluating(database)
    if loses:
        factories.expire(database, again)
        factories.reap(database, max_losses=1)
    else:
        factories.fail(database, again)
    assert_taken(database, running)
    assert factories.job(database, job_id).state == "failed"
    next_job = post(database, transfer())
    assert {one.stage_id for one in finish(database)} == {again.stage_id, running.stage_id}
    assert factories.job(database, next_job).state == "succeeded"


def test_an_evaluation_that_is_being_stopped_ends_with_the_training_too(database: Database):
    job_id, running, again = evaluating(database)
    other = post(database, trainings([again.spec["seed"]], "fgsm_adv"))
    with database.write() as session:
        cancel(session, job_id)
    assert factories.stage(database, running.stage_id).cancel_requested
    factories.fail(database, again)
    assert_taken(database, running)
    assert [factories.job(database, number).state for number in (job_id, other)] == ["cancelled", "failed"]


def test_doctor_repairs(database: Database, tmp_path: Path):
    store = FolderStore(tmp_path)
    _, train = done(database)
    for row in factories.stages_by_title(database).values():
        store.put(row.key.encode())
    assert repair(database, store) == []
    store.path(weights_of(train.key)).write_bytes(b"something else")
    assert doctor(database, store) == [f"artifact {weights_of(train.key)} has been altered in the store"]
    assert len(repair(database, store)) == 1
    assert doctor(database, store) == []
    job_id = post(database, body())
    assert [one.key for one in finish(database)] == [train.key]
    store.put(train.key.encode())
    assert doctor(database, store) == []
    assert "is withdrawn" in recompute(database, train.key)[0]
    assert factories.job(database, job_id).state == "succeeded"


def test_a_disk_that_is_not_mounted_is_no_loss(database: Database, tmp_path: Path):
    """Nothing is withdrawn because of a folder that holds nothing at all."""
    done(database)
    owner = Owner(database)
    owner.name()
    before = factories.everything(database)
    (said,) = repair(database, FolderStore(tmp_path / "gone", owner))
    assert "could not be checked" in said
    assert "is its disk mounted" in said
    assert factories.everything(database) == before
