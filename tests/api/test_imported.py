"""Results brought from another machine stand beside the paper's, with where they come from."""

from pathlib import Path
from typing import Any

import pytest

from core import run
from store.transfer import import_file
from tests.api.house import House
from tests.api.test_paper import measurements

CARRIED: dict[str, Any] = {
    "description": "Two models of Table 1.", "name": "carried", "kind": "benchmark", "dataset": "mnist-mini",
    "training": {"iterations": 1, "batch_size": 2}, "defenses": [{"kind": "natural"}, {"kind": "e2sad"}],
    "attacks": [{"kind": "none"}, {"kind": "fgsm"}], "substitutes": [], "limit": 11,
}  # fmt: skip


def test_the_papers_table_after_an_import(small_house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from core.suites import suites

    monkeypatch.setitem(suites(), "carried", CARRIED)
    file = tmp_path / "carried.zip"
    assert run.main(["--suite", "carried", "--device", "cpu", "--threads", "1", "--out", str(file)]) == 0
    import_file(small_house.service.database, small_house.service.store, file)
    table = small_house.get("/results/paper/1", suite="carried")
    found = {place: ours for place, ours in measurements(table).items() if ours["n"]}
    assert set(found) == {(row, model, loss) for model in ("Natural H", "e2SAD S")
                          for row, loss in (("clean", None), ("FGSM .3", "label"))}  # fmt: skip
    assert {ours["n"] for ours in found.values()} == {11}
    (origin,) = table["origins"]
    assert origin["environment"]["imported"]["host"]
    assert {"torch", "gauntlet", "commit"} <= set(origin["environment"])
    (job,) = small_house.get("/jobs")["jobs"]
    of_job = measurements(small_house.get("/results/paper/1", job=job["id"]))
    assert {place: ours for place, ours in of_job.items() if ours["n"]} == found
    assert any("the first 11 instead of 10,000" in line for line in table["reductions"])
