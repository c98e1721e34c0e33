"""The paper's tables over HTTP: published beside measured, never mixed, and nothing missing without its reason."""

import csv
import io
from typing import Any

import pytest

from api.exports import PAPER_COLUMNS
from api.paper import _explained
from core.execution import Execution
from core.statistics import wilson
from core.suites import suites
from store.stages import Claim
from tests import factories
from tests.api.house import House

TINY = {"suite": "e2sad-mnist-tiny"}


def measurements(table: dict[str, Any]) -> dict[tuple[str, str, str | None], dict[str, Any]]:
    return {
        (row, column, ours["loss"]): {**ours, "published": cell["published"]}
        for row, cells in zip(table["rows"], table["cells"], strict=True)
        for column, cell in zip(table["columns"], cells, strict=True)
        for ours in cell["measured"]
    }


@pytest.fixture(scope="class")
def one_seed(lasting_house: House) -> House:
    lasting_house.post(TINY)
    lasting_house.work(12)
    return lasting_house


@pytest.fixture(scope="class")
def three_seeds(lasting_house: House) -> House:
    """Seeds 0, 1 and 2 count 18, 19 and 20 of 20."""
    lasting_house.post({**TINY, "seeds": [0, 1, 2]})
    seeds = {row.key: row.seed for row in factories.stages_by_title(lasting_house.service.database).values()}

    def count(claim: Claim) -> int:
        return 18 + (seeds[claim.spec["target"]] or 0) if claim.kind == "evaluate" else 0

    factories.finish(lasting_house.service.database, count)
    return lasting_house


class TestNothingRun:
    @pytest.mark.parametrize("number", [1, 2])
    def test_every_published_cell_is_there_and_says_how_to_run_it(self, small_house: House, number: int):
        table = small_house.get(f"/results/paper/{number}")
        assert (table["suite"], table["protocol"], table["reductions"]) == ("e2sad-mnist", "paper", [])
        assert table["scope"] == {**table["scope"], "dataset": "mnist", "images": 10_000}
        for ours in measurements(table).values():
            assert (ours["accuracy"], ours["difference"], ours["prediction"]) == (None, None, None)
            assert (ours["n"], ours["explained_by_chance"], ours["reason"]) == (0, "unknown", "not run")
            assert ours["command"] == "gauntlet submit --suite e2sad-mnist --wait"

    def test_what_a_suite_does_not_hold_is_told_from_what_it_has_not_run(self, small_house: House):
        found = measurements(small_house.get("/results/paper/1", suite="quickstart"))
        absent = found["clean", "FGSM .4 S", None]
        assert absent["reason"] == "the suite quickstart has no model that stands for FGSM .4 S"
        assert absent["command"] == "gauntlet submit --suite e2sad-mnist --wait"
        assert "does not attack so" in found["FGSM .4", "Natural H", "label"]["reason"]
        assert found["FGSM .3", "Natural H", "label"]["reason"] == "not run"
        assert found["FGSM .3", "Natural H", "label"]["command"] == "gauntlet submit --suite quickstart --wait"

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_waiting_cells_say_so(self, small_house: House, device: str):
        small_house.post({**TINY, "device": device})
        table = small_house.get("/results/paper/1", **TINY)
        found = measurements(table)
        assert table["scope"]["device"] == device
        assert {ours["reason"] for ours in found.values()} == {"seed 0: not finished (blocked)"}

    @pytest.mark.parametrize(("number", "suite"), [(1, "nope"), (3, "e2sad-mnist"), (3, "quickstart"), (1, "")])
    def test_a_suite_that_cannot_stand_there_is_refused(self, small_house: House, number: int, suite: str):
        answer = small_house.client.get(f"/results/paper/{number}", params={"suite": suite})
        assert answer.status_code == 422
        (field,) = answer.json()["error"]["fields"]
        assert field["path"] == "suite"
        assert suite not in field["allowed"]
        assert set(field["allowed"]) <= set(suites())

    @pytest.mark.parametrize("number", ["0", "4", "-1", "one"])
    def test_there_are_three_tables(self, small_house: House, number: str):
        assert small_house.client.get(f"/results/paper/{number}").status_code == 422


class TestOneSeed:
    def test_table_1(self, one_seed: House):
        table = one_seed.get("/results/paper/1", **TINY)
        found = measurements(table)
        assert len(found) == 9 * (1 + 2 * 4)
        assert (table["protocol"], table["scope"]["dataset"], table["scope"]["device"]) == (
            "reduced", "mnist-mini", "cpu")  # fmt: skip
        assert any("2 instead of 30000" in line for line in table["reductions"])
        for (row, column, loss), ours in found.items():
            assert (ours["n"], ours["n_correct"], ours["accuracy"]) == (20, 12, 0.6), (row, column, loss)
            assert ours["interval"] == list(wilson(12, 20))
            assert ours["difference"] == pytest.approx(0.6 - ours["published"])
            assert (ours["explained_by_chance"], ours["prediction"], ours["spread"]) == ("unknown", None, None)
            assert (ours["whitebox"], ours["reason"], ours["command"]) == (True, None, None)
        assert found["clean", "e2SAD S", None]["published"] == 0.9932
        assert sum(origin["evaluations"] for origin in table["origins"]) == len(found)

    def test_table_2_has_its_diagonal_marked(self, one_seed: House):
        found = measurements(one_seed.get("/results/paper/2", **TINY))
        assert len(found) == 54 * 2
        assert all(ours["n"] == 20 for ours in found.values())
        assert {key for key, ours in found.items() if ours["whitebox"]} == {
            (name, name, loss) for name, _, loss in found for loss in ("label", "training")
        }

    def test_other_protocols_and_devices_are_not_mixed_in(self, one_seed: House):
        assert all(ours["n"] == 0 for ours in measurements(one_seed.get("/results/paper/1")).values())
        cuda = one_seed.get("/results/paper/1", device="cuda", **TINY)
        assert (cuda["scope"]["device"], {ours["n"] for ours in measurements(cuda).values()}) == ("cuda", {0})

    def test_another_execution_stands_beside_not_within(self, one_seed: House):
        database, threads = one_seed.service.database, Execution(threads=7)
        before = one_seed.get("/results/paper/1", **TINY)
        fewer = {**suites()["e2sad-mnist-tiny"], "attacks": [{"kind": "none"}]}
        del fewer["description"]
        factories.post(database, fewer, execution=threads)
        factories.finish(database, lambda claim: 1 if claim.kind == "evaluate" else 0)
        after = one_seed.get("/results/paper/1", **TINY)
        assert after["cells"] == before["cells"]
        assert [other["execution"]["threads"] for other in after["others"]] == [7]
        (other,) = after["others"]
        seven = one_seed.get("/results/paper/1", **TINY, execution=other["key"])
        assert (seven["execution"]["threads"], seven["execution_key"]) == (7, other["key"])
        assert seven["others"] == []
        clean = measurements(seven)["clean", "e2SAD S", None]
        assert (clean["n"], clean["n_correct"]) == (20, 1)
        again = one_seed.get("/results/paper/1", **TINY, execution=before["execution_key"])
        assert again["cells"] == before["cells"]
        refused = one_seed.client.get("/results/paper/1", params={**TINY, "execution": "0" * 12})
        assert (refused.status_code, refused.json()["error"]["fields"][0]["path"]) == (422, "execution")

    @pytest.mark.parametrize("again", [{"threads": 5}, {"threads": 1, "device": "cuda"}])
    def test_a_model_evaluated_otherwise_is_no_further_seed(self, one_seed: House, again: dict[str, Any]):
        before = one_seed.get("/results/paper/1", **TINY)
        (*_, model) = [one for one in one_seed.get("/models")["models"] if one["label"] == "e2SAD S"]
        target = {"key": model["key"], "name": model["label"]}
        job = {"kind": "evaluate", "targets": [target], "attacks": [{"kind": "none"}], "limit": 20}
        database = one_seed.service.database
        factories.post(database, job, execution=Execution(**again))
        assert one_seed.get("/results/paper/1", **TINY)["cells"] == before["cells"]
        factories.finish(database, lambda _: 3)
        assert one_seed.get("/results/paper/1", **TINY)["cells"] == before["cells"]

    def test_a_job_stands_by_what_it_asked_for(self, one_seed: House):
        (job,) = [job["id"] for job in one_seed.get("/jobs", suite="e2sad-mnist-tiny")["jobs"]]
        whole = one_seed.get("/results/paper/1", **TINY)
        found = one_seed.get("/results/paper/1", job=job)
        assert (found["job"], found["suite"], found["cells"]) == (job, "e2sad-mnist-tiny", whole["cells"])
        few = {"dataset": "mnist-mini", "defense": {"kind": "natural"}, "training": {"iterations": 2, "batch_size": 16}}
        mine = one_seed.post({**few, "attacks": [{"kind": "fgsm"}], "substitutes": [], "limit": 20})
        table = measurements(one_seed.get("/results/paper/1", job=mine["id"]))
        assert table["FGSM .3", "Natural H", "label"]["n"] == 20, "shared with the suite, and asked for by the job"
        assert table["FGSM .4", "Natural H", "label"]["reason"].startswith(f"job {mine['id']} does not attack so")
        assert table["clean", "e2SAD S", None]["reason"].startswith(f"job {mine['id']} has no model that stands for")

    @pytest.mark.parametrize(
        ("query", "status", "path"),
        [({"job": 999}, 404, None), ({"job": 1, "suite": "e2sad-mnist-tiny"}, 422, "suite"),
         ({"job": 1, "dataset": "mnist"}, 422, "dataset"), ({"dataset": "svhn"}, 422, "dataset"),
         ({"suite": "figures-tiny"}, 422, "suite"), ({"execution": "x"}, 422, "execution")],
    )  # fmt: skip
    def test_what_cannot_be_shown_is_refused(self, one_seed: House, query: Any, status: int, path: str | None):
        answer = one_seed.client.get("/results/paper/1", params=query)
        assert answer.status_code == status, answer.text
        assert [field["path"] for field in answer.json()["error"]["fields"]] == ([path] if path else [])

    @pytest.mark.parametrize("number", [1, 2])
    def test_forms(self, one_seed: House, number: int):
        address = f"/results/paper/{number}"

        def form(name: str) -> str:
            return one_seed.client.get(address, params={**TINY, "format": name}).text

        lines = list(csv.DictReader(io.StringIO(form("csv"))))
        assert list(lines[0]) == list(PAPER_COLUMNS)
        assert len(lines) == {1: 81, 2: 108}[number]
        assert {line["accuracy"] for line in lines} == {"0.6"}
        markdown = form("markdown")
        assert "/ 60.00 ± " in markdown
        assert "Not the paper's protocol: iterations: 2 instead of 30000" in markdown
        assert "mnist-mini: every 6th training" in markdown
        assert markdown.count("| --- |") == 2
        latex = form("latex")
        assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
        assert r"$\pm$" in latex


class TestSeveralSeeds:
    def test_the_spread_decides_what_chance_explains(self, three_seeds: House):
        found = measurements(three_seeds.get("/results/paper/1", **TINY))
        ours = found["clean", "e2SAD S", None]
        assert (ours["n"], ours["n_correct"], [seed["seed"] for seed in ours["seeds"]]) == (60, 57, [0, 1, 2])
        assert ours["spread"] == pytest.approx(0.1)
        low, high = ours["prediction"]
        assert low < 0.9 < 1.0 < high
        assert ours["explained_by_chance"] == "yes"
        assert found["IFGSM .3, k = 30", "Natural H", "label"]["explained_by_chance"] == "no"

    def test_two_seeds_are_too_few_to_say(self):
        assert [_explained(0.9, (0.5, 1.3), seeds) for seeds in (1, 2, 3)] == ["unknown", "unknown", "yes"]

    def test_a_target_meets_substitutes_of_its_own_seed(self, three_seeds: House):
        found = measurements(three_seeds.get("/results/paper/2", **TINY))
        seeds = found["Natural H", "e2SAD S", "label"]["seeds"]
        assert [(seed["seed"], seed["substitute_seed"]) for seed in seeds] == [(0, 0), (1, 1), (2, 2)]

    def test_an_attacker_s_own_model_is_no_further_seed(self, three_seeds: House):
        before = three_seeds.get("/results/paper/1", **TINY)["cells"]
        three_seeds.post({**TINY, "substitute_seeds": [77], "pairing": "independent"})
        three_seeds.work(3)
        assert three_seeds.get("/results/paper/1", **TINY)["cells"] == before


def test_a_suite_on_another_dataset_stands_beside_its_table(small_house: House):
    body = {"suite": "e2sad-svhn-tiny", "dataset": "synth-digits"}
    job = small_house.post(body)
    small_house.work(6)
    table = small_house.get("/results/paper/3", **body)
    assert (table["scope"]["dataset"], table["protocol"]) == ("synth-digits", "reduced")
    assert any("synth-digits, 73,257 training images, instead of SVHN" in line for line in table["reductions"])
    assert {ours["n"] for ours in measurements(table).values()} == {10}
    assert small_house.get("/results/paper/3", job=job["id"])["cells"] == table["cells"]
    own = small_house.get("/results/paper/3", suite="e2sad-svhn-tiny")
    assert {ours["n"] for ours in measurements(own).values()} == {0}, "nobody ran it on its own dataset"


def test_the_normalised_reading_stands_beside_table_3(small_house: House):
    small_house.post({"suite": "e2sad-svhn-normalised", "training": {"iterations": 1}})
    table = small_house.get("/results/paper/3", suite="e2sad-svhn-normalised")
    assert (table["protocol"], len(table["reductions"])) == ("reduced", 1)
    assert {ours["reason"] for ours in measurements(table).values()} == {"not run"}
    job = small_house.get("/results/paper/3", job=1)
    assert "iterations: 1 instead of 5740 (all models)" in job["reductions"]
    assert {ours["reason"] for ours in measurements(job).values()} == {"seed 0: not finished (blocked)"}
