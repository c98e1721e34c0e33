"""Cost and curves over HTTP, of trainings that really ran, through core alone and an import."""

import csv
import io
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from api.costs import COLUMNS
from api.routes import costs as routes
from core import run
from core.suites import suites
from store import costs
from store.models import Result, Stage
from store.transfer import import_file
from tests.api.house import LITTLE, House

TIMED: dict[str, Any] = {
    "name": "timed", "kind": "benchmark", "dataset": "mnist-mini", "training": {"iterations": 3, "batch_size": 4},
    "defenses": [{"kind": "natural"}, {"kind": "e2sad"}, {"kind": "ifgsm_adv", "steps": 3}],
    "attacks": [{"kind": "none"}], "substitutes": [], "limit": 5, "seeds": [0, 1], "description": "Six trainings.",
}  # fmt: skip

TRAIN = {"kind": "train", "dataset": "mnist-mini", "defense": {"kind": "natural"}}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    suites()["timed"] = TIMED
    path = tmp_path_factory.mktemp("timed") / "timed.zip"
    assert run.main(["--suite", "timed", "--device", "cpu", "--threads", "1", "--out", str(path)]) == 0
    yield path
    del suites()["timed"]


@pytest.fixture(scope="class")
def trained(lasting_house: House, file: Path) -> House:
    import_file(lasting_house.service.database, lasting_house.service.store, file)
    return lasting_house


class TestCost:
    def test_ratios_are_to_natural_training_of_the_same_run(self, trained: House):
        table = trained.get("/results/cost", suite="timed")
        rows = {row["kind"]: row for row in table["rows"]}
        assert [row["kind"] for row in table["rows"]] == ["natural", "e2sad", "ifgsm_adv"]
        assert (rows["natural"]["measured_ratio"], rows["natural"]["counted_ratio"]) == (1, 1)
        assert (rows["natural"]["units"], rows["e2sad"]["units"]) == (3, 10)
        assert rows["e2sad"]["counted_ratio"] == pytest.approx(10 / 3)
        for row in rows.values():
            assert [seed["seed"] for seed in row["seeds"]] == [0, 1]
            mean = sum(seed["seconds"] for seed in row["seeds"]) / 2 / (3 * 4)
            assert row["seconds_per_example"] == pytest.approx(mean)
            natural = rows["natural"]["seconds_per_example"]
            assert row["measured_ratio"] == pytest.approx(row["seconds_per_example"] / natural)
        assert table["run"]["device"] == "cpu"
        assert table["run"]["device_name"]
        assert table["claim"].startswith("natural H 1.00 : e2sad S ")

    def test_forms(self, trained: House):
        def form(name: str) -> str:
            return trained.client.get("/results/cost", params={"format": name, "suite": "timed"}).text

        table = trained.get("/results/cost", suite="timed")
        lines = list(csv.DictReader(io.StringIO(form("csv"))))
        assert list(lines[0]) == list(COLUMNS)
        run = table["run"]
        for name in ("threads", "layout", "precision", "captured"):
            assert {line[name] for line in lines} == {str(run["execution"][name])}
        assert {json.loads(line["network"])["kind"] for line in lines} == {run["network"]["kind"]}
        assert {(line["note"], line["claim"]) for line in lines} == {(table["note"], table["claim"])}
        assert [(line["kind"], line["seed"]) for line in lines] == [
            (kind, seed) for kind in ("natural", "e2sad", "ifgsm_adv") for seed in "01"
        ]
        assert [float(line["seconds"]) for line in lines] == [
            seed["seconds"] for row in table["rows"] for seed in row["seeds"]
        ]
        caption, head, _, natural, *_ = form("text").splitlines()
        assert caption.startswith("Cost of training per example and iteration")
        assert head.split() == ["iterations", "passes", "counted", "measured", "µs", "per", "example", "seeds"]
        mean = table["rows"][0]["seconds_per_example"]
        assert natural.split() == ["natural", "H", "3", "3", "1.00", "1.00", f"{1e6 * mean:.1f}", "2"]
        assert table["claim"] in form("text")
        assert "| natural H | 3 | 3 | 1.00 | 1.00 |" in form("markdown")
        assert r"natural H & 3 & 3 & 1.00 & 1.00 &" in form("latex")

    def test_no_claim_where_one_name_stands_for_two_models(self, small_house: House, file: Path):
        import_file(small_house.service.database, small_house.service.store, file)
        with small_house.service.database.write() as session:
            stage = next(iter(session.scalars(select(Stage).where(Stage.kind == "train", Stage.seed == 1))))
            stage.spec = {**stage.spec, "training": {**stage.spec["training"], "iterations": 4}}
        table = small_house.get("/results/cost")
        assert sorted(row["iterations"] for row in table["rows"] if row["kind"] == "natural") == [3, 4]
        assert table["claim"] == ""
        assert "one name stands for several models" in small_house.client.get(
            "/results/cost", params={"format": "text"}
        ).text  # fmt: skip

    def test_what_recorded_no_time_is_not_compared(self, small_house: House):
        small_house.post(LITTLE)
        small_house.work(1)
        table = small_house.get("/results/cost")
        assert (table["run"], table["rows"], table["claim"]) == (None, [], "")
        for form in ("csv", "markdown", "latex", "text"):
            empty = small_house.client.get("/results/cost", params={"format": form})
            assert (empty.status_code, "no finished training" in empty.text) == (200, form != "csv")

    def test_machines_are_apart(self, small_house: House, file: Path):
        """Two workers with the same processor are two runs."""
        import_file(small_house.service.database, small_house.service.store, file)
        with small_house.service.database.write() as session:
            for result in session.scalars(select(Result).join(Stage).where(Stage.kind == "train")):
                elsewhere = session.get_one(Stage, result.stage_id).spec["defense"]["kind"] == "ifgsm_adv"
                assert result.environment["host"] == platform.node()
                result.environment = {**result.environment, "host": "b" if elsewhere else "a"}
        table = small_house.get("/results/cost")
        assert [row["kind"] for row in table["rows"]] == ["natural", "e2sad"]
        assert (table["run"]["host"], [run["host"] for run in table["others"]]) == ("a", ["b"])

    def test_devices_are_apart(self, trained: House):
        assert trained.get("/results/cost", device="cuda")["rows"] == []

    @pytest.mark.parametrize(("path", "most"), [("cost", "MAX_TRAININGS"), ("curves", "MAX_CURVES")])
    def test_more_than_can_be_shown_are_refused_before_they_are_read(
        self, house: House, monkeypatch: pytest.MonkeyPatch, path: str, most: str
    ):
        for _ in range(2):
            house.post({**TRAIN, "seeds": [0, 1, 2]})
        house.work(1)
        monkeypatch.setattr(routes, most, 3)
        assert house.client.get(f"/results/{path}").status_code == 200
        with house.service.database.read() as session:
            assert len(costs.trainings(session, most=3)) == 3, "a model of two jobs is one"
        monkeypatch.setattr(routes, most, 2)
        refused = house.client.get(f"/results/{path}")
        assert (refused.status_code, "more than 2 " in refused.json()["error"]["message"]) == (422, True)
        house.post({**TRAIN, "seeds": [3]})
        house.work(1)
        with house.service.database.read() as session:
            assert len(costs.trainings(session, most=2)) == 3
            assert len(costs.trainings(session, most=9, device="cpu")) == 4
            assert costs.trainings(session, most=9, device="cuda") == []

    @pytest.mark.parametrize("path", ["cost", "curves"])
    def test_a_job_that_does_not_exist(self, trained: House, path: str):
        assert trained.client.get(f"/results/{path}", params={"job": 999}).status_code == 404


class TestCurves:
    def test_losses_and_accuracy_by_iteration(self, trained: House):
        found = trained.get("/results/curves", suite="timed")
        assert len(found["curves"]) == 6
        curve = next(one for one in found["curves"] if one["label"].startswith("e2sad") and one["seed"] == 1)
        series = curve["series"]
        assert series["iteration"] == [1, 3], "the first, the last, and between them no more than are looked at"
        assert {"loss", "clean", "adversarial", "accuracy"} <= set(series)
        assert all(len(values) == 2 for values in series.values())
        assert all(0 <= share <= 1 and share * 4 == round(share * 4) for share in series["accuracy"])

    def test_named_models(self, trained: House):
        key = trained.get("/results/curves", suite="timed")["curves"][0]["key"]
        assert [one["key"] for one in trained.get("/results/curves", model=key)["curves"]] == [key]

    def test_a_model_that_does_not_exist(self, trained: House):
        assert trained.client.get("/results/curves", params={"model": "0" * 64}).status_code == 404
        assert trained.client.get("/results/curves", params={"model": "nonsense"}).status_code == 422

    def test_a_result_without_a_curve_says_so(self, small_house: House):
        job = small_house.post(LITTLE)
        small_house.work(1)
        found = small_house.get("/results/curves", job=job["id"])
        assert found["curves"] == []
        assert set(found["missing"].values()) == {"its result holds no curve"}

    def test_one_bad_file_is_said_and_hides_nothing_else(self, small_house: House, file: Path):
        service = small_house.service
        import_file(service.database, service.store, file)
        curves = small_house.get("/results/curves", suite="timed")["curves"]
        shas = [small_house.get(f"/stages/{one['key']}")["artifacts"]["curve"] for one in curves[:2]]
        service.store.path(shas[0]).unlink()
        path = service.store.path(shas[1])
        path.chmod(0o600)
        path.write_bytes(b"[]")
        found = small_house.get("/results/curves", suite="timed")
        assert [one["key"] for one in found["curves"]] == [one["key"] for one in curves[2:]]
        assert "is missing" in found["missing"][curves[0]["key"]]
        assert "has been altered" in found["missing"][curves[1]["key"]]
