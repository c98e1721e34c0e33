"""Suites over HTTP: what is missing is said at POST, and a shortened suite says so in every answer."""

import shutil
from pathlib import Path

import pytest

from core.datasets import DATASETS
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
    assert "run `gauntlet data svhn`, or restart the service with DATA_DIR set to a folder " in field["message"]
    assert "or take the dataset synth-digits" in field["message"]
    assert "or restart the service with DATA_DIR set to a folder that has train_32x32.mat" in field["message"]
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
    said = [
        "not the paper's protocol: dataset: synth-digits (mini), 4,000 training images, instead of SVHN",
        "not the paper's protocol: iterations: 2 instead of 5740 (all models)",
        "not the paper's protocol: batch_size: 16 instead of 256 (all models)",
        "not the paper's protocol: training steps: 2 instead of 10 (IFGSM H)",
        "not the paper's protocol: test images: the first 10 instead of 26,032",
    ]
    body = {"suite": "e2sad-svhn-tiny"}
    note = f"synth-digits-mini: {DATASETS['synth-digits-mini'].note}"
    assert small_house.plan(body)["cautions"] == [note, *said]
    job = small_house.post(body)
    assert job["cautions"] == [note, *said]
    small_house.work(7)
    for query in ({"job": job["id"]}, {"suite": "e2sad-svhn-tiny"}):
        assert small_house.get("/results/whitebox-matrix", **query)["cautions"] == said
    whole = small_house.post({**suites_spec("e2sad-svhn-tiny"), "name": "by its fields"})
    assert small_house.get(f"/jobs/{whole['id']}")["cautions"] == [note, *said]
    assert small_house.get("/results/whitebox-matrix", job=whole["id"])["cautions"] == said


def test_a_job_says_its_models_cautions_and_how_its_figures_are_shortened(small_house: House):
    job = small_house.post({"suite": "figures-tiny"})
    assert job["cautions"] == small_house.plan({"suite": "figures-tiny"})["cautions"]
    assert "not the paper's protocol: surfaces: 3 x 3 points instead of 21 x 21" in job["cautions"]
    literal = small_house.post({"suite": "second-step-tiny"})["cautions"]
    assert any(line.startswith("literal: ") for line in literal)


def test_a_field_that_comes_from_the_suite_says_so(small_house: House):
    """`models` takes the place of the trainings; the figures' names of them are still the suite's."""
    model = small_house.post({"kind": "train", "dataset": "mnist-mini", "defense": {"kind": "natural"}})["models"][0]
    small_house.work(0)
    body = {"suite": "figures-tiny", "models": [{"key": model["key"], "name": "mine"}]}
    answer = small_house.client.post("/jobs", json=body)
    assert answer.status_code == 422
    (field,) = answer.json()["error"]["fields"]
    assert (field["path"], field["allowed"]) == ("figures.1.models.0", ["mine"])
    assert field["message"].endswith("(this field comes from the suite figures-tiny)")
    assert small_house.client.post("/jobs", json={**body, "figures": [{"kind": "curves"}]}).status_code == 201


def suites_spec(name: str) -> dict:
    return {key: value for key, value in suites()[name].items() if key != "description"}
