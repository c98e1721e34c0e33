"""Suites over HTTP: what is missing is said at POST, and a shortened suite says so in every answer."""

import shutil
from pathlib import Path

import pytest

from core.suites import suites
from tests.api.conftest import opened
from tests.api.house import House


@pytest.fixture
def bare_house(sqlite_template: Path, tmp_path: Path):
    """A service whose DATA_DIR is empty."""
    with opened(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'gauntlet.db')}", tmp_path, tmp_path) as found:
        yield found


@pytest.mark.parametrize("suite", ["e2sad-svhn", "e2sad-svhn-small", "random-start-svhn"])
def test_without_svhn_its_suites_say_what_to_install(bare_house: House, suite: str):
    answer = bare_house.client.post("/jobs", json={"suite": suite})
    assert answer.status_code == 422
    field = answer.json()["error"]["fields"][0]
    assert field["path"] == "dataset"
    assert "train_32x32.mat is missing" in field["message"]
    assert "run `gauntlet data svhn`, or set DATA_DIR to a folder that has train_32x32.mat" in field["message"]
    assert "synth-digits" in field["allowed"]
    assert bare_house.rows().get("jobs", 0) == 0


@pytest.mark.parametrize("suite", ["e2sad-svhn", "e2sad-svhn-small"])
def test_on_rendered_digits_they_run_anywhere_and_are_not_called_svhn(bare_house: House, suite: str):
    job = bare_house.post({"suite": suite, "dataset": "synth-digits"})
    assert (job["spec"]["dataset"], job["suite"]) == ("synth-digits", suite)
    plan = bare_house.plan({"suite": suite, "dataset": "synth-digits"})
    assert any("not SVHN" in line for line in plan["cautions"])
    assert plan["dataset"] == "synth-digits"


@pytest.mark.parametrize("suite", ["e2sad-mnist-tiny", "second-step-tiny", "e2sad-svhn-tiny", "random-start-tiny"])
def test_tiny_suites_need_nothing(bare_house: House, suite: str):
    assert bare_house.post({"suite": suite})["progress"]["stages"] > 50


def test_a_shortened_suite_says_so_in_its_plan_and_in_its_matrices(small_house: House):
    said = [f"e2sad-svhn-tiny is shortened: {line}" for line in suites()["e2sad-svhn-tiny"]["reductions"]]
    assert len(said) == 3
    body = {"suite": "e2sad-svhn-tiny"}
    assert small_house.plan(body)["cautions"][-3:] == said
    job = small_house.post(body)
    small_house.work(7)
    for query in ({"job": job["id"]}, {"suite": "e2sad-svhn-tiny"}):
        assert small_house.get("/results/whitebox-matrix", **query)["cautions"] == said
    whole = small_house.post({**suites_spec("e2sad-svhn-tiny"), "name": "by its fields"})
    assert small_house.get("/results/whitebox-matrix", job=whole["id"])["cautions"] == []


def suites_spec(name: str) -> dict:
    return {key: value for key, value in suites()[name].items() if key not in {"description", "reductions"}}
