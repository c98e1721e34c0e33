"""The worst case per example and models in pairs, over HTTP, from bits that are known."""

import csv
import io
from collections.abc import Mapping
from functools import reduce
from operator import and_
from types import MappingProxyType
from typing import Any

import pytest

from api.robustness import COLUMNS, RobustnessReply, to_latex, to_markdown
from api.routes import robustness
from core.statistics import accuracy_interval, mcnemar_exact, wilson
from store import stages
from store.stages import StoredArtifact
from tests import factories
from tests.api.house import House

ADDRESS = "/results/robustness"
BODY: dict[str, Any] = {
    "dataset": "mnist-mini", "training": {"iterations": 1, "batch_size": 2}, "limit": 8, "substitutes": [],
    "defenses": [{"name": "A", "defense": {"kind": "natural"}}, {"name": "B", "defense": {"kind": "fgsm_adv"}}],
    "attacks": [{"kind": "none"}, {"kind": "fgsm"}, {"kind": "pgd", "steps": 2}],
}  # fmt: skip
BITS = {
    ("A", 0): (0b11111110, 0b11110001, 0b11001101), ("B", 0): (0b11111111, 0b11111100, 0b11111000),
    ("A", 1): (0b11111110, 0b11110000, 0b11110000), ("B", 1): (0b11111111, 0b11111100, 0b11000000),
}  # fmt: skip
"""(model, seed) -> bits clean, under FGSM, under PGD. One example is right under both attacks alone."""
WORST = {("A", 0): 0b11000000, ("B", 0): 0b11111000, ("A", 1): 0b11110000, ("B", 1): 0b11000000}


def work(house: House, more: Mapping[str, int] = MappingProxyType({})) -> None:
    """Finish every stage, evaluations with the bits above, or those that `more` has for an attack on any model."""
    database = house.service.database
    while (claim := factories.try_claim(database)) is not None:
        if claim.kind != "evaluate":
            factories.succeed(database, claim)
            continue
        _, model, seed, attack = claim.title.replace(",", "").replace("seed ", "").split(" ", 3)
        other = next((bits for name, bits in more.items() if attack.startswith(name)), None)
        bits = BITS[model, int(seed)][["clean", "FGSM", "PGD"].index(attack.split()[0])] if other is None else other
        data = bytes([bits])
        stored = [StoredArtifact("correct", house.service.store.put(data), 1, "application/octet-stream")]
        payload = {"n": 8, "n_correct": bits.bit_count()}
        with database.write() as session:
            stages.succeed(session, claim.stage_id, claim.fence, payload, {}, stored)


@pytest.fixture
def worked(small_house: House) -> House:
    small_house.post({**BODY, "seeds": [0, 1]})
    work(small_house)
    return small_house


def models(table: dict[str, Any]) -> dict[str, Any]:
    return {model["label"]: model for model in table["models"]}


def test_an_example_is_right_only_where_it_is_right_under_every_attack(worked: House):
    table = worked.get(ADDRESS)
    assert (len(table["attacks"]), table["counted"], table["reference"]) == (3, 2, "A")
    for label, model in models(table).items():
        assert [cell["n_correct"] for cell in model["attacks"]] == [
            sum(BITS[label, seed][i].bit_count() for seed in (0, 1)) for i in range(3)
        ]
        counts = [WORST[label, seed].bit_count() for seed in (0, 1)]
        assert [seed["n_correct"] for seed in model["seeds"]] == counts
        assert model["seeds"][0]["interval"] == list(wilson(counts[0], 8))
        shares = [count / 8 for count in counts]
        assert (model["worst"]["n"], model["worst"]["n_correct"], model["worst"]["n_seeds"]) == (16, sum(counts), 2)
        expected = accuracy_interval(2, sum(shares), sum(share**2 for share in shares), 8)
        assert model["worst"]["interval"] == pytest.approx(list(expected))
    assert models(table)["A"]["worst"]["n_correct"] < min(c["n_correct"] for c in models(table)["A"]["attacks"])


def test_one_worst_case_is_in_one_ball(small_house: House):
    attacks = [*BODY["attacks"], {"kind": "fgsm", "eps": 0.4}, {"kind": "ifgsm", "steps": 3, "eps": "4/255"},
               {"kind": "ifgsm", "clip": False}]  # fmt: skip
    small_house.post({**BODY, "attacks": attacks})
    beyond, inner = 0b00000000, 0b11101111
    work(small_house, {"FGSM eps=0.4": beyond, "IFGSM eps=4/255": inner, "IFGSM eps=0.3": beyond})

    def worst(**query: Any) -> tuple[Any, ...]:
        table = small_house.get(ADDRESS, **query)
        assert len(table["attacks"]) == 6
        found = models(table)
        return (table["eps"], table["counted"], *(found[label]["worst"]["n_correct"] for label in "AB"))

    def right(*bits: int) -> int:
        return reduce(and_, bits).bit_count()

    assert worst() == ("0.3", 3, right(WORST["A", 0], inner), right(WORST["B", 0], inner))
    assert worst(eps="0.3") == worst() == worst(eps="0.399")
    assert worst(eps="4/255") == ("4/255", 1, 6, 7)
    assert worst(eps="0.4") == ("0.4", 4, 0, 0)
    text = small_house.client.get(ADDRESS, params={"format": "markdown", "eps": "4/255"}).text
    assert "worst case of 1 within 4/255" in text
    refused = small_house.client.get(ADDRESS, params={"eps": "0.01"})
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert "no attack of this table is within 0.01; they are of 4/255, 0.3, 0.4" in error["message"]
    assert [(field["path"], field["allowed"]) for field in error["fields"]] == [("eps", ["4/255", "0.3", "0.4"])]


def test_where_every_attack_is_beyond_the_datasets_radius_it_is_the_smallest(small_house: House):
    attacks = [{"kind": "fgsm", "eps": eps} for eps in ("0.4", "0.5")]
    small_house.post({**BODY, "attacks": attacks})
    work(small_house, {"FGSM eps=0.4": 0b110, "FGSM eps=0.5": 0b10})
    table = small_house.get(ADDRESS)
    assert (table["eps"], table["counted"], models(table)["A"]["worst"]["n_correct"]) == ("0.4", 1, 2)


def test_pairs_are_of_one_seed_and_on_the_same_examples(worked: House):
    found = models(worked.get(ADDRESS))
    assert found["A"]["paired"] == []
    assert found["B"]["paired"] == [
        {"seed": 0, "only_this": 3, "only_reference": 0, "p_value": mcnemar_exact(3, 0)},
        {"seed": 1, "only_this": 0, "only_reference": 2, "p_value": mcnemar_exact(0, 2)},
    ]
    other = models(worked.get(ADDRESS, reference="B"))
    assert [(pair["only_this"], pair["only_reference"]) for pair in other["A"]["paired"]] == [(0, 3), (2, 0)]
    assert models(worked.get(ADDRESS, reference=found["B"]["recipe"]))["B"]["paired"] == []


def test_a_seed_without_every_attack_is_left_out_with_its_reason(worked: House):
    worked.post({**BODY, "seeds": [2]})
    table = worked.get(ADDRESS)
    for model in table["models"]:
        assert [seed["seed"] for seed in model["seeds"]] == [0, 1]
    waiting = worked.get(ADDRESS, job=2)
    for model in waiting["models"]:
        assert (model["worst"]["accuracy"], model["seeds"], model["paired"]) == (None, [], [])
        assert model["worst"]["reason"] == "clean, FGSM eps=0.3, PGD eps=0.3 k=2: seed 2: not finished (blocked)"
    worked.post({**BODY, "seeds": [0], "attacks": [{"kind": "ifgsm", "steps": 3}]})
    table = worked.get(ADDRESS)
    reasons = {model["worst"]["reason"] for model in table["models"]}
    assert reasons == {"seed 0: no count for IFGSM eps=0.3 k=3; seed 1: no count for IFGSM eps=0.3 k=3"}


def test_bits_that_are_lost_are_said(worked: House):
    lost = worked.service.store.path(worked.get(f"/stages/{_evaluation(worked, 'evaluate A, seed 0, PGD')}")
                                     ["artifacts"]["correct"])  # fmt: skip
    lost.unlink()
    found = models(worked.get(ADDRESS))
    assert [seed["seed"] for seed in found["A"]["seeds"]] == [1]
    assert "seed 0: artifact" in found["A"]["worst"]["reason"]
    assert [pair["seed"] for pair in found["B"]["paired"]] == [1]


def _evaluation(house: House, begin: str) -> str:
    rows = factories.stages_by_title(house.service.database)
    return next(row.key for title, row in rows.items() if title.startswith(begin))


def test_forms(worked: House):
    def form(name: str) -> str:
        return worked.client.get(ADDRESS, params={"format": name}).text

    lines = list(csv.DictReader(io.StringIO(form("csv"))))
    table = worked.get(ADDRESS)
    assert list(lines[0]) == [*COLUMNS, *(attack["label"] for attack in table["attacks"])]
    assert {(line["dataset"], line["device"], line["images"]) for line in lines} == {("mnist-mini", "cpu", "8")}
    for line in lines:
        model = models(table)[line["label"]]
        assert [float(line[attack["label"]]) for attack in table["attacks"]] == [
            cell["accuracy"] for cell in model["attacks"]
        ]
    assert [(line["label"], line["seed"], line["n_correct"], line["only_this"]) for line in lines] == [
        ("A", "0", "2", ""), ("A", "1", "4", ""), ("B", "0", "5", "3"), ("B", "1", "2", "0"),
    ]  # fmt: skip
    assert "worst case of 2 within 0.3" in form("markdown")
    pairs = "seed 0: 3 and 0, p = 0.25; seed 1: 0 and 2, p = 0.5 (McNemar, exact)"
    pairs = f"B and A, images only one of them gets right at its worst: {pairs}\n"
    assert form("markdown").endswith(f"- {pairs}")
    assert r"\toprule" in form("latex")
    assert form("text").startswith("robustness matrix, models by attacks: accuracy in %")
    assert form("text").endswith(pairs)
    etag = worked.client.get(ADDRESS).headers["etag"]
    for known in (etag, "*"):
        assert worked.client.get(ADDRESS, headers={"If-None-Match": known}).status_code == 304


def test_a_label_is_text_below_the_table_too(worked: House):
    table = RobustnessReply.model_validate(worked.get(ADDRESS))
    table = table.model_copy(update={"reference": "![p](http://evil/p.png)\nx"})
    pair = "images only one of them gets right at its worst: seed 0: 3 and 0, p = 0.25"
    assert f"\n- B and !\\[p\\](http://evil/p.png) x, {pair}" in to_markdown(table)
    assert f"\n% B and ![p](http://evil/p.png) x, {pair}" in to_latex(table)


def test_a_model_is_named_as_the_table_shows_it(worked: House):
    worked.post({**BODY, "seeds": [0, 1], "training": {"iterations": 2, "batch_size": 2}})
    work(worked)
    shown = [model["label"] for model in worked.get(ADDRESS)["models"]]
    recipes = [model["recipe"] for model in worked.get(ADDRESS)["models"]]
    assert shown == [f"{label} [{recipe[:6]}]" for label, recipe in zip("ABAB", recipes, strict=True)]
    for name in (shown[2], recipes[2]):
        assert worked.get(ADDRESS, reference=name)["reference"] == shown[2]
        alone = worked.get(ADDRESS, label=name, reference=name)
        assert [(model["label"], model["recipe"]) for model in alone["models"]] == [("A", recipes[2])]
    answer = worked.client.get(ADDRESS, params={"reference": "A"}).json()["error"]
    assert (answer["message"], answer["fields"][0]["allowed"]) == (
        "more than one model of this table is called 'A'",
        shown,
    )


def test_nothing_there(small_house: House):
    table = small_house.get(ADDRESS)
    assert (table["scope"], table["models"], table["reference"]) == (None, [], None)
    assert table["reason"].startswith("no evaluations yet")
    for form in ("csv", "markdown", "latex", "text"):
        assert small_house.client.get(ADDRESS, params={"format": form}).status_code == 200


@pytest.mark.parametrize(
    ("query", "status", "path"),
    [({"job": 99}, 404, None), ({"reference": "C"}, 422, "reference"), ({"pairing": "same"}, 422, "pairing")],
)
def test_what_cannot_be_shown(worked: House, query: dict[str, Any], status: int, path: str | None):
    answer = worked.client.get(ADDRESS, params=query)
    assert answer.status_code == status
    assert [field["path"] for field in answer.json()["error"]["fields"]] == ([path] if path else [])


def test_the_work_of_an_answer_is_bounded(worked: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(robustness, "MAX_EVALUATIONS", 11)
    answer = worked.client.get(ADDRESS)
    assert answer.status_code == 422
    assert "over 12 evaluations, more than 11; narrow it" in answer.json()["error"]["message"]
    assert worked.client.get(ADDRESS, params={"seed": 0}).status_code == 200


@pytest.mark.parametrize("suite", ["random-start-tiny", "second-step-tiny"])
def test_the_suites_it_is_for(small_house: House, suite: str):
    small_house.post({"suite": suite})
    table = small_house.get(ADDRESS, suite=suite)
    assert table["counted"] == {"random-start-tiny": 8, "second-step-tiny": 4}[suite]
    assert len(table["models"]) == {"random-start-tiny": 13, "second-step-tiny": 5}[suite]
    assert any("not the paper's protocol" in line for line in table["cautions"])
