"""docs/api.md tells the truth: every body in it is posted, every answer in it is given."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from api.costs import CostRow, CostTable, RunReply
from api.errors import ApiError
from api.forms import MEDIA
from api.paper import PaperCell, PaperMeasurement
from client import cli
from core.datasets import DATASETS
from core.suites import suites
from store.models import JOB_ENDED
from tests.api.conftest import document
from tests.api.house import House

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = [
    (info.split(), body) for info, body in re.findall(r"^```json ([^\n]+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
]


def blocks(*words: str) -> list[Any]:
    """Return the JSON of the fenced blocks marked with exactly these words."""
    return [json.loads(body) for info, body in BLOCKS if info == list(words)]


POSTED, LATER = blocks("post"), blocks("post", "after-training")


def test_every_block_is_one_that_is_tried():
    assert TEXT.count("```json") == len(BLOCKS)
    assert {" ".join(info) for info, _ in BLOCKS} == {
        "post", "post after-training", "plan", "refused", "422", "cell", "missing", "paper", "cost"}  # fmt: skip
    assert {body.get("kind", "benchmark") for body in POSTED + LATER} == {"benchmark", "train", "evaluate", "figure"}
    assert sum("suite" in body for body in POSTED) == 3
    assert {body["kind"] for body in LATER} == {"evaluate", "figure"}
    models = [model for body in LATER for model in body.get("targets") or body["models"]]
    assert {next(iter(model)) for model in models} == {"key", "dataset"}


@pytest.mark.parametrize("body", POSTED, ids=lambda body: json.dumps(body)[:60])
def test_a_body_is_planned_and_posted(small_house: House, body: dict[str, Any]):
    plan, job = small_house.plan(body), small_house.post(body)
    assert [stage["key"] for stage in job["stages"]] == [stage["key"] for stage in plan["stages"]]


def test_bodies_that_need_models_are_posted_once_there_are_some(small_house: House):
    training = next(body for body in POSTED if body.get("kind") == "train")
    small_house.post(training)
    small_house.work(1)
    key = small_house.get("/models")["models"][0]["key"]
    for body in LATER:
        ready = json.loads(json.dumps(body).replace('"KEY"', json.dumps(key)))
        assert small_house.plan(ready)["kind"] == small_house.post(ready)["kind"] == body["kind"]


def test_the_plan_is_what_is_answered(small_house: House):
    (shown,) = blocks("plan")
    assert_within(shown, small_house.plan(POSTED[0]))


def assert_within(shown: Any, found: Any) -> None:
    for name, value in shown.items():
        if isinstance(value, dict):
            assert_within(value, found[name])
        else:
            assert found[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_the_refusal_is_what_is_answered(small_house: House):
    (wrong,), (shown,) = blocks("refused"), blocks("422")
    answer = small_house.client.post("/jobs", json=wrong)
    assert (answer.status_code, answer.json()) == (422, shown)


def test_cells_look_like_that(small_house: House):
    (shown,), (missing,) = blocks("cell"), blocks("missing")
    job = small_house.post({"dataset": "mnist-mini", "defense": {"kind": "natural"}, "limit": 100})
    assert small_house.get(job["links"]["whitebox-matrix"])["cells"][0][0] == missing
    small_house.work(60)
    found = small_house.get(job["links"]["whitebox-matrix"])["cells"][0][0]
    assert list(shown) == list(found)
    assert list(shown["seeds"][0]) == list(found["seeds"][0])


def test_every_address_parameter_form_and_code_is_there():
    for path in document()["paths"]:
        assert f"{path.replace('{job_id}', '{id}')}`" in TEXT, path
    for parameter in parameters():
        assert f"`{parameter}`" in TEXT, parameter
    for form in MEDIA:
        assert f"`{form}`" in TEXT, form
    for cls in [ApiError, *ApiError.__subclasses__()]:
        assert f"| {cls.status} | `{cls.code}` |" in TEXT


def parameters() -> set[str]:
    """Return the names of every query parameter of every address."""
    operations = [operation for path in document()["paths"].values() for operation in path.values()]
    every = [parameter for operation in operations for parameter in operation.get("parameters", [])]
    return {parameter["name"] for parameter in every if parameter["in"] == "query"}


@pytest.mark.parametrize("name", sorted(suites()))
def test_every_suite_is_there_and_none_that_is_not(name: str):
    table = TEXT.partition("| suite | what | images | twins |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`([a-z0-9-]+)`", table)) - set(DATASETS)
    assert name in named
    assert named <= set(suites())
    own = re.search(rf"^\|[^|]*`{name}`[^|]*\|[^|]*\|([^|]*)\|", table, re.MULTILINE)
    assert own is None or own[1].strip() == f"`{suites()[name]['dataset']}`"


def test_every_result_is_narrowed_by_job():
    for path, operations in document()["paths"].items():
        if path.startswith("/results/"):
            names = {parameter["name"] for parameter in operations["get"]["parameters"]}
            assert "job" in names, path


def test_paper_cells_and_costs_look_like_that():
    (cell,), (cost,) = blocks("paper"), blocks("cost")
    PaperCell.model_validate(cell)
    CostTable.model_validate({**cost, "note": ""})
    assert list(cell["measured"][0]) == list(PaperMeasurement.model_fields)
    assert list(cost["rows"][0]) == list(CostRow.model_fields)
    assert list(cost["run"]) == list(RunReply.model_fields)


def test_every_kind_of_event_is_there():
    """As far as the code spells them: those of a job's end are its states."""
    source = "".join((ROOT / "store" / f"{name}.py").read_text(encoding="utf-8") for name in ("stages", "jobs", "lost"))
    kinds = set(re.findall(r'"((?:job|stage)\.[a-z]+)"', source)) | {f"job.{state}" for state in JOB_ENDED}
    assert {"stage.running", "stage.lost", "job.queued"} <= kinds
    for kind in kinds:
        assert f"`{kind}`" in TEXT, kind


def test_every_command_of_the_client_is_there(capsys: pytest.CaptureFixture[str]):
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert len(listed) >= 6
    for command in (*cli.ADMIN, *listed):
        assert f"$ gauntlet {command}" in text, command
