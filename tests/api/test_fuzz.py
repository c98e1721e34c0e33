"""Nobody can break it by accident: random damage to good bodies, and whatever the OpenAPI document allows."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.conftest import document
from tests.api.house import E2SAD, LITTLE, House

MODEL = {
    "defense": {"kind": "natural"},
    "dataset": "mnist-mini",
    "training": {"iterations": 10},
    "seed": 0,
    "name": "m",
}
BODIES: list[dict[str, Any]] = [
    E2SAD,
    {**LITTLE, "kind": "benchmark", "name": "n", "tags": ["t"], "priority": 1, "seeds": [0, 1], "pairing": "same"},
    {"kind": "train", "dataset": "svhn", "network": {"kind": "svhn_cnn", "input": "pixel"}, "training": {"epochs": 1},
     "defenses": [{"kind": "natural"}, {"defense": {"kind": "fgsm_adv", "eps": "24/255"}, "name": "F"}]},
    {"kind": "evaluate", "targets": [MODEL, {"key": "0" * 64}], "substitutes": [MODEL], "limit": 5},
    {**LITTLE, "attacks": [{"kind": "pgd", "restarts": 2}, {"kind": "ifgsm"}], "substitutes": ["natural H"]},
    {"suite": "quickstart", "limit": 3},
]  # fmt: skip
WORDS = [
    "kind",
    "natural",
    "e2sad",
    "eps",
    "steps",
    "seeds",
    "training",
    "defense",
    "name",
    "benchmark",
    "mnist",
    "auto",
]
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), st.text(max_size=6),
    st.sampled_from(WORDS),
    st.sampled_from([0.3, "24/255", "24/0", 2**31, 2**63, 10**30, "\0", "\ud800", "", "0" * 64, "NaN", -1, 1e308]),
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)), inner, max_size=3),
    ),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where every value inside stands."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (*at, name)
        yield from places(inner, (*at, name))


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """Return a good body in which up to three values were dropped, replaced or added."""
    body = copy.deepcopy(draw(st.sampled_from(BODIES)))
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.sampled_from([*places(body), ("new",)]))
        holder: Any = body
        for name in where[:-1]:
            holder = holder[name]
        match draw(st.sampled_from(["drop", "replace", "add"])):
            case "drop" if where[-1] != "new":
                del holder[where[-1]]
            case "add" if isinstance(holder, list):
                holder.insert(draw(st.integers(0, len(holder))), draw(anything))
            case "add":
                holder[draw(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)))] = draw(anything)
            case _:
                holder[where[-1]] = draw(anything)
    return body


def send(house: House, body: Any) -> Any:
    return house.client.post("/jobs", content=json.dumps(body))


@given(body=damaged())
@settings(max_examples=150)
def test_a_damaged_body_is_refused_whole_or_makes_a_whole_job(fuzz_house: House, body: dict[str, Any]):
    before = fuzz_house.rows()
    answer = send(fuzz_house, body)
    assert answer.status_code in (201, 404, 422), answer.text
    if answer.status_code != 201:
        error = answer.json()["error"]
        assert error["code"] == {404: "not_found", 422: "invalid"}[answer.status_code]
        assert error["message"]
        assert all(set(field) == {"path", "message", "allowed"} for field in error["fields"])
        assert fuzz_house.rows() == before
        return
    job = answer.json()
    assert fuzz_house.rows()["jobs"] == before.get("jobs", 0) + 1
    assert job["progress"]["stages"] == len(job["stages"]) > 0
    assert all(stage["waits_for"] for stage in job["stages"] if stage["state"] in ("blocked", "ready"))
    again = send(fuzz_house, job["spec"])
    assert again.status_code == 201, "what a job says it understood can be posted"
    assert [stage["key"] for stage in again.json()["stages"]] == [stage["key"] for stage in job["stages"]]


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ENDLESS = ("get", "/jobs/{job_id}/events")
"""The stream of a live job ends with the job; tests/api/test_events.py reads it."""
OPERATIONS = [(method, path) for path, found in document()["paths"].items() for method in found]


@pytest.fixture(scope="module")
def operations(fuzz_house: House) -> Any:
    app: Any = fuzz_house.client.app
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize(("method", "path"), [one for one in OPERATIONS if one != ENDLESS])
def test_what_the_document_allows_is_answered_as_the_document_says(operations: Any, method: str, path: str):
    @given(case=operations[path][method.upper()].as_strategy())
    @settings(max_examples=15)
    def each(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    each()
