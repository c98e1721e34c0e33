"""Figure jobs over HTTP: posting, listing, values, media types, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from core.stages.draw import MEDIA
from store import stages
from store.models import Artifact, StageArtifact
from store.stages import StoredArtifact
from tests import factories
from tests.api.house import House

NO_KEY = "0" * 64
MINI: dict[str, Any] = {"dataset": "mnist-mini", "defense": {"kind": "natural"}, "training": {"iterations": 10}}
JOB: dict[str, Any] = {
    **MINI, "kind": "figure", "figures": [{"kind": "surfaces", "points": 3}, {"kind": "curves"}],
}  # fmt: skip
VALUES = {"title": "T", "caption": "C", "models": [{"label": "natural H", "t": [0, 0.2, 0.4]}]}


def finish(house: House) -> None:
    """Play the worker: draw stages leave real bytes in the store."""
    while (claim := factories.try_claim(house.service.database)) is not None:
        if claim.kind != "draw":
            factories.succeed(house.service.database, claim)
            continue
        forms = {
            name: (json.dumps(VALUES) if name == "values" else f"{name} of {claim.key}").encode() for name in MEDIA
        }
        if claim.spec["figure"]["kind"] == "curves":
            del forms["html"]
        stored = [StoredArtifact(name, house.service.store.put(data), len(data), MEDIA[name])
                  for name, data in forms.items()]  # fmt: skip
        payload = {"title": "T", "caption": "C"}
        with house.service.database.write() as session:
            stages.succeed(session, claim.stage_id, claim.fence, payload, {}, stored)


def test_a_job_of_figures_is_planned_posted_and_linked(house: House):
    plan, job = house.plan(JOB), house.post(JOB)
    assert sorted(stage["kind"] for stage in plan["stages"]) == ["draw", "draw", "surface", "train"]
    assert job["kind"] == "figure"
    assert [model["label"] for model in job["models"]] == ["natural H"]
    assert house.get(job["links"]["figures"])[0]["state"] == "blocked"


def test_figures_are_listed_with_links_of_the_right_media_type(house: House):
    job = house.post(JOB)
    finish(house)
    found = {figure["figure"]["kind"]: figure for figure in house.get("/results/figures", job=job["id"])}
    assert set(found) == {"surfaces", "curves"}
    assert set(found["surfaces"]["links"]) == {"values", "png", "svg", "page"}
    assert set(found["curves"]["links"]) == {"values", "png", "svg"}
    answers = {name: house.client.get(link).headers for name, link in found["surfaces"]["links"].items()}
    for headers in answers.values():
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "sandbox allow-scripts"
    assert {name: headers["content-type"] for name, headers in answers.items()} == {
        "values": "application/json", "png": "image/png", "svg": "image/svg+xml", "page": "text/html; charset=utf-8",
    }  # fmt: skip
    assert {figure["title"] for figure in found.values()} == {"T"}


def test_surfaces_come_with_their_values_once_they_are_drawn(house: House):
    house.post(JOB)
    (waiting,) = house.get("/results/surfaces")
    assert (waiting["values"], waiting["links"], waiting["caption"]) == (None, {}, None)
    assert waiting["reason"] == "not drawn yet (blocked)"
    finish(house)
    (drawn,) = house.get("/results/surfaces")
    assert drawn["values"] == VALUES
    key = house.get("/models")["models"][0]["key"]
    assert drawn["models"] == [{"key": key, "label": "natural H"}]
    assert drawn["figure"]["reach"] == "0.4"


def test_a_list_is_narrowed(house: House):
    job, other = house.post(JOB), house.post({**JOB, "defense": {"kind": "fgsm_adv"}})
    finish(house)
    keys = {model["label"]: model["key"] for model in house.get("/models")["models"]}
    assert len(house.get("/results/figures")) == 4
    first = house.get("/results/figures", limit=3)
    last = house.get("/results/figures", limit=3, cursor=first[-1]["key"])
    assert (len(first), len(last)) == (3, 1)
    assert [*first, *last] == house.get("/results/figures")
    assert {figure["models"][0]["label"] for figure in house.get("/results/figures", job=other["id"])} == {"fgsm_adv H"}
    for label, key in keys.items():
        shown = house.get("/results/figures", model=key)
        assert len(shown) == 2
        assert {model["label"] for figure in shown for model in figure["models"]} == {label}
    assert house.get("/results/surfaces", dataset="mnist") == []
    assert house.get("/results/figures", suite="figures") == []
    assert len(house.get("/results/surfaces", job=job["id"])) == 1


def test_posted_again_nothing_is_new(small_house: House):
    first = small_house.post(JOB)
    finish(small_house)
    again = small_house.post(JOB)
    assert again["state"] == "succeeded"
    assert [stage["key"] for stage in again["stages"]] == [stage["key"] for stage in first["stages"]]


def test_models_that_exist_are_drawn_by_key_and_an_illustration_without_any(small_house: House):
    small_house.post(JOB)
    finish(small_house)
    key = small_house.get("/models")["models"][0]["key"]
    job = small_house.post(
        {"kind": "figure", "models": [{"key": key, "name": "mine"}], "figures": [{"kind": "curves"}]}
    )
    assert [stage["kind"] for stage in job["stages"]] == ["train", "draw"]
    assert small_house.post({"kind": "figure", "figures": [{"kind": "illustration"}]})["state"] == "queued"


@pytest.mark.parametrize("dry", ["", "?dry_run=1"])
@pytest.mark.parametrize(("model", "path"), [({"key": NO_KEY}, "models.0.key"), (MINI, "models.0")])
def test_a_surface_of_a_model_that_does_not_exist_is_404(small_house: House, model: Any, path: str, dry: str):
    body = {"kind": "figure", "models": [model], "figures": [{"kind": "surfaces"}]}
    answer = small_house.client.post(f"/jobs{dry}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["fields"][0]["path"]) == (404, "not_found", path)
    assert "GET /models" in error["message"] or "post it as a job" in error["message"]
    assert small_house.get("/jobs")["jobs"] == []


@pytest.mark.parametrize("where", ["figures", "surfaces"])
def test_asking_for_the_figures_of_nothing_is_404(small_house: House, where: str):
    train = next(stage["key"] for stage in small_house.post(JOB)["stages"] if stage["kind"] == "train")
    nothing = ({"model": NO_KEY}, f"model {NO_KEY}"), ({"job": 7}, "job 7"), ({"cursor": NO_KEY}, f"figure {NO_KEY}")
    nothing = (*nothing, ({"cursor": train}, f"figure {train}"))
    for params, said in nothing:
        answer = small_house.client.get(f"/results/{where}", params=params)
        assert (answer.status_code, f"there is no {said}" in answer.json()["error"]["message"]) == (404, True)


@pytest.mark.parametrize(
    ("figure", "path"),
    [
        ({"kind": "accuracy", "eps": [0.01] * 42}, "figures.0.eps"),
        ({"kind": "accuracy", "eps": [0.1, 1.5]}, "figures.0.eps.1"),
        ({"kind": "surfaces", "reach": 2}, "figures.0.reach"),
        ({"kind": "surfaces", "points": 1000}, "figures.0.points"),
        ({"kind": "surfaces", "direction": {"kind": "none"}}, "figures.0.direction"),
        ({"kind": "surfaces", "models": ["nobody"]}, "figures.0.models.0"),
        ({"kind": "surface"}, "figures.0.kind"),
        ({}, "figures.0.kind"),
        ({"kind": "surfaces", "pionts": 3}, "figures.0.pionts"),
    ],
    ids=json.dumps,
)
def test_a_figure_that_is_wrong_is_422_and_names_its_field(lasting_house: House, figure: dict[str, Any], path: str):
    answer = lasting_house.client.post("/jobs", json={**JOB, "figures": [figure]})
    assert answer.status_code == 422, answer.text
    assert [field["path"] for field in answer.json()["error"]["fields"]] == [path]


def test_a_model_key_of_another_form_is_422(small_house: House):
    answer = small_house.client.get("/results/surfaces", params={"model": "abc"})
    assert (answer.status_code, answer.json()["error"]["fields"][0]["path"]) == (422, "model")


def altered(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"[]")


@pytest.mark.parametrize(("damage", "said"), [(Path.unlink, "is missing"), (altered, "altered"), (None, "no JSON")])
def test_one_bad_file_is_said_and_hides_nothing_else(
    small_house: House, damage: Callable[[Path], None] | None, said: str
):
    store = small_house.service.store
    small_house.post(JOB)
    small_house.post({**JOB, "defense": {"kind": "e2sad"}})
    finish(small_house)
    other, bad = small_house.get("/results/surfaces")
    mine = b"[" * 9 if said == "no JSON" else b"{}"  # a file of its own: equal values share one
    sha256 = store.put(mine)
    with small_house.service.database.write() as session:
        stage = stages.by_key(session, bad["key"])
        assert stage is not None
        session.execute(insert(Artifact).values(sha256=sha256, size=len(mine), media_type="", created_at=0))
        values = update(StageArtifact).where(StageArtifact.stage_id == stage.id, StageArtifact.name == "values")
        session.execute(values.values(sha256=sha256))
    if damage:
        damage(store.path(sha256))
    found = {surface["key"]: surface for surface in small_house.get("/results/surfaces")}
    assert (found[other["key"]]["values"], found[other["key"]]["reason"]) == (VALUES, None)
    assert found[bad["key"]]["values"] is None
    assert said in found[bad["key"]]["reason"]
