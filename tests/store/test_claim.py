"""The life of a stage: claimed once, held by a lease, ended under its fence and no other."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from store import events, jobs, keeping, refusals, stages, workers
from store.database import Database, db_now
from store.models import Attempt, Checkpoint, Evaluation, Job, Result, Stage, StageArtifact, StageLog, Worker
from store.stages import Claim, StaleFence
from tests import factories
from tests.factories import (
    body,
    claim,
    expire,
    fail,
    finish,
    post,
    reap,
    states,
    succeed,
    trainings,
    transfer,
    try_claim,
)

CUDA = factories.EXECUTION.model_copy(update={"device": "cuda"})


def renew(database: Database, held: Claim, lease: float = 60.0, progress: dict[str, Any] | None = None) -> bool | None:
    with database.write() as session:
        return stages.renew(session, held.stage_id, held.fence, lease, progress)


def release(database: Database, held: Claim) -> list[stages.Bell]:
    with database.write() as session:
        return stages.release(session, held.stage_id, held.fence)


def confirm(database: Database, held: Claim) -> None:
    with database.write() as session:
        stages.release(session, held.stage_id, held.fence)


def cancel(database: Database, job_id: int) -> str | None:
    with database.write() as session:
        return jobs.cancel(session, job_id)


def seconds_left(database: Database, held: Claim) -> float:
    with database.read() as session:
        return session.scalar(select(Stage.lease_expires - db_now()).where(Stage.id == held.stage_id)) or 0.0


def wait_left(database: Database, stage_id: int) -> float:
    with database.read() as session:
        return session.scalar(select(Stage.not_before - db_now()).where(Stage.id == stage_id)) or 0.0


def attempts(database: Database, stage_id: int) -> list[tuple[int, str | None]]:
    with database.read() as session:
        rows = session.scalars(select(Attempt).where(Attempt.stage_id == stage_id).order_by(Attempt.fence))
        return [(row.fence, row.outcome) for row in rows]


def happened(database: Database, job_id: int) -> list[str]:
    with database.read() as session:
        return [event.kind for event in events.since(session, job_id, 0)]


class TestOrder:
    def test_priority_then_age(self, database: Database):
        post(database, trainings([0, 1]))
        post(database, trainings([2], priority=5))
        post(database, trainings([3], priority=-5))
        order = [one.spec["seed"] for one in finish(database)]
        assert order[0] == 2
        assert order[-1] == 3
        ids = factories.stages_by_title(database)
        first, second = (ids[f"train natural H, seed {seed}"].id for seed in order[1:3])
        assert first < second

    def test_queues_in_the_order_the_worker_names_them(self, database: Database):
        post(database, trainings([0]))
        post(database, trainings([1], priority=-100), execution=CUDA)
        with database.write() as session:
            assert stages.claim(session, [], "w", 60) is None
            assert stages.claim(session, ["gpu"], "w", 60)
            assert stages.claim(session, ["gpu"], "w", 60) is None
            assert stages.claim(session, ["gpu", "cpu"], "w", 60)

    def test_nothing_twice(self, database: Database):
        for seeds in (range(100), range(100, 200)):
            post(database, trainings(seeds))
        barrier = threading.Barrier(8)

        def work(worker: int) -> list[tuple[int, int]]:
            barrier.wait(10)
            mine: list[tuple[int, int]] = []
            while (one := try_claim(database, f"w{worker}")) is not None:
                mine.append((one.stage_id, one.fence))
            return mine

        with ThreadPoolExecutor(8) as pool:
            claims = [one for mine in pool.map(work, range(8)) for one in mine]
        assert len({stage_id for stage_id, _ in claims}) == len(claims) == 200
        assert {fence for _, fence in claims} == {1}

    def test_a_claim_says_what_to_do(self, database: Database):
        job_id = post(database, trainings())
        held = claim(database, "me")
        row = factories.stage(database, held.stage_id)
        assert (held.key, held.kind, held.title, held.spec) == (row.key, "train", row.title, row.spec)
        assert (row.state, row.lease_owner, row.fence) == ("running", "me", held.fence)
        assert factories.job(database, job_id).state == "running"


class TestLease:
    def test_lasts_as_long_as_asked_by_the_database_clock(self, database: Database, monkeypatch: pytest.MonkeyPatch):
        post(database, trainings())
        monkeypatch.setattr(time, "time", lambda: 0.0)  # a worker whose own clock is decades off
        held = claim(database, lease=100.0)
        assert 95 < seconds_left(database, held) <= 100
        assert renew(database, held, lease=500.0) is False
        assert 495 < seconds_left(database, held) <= 500

    def test_renewing_carries_progress(self, database: Database):
        post(database, trainings())
        held = claim(database)
        renew(database, held, progress={"done": 1, "total": 4})
        renew(database, held)
        assert factories.stage(database, held.stage_id).progress == {"done": 1, "total": 4}

    def test_an_expired_lease_that_nobody_took_can_still_be_used(self, database: Database):
        post(database, trainings())
        held = claim(database)
        expire(database, held)
        assert renew(database, held) is False
        assert reap(database) == []
        expire(database, held)
        succeed(database, held)
        assert factories.stage(database, held.stage_id).state == "succeeded"

    def test_fences_grow_with_every_claim_and_loss(self, database: Database):
        post(database, trainings())
        seen: list[int] = []
        for way in (release, expire_and_reap, release, retry):
            held = claim(database)
            way(database, held)
            seen += [held.fence, factories.stage(database, held.stage_id).fence]
            factories.pass_time(database, 100)
        assert seen == [1, 1, 2, 3, 4, 4, 5, 5]


def expire_and_reap(database: Database, held: Claim) -> None:
    expire(database, held)
    reap(database)


def retry(database: Database, held: Claim) -> None:
    fail(database, held, final=False)


LATE: dict[str, Callable[[Session, Claim], Any]] = {
    "renew": lambda s, c: stages.renew(s, c.stage_id, c.fence, 60.0, {"done": 9, "total": 9}),
    "succeed": lambda s, c: stages.succeed(
        s, c.stage_id, c.fence, {"n": 1, "n_correct": 1}, {}, [factories.stored("w")]
    ),
    "fail": lambda s, c: stages.fail(s, c.stage_id, c.fence, {"message": "late"}, final=True, max_failures=1),
    "retry": lambda s, c: stages.fail(s, c.stage_id, c.fence, {"message": "late"}, final=False, max_failures=9),
    "release": lambda s, c: stages.release(s, c.stage_id, c.fence),
    "lose": lambda s, c: stages.lose(s, c.stage_id, c.fence, "late", 5),
    "refuse": lambda s, c: refusals.refuse(
        s, c.stage_id, c.fence, {"cause": "Test", "message": "late"}, alive_seconds=35.0, patience=0.0
    ),
    "add_checkpoint": lambda s, c: stages.add_checkpoint(s, c.stage_id, c.fence, factories.stored("late")),
    "write_log": lambda s, c: stages.write_log(s, c.stage_id, c.fence, [(0.0, "late")]),
}
RAISES = {"succeed", "fail", "retry", "lose", "refuse", "add_checkpoint"}


def reaped(database: Database, held: Claim) -> None:
    expire_and_reap(database, held)


def taken_over(database: Database, held: Claim) -> None:
    expire_and_reap(database, held)
    assert claim(database, "other").stage_id == held.stage_id


def finished_by_another(database: Database, held: Claim) -> None:
    expire_and_reap(database, held)
    succeed(database, claim(database, "other"))


def given_back(database: Database, held: Claim) -> None:
    release(database, held)


def broken(database: Database, held: Claim) -> None:
    fail(database, held)


def attempt(database: Database, write: str, held: Claim) -> bool:
    """Return whether the write raised that its fence is stale; one that does not raise must return nothing."""
    try:
        with database.write() as session:
            assert not LATE[write](session, held)
    except StaleFence:
        return True
    return False


class TestStaleFence:
    @pytest.mark.parametrize("fate", [reaped, taken_over, finished_by_another, given_back, broken])
    def test_changes_nothing(self, database: Database, fate: Callable[[Database, Claim], None]):
        post(database)
        held = claim(database)
        fate(database, held)
        before = factories.everything(database)
        for write in LATE:
            assert attempt(database, write, held) == (write in RAISES), write
            assert factories.everything(database) == before, write

    def test_a_fence_from_the_future_changes_nothing(self, database: Database):
        post(database)
        held = replace(claim(database), fence=2)
        before = factories.everything(database)
        for write in LATE:
            assert attempt(database, write, held) == (write in RAISES), write
        assert factories.everything(database) == before

    def test_the_same_writes_in_time_change_something(self, database: Database):
        """Without this the tests above would have no power."""
        for seed, write in enumerate(LATE):
            post(database, trainings([seed]))
            held = claim(database)
            before = factories.everything(database)
            with database.write() as session:
                LATE[write](session, held)
            assert factories.everything(database) != before, write
            factories.pass_time(database, 100)
            reap(database)
            factories.pass_time(database, 100)
            finish(database)


class TestSuccess:
    def test_wakes_the_children_and_keeps_the_result(self, database: Database):
        job_id = post(database)
        train = claim(database)
        bells = succeed(database, train)
        assert sorted(states(database, job_id).values()) == ["blocked", "ready", "ready", "succeeded"]
        titles = {row.id: row.title for row in factories.stages_by_title(database).values()}
        assert sorted(titles[bell.stage_id].split()[0] for bell in bells) == ["craft", "evaluate"]
        with database.read() as session:
            payload, artifacts = stages.result_of(session, train.stage_id) or ({}, {})
            assert payload["iterations"] == 1
            assert set(artifacts) == {"weights"}
            assert session.get_one(Result, train.stage_id).fence == train.fence
        assert attempts(database, train.stage_id) == [(train.fence, "succeeded")]

    def test_a_child_waits_for_its_last_parent(self, database: Database):
        job_id = post(database, transfer())
        title = "evaluate natural H, seed 0, FGSM eps=0.3 from fgsm_adv H"
        order = finish(database)
        spec = next(one.spec for one in order if one.title == title)
        done_before = {one.key for one in order[: [one.title for one in order].index(title)]}
        assert {spec["target"], spec["examples"]} <= done_before
        assert factories.job(database, job_id).state == "succeeded"

    def test_repeated_under_its_fence_is_harmless(self, database: Database):
        """A commit whose answer was lost is tried again."""
        post(database)
        held = claim(database)
        assert succeed(database, held)
        before = factories.everything(database)
        assert succeed(database, held) == []
        assert factories.everything(database) == before

    def test_evaluations_get_their_integers(self, database: Database):
        post(database)
        finish(database, lambda one: 9 if one.spec.get("examples") is None else 2)
        with database.read() as session:
            found = {(row.attack_label, row.n, row.n_correct) for row in session.scalars(select(Evaluation))}
        assert found == {("clean", 10, 9), ("FGSM eps=0.3", 10, 2)}

    def test_forgets_checkpoints(self, database: Database):
        post(database, trainings())
        held = claim(database)
        with database.write() as session:
            stages.add_checkpoint(session, held.stage_id, held.fence, factories.stored("c", "1"))
        succeed(database, held)
        with database.read() as session:
            assert stages.checkpoints(session, held.stage_id) == []

    def test_device_time_is_that_of_all_attempts(self, database: Database):
        post(database, trainings())
        for _ in range(2):
            held = claim(database)
            with database.write() as session:
                row = session.get_one(Attempt, (held.stage_id, held.fence))
                row.started_at -= 10
            release(database, held)
        assert 20 <= factories.stage(database, held.stage_id).device_seconds < 25

    def test_a_clock_that_was_set_back_takes_no_device_time_away(self, database: Database):
        post(database, trainings())
        for ago in (10, -86400):
            held = claim(database)
            with database.write() as session:
                row = session.get_one(Attempt, (held.stage_id, held.fence))
                row.started_at -= ago
            release(database, held)
        assert 10 <= factories.stage(database, held.stage_id).device_seconds < 15

    def test_the_rate_is_that_of_results_which_took_a_second_or_more(self, database: Database):
        post(database, trainings([0, 1]))
        for lasted in (0.0, 10.0):
            held = claim(database)
            with database.write() as session:
                row = session.get_one(Attempt, (held.stage_id, held.fence))
                row.started_at -= lasted
            succeed(database, held)
            with database.read() as session:
                rate = stages.measured_rate(session, "cpu")
            if not lasted:
                assert rate is None
            else:
                found = factories.stage(database, held.stage_id)
                assert rate == pytest.approx(found.flop / found.device_seconds)


class TestFailure:
    def test_is_tried_again_after_a_growing_wait(self, database: Database):
        job_id = post(database, trainings())
        waits: list[float] = []
        for _ in range(2):
            held = claim(database)
            fail(database, held, final=False, message="out of memory")
            row = factories.stage(database, held.stage_id)
            assert row.state == "ready"
            assert row.error == {"cause": "Test", "message": "out of memory"}
            assert try_claim(database) is None, "claimed before its time"
            waits.append(wait_left(database, held.stage_id))
            factories.pass_time(database, waits[-1] + 0.1)
        assert 0.75 * 2 - 0.5 < waits[0] <= 1.25 * 2
        assert 0.75 * 4 - 0.5 < waits[1] <= 1.25 * 4
        succeed(database, claim(database))
        assert factories.stage(database, held.stage_id).error is None
        assert factories.job(database, job_id).state == "succeeded"
        assert attempts(database, held.stage_id) == [(1, "failed"), (2, "failed"), (3, "succeeded")]

    def test_what_failed_together_is_not_tried_again_together(self, database: Database):
        post(database, trainings(list(range(12))))
        held = [claim(database) for _ in range(12)]
        with database.write() as session:
            for one in held:
                stages.fail(session, one.stage_id, one.fence, {}, final=False, max_failures=3)
        waits = [wait_left(database, one.stage_id) for one in held]
        assert min(waits) > 0.75 * 2 - 0.5 and max(waits) <= 1.25 * 2
        assert max(waits) - min(waits) > 0.1

    def test_ends_after_as_many_as_are_allowed(self, database: Database):
        job_id = post(database, trainings())
        for number in range(3):
            fail(database, claim(database), final=False, message=f"no. {number}")
            factories.pass_time(database, 100)
        row = factories.stages_by_title(database)["train natural H, seed 0"]
        assert (row.state, row.failures) == ("failed", 3)
        assert row.error and row.error["message"] == "no. 2"
        assert factories.job(database, job_id).state == "failed"

    def test_a_final_one_ends_at_once_with_everything_that_needed_it(self, database: Database):
        job_id = post(database)
        fail(database, claim(database), message="the loss is NaN")
        rows = factories.stages_by_title(database)
        below = [row for row in rows.values() if row.kind != "train"]
        assert [row.state for row in below] == ["cancelled"] * 3
        assert {row.error and row.error["message"] for row in below} == {
            "it needs a stage that failed: train natural H, seed 0: the loss is NaN"
        }
        assert factories.job(database, job_id).state == "failed"

    def test_ends_only_what_needed_it(self, database: Database):
        job_id = post(database, transfer())
        trains = {one.title: one for one in (claim(database), claim(database))}
        fail(database, trains["train fgsm_adv H, seed 0"])
        assert factories.job(database, job_id).state == "running", "what does not need it goes on"
        succeed(database, trains["train natural H, seed 0"])
        finish(database)
        found = states(database, job_id)
        assert {state for title, state in found.items() if "fgsm_adv" not in title} == {"succeeded"}
        assert found["evaluate natural H, seed 0, FGSM eps=0.3 from fgsm_adv H"] == "cancelled"
        assert factories.job(database, job_id).state == "failed"

    def test_reaches_every_job_that_shares_the_stage(self, database: Database):
        ids = [post(database, trainings([0])), post(database), post(database, trainings([1]))]
        held = claim(database)
        assert held.spec["seed"] == 0
        fail(database, held)
        assert [factories.job(database, job_id).state for job_id in ids] == ["failed", "failed", "queued"]
        assert happened(database, ids[1]) == ["job.queued", "stage.running", "stage.failed", "job.failed"]

    @pytest.mark.parametrize("text", ["a\x00b", "half a pair \ud800"])
    def test_a_message_that_postgresql_cannot_store_is_stored_all_the_same(self, database: Database, text: str):
        post(database, trainings())
        held = claim(database)
        with database.write() as session:
            stages.write_log(session, held.stage_id, held.fence, [(0.0, text)])
        fail(database, held, message=text)
        message = (factories.stage(database, held.stage_id).error or {})["message"]
        assert message[0] == text[0]
        assert not {"\x00", "\ud800"} & set(message)


class TestCancel:
    def test_what_nobody_runs_ends_at_once(self, database: Database):
        job_id = post(database)
        assert cancel(database, job_id) == "cancelled"
        assert set(states(database, job_id).values()) == {"cancelled"}
        assert try_claim(database) is None
        assert happened(database, job_id) == ["job.queued", "job.cancelling", "job.cancelled"]

    def test_what_runs_is_asked_to_stop_and_waited_for(self, database: Database):
        job_id = post(database)
        held = claim(database)
        assert cancel(database, job_id) == "cancelling"
        assert factories.stage(database, held.stage_id).state == "running"
        assert renew(database, held) is True
        confirm(database, held)
        assert factories.job(database, job_id).state == "cancelled"
        assert set(states(database, job_id).values()) == {"cancelled"}
        assert attempts(database, held.stage_id) == [(1, "cancelled")]

    def test_asking_twice_changes_nothing(self, database: Database):
        job_id = post(database)
        held = claim(database)
        cancel(database, job_id)
        before = factories.everything(database)
        assert cancel(database, job_id) == "cancelling"
        assert factories.everything(database) == before
        confirm(database, held)
        before = factories.everything(database)
        assert cancel(database, job_id) == "cancelled"
        assert factories.everything(database) == before

    def test_unknown_and_ended_jobs(self, database: Database):
        assert cancel(database, 10**9) is None
        job_id = post(database, trainings())
        finish(database)
        assert cancel(database, job_id) == "succeeded"

    def test_a_shared_stage_goes_on(self, database: Database):
        first, second = post(database), post(database, trainings())
        held = claim(database)
        assert cancel(database, first) == "cancelled", "it waits for nothing that stops"
        assert renew(database, held) is False
        succeed(database, held)
        assert factories.job(database, second).state == "succeeded"
        assert sorted(states(database, first).values()) == ["cancelled"] * 3 + ["succeeded"]
        assert try_claim(database) is None, "woke a stage that nobody wants"

    def test_the_last_job_to_go_stops_it(self, database: Database):
        ids = [post(database), post(database)]
        held = claim(database)
        assert cancel(database, ids[0]) == "cancelled"
        assert cancel(database, ids[1]) == "cancelling"
        assert renew(database, held) is True
        confirm(database, held)
        assert factories.job(database, ids[1]).state == "cancelled"

    def test_a_job_that_has_ended_wants_nothing(self, database: Database):
        post(database)
        fail(database, claim(database))
        second = post(database)
        assert cancel(database, second) == "cancelled"
        assert set(states(database, second).values()) == {"cancelled"}

    def test_a_new_job_gets_a_stage_under_cancellation_back(self, database: Database):
        first = post(database)
        held = claim(database)
        cancel(database, first)
        second = post(database)
        assert factories.job(database, first).state == "cancelled", "it waits no longer for a stage that goes on"
        assert renew(database, held) is False
        succeed(database, held)
        finish(database)
        assert factories.job(database, second).state == "succeeded"
        assert factories.job(database, first).state == "cancelled"

    def test_a_worker_that_had_already_stopped_gives_it_back(self, database: Database):
        first = post(database, trainings())
        held = claim(database)
        cancel(database, first)
        second = post(database, trainings())
        confirm(database, held)
        assert states(database, second) == {"train natural H, seed 0": "ready"}
        finish(database)
        assert factories.job(database, second).state == "succeeded"

    @pytest.mark.parametrize("way", [release, retry, expire_and_reap, confirm])
    def test_however_the_attempt_ends_nobody_runs_it_again(
        self, database: Database, way: Callable[[Database, Claim], Any]
    ):
        """A worker may be draining, crash or fail before it hears of the cancellation."""
        job_id = post(database)
        held = claim(database)
        cancel(database, job_id)
        way(database, held)
        factories.pass_time(database, 1000)
        assert factories.job(database, job_id).state == "cancelled"
        assert try_claim(database) is None
        assert set(states(database, job_id).values()) == {"cancelled"}

    @pytest.mark.parametrize(("way", "counted"), [(retry, (1, 0, 0)), (expire_and_reap, (0, 1, 1))])
    def test_how_the_attempt_ends_is_counted_all_the_same(
        self, database: Database, way: Callable[[Database, Claim], Any], counted: tuple[int, int, int]
    ):
        """A lost worker may come back: its fence is stale by then."""
        job_id = post(database)
        held = claim(database)
        cancel(database, job_id)
        way(database, held)
        row = factories.stage(database, held.stage_id)
        assert (row.state, row.failures, row.losses, row.fence - held.fence) == ("cancelled", *counted)

    def test_a_result_that_came_first_is_kept(self, database: Database):
        job_id = post(database)
        held = claim(database)
        cancel(database, job_id)
        assert succeed(database, held) == []
        assert factories.job(database, job_id).state == "cancelled"
        assert sorted(states(database, job_id).values()) == ["cancelled"] * 3 + ["succeeded"]

    def test_a_spec_that_fails_while_it_is_cancelled_is_remembered_as_failed(self, database: Database):
        job_id = post(database)
        held = claim(database)
        cancel(database, job_id)
        fail(database, held, final=True)
        assert factories.stage(database, held.stage_id).state == "failed"
        assert factories.job(database, job_id).state == "cancelled"


class TestRelease:
    def test_gives_it_back_unharmed(self, database: Database):
        job_id = post(database, trainings())
        held = claim(database)
        assert release(database, held) == [stages.Bell(held.stage_id, "cpu")]
        row = factories.stage(database, held.stage_id)
        assert (row.state, row.failures, row.losses, row.lease_owner) == ("ready", 0, 0, None)
        assert claim(database).fence == held.fence + 1
        assert happened(database, job_id) == ["job.queued", "stage.running", "stage.released", "stage.running"]


class TestReap:
    def test_takes_only_what_has_expired(self, database: Database):
        post(database, trainings([0, 1]))
        first, second = claim(database), claim(database)
        expire(database, first)
        assert [bell.stage_id for bell in reap(database)] == [first.stage_id]
        assert factories.stage(database, second.stage_id).state == "running"
        row = factories.stage(database, first.stage_id)
        assert (row.state, row.losses, row.failures, row.fence) == ("ready", 1, 0, 2)
        assert row.error and row.error["cause"] == "lost"

    def test_the_first_loss_costs_no_wait_and_later_ones_do(self, database: Database):
        post(database, trainings())
        waits: list[float] = []
        for _ in range(4):
            held = claim(database)
            expire_and_reap(database, held)
            waits.append(wait_left(database, held.stage_id))
            factories.pass_time(database, 100)
        assert waits[0] <= 0
        for wait, expected in zip(waits[1:], [1, 3, 7], strict=True):
            assert 0.75 * expected - 0.5 < wait <= 1.25 * expected

    def test_gives_up_after_so_many_losses(self, database: Database):
        job_id = post(database)
        for _ in range(3):
            held = claim(database)
            expire(database, held)
            reap(database, max_losses=3)
            factories.pass_time(database, 100)
        row = factories.stage(database, held.stage_id)
        assert (row.state, row.losses, row.failures) == ("failed", 3, 0)
        assert row.error and "loss 3 of 3" in row.error["message"]
        assert sorted(states(database, job_id).values()) == ["cancelled"] * 3 + ["failed"]
        assert factories.job(database, job_id).state == "failed"
        assert attempts(database, held.stage_id) == [(1, "lost"), (3, "lost"), (5, "lost")]
        second = post(database)
        assert factories.stage(database, held.stage_id).losses == 0
        finish(database)
        assert factories.job(database, second).state == "succeeded"

    def test_many_at_once(self, database: Database):
        """Some run again, some are given up, some are cancelled, in one transaction."""
        kept, given_up, stopped = post(database, trainings([0, 1])), post(database, body(seeds=[2, 3])), None
        stopped = post(database, trainings([4]))
        held = [claim(database) for _ in range(5)]
        doomed = [one for one in held if one.spec["seed"] in (2, 3)]
        with database.write() as session:
            for one in doomed:
                session.get_one(Stage, one.stage_id).losses = 4
        cancel(database, stopped)
        for one in held:
            expire(database, one)
        assert len(reap(database)) == 2
        assert [factories.job(database, job_id).state for job_id in (kept, given_up, stopped)] == [
            "running", "failed", "cancelled",
        ]  # fmt: skip

    def test_at_most_so_many_at_once(self, database: Database):
        post(database, trainings(range(5)))
        for _ in range(5):
            expire(database, claim(database))
        with database.read() as session:
            assert len(keeping.orphans(session, limit=3)) == 3
        assert len(reap(database)) == 5


class TestCheckpoints:
    def test_the_newest_two_are_kept(self, database: Database):
        post(database, trainings())
        held = claim(database)
        saved = [factories.stored("c", str(number)) for number in range(4)]
        for one in saved:
            with database.write() as session:
                stages.add_checkpoint(session, held.stage_id, held.fence, one)
        release(database, held)
        again = claim(database)
        with database.read() as session:
            assert stages.checkpoints(session, again.stage_id) == [saved[3].sha256, saved[2].sha256]
            assert [row.number for row in session.scalars(select(Checkpoint).order_by(Checkpoint.number))] == [3, 4]

    def test_the_same_bytes_may_be_saved_twice(self, database: Database):
        post(database, trainings())
        held = claim(database)
        for _ in range(2):
            with database.write() as session:
                stages.add_checkpoint(session, held.stage_id, held.fence, factories.stored("c", "same"))


class TestKeeping:
    def register(self, database: Database, *names: str) -> None:
        with database.write() as session:
            for name in names:
                row = {
                    "incarnation": name,
                    "host": "h",
                    "pid": 1,
                    "device": "cpu",
                    "device_name": "",
                    "queues": ["cpu"],
                }
                workers.register(session, {**row, "versions": {}})

    def unheard(self, database: Database) -> list[int]:
        with database.write() as session:
            return [bell.stage_id for bell in keeping.unheard(session, 35.0, 3.0)]

    def test_rings_for_idle_hands_and_not_again_for_a_while(self, database: Database):
        post(database, trainings(range(5)))
        self.register(database, "a", "b")
        first = self.unheard(database)
        assert len(first) == 2
        second = self.unheard(database)
        assert len(second) == 2
        assert not set(first) & set(second)
        factories.pass_time(database, 4)
        assert self.unheard(database) == first

    def test_a_clock_that_was_set_back_keeps_nobody_waiting(self, database: Database):
        """Neither what was rung an hour from now, nor what is to be tried again after that."""
        post(database, trainings())
        self.register(database, "a")
        fail(database, claim(database), final=False)
        factories.pass_time(database, 10)
        (first,) = self.unheard(database)
        factories.pass_time(database, -3600)
        with database.write() as session:
            session.execute(update(Worker).values(seen_at=db_now()))
        assert self.unheard(database) == [first]
        assert self.unheard(database) == [], "it was rung a moment ago"
        assert claim(database).stage_id == first

    def test_a_clock_that_was_set_back_hides_no_death(self, database: Database):
        """Of a worker, whose stage runs again after a lease; nor of a keeper, whose place is taken at once."""
        post(database, trainings([0, 1]))
        self.register(database, "dead", "alive")
        held, renewed = claim(database, "dead"), claim(database, "alive")
        with database.write() as session:
            assert workers.hold(session, workers.KEEPER, "dead", 3.0)
            workers.hold(session, workers.KEPT, "dead", 0)
            assert workers.keeper_trouble(session, 1.0) is None
        factories.pass_time(database, -3600)
        with database.write() as session:
            assert "no keeper is running" in (workers.keeper_trouble(session, 1.0) or "")
            assert workers.hold(session, workers.KEEPER, "next", 3.0)
            assert workers.live_queues(session, 35.0) == set()
            assert [alive for _, alive, _ in workers.all_workers(session, 35.0)] == [False, False]
            workers.report(session, "alive", renewed.stage_id, draining=False)
            stages.renew(session, renewed.stage_id, renewed.fence, factories.LEASE, None)
            assert workers.live_queues(session, 35.0) == {"cpu"}
        assert factories.reap(database) == []
        factories.pass_time(database, factories.LEASE - 1)
        assert factories.reap(database) == [], "who lives had a lease's time to renew its own"
        with database.write() as session:
            stages.renew(session, renewed.stage_id, renewed.fence, factories.LEASE, None)
        factories.pass_time(database, 2)
        assert [bell.stage_id for bell in factories.reap(database)] == [held.stage_id]

    def test_who_drains_takes_no_more(self, database: Database):
        self.register(database, "a")
        with database.write() as session:
            session.execute(update(Worker).values(device="cuda"))
            assert not workers.has_live_cuda(session, 35.0), "it has the device, and takes none of its stages"
            session.execute(update(Worker).values(queues=["gpu", "cpu"]))
            assert (workers.live_queues(session, 35.0), workers.has_live_cuda(session, 35.0)) == ({"gpu", "cpu"}, True)
            workers.report(session, "a", None, draining=True)
            assert (workers.live_queues(session, 35.0), workers.has_live_cuda(session, 35.0)) == (set(), False)
        post(database, trainings())
        assert self.unheard(database) == [], "nor is it rung for"
        with database.write() as session:
            workers.report(session, "a", None, draining=False)
        assert len(self.unheard(database)) == 1

    def test_what_failed_is_not_rung_before_its_time(self, database: Database):
        post(database, trainings())
        self.register(database, "a")
        held = claim(database)
        fail(database, held, final=False)
        assert self.unheard(database) == []
        factories.pass_time(database, 3)
        assert self.unheard(database) == [held.stage_id]

    def test_what_lives_again_is_rung_at_once(self, database: Database):
        post(database, trainings())
        self.register(database, "a")
        first = self.unheard(database)
        fail(database, claim(database))
        post(database, trainings())
        assert self.unheard(database) == first

    def test_rings_for_nobody(self, database: Database):
        post(database, trainings(range(5)), execution=CUDA)
        assert self.unheard(database) == []
        self.register(database, "a")
        assert self.unheard(database) == [], "the only worker serves another queue"
        factories.pass_time(database, 100)
        post(database, trainings(range(5)))
        assert self.unheard(database) == [], "the only worker has not been seen for long"

    def test_repair_finds_nothing_to_do(self, database: Database):
        post(database)
        claim(database)
        with database.write() as session:
            assert keeping.repair(session) == ([], 0)

    def test_repair_mends_what_was_stranded(self, database: Database):
        job_id = post(database)
        succeed(database, claim(database))
        with database.write() as session:
            session.execute(update(Stage).where(Stage.state == "ready").values(state="blocked"))
        with database.write() as session:
            bells, mended = keeping.repair(session)
        assert (len(bells), mended) == (2, 2)
        finish(database)
        assert factories.job(database, job_id).state == "succeeded"

    def test_repair_ends_a_job_that_was_not_rolled_up(self, database: Database):
        ids = [post(database, trainings()), post(database, body())]
        held = claim(database)
        cancel(database, ids[1])
        with database.write() as session:
            jobs.cancel(session, ids[0])
            session.execute(
                update(Stage)
                .where(Stage.id == held.stage_id)
                .values(
                    state="cancelled",
                    cancel_requested=False,
                    lease_owner=None,
                    lease_expires=None,
                    finished_at=db_now(),
                )
            )
            session.execute(update(Attempt).values(ended_at=db_now(), outcome="cancelled"))
        assert factories.job(database, ids[0]).state == "cancelling"
        with database.write() as session:
            assert keeping.repair(session) == ([], 1)
        assert factories.job(database, ids[0]).state == "cancelled"

    def test_repair_ends_a_job_that_waits_for_stages_it_miscounted(self, database: Database):
        job_id = post(database, trainings())
        finish(database)
        with database.write() as session:
            session.execute(update(Job).values(state="running", finished_at=None, unfinished=1))
        with database.write() as session:
            assert keeping.repair(session) == ([], 1)
        ended = factories.job(database, job_id)
        assert (ended.state, ended.unfinished) == ("succeeded", 0)

    def test_what_a_worker_left_is_there(self, database: Database):
        post(database, trainings())
        held = claim(database)
        with database.write() as session:
            stages.write_log(session, held.stage_id, held.fence, [(1.0, "a"), (2.0, "b")])
            stages.write_log(session, held.stage_id, held.fence, [])
        succeed(database, held)
        with database.read() as session:
            assert [row.line for row in stages.log_of(session, held.stage_id, 0, 10)] == ["a", "b"]
            assert len(list(session.scalars(select(StageLog)))) == 2
            assert len(list(session.scalars(select(StageArtifact)))) == 1
            details = stages.details(session, held.key)
            assert details is not None
            assert [one.outcome for one in details.attempts] == ["succeeded"]
