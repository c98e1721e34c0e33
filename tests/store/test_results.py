"""Matrices are made of integers: what is counted, what is missing and why, and what may not stand in one table."""

from collections.abc import Callable
from typing import Any

import pytest

from core.statistics import accuracy_interval, wilson
from store import jobs, results, stages
from store.database import Database
from store.results import NOT_ASKED, NOTHING, Cell, Filters, Matrix
from store.stages import Claim
from tests import factories
from tests.factories import FGSM, body, claim, fail, finish, post, succeed, trainings, transfer

CUDA = factories.EXECUTION.model_copy(update={"device": "cuda"})
NAMED = [{"name": "A", "defense": {"kind": "natural"}}, {"name": "B", "defense": {"kind": "fgsm_adv"}}]


def whitebox(database: Database, **filters: Any) -> Matrix:
    with database.read() as session:
        return results.whitebox(session, Filters(**filters))


def blackbox(database: Database, **filters: Any) -> Matrix:
    with database.read() as session:
        return results.blackbox(session, Filters(**filters))


def labelled(matrix: Matrix) -> dict[tuple[str, str], Cell]:
    """Return the cells by the labels of row and column, every one the table shows."""
    return {
        (row.label, column.label): matrix.cells.get((row.key, column.key), Cell())
        for row in matrix.rows
        for column in matrix.columns
    }


def by_seed(database: Database, numbers: dict[int, int]) -> Callable[[Claim], int]:
    """Return what an evaluation counts: the number of its target's seed."""
    seeds = {row.key: row.seed for row in factories.stages_by_title(database).values()}
    return lambda one: numbers[seeds[one.spec["target"]] or 0] if one.kind == "evaluate" else 0


class TestCells:
    def test_one_seed_has_wilsons_interval(self, database: Database):
        post(database)
        finish(database, lambda one: 9 if one.kind == "evaluate" and one.spec["examples"] is None else 3)
        cells = labelled(whitebox(database))
        assert set(cells) == {("clean", "natural H"), ("FGSM eps=0.3", "natural H")}
        clean, attacked = cells["clean", "natural H"], cells["FGSM eps=0.3", "natural H"]
        assert (clean.n_correct, clean.n, clean.accuracy, clean.reason) == (9, 10, 0.9, None)
        assert clean.interval == wilson(9, 10)
        assert (attacked.n_correct, attacked.n, attacked.accuracy) == (3, 10, 0.3)
        assert attacked.interval == wilson(3, 10)
        assert [count.evaluation for count in attacked.counts] == [
            factories.stages_by_title(database)["evaluate natural H, seed 0, FGSM eps=0.3"].key
        ]

    def test_several_seeds_have_the_interval_of_their_spread_and_their_images(self, database: Database):
        post(database, body(seeds=[0, 1, 2]))
        finish(database, by_seed(database, {0: 2, 1: 4, 2: 9}))
        cell = labelled(whitebox(database))["clean", "natural H"]
        assert (cell.n_correct, cell.n, cell.accuracy) == (15, 30, 0.5)
        assert cell.interval == pytest.approx(accuracy_interval(3, 1.5, 0.04 + 0.16 + 0.81, 10), rel=1e-12)
        assert sorted((count.target_seed, count.n_correct) for count in cell.counts) == [(0, 2), (1, 4), (2, 9)]

    def test_none_correct_is_zero_and_not_missing(self, database: Database):
        post(database)
        finish(database, lambda _: 0)
        cell = labelled(whitebox(database))["clean", "natural H"]
        assert (cell.accuracy, cell.n, cell.reason) == (0.0, 10, None)

    def test_rows_go_from_weak_to_strong(self, database: Database):
        attacks = [
            {"kind": "ifgsm", "steps": 30}, {"kind": "ifgsm", "steps": 10}, {"kind": "fgsm", "eps": 0.4}, FGSM,
        ]  # fmt: skip
        post(database, body(attacks=attacks))
        rows = whitebox(database).rows
        assert [(row.attack or {})["kind"] for row in rows] == ["none", "fgsm", "fgsm", "ifgsm", "ifgsm"]
        assert [(row.attack or {}).get("eps") for row in rows[1:3]] == ["0.3", "0.4"]
        assert [(row.attack or {})["steps"] for row in rows[3:]] == [10, 30]


class TestMissing:
    def test_what_has_not_finished(self, database: Database):
        post(database)
        finished = claim(database)
        cells = labelled(whitebox(database))
        assert {cell.accuracy for cell in cells.values()} == {None}
        assert {cell.interval for cell in cells.values()} == {None}
        assert {cell.reason for cell in cells.values()} == {"seed 0: not finished (blocked)"}
        succeed(database, finished)
        assert labelled(whitebox(database))["clean", "natural H"].reason == "seed 0: not finished (ready)"
        while claim(database).kind != "evaluate":
            pass
        assert labelled(whitebox(database))["clean", "natural H"].reason == "seed 0: not finished (running)"

    def test_what_failed_says_why(self, database: Database):
        post(database)
        while (one := claim(database)).kind != "evaluate":
            succeed(database, one)
        fail(database, one, message="no such image")
        cell = labelled(whitebox(database))["clean", "natural H"]
        assert (cell.accuracy, cell.n, cell.reason) == (None, 0, "seed 0: failed: no such image")

    def test_what_needed_something_that_failed(self, database: Database):
        post(database)
        fail(database, claim(database), message="the loss is NaN")
        for cell in labelled(whitebox(database)).values():
            assert cell.accuracy is None
            assert cell.reason == (
                "seed 0: cancelled: it needs a stage that failed: train natural H, seed 0: the loss is NaN"
            )

    def test_what_was_cancelled(self, database: Database):
        job_id = post(database)
        with database.write() as session:
            jobs.cancel(session, job_id)
        assert labelled(whitebox(database))["clean", "natural H"].reason == "seed 0: cancelled"

    def test_one_seed_of_two(self, database: Database):
        post(database, body(seeds=[0, 1]))
        while (one := claim(database)).spec["seed"] != 1:
            succeed(database, one)
        fail(database, one)
        finish(database, lambda _: 5)
        cell = labelled(whitebox(database))["clean", "natural H"]
        assert (cell.n, cell.accuracy) == (10, 0.5)
        assert cell.reason is not None
        assert cell.reason.startswith("seed 1: cancelled: ")

    def test_what_nobody_asked_for(self, database: Database):
        post(database, transfer())
        post(
            database, body(defense={"kind": "fgsm_adv", "eps": 0.1}, substitutes=[{"kind": "natural"}], transfer=[FGSM])
        )
        finish(database)
        cells = labelled(blackbox(database))
        assert len(cells) == 4
        asked = {where for where, cell in cells.items() if cell.accuracy is not None}
        assert asked == {("fgsm_adv H", "natural H"), ("natural H", "fgsm_adv eps=0.1 H")} | {
            ("natural H", "natural H")  # the first job's white-box attack on its target is the same examples
        }
        for where in set(cells) - asked:
            assert cells[where].accuracy is None
            assert cells[where].reason == NOT_ASKED


class TestTransfer:
    def test_the_diagonal_is_marked_white_box(self, database: Database):
        post(database, body(defenses=NAMED, substitutes=["A", "B"], transfer=[FGSM]))
        finish(database)
        matrix = blackbox(database)
        assert matrix.pairing == "same"
        assert {where: cell.whitebox for where, cell in labelled(matrix).items()} == {
            ("A", "A"): True, ("A", "B"): False, ("B", "A"): False, ("B", "B"): True,
        }  # fmt: skip

    def test_equal_seeds_are_paired(self, database: Database):
        post(database, transfer(seeds=[0, 1], pairing="same"))
        finish(database)
        matrix = blackbox(database)
        (cell,) = labelled(matrix).values()
        assert sorted((count.target_seed, count.substitute_seed) for count in cell.counts) == [(0, 0), (1, 1)]
        assert labelled(blackbox(database, pairing="independent")) == {}

    def test_different_seeds_are_paired_when_independent(self, database: Database):
        post(database, body(defenses=NAMED, seeds=[0, 1], substitutes=["A"], transfer=[FGSM], pairing="independent"))
        finish(database)
        matrix = blackbox(database)
        assert matrix.pairing == "independent"
        for cell in labelled(matrix).values():
            assert sorted((count.target_seed, count.substitute_seed) for count in cell.counts) == [(0, 1), (1, 0)]
            assert not cell.whitebox, "a model never meets its own examples"

    def test_pairs_that_share_models_repeat_as_often_as_there_are_models(self, database: Database):
        spec = body(defenses=NAMED, seeds=[0, 1, 2], substitutes=["A"], transfer=[FGSM], pairing="independent")
        post(database, spec)
        counted = iter([1, 2, 3, 4, 5, 6, 7, 8, 9] * 9)
        finish(database, lambda _: next(counted))
        for cell in labelled(blackbox(database)).values():
            assert (cell.sums.seeds, cell.independent) == (6, 3)
            shares = [count.n_correct / 10 for count in cell.counts]
            expected = accuracy_interval(6, sum(shares), sum(share**2 for share in shares), 10, independent=3)
            assert cell.interval == pytest.approx(expected)
        assert all(cell.independent is None for cell in labelled(whitebox(database)).values())

    def test_the_fewer_of_targets_and_substitutes_are_independent(self, database: Database):
        first = post(database, trainings(range(5)))
        finish(database)
        with database.read() as session:
            keys = [{"key": model["key"], "name": "A"} for model in jobs.models_of(session, first)]
        post(database, {"kind": "evaluate", "targets": keys[:3], "substitutes": keys[3:], "transfer": [FGSM]})
        finish(database)
        (cell,) = labelled(blackbox(database)).values()
        assert (cell.sums.seeds, cell.independent) == (6, 2)

    def test_running_sums_of_everything_are_not_those_of_a_part(self, database: Database):
        by_suite = {
            suite: post(database, transfer(seeds=seeds, pairing="same"), suite=suite)
            for suite, seeds in {"one": [0], "two": [1, 2]}.items()
        }
        finish(database, by_seed(database, {0: 2, 1: 4, 2: 9}))
        expected: list[tuple[dict[str, Any], int, int]] = [
            ({}, 30, 15), ({"seeds": [1]}, 10, 4), ({"seeds": [0, 2]}, 20, 11), ({"suite": "one"}, 10, 2),
            ({"suite": "two"}, 20, 13), ({"job": by_suite["two"]}, 20, 13),
        ]  # fmt: skip
        for filters, n, n_correct in expected:
            (cell,) = labelled(blackbox(database, **filters)).values()
            assert (cell.n, cell.n_correct) == (n, n_correct), filters

    def test_all_pairs_of_an_evaluate_job_leave_out_white_box_ones_where_there_are_others(self, database: Database):
        first = post(database, trainings([0, 1]))
        finish(database)
        with database.read() as session:
            keys = [model["key"] for model in jobs.models_of(session, first)]
        named = [{"key": key, "name": "A"} for key in keys]
        spec = {"kind": "evaluate", "targets": named, "substitutes": named, "transfer": [FGSM], "limit": 10}
        post(database, spec)
        finish(database)
        matrix = blackbox(database)
        assert matrix.pairing == "independent", "the only other pairs"
        post(database, {**spec, "pairing": "all", "limit": 9})
        finish(database)
        matrix = blackbox(database, limit=9)
        assert (matrix.pairing, matrix.reason) == ("all", None)
        (cell,) = labelled(matrix).values()
        assert sorted((count.target_seed, count.substitute_seed) for count in cell.counts) == [(0, 1), (1, 0)]
        assert not cell.whitebox

    def test_an_empty_matrix_says_its_reason(self, database: Database):
        assert blackbox(database).reason == whitebox(database).reason == NOTHING
        post(database, body())
        assert blackbox(database).reason == "no job in this scope has a substitute"
        post(database, body(substitutes=["natural H"], transfer=[FGSM]))
        finish(database)
        assert labelled(blackbox(database)) == {}
        assert blackbox(database).reason == "every substitute is the target itself; the white-box matrix has it"
        post(database, transfer(seeds=[5], pairing="same"))
        assert blackbox(database).reason is None
        assert "by pairing independent" in str(blackbox(database, pairing="independent").reason)

    def test_a_substitutes_own_strength(self, database: Database):
        post(database, transfer())
        own = next(
            row.key
            for title, row in factories.stages_by_title(database).items()
            if title == "evaluate fgsm_adv H, seed 0, FGSM eps=0.3"
        )
        finish(database, lambda one: 1 if one.key == own else 8)
        matrix = blackbox(database)
        assert matrix.scope is not None
        with database.read() as session:
            strength = results.self_strength(session, Filters(), matrix.scope)
        (row,) = matrix.rows
        assert strength[row.key].accuracy == 0.1
        assert labelled(matrix)["fgsm_adv H", "natural H"].accuracy == 0.8

    def test_rows_name_the_attack_where_there_are_several(self, database: Database):
        post(database, body(substitutes=[{"kind": "fgsm_adv"}], transfer=[FGSM, {"kind": "fgsm", "eps": 0.4}]))
        assert [row.label for row in blackbox(database).rows] == [
            "fgsm_adv H, FGSM eps=0.3", "fgsm_adv H, FGSM eps=0.4",
        ]  # fmt: skip


class TestScope:
    def test_nothing_at_all(self, database: Database):
        for matrix in (whitebox(database), blackbox(database)):
            assert (matrix.scope, matrix.rows, matrix.columns, matrix.cells, matrix.others) == (None, [], [], {}, [])

    def test_the_newest_group_is_shown_and_the_others_are_named(self, database: Database):
        old = post(database, body(limit=20))
        post(database, body(limit=10))
        finish(database)
        matrix = whitebox(database)
        assert matrix.scope is not None
        assert matrix.scope.image_limit == 10
        assert [scope.image_limit for scope in matrix.others] == [20]
        assert {cell.n for cell in labelled(matrix).values()} == {10}
        assert {cell.n for cell in labelled(whitebox(database, limit=20)).values()} == {20}
        older = whitebox(database, job=old)
        assert older.scope is not None
        assert (older.scope.image_limit, older.others) == (20, [])

    def test_a_job_shows_only_what_it_asked_for(self, database: Database):
        first = post(database, body(attacks=[FGSM]))
        second = post(database, body(attacks=[{"kind": "ifgsm", "steps": 10}]))
        finish(database)
        assert [row.label for row in whitebox(database, job=first).rows] == ["clean", "FGSM eps=0.3"]
        assert len(whitebox(database, job=second).rows) == 2
        assert len(whitebox(database).rows) == 3

    def test_device_classes_never_meet_in_a_cell(self, database: Database):
        post(database, body())
        post(database, body(), execution=CUDA)
        finish(database, lambda one: 2 if one.spec["execution"]["device"] == "cuda" else 9)
        matrix = whitebox(database)
        assert matrix.scope is not None
        assert (matrix.scope.device, [scope.device for scope in matrix.others]) == ("cuda", ["cpu"])
        assert {(cell.n, cell.n_correct) for cell in labelled(matrix).values()} == {(10, 2)}
        assert {(cell.n, cell.n_correct) for cell in labelled(whitebox(database, device="cpu")).values()} == {(10, 9)}

    def test_what_fits_no_group(self, database: Database):
        post(database)
        matrix = whitebox(database, limit=77)
        assert matrix.scope is None
        assert len(matrix.others) == 1

    def test_a_suite_shows_its_own(self, database: Database):
        post(database, body(attacks=[FGSM]), suite="s")
        post(database, body(defense={"kind": "fgsm_adv"}))
        assert [column.label for column in whitebox(database, suite="s").columns] == ["natural H"]
        assert [column.label for column in whitebox(database).columns] == ["fgsm_adv H", "natural H"]


WEAK, STRONG, ITERATED = "FGSM eps=24/255", "FGSM eps=0.3", "IFGSM eps=0.3 k=10"
EVERY = ["clean", WEAK, STRONG, ITERATED]
FILTERS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({}, EVERY, ["A", "B"]),
    ({"attack": "fgsm"}, [WEAK, STRONG], ["A", "B"]),
    ({"eps": "24/255"}, [WEAK], ["A", "B"]),
    ({"steps": 10}, [ITERATED], ["A", "B"]),
    ({"attack": "fgsm", "steps": 10}, [], []),
    ({"labels": ["B"]}, EVERY, ["B"]),
    ({"labels": ["nobody"]}, [], []),
    ({"network": "mnist_cnn"}, EVERY, ["A", "B"]),
    ({"network": "svhn_cnn"}, [], []),
    ({"dataset": "mnist-mini"}, EVERY, ["A", "B"]),
]


class TestFilters:
    @pytest.fixture
    def filled(self, database: Database) -> Database:
        attacks = [FGSM, {"kind": "fgsm", "eps": "24/255"}, {"kind": "ifgsm", "steps": 10}]
        post(database, body(defenses=NAMED, seeds=[0, 1], attacks=attacks))
        finish(database, by_seed(database, {0: 2, 1: 6}))
        return database

    def test_narrow_the_table(self, filled: Database):
        for filters, rows, columns in FILTERS:
            matrix = whitebox(filled, **filters)
            assert [row.label for row in matrix.rows] == rows, filters
            assert [column.label for column in matrix.columns] == columns, filters

    def test_seeds(self, filled: Database):
        cell = labelled(whitebox(filled, seeds=[1]))["clean", "A"]
        assert (cell.n, cell.n_correct) == (10, 6)
        assert cell.interval == wilson(6, 10)


class TestLabels:
    def test_one_label_for_two_recipes_is_told_apart(self, database: Database):
        for iterations in (1, 2):
            spec = body(defenses=[NAMED[0]], training={"iterations": iterations, "batch_size": 2})
            post(database, spec)
        finish(database)
        columns = whitebox(database).columns
        assert len({column.label for column in columns}) == 2
        assert all(column.label == f"A [{column.key[:6]}]" for column in columns)

    def test_a_name_is_told_apart_from_those_in_the_table_alone(self, database: Database):
        for iterations, limit in ((1, 10), (2, 5)):
            post(database, body(defenses=[NAMED[0]], training={"iterations": iterations, "batch_size": 2}, limit=limit))
        finish(database)
        assert [column.label for column in whitebox(database, limit=10).columns] == ["A"]

    def test_a_model_answers_to_its_label_to_what_is_shown_and_to_its_recipe(self, database: Database):
        for iterations in (1, 2):
            spec = body(defenses=NAMED, training={"iterations": iterations, "batch_size": 2}, substitutes=["A"])
            post(database, spec)
        finish(database)
        for column in whitebox(database, labels=["A"]).columns:
            for name in (column.label, column.key):
                assert [found.key for found in whitebox(database, labels=[name]).columns] == [column.key]
                assert [found.key for found in blackbox(database, labels=[name]).columns] == [column.key]
        assert len(whitebox(database, labels=["A"]).columns) == 2
        assert whitebox(database, labels=["B [000000]"]).columns == []

    def test_the_newest_job_names_a_shared_model(self, database: Database):
        post(database, body(defenses=[{"name": "old", "defense": {"kind": "natural"}}]))
        newer = post(database, body(defenses=[{"name": "new", "defense": {"kind": "natural"}}]))
        assert [column.label for column in whitebox(database).columns] == ["new"]
        assert [column.label for column in whitebox(database, job=newer - 1).columns] == ["old"]

    def test_columns_stand_in_the_order_of_the_job(self, database: Database):
        post(database, body(defenses=NAMED[::-1]))
        assert [column.label for column in whitebox(database).columns] == ["B", "A"]

    def test_the_columns_of_the_newest_job_come_first(self, database: Database):
        post(database, body(defenses=[{"name": "C", "defense": {"kind": "pgd_minmax"}}]))
        post(database, body(defenses=NAMED))
        assert [column.label for column in whitebox(database).columns] == ["A", "B", "C"]


class TestManyEvaluations:
    """A table over more evaluations than are listed says the same numbers, from sums alone."""

    @pytest.fixture
    def narrow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(results, "LISTED", 0)

    def numbers(self, matrix: Matrix) -> dict[tuple[str, str], Any]:
        return {
            where: (cell.n, cell.n_correct, cell.accuracy, cell.interval, cell.spread, cell.whitebox)
            for where, cell in labelled(matrix).items()
        }

    def test_the_numbers_are_those_of_the_listed_table(self, database: Database, monkeypatch: pytest.MonkeyPatch):
        post(
            database, body(defenses=NAMED, substitutes=["A", {"kind": "pgd_minmax"}], transfer=[FGSM], seeds=[0, 1, 2])
        )
        finish(database, by_seed(database, {0: 2, 1: 4, 2: 9}))
        listed = [whitebox(database), blackbox(database)]
        assert all(len(cell.counts) == 3 for matrix in listed for cell in matrix.cells.values())
        monkeypatch.setattr(results, "LISTED", 0)
        summed = [whitebox(database), blackbox(database)]
        assert all(cell.counts == [] for matrix in summed for cell in matrix.cells.values())
        assert [self.numbers(matrix) for matrix in summed] == [self.numbers(matrix) for matrix in listed]

    @pytest.mark.usefixtures("narrow")
    def test_what_is_missing_is_counted(self, database: Database):
        post(database, body(seeds=[0, 1]))
        while (one := claim(database)).kind != "evaluate":
            succeed(database, one)
        succeed(database, one)
        cell = next(cell for cell in labelled(whitebox(database)).values() if cell.n)
        assert cell.reason == "1 of 2 evaluations have not succeeded; a narrower table says why"

    @pytest.mark.usefixtures("narrow")
    def test_equal_seeds_say_what_one_of_them_says(self, database: Database):
        post(database, body(seeds=[0, 1, 2]))
        finish(database, lambda _: 7)
        assert labelled(whitebox(database))["clean", "natural H"].interval == pytest.approx(wilson(7, 10))


class TestStamp:
    """What tells that a table may have changed."""

    def stamp(self, database: Database) -> tuple[Any, ...]:
        with database.read() as session:
            return results.stamp(session)

    def test_every_change_of_a_stage_or_job_changes_it(self, database: Database):
        seen = [self.stamp(database)]

        def changed() -> None:
            seen.append(self.stamp(database))
            assert len(set(seen)) == len(seen), seen

        first = post(database, transfer())
        changed()
        one = claim(database)
        changed()
        succeed(database, one)
        changed()
        fail(database, claim(database), final=False)
        changed()
        factories.expire(database, claim(database))
        factories.reap(database)
        changed()
        post(database, transfer())
        changed()
        with database.write() as session:
            jobs.cancel(session, first)
        changed()
        factories.pass_time(database, 60)
        finish(database)
        changed()

    def test_asking_and_heartbeats_do_not(self, database: Database):
        post(database)
        held = claim(database)
        before = self.stamp(database)
        whitebox(database)
        with database.write() as session:
            stages.renew(session, held.stage_id, held.fence, 60, {"done": 1, "total": 2})
        assert self.stamp(database) == before
