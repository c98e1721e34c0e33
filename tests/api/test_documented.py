"""docs/api.md tells the truth: every body in it is posted, every answer in it is given."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from api.errors import ApiError
from api.forms import MEDIA
from api.routes.figures import FigureQuery
from api.routes.results import MatrixQuery
from tests.api.conftest import document
from tests.api.house import House

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
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
        "post", "post after-training", "plan", "refused", "422", "cell", "missing"}  # fmt: skip
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
    for name in [*MatrixQuery.model_fields, *FigureQuery.model_fields]:
        assert f"`{name}`" in TEXT, name
    for form in MEDIA:
        assert f"`{form}`" in TEXT, form
    for cls in ApiError.__subclasses__():
        assert f"| {cls.status} | `{cls.code}` |" in TEXT
