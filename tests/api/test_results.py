"""Matrices over HTTP: shape, forms, filters, and what a cell says that has nothing to say."""

import csv
import io
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from sqlalchemy import event, select, update

from api.exports import COLUMNS
from api.forms import MEDIA, Form, answer
from api.tags import Tags
from core.statistics import wilson
from store.models import Stage, Tally
from store.protocol import UNREAD
from store.tallies import recount_all
from tests import factories
from tests.api.house import LITTLE, House

WHITEBOX, BLACKBOX = "/results/whitebox-matrix", "/results/blackbox-matrix"
NAUGHTY = r"50 % & _more_ #1 {x} $y$ ~z^2 \o |p|"


def cell(matrix: dict[str, Any], row: str, column: str) -> dict[str, Any]:
    rows = [axis["label"] for axis in matrix["rows"]]
    columns = [axis["label"] for axis in matrix["columns"]]
    return matrix["cells"][rows.index(row)][columns.index(column)]


@pytest.fixture(scope="class")
def awkward(lasting_house: House) -> House:
    named = [{"defense": {"kind": "natural"}, "name": NAUGHTY}, {"defense": {"kind": "e2sad"}, "name": "=SUM(1)"}]
    body = {name: value for name, value in LITTLE.items() if name != "defense"}
    lasting_house.post({**body, "defenses": named, "substitutes": [NAUGHTY]})
    lasting_house.work(60)
    return lasting_house


@pytest.fixture(scope="class")
def varied(lasting_house: House) -> House:
    attacks = [{"kind": "fgsm", "eps": "24/255"}, {"kind": "fgsm"}, {"kind": "ifgsm", "steps": 10},
               {"kind": "ifgsm", "steps": 30}]  # fmt: skip
    lasting_house.post({**LITTLE, "seeds": [0, 1], "attacks": attacks})
    lasting_house.post({"suite": "quickstart", "training": {"iterations": 2}, "limit": 7, "seeds": [3]})
    lasting_house.work(60)
    return lasting_house


class TestEmpty:
    """Without evaluations there is no table, and that is no error."""

    @pytest.mark.parametrize("address", [WHITEBOX, BLACKBOX])
    def test_an_empty_database(self, house: House, address: str):
        matrix = house.get(address)
        assert matrix == {
            "matrix": matrix["matrix"], "scope": None, "pairing": None, "rows": [], "columns": [], "cells": [],
            "others": [], "reason": "no evaluations yet, or none that fit the filters", "cautions": [],
        }  # fmt: skip
        assert house.client.get(address, params={"format": "csv"}).text == ",".join(COLUMNS) + "\n"
        assert "no evaluations" in house.client.get(address, params={"format": "markdown"}).text
        assert "no evaluations" in house.client.get(address, params={"format": "latex"}).text

    def test_a_job_that_evaluates_nothing(self, house: House):
        job = house.post({"kind": "train", "dataset": "mnist-mini", "defense": {"kind": "natural"}})
        assert house.get(WHITEBOX, job=job["id"])["scope"] is None


class TestShape:
    """What a matrix is made of."""

    def test_whitebox(self, house: House):
        job = house.post(LITTLE)
        house.work(60)
        matrix = house.get(WHITEBOX)
        assert matrix["matrix"] == "whitebox"
        assert matrix["scope"] == {**matrix["scope"], "dataset": "mnist-mini", "device": "cpu", "images": 100}
        assert "not comparable" in matrix["scope"]["note"]
        assert [row["label"] for row in matrix["rows"]] == ["clean", "FGSM eps=0.3"]
        assert matrix["rows"][1]["attack"]["eps"] == "0.3"
        assert [column["label"] for column in matrix["columns"]] == ["natural H"]
        target = next(model for model in job["models"] if model["role"] == "target")
        assert matrix["columns"][0]["key"] == matrix["columns"][0]["recipe"] == target["recipe"]
        low, high = wilson(60, 100)
        found = cell(matrix, "FGSM eps=0.3", "natural H")
        evaluation = found["seeds"][0].pop("evaluation")
        assert house.get(f"/stages/{evaluation}")["result"] == {"n": 100, "n_correct": 60}
        assert found == {
            "accuracy": 0.6, "n": 100, "n_correct": 60, "interval": [low, high], "spread": None, "n_seeds": 1,
            "whitebox": True,
            "reason": None,
            "seeds": [{"seed": 0, "substitute_seed": 0, "accuracy": 0.6, "n": 100, "n_correct": 60,
                       "interval": [low, high]}],
        }  # fmt: skip

    def test_blackbox(self, house: House):
        house.post({**LITTLE, "substitutes": ["natural H", {"kind": "fgsm_adv"}]})
        house.work(40)
        matrix = house.get(BLACKBOX)
        assert matrix["pairing"] == "same"
        assert [row["label"] for row in matrix["rows"]] == ["natural H", "fgsm_adv H"]
        assert [row["self_accuracy"] for row in matrix["rows"]] == [0.4, 0.4]
        assert [[found["whitebox"] for found in row] for row in matrix["cells"]] == [[True], [False]]
        assert matrix["rows"][0]["key"].startswith(matrix["rows"][0]["recipe"])

    def test_several_seeds_are_pooled_with_their_spread(self, house: House):
        house.post(LITTLE)
        house.work(60)
        house.post({**LITTLE, "seeds": [0, 1]})
        house.work(80)
        found = cell(house.get(WHITEBOX), "clean", "natural H")
        assert (found["n"], found["n_correct"], found["accuracy"]) == (200, 140, 0.7)
        assert found["spread"] == pytest.approx(0.2)
        assert [(seed["seed"], seed["n_correct"]) for seed in found["seeds"]] == [(0, 60), (1, 80)]
        low, high = found["interval"]
        assert low < 0.6 < 0.8 < high, "Student's t over two seeds is wide"

    def test_the_attackers_own_model_of_a_targets_recipe_is_no_seed_of_the_target(self, house: House):
        """By default the attacker trains natural too, under seed 1,000,000."""
        job = house.post({"dataset": "mnist-mini", "defense": {"kind": "natural"}, "limit": 100})
        house.work(60)
        whitebox, blackbox = (house.get(address, job=job["id"]) for address in (WHITEBOX, BLACKBOX))
        for matrix in (whitebox, blackbox):
            cells = [found for row in matrix["cells"] for found in row]
            assert {seed["seed"] for found in cells for seed in found["seeds"]} == {0}
            assert {found["n"] for found in cells} == {100}
        assert [row["label"] for row in blackbox["rows"]] == ["natural H", "fgsm_adv H", "ifgsm_adv H"]
        assert {found["seeds"][0]["substitute_seed"] for row in blackbox["cells"] for found in row} == {1_000_000}

    def test_the_caution_of_an_ill_conditioned_spec_stands_beside_the_table(self, house: House):
        defense = {"kind": "e2sad", "second_step": "literal"}
        body = {**LITTLE, "defenses": [{"defense": defense, "name": "mine"}]}
        del body["defense"]
        planned = house.plan(body)["cautions"]
        house.post(body)
        (said,) = (line for line in house.get(WHITEBOX)["cautions"] if "ill-conditioned" in line)
        assert said in planned, "in the same words as before it ran"

    def test_an_attack_whose_steps_end_before_its_ball_does_is_told(self, house: House):
        """With too short a path PGD finds little, which looks like robustness."""
        short, long = ({"kind": "pgd", "steps": steps, "random_start": False} for steps in (10, 30))
        body = {**LITTLE, "attacks": [short, long], "transfer": [short]}
        said = "PGD eps=0.3 k=10 no random start: its 10 steps of 0.01 reach 0.1, less than eps"
        planned = house.plan(body)["cautions"]
        job = house.post(body)
        for found in (planned, job["cautions"], *(house.get(matrix)["cautions"] for matrix in (WHITEBOX, BLACKBOX))):
            assert [line for line in found if line.startswith("PGD")] == [said]

    def test_models_of_a_kind_that_is_not_installed_any_more_are_said(self, house: House):
        """What is known against them, and how they differ from the protocol, only their package can tell."""
        job = house.post(LITTLE)
        house.work(60)
        with house.service.database.write() as session:
            for stage in session.scalars(select(Stage).where(Stage.kind == "train")):
                stage.spec = {**stage.spec, "defense": {"kind": "gone"}}
        for address in (WHITEBOX, BLACKBOX, f"/jobs/{job['id']}"):
            assert house.get(address)["cautions"] == [UNREAD], address


class TestMissing:
    """A cell without a count is null with its reason, never 0."""

    def test_before_anything_has_run(self, house: House):
        house.post(LITTLE)
        for address in (WHITEBOX, BLACKBOX):
            cells = [found for row in house.get(address)["cells"] for found in row]
            assert cells
            for found in cells:
                assert (found["accuracy"], found["interval"], found["n"], found["seeds"]) == (None, None, 0, [])
                assert found["reason"] == "seed 0: not finished (blocked)"

    def test_in_every_form(self, house: House):
        house.post(LITTLE)
        rows = list(csv.DictReader(io.StringIO(house.client.get(WHITEBOX, params={"format": "csv"}).text)))
        assert {(row["accuracy"], row["n"], row["reason"]) for row in rows} == {
            ("", "0", "seed 0: not finished (blocked)")}  # fmt: skip
        assert "| clean | -- (1) |" in house.client.get(WHITEBOX, params={"format": "markdown"}).text
        assert r"clean & -- (1) \\" in house.client.get(WHITEBOX, params={"format": "latex"}).text

    def test_a_failed_stage_gives_its_cause(self, house: House):
        house.post({**LITTLE, "substitutes": [], "transfer": None})
        database = house.service.database
        factories.succeed(database, factories.claim(database))
        factories.fail(database, factories.claim(database), message="out of memory")
        house.work(50)
        reasons = {found["reason"] for row in house.get(WHITEBOX)["cells"] for found in row}
        assert any(reason and "out of memory" in reason for reason in reasons)

    def test_a_seed_that_is_missing_is_named_beside_those_that_are_there(self, house: House):
        house.post(LITTLE)
        house.work(60)
        house.post({**LITTLE, "seeds": [0, 1]})
        found = cell(house.get(WHITEBOX), "clean", "natural H")
        assert (found["accuracy"], found["reason"]) == (0.6, "seed 1: not finished (blocked)")

    def test_a_pair_that_nobody_asked_for(self, house: House):
        house.post({**LITTLE, "attacks": [{"kind": "fgsm"}]})
        house.post({**LITTLE, "defense": {"kind": "e2sad"}, "attacks": [{"kind": "pgd"}]})
        found = cell(house.get(WHITEBOX), "FGSM eps=0.3", "e2sad S")
        assert (found["accuracy"], found["n"]) == (None, 0)
        assert found["reason"] == "not evaluated: nothing in this scope has or waits for this pair"

    def test_zero_correct_is_zero_and_not_missing(self, house: House):
        house.post(LITTLE)
        house.work(0)
        found = cell(house.get(WHITEBOX), "clean", "natural H")
        assert (found["accuracy"], found["n"], found["n_correct"], found["reason"]) == (0, 100, 0, None)
        assert "| clean | 0.00 ±" in house.client.get(WHITEBOX, params={"format": "markdown"}).text


class TestForms:
    """CSV, Markdown, LaTeX."""

    @pytest.mark.parametrize(
        ("form", "media"),
        [("json", "application/json"), ("csv", "text/csv; charset=utf-8"), ("latex", "application/x-latex"),
         ("markdown", "text/markdown; charset=utf-8"), ("text", "text/plain; charset=utf-8")],
    )  # fmt: skip
    def test_by_parameter_or_by_accept(self, awkward: House, form: str, media: str):
        by_parameter = awkward.client.get(WHITEBOX, params={"format": form})
        by_accept = awkward.client.get(WHITEBOX, headers={"Accept": media.partition(";")[0]})
        assert by_parameter.headers["content-type"].startswith(media)
        assert by_accept.text == by_parameter.text
        assert by_parameter.headers["vary"] == "Accept"

    @pytest.mark.parametrize(
        ("accept", "media"),
        [
            ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
            ("application/json;q=0.1, text/csv", "text/csv"),
            ("text/csv;q=0, text/markdown;q=0.5", "text/markdown"),
            ("text/csv;q=0", "application/json"),
            ("*/*, application/json;q=0", "text/csv"),
            ("*/*, text/markdown", "text/markdown"),
            ("application/json-patch+json;q=0.9, TEXT/PLAIN; charset=utf-8; Q=0.9", "text/plain"),
            ("text/csv-schema", "application/json"),
            ("text/csv;q=much", "text/csv"),
            ("", "application/json"),
        ],
    )
    def test_by_what_is_accepted_most(self, awkward: House, accept: str, media: str):
        answer = awkward.client.get(WHITEBOX, headers={"Accept": accept})
        assert answer.headers["content-type"].partition(";")[0] == media

    def test_csv_has_a_line_per_cell_and_no_formula(self, awkward: House):
        rows = list(csv.DictReader(io.StringIO(awkward.client.get(WHITEBOX, params={"format": "csv"}).text)))
        assert len(rows) == 4
        assert {row["column"] for row in rows} == {NAUGHTY, "'=SUM(1)"}
        assert {(row["accuracy"], row["n"], row["n_correct"], row["seeds"], row["n_seeds"]) for row in rows} == {
            ("0.6", "100", "60", "0", "1")
        }
        assert all(float(row["low"]) < 0.6 < float(row["high"]) for row in rows)
        assert {(row["dataset"], row["device"], row["images"]) for row in rows} == {("mnist-mini", "cpu", "100")}

    def test_markdown_is_one_table(self, awkward: House):
        text = awkward.client.get(BLACKBOX, params={"format": "markdown"}).text
        head, rule, *body = text.splitlines()[:3]
        assert head == "|  | " + NAUGHTY.replace("\\", r"\\").replace("|", r"\|").replace("_", r"\_") + " | =SUM(1) |"
        assert rule == "| --- | ---: | ---: |"
        assert body[0].endswith(" | 60.00 ± 9.80* | 60.00 ± 9.80 |")
        assert "first 100 test images, cpu, pairing same" in text

    def test_latex_escapes_everything_special(self, awkward: House):
        text = awkward.client.get(WHITEBOX, params={"format": "latex"}).text
        assert r"50 \% \& \_more\_ \#1 \{x\} \$y\$ \textasciitilde{}z\textasciicircum{}2" in text
        assert r"\textasciicircum{}2 \textbackslash{}o \textbar{}p\textbar{}" in text
        assert r"clean & 60.00 $\pm$ 9.80 & 60.00 $\pm$ 9.80 \\" in text
        assert text.startswith("% Accuracy in per cent")
        assert text.count(r"\begin{tabular}{lrr}") == text.count(r"\end{tabular}") == 1


class TestFilters:
    """Every filter narrows; without any the newest comparable group answers."""

    @pytest.mark.parametrize(
        ("query", "rows"),
        [
            ({}, ["clean", "FGSM eps=24/255", "FGSM eps=0.3", "IFGSM eps=0.3 k=10", "IFGSM eps=0.3 k=30"]),
            ({"attack": "fgsm"}, ["FGSM eps=24/255", "FGSM eps=0.3"]),
            ({"attack": "none"}, ["clean"]),
            ({"eps": "0.3"}, ["FGSM eps=0.3", "IFGSM eps=0.3 k=10", "IFGSM eps=0.3 k=30"]),
            ({"eps": "3/10", "steps": 30}, ["IFGSM eps=0.3 k=30"]),
            ({"eps": "24/255"}, ["FGSM eps=24/255"]),
            ({"eps": "8/85"}, ["FGSM eps=24/255"]),
            ({"steps": 10}, ["IFGSM eps=0.3 k=10"]),
            ({"network": "svhn_cnn"}, []),
            ({"network": "mnist_cnn", "attack": "none"}, ["clean"]),
            ({"label": "natural H", "attack": "none"}, ["clean"]),
            ({"attack": "pgd"}, []),
        ],
        ids=str,
    )
    def test_of_attacks_and_models(self, varied: House, query: dict[str, Any], rows: list[str]):
        matrix = varied.get(WHITEBOX, images=100, **query)
        assert [row["label"] for row in matrix["rows"]] == rows
        assert (matrix["scope"] is None) == (not rows), "where nothing fits there is no scope"
        assert len(matrix["others"]) == (1 if rows else 2)

    def test_the_newest_group_is_shown_and_the_others_are_named(self, varied: House):
        matrix = varied.get(WHITEBOX)
        assert matrix["scope"]["images"] == 7
        assert [other["images"] for other in matrix["others"]] == [100]
        shown = varied.client.get("/results/whitebox-matrix", params={"format": "text"}).text
        assert "other results, each a table of its own: mnist-mini, first 100 test images, cpu\n" in shown
        assert varied.get(WHITEBOX, images=100)["scope"]["images"] == 100
        assert varied.get(WHITEBOX, images=101)["scope"] is None
        assert varied.get(WHITEBOX, dataset="svhn")["scope"] is None
        assert varied.get(WHITEBOX, device="cuda")["scope"] is None

    def test_by_job_and_suite(self, varied: House):
        assert len(varied.get(WHITEBOX, job=1)["columns"]) == 1
        assert [column["label"] for column in varied.get(WHITEBOX, suite="quickstart")["columns"]] == [
            "Natural H", "FGSM H", "IFGSM-10 H", "e2SAD S"]  # fmt: skip
        by_job, by_suite = varied.get(WHITEBOX, job=2), varied.get(WHITEBOX, suite="quickstart")
        assert (by_job["rows"], by_job["cells"]) == (by_suite["rows"], by_suite["cells"])
        assert (by_job["others"], len(by_suite["others"])) == ([], 1)
        labels = varied.get(BLACKBOX, suite="quickstart", label=["e2SAD S", "FGSM H"])["columns"]
        assert [column["label"] for column in labels] == ["FGSM H", "e2SAD S"]

    def test_a_suite_nobody_posted_has_no_scope(self, varied: House):
        for address in (WHITEBOX, BLACKBOX):
            for filters in ({}, {"dataset": "mnist-mini", "images": 100}):
                matrix = varied.get(address, suite="e2sad-svhn", **filters)
                assert (matrix["scope"], matrix["rows"], len(matrix["others"])) == (None, [], 2)

    def test_a_suite_that_no_longer_ships_is_found_by_its_jobs(self, small_house: House):
        factories.post(small_house.service.database, factories.body(limit=9), suite="of-old")
        assert small_house.get(WHITEBOX, suite="of-old")["scope"]["images"] == 9
        assert small_house.get("/jobs", suite="of-old")["jobs"]

    def test_by_seed(self, varied: House):
        both, one = (varied.get(WHITEBOX, images=100, **query) for query in ({}, {"seed": 1}))
        assert {found["n"] for row in both["cells"] for found in row} == {200}
        assert {found["n"] for row in one["cells"] for found in row} == {100}
        assert varied.get(WHITEBOX, images=100, seed=[0, 1]) == both

    def test_by_pairing(self, varied: House):
        assert varied.get(BLACKBOX, images=100)["pairing"] == "same"
        other = varied.get(BLACKBOX, images=100, pairing="independent")
        assert (other["pairing"], other["rows"]) == ("independent", [])


class TestCaching:
    """An answer that has not changed is not sent again."""

    def test_it_is_304_until_it_changes(self, house: House):
        house.post(LITTLE)
        first = house.client.get(WHITEBOX)
        same = house.client.get(WHITEBOX, headers={"If-None-Match": first.headers["etag"]})
        assert (same.status_code, same.content) == (304, b"")
        assert same.headers["etag"] == first.headers["etag"]
        assert house.client.get(WHITEBOX, headers={"If-None-Match": "*"}).status_code == 304
        house.work(60)
        changed = house.client.get(WHITEBOX, headers={"If-None-Match": first.headers["etag"]})
        assert changed.status_code == 200
        assert changed.headers["etag"] != first.headers["etag"]

    def test_what_has_not_changed_costs_one_query(self, house: House):
        house.post(LITTLE)
        house.work(60)
        asked: list[str] = []
        engine = house.service.database.engine
        first = house.client.get(BLACKBOX)
        event.listen(engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
        same = house.client.get(BLACKBOX, headers={"If-None-Match": first.headers["etag"]})
        assert same.status_code == 304
        assert len([statement for statement in asked if statement.startswith("SELECT")]) == 1, asked

    def test_what_was_repaired_is_seen_within_a_minute(self, house: House):
        """A sum that is counted anew is no change of a stage, and moves no stamp."""
        now = 1000.0
        house.service.tags = Tags(lambda: now)
        house.post(LITTLE)
        house.work(60)
        with house.service.database.write() as session:
            session.execute(update(Tally).values(total=Tally.total - 10))
        wrong = house.client.get(BLACKBOX)
        with house.service.database.write() as session:
            recount_all(session)
        known = {"If-None-Match": wrong.headers["etag"]}
        assert house.client.get(BLACKBOX, headers=known).status_code == 304
        now += 60
        right = house.client.get(BLACKBOX, headers=known)
        assert (right.status_code, cell(right.json(), "fgsm_adv H", "natural H")["n_correct"]) == (200, 60)
        assert house.client.get(BLACKBOX, headers={"If-None-Match": right.headers["etag"]}).status_code == 304

    def test_every_form_has_a_tag_of_its_own(self, small_house: House):
        small_house.post(LITTLE)
        tags = {
            small_house.client.get(WHITEBOX, params={"format": form}).headers["etag"]
            for form in ("json", "csv", "markdown", "latex")
        }
        assert len(tags) == 4

    def test_also_where_two_forms_say_it_in_the_same_words(self):
        class Word(BaseModel):
            word: str = "same"

        writers = dict.fromkeys(MEDIA, Word.model_dump_json)
        tags = {answer(Word(), writers, form, None, None).headers["etag"] for form in get_args(Form)}
        assert len(tags) == len(MEDIA)
