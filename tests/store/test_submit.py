"""Jobs share stages, revive what ended badly, and freeze when they end."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, inspect, select
from sqlalchemy.exc import IntegrityError

from core.attacks.fgsm import FGSM
from core.canonical import digest
from store import events, idempotency, jobs, stages
from store.database import Database
from store.idempotency import Known
from store.models import Evaluation, Job, JobModel, JobStage, Stage, StageParent
from tests import factories
from tests.factories import body, claim, finish, post, states, succeed, trainings, transfer

TRAIN, CRAFT = "train natural H, seed 0", "craft FGSM eps=0.3 on natural H, seed 0"
CLEAN, ATTACKED = "evaluate natural H, seed 0, clean", "evaluate natural H, seed 0, FGSM eps=0.3"


def count(database: Database, table: type) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def happened(database: Database, job_id: int) -> list[str]:
    with database.read() as session:
        return [event.kind for event in events.since(session, job_id, 0)]


def cancel(database: Database, job_id: int) -> str:
    with database.write() as session:
        return str(jobs.cancel(session, job_id))


class TestGraph:
    def test_only_what_needs_nothing_is_ready(self, database: Database):
        with database.write() as session:
            job_id, bells = factories.submit(session)
        assert states(database, job_id) == {TRAIN: "ready", CRAFT: "blocked", CLEAN: "blocked", ATTACKED: "blocked"}
        train = factories.stages_by_title(database)[TRAIN]
        assert bells == [stages.Bell(train.id, "cpu")]
        assert factories.job(database, job_id).state == "queued"

    def test_edges_are_those_of_the_specs(self, database: Database):
        post(database, transfer())
        with database.read() as session:
            keys = {row.id: row.key for row in session.scalars(select(Stage))}
            edges = {(keys[row.stage_id], keys[row.parent_id]) for row in session.scalars(select(StageParent))}
        plan = factories.planned(transfer())
        assert edges == {(stage.key, parent) for stage in plan.stages.values() for parent in stage.spec.parents()}
        assert len(edges) == 10

    def test_parents_have_smaller_ids_than_children(self, database: Database):
        """The order in which locks are taken rests on it."""
        for spec in (transfer(), body(), trainings([3, 1])):
            post(database, spec)
        with database.read() as session:
            assert all(row.parent_id < row.stage_id for row in session.scalars(select(StageParent)))

    def test_a_cuda_job_waits_in_the_gpu_queue(self, database: Database):
        post(database, execution=factories.EXECUTION.model_copy(update={"device": "cuda"}))
        assert {row.queue for row in factories.stages_by_title(database).values()} == {"gpu"}

    def test_models_and_evaluations_are_planned_with_the_job(self, database: Database):
        job_id = post(database, transfer())
        with database.read() as session:
            models = jobs.models_of(session, job_id)
            planned = list(session.scalars(select(Evaluation)))
        assert [(model["role"], model["label"], model["seed"]) for model in models] == [
            ("target", "natural H", 0), ("substitute", "fgsm_adv H", 0),
        ]  # fmt: skip
        assert len(planned) == 5
        assert all(row.n is None and row.n_correct is None and row.image_limit == 10 for row in planned)
        assert sorted(row.whitebox for row in planned) == [False, True, True, True, True]

    def test_a_label_as_long_as_an_attack_of_others_may_make_it(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(FGSM, "label", lambda _: "FGSM " + 500 * "x")
        post(database)
        with database.read() as session:
            labels = {row.attack_label for row in session.scalars(select(Evaluation))}
        assert labels == {"clean", "FGSM " + 195 * "x"}


class TestSharing:
    def test_a_second_job_brings_only_what_is_new(self, database: Database):
        first = post(database, trainings([0, 1]))
        second = post(database, trainings([1, 2]))
        assert count(database, Stage) == 3
        assert set(states(database, first)) & set(states(database, second)) == {"train natural H, seed 1"}

    def test_one_result_ends_both_jobs(self, database: Database):
        ids = [post(database), post(database)]
        done = finish(database)
        assert Counter(one.kind for one in done) == {"train": 1, "craft": 1, "evaluate": 2}
        assert [factories.job(database, job_id).state for job_id in ids] == ["succeeded", "succeeded"]

    def test_everything_done_succeeds_at_once(self, database: Database):
        post(database)
        finish(database)
        with database.write() as session:
            job_id, bells = factories.submit(session)
        assert bells == []
        assert factories.job(database, job_id).state == "succeeded"
        assert happened(database, job_id) == ["job.queued", "job.succeeded"]
        assert count(database, Stage) == 4

    def test_reused_says_what_had_succeeded_before_the_job_came(self, database: Database):
        first = post(database)
        succeed(database, claim(database))
        second = post(database)
        finish(database)
        with database.read() as session:
            assert {row.title: reused for row, reused in jobs.stages_of(session, second)} == {
                TRAIN: True, CRAFT: False, CLEAN: False, ATTACKED: False,
            }  # fmt: skip
            assert not any(reused for _, reused in jobs.stages_of(session, first))

    def test_a_job_that_joins_a_running_stage_is_running(self, database: Database):
        post(database, trainings())
        claim(database)
        job_id = post(database, trainings())
        assert factories.job(database, job_id).state == "running"
        assert factories.job(database, job_id).started_at is not None
        assert happened(database, job_id) == ["job.queued", "stage.running"]

    def test_the_highest_priority_of_the_jobs_counts(self, database: Database):
        post(database, body(priority=3))
        post(database, body(priority=7))
        post(database, body(priority=-5))
        assert {row.priority for row in factories.stages_by_title(database).values()} == {7}

    def test_priority_of_what_has_ended_stays(self, database: Database):
        post(database, body(priority=3))
        succeed(database, claim(database))
        post(database, body(priority=7))
        assert {row.title: row.priority for row in factories.stages_by_title(database).values()} == {
            TRAIN: 3, CRAFT: 7, CLEAN: 7, ATTACKED: 7,
        }  # fmt: skip

    def test_a_priority_given_to_a_stage_reaches_all_it_needs(self, database: Database):
        """Else the stage would wait behind everything its parents wait behind."""
        post(database, trainings(range(4)))
        post(database, body(priority=9))
        assert claim(database).title == TRAIN
        post(database, trainings([3], priority=5))
        assert claim(database).title == "train natural H, seed 3"

    @pytest.mark.parametrize("spec", [body(), transfer()])
    def test_concurrent_submits_make_one_set_of_stages(self, database: Database, spec: dict[str, object]):
        n = 8
        barrier = threading.Barrier(n)

        def one(_: int) -> int:
            barrier.wait(10)
            return post(database, spec)

        with ThreadPoolExecutor(n) as pool:
            ids = list(pool.map(one, range(n)))
        planned = factories.planned(spec)
        assert len(set(ids)) == count(database, Job) == n
        assert count(database, Stage) == len(planned.stages)
        assert count(database, JobStage) == n * len(planned.stages)
        assert count(database, JobModel) == n * (len(planned.targets) + len(planned.substitutes))
        finish(database)
        assert {factories.job(database, job_id).state for job_id in ids} == {"succeeded"}

    def test_concurrent_submits_of_overlapping_jobs_do_not_deadlock(self, database: Database):
        specs = [transfer(), body(), trainings([0, 1, 2]), trainings([2, 1, 0], priority=4), transfer(seeds=[1, 0])]
        barrier = threading.Barrier(len(specs))

        def one(spec: dict[str, object]) -> None:
            barrier.wait(10)
            for _ in range(4):
                post(database, spec)

        with ThreadPoolExecutor(len(specs)) as pool:
            list(pool.map(one, specs))
        assert count(database, Job) == 4 * len(specs)
        assert count(database, Stage) == len({key for spec in specs for key in factories.planned(spec).stages})

    def test_a_submit_that_fails_leaves_nothing(self, database: Database):
        before = factories.everything(database)
        with pytest.raises(RuntimeError), database.write() as session:
            factories.submit(session, transfer())
            raise RuntimeError
        assert factories.everything(database) == before


class TestRevival:
    def test_failed_stage_and_its_descendants_live_again(self, database: Database):
        first = post(database)
        factories.fail(database, claim(database), message="loss is NaN")
        assert states(database, first) == {
            TRAIN: "failed",
            CRAFT: "cancelled",
            CLEAN: "cancelled",
            ATTACKED: "cancelled",
        }
        second = post(database)
        assert states(database, second) == {TRAIN: "ready", CRAFT: "blocked", CLEAN: "blocked", ATTACKED: "blocked"}
        for row in factories.stages_by_title(database).values():
            assert (row.failures, row.losses) == (0, 0)
            assert row.error is None
            assert row.finished_at is None
        finish(database)
        assert factories.job(database, second).state == "succeeded"

    def test_an_ended_job_stays_as_it_ended(self, database: Database):
        first = post(database)
        factories.fail(database, claim(database))
        before = factories.job(database, first)
        post(database)
        finish(database)
        after = factories.job(database, first)
        assert (after.state, after.last_event, after.finished_at) == ("failed", before.last_event, before.finished_at)
        assert happened(database, first) == ["job.queued", "stage.running", "stage.failed", "job.failed"]

    def test_cancelled_stages_live_again(self, database: Database):
        first = post(database)
        assert cancel(database, first) == "cancelled"
        assert set(states(database, first).values()) == {"cancelled"}
        second = post(database)
        finish(database)
        assert factories.job(database, second).state == "succeeded"
        assert factories.job(database, first).state == "cancelled"

    def test_a_fence_goes_on_growing_over_a_revival(self, database: Database):
        post(database, trainings())
        first = claim(database)
        factories.fail(database, first)
        post(database, trainings())
        assert claim(database).fence > first.fence

    def test_succeeded_stages_are_not_touched(self, database: Database):
        post(database)
        finish(database)
        before = factories.everything(database)
        post(database)
        after = factories.everything(database)
        for table in ("stages", "results", "attempts", "evaluations", "stage_artifacts"):
            assert after[table] == before[table]

    def test_a_live_job_whose_stage_another_job_revives_still_ends(self, database: Database):
        """Its own descendants of that stage stay cancelled: it fails, and not as if a user had cancelled it."""
        first = post(database, body(seeds=[0, 1]))
        while (one := claim(database)).title != TRAIN:
            pass
        factories.fail(database, one)
        assert factories.job(database, first).state == "running"
        second = post(database, trainings([0]))
        factories.pass_time(database, 100)
        factories.reap(database)
        finish(database)
        assert factories.job(database, second).state == "succeeded"
        assert states(database, first)[TRAIN] == "succeeded"
        assert factories.job(database, first).state == "failed"


class TestIdempotency:
    def test_a_key_remembers_its_request_and_job(self, database: Database):
        with database.write() as session:
            job_id, _ = factories.submit(session)
            idempotency.remember(session, "k", digest("body"), job_id)
        with database.read() as session:
            assert idempotency.known(session, "k") == Known(digest("body"), None, job_id, None)
            assert idempotency.known(session, "other") is None

    def test_the_first_answer_of_a_key_stands(self, database: Database):
        with database.write() as session:
            job_id, _ = factories.submit(session)
            idempotency.remember(session, "k", digest("body"), job_id)
        for wanted in ("first", "second"):
            with database.write() as session:
                assert idempotency.settle(session, "k", wanted) == "first"

    def test_concurrent_requests_with_one_key_make_one_job(self, database: Database):
        n = 6
        barrier = threading.Barrier(n)

        def one(_: int) -> bool:
            barrier.wait(10)
            try:
                with database.write() as session:
                    job_id, _ = factories.submit(session)
                    idempotency.remember(session, "k", digest("body"), job_id)
            except IntegrityError:
                return False
            return True

        with ThreadPoolExecutor(n) as pool:
            made = list(pool.map(one, range(n)))
        assert sum(made) == 1
        assert count(database, Job) == 1
        assert count(database, Stage) == 4


class TestLists:
    def test_pages_newest_first(self, database: Database):
        ids = [post(database, trainings([seed])) for seed in range(5)]
        with database.read() as session:
            first = jobs.newest(session, limit=3)
            second = jobs.newest(session, limit=3, before=first.cursor)
        assert [job.id for job in first.jobs + second.jobs] == ids[::-1]
        assert second.cursor is None

    def test_a_page_reads_no_spec(self, database: Database):
        post(database)
        with database.read() as session:
            (listed,) = jobs.newest(session).jobs
            assert "spec" in inspect(listed).unloaded

    def test_filters(self, database: Database):
        a = post(database, trainings([0], tags=["x", "y"], name="a"))
        b = post(database, trainings([1], tags=["xy"], name="b"), suite="s")
        cancel(database, b)
        with database.read() as session:
            for wanted, found in (
                ({"tag": "x"}, [a]), ({"tag": "xy"}, [b]), ({"tag": "z"}, []), ({"name": "a"}, [a]),
                ({"suite": "s"}, [b]), ({"state": "cancelled"}, [b]), ({"state": "queued"}, [a]),
            ):  # fmt: skip
                assert [job.id for job in jobs.newest(session, **wanted).jobs] == found, wanted
