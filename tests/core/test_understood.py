"""What a job was understood as says everything, and asks for the same stages."""

from typing import Any

import pytest

from core.execution import Execution
from core.jobs import JOB, require_no_idle
from core.plan import plan
from core.suites import expand_suite, suites
from core.understood import understood

NATURAL: dict[str, Any] = {"kind": "natural"}
BARE: dict[str, Any] = {"defense": {"kind": "e2sad"}}
BODIES: list[dict[str, Any]] = [
    BARE,
    {**BARE, "dataset": "svhn", "seeds": [1, 2], "substitutes": []},
    {**BARE, "dataset": "svhn", "training": {"label_smoothing": 0.1}, "substitutes": [NATURAL], "limit": 7},
    {"dataset": "svhn", "defenses": [NATURAL, {"defense": {"kind": "fgsm_adv"}, "training": {"batch_size": 100}}]},
    {
        "defenses": [{"defense": NATURAL, "training": {"iterations": 5}}],
        "training": {"epochs": 10**7},
        "substitutes": [],
    },
    {"defenses": [{"defense": NATURAL, "training": {"optimiser": "sgd", "momentum": 0.5}}, {"kind": "fgsm_adv"}]},
    {"kind": "train", "dataset": "mnist-mini", "defense": NATURAL},
    {"kind": "figure", "figures": [{"kind": "illustration"}]},
    {"kind": "figure", "defense": NATURAL, "figures": [{"kind": "surfaces", "direction": {"kind": "fgsm"}}]},
    *({"suite": name} for name in suites()),
]


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_it_asks_for_the_same_stages(body: dict[str, Any]):
    job = JOB.validate_python(expand_suite(body) if "suite" in body else body)
    planned = plan(job, Execution(threads=3), None)  # pyright: ignore[reportArgumentType]
    whole = understood(job, planned).model_dump(mode="json", exclude_none=True)
    again = plan(JOB.validate_python(whole), Execution(threads=3), None)  # pyright: ignore[reportArgumentType]
    assert list(again.stages) == list(planned.stages)
    assert (again.pairing, [m.label for m in again.targets]) == (planned.pairing, [m.label for m in planned.targets])
    assert [m.label for m in again.substitutes] == [m.label for m in planned.substitutes]
    assert understood(JOB.validate_python(whole), again).model_dump(mode="json", exclude_none=True) == whole


@pytest.mark.parametrize("body", [{**BARE, "substitutes": []}, {"suite": "e2sad-mnist", "substitutes": []}], ids=str)
def test_without_substitutes_nothing_is_said_of_them(body: dict[str, Any]):
    job = JOB.validate_python(expand_suite(body) if "suite" in body else body)
    require_no_idle(job)
    whole = understood(job, plan(job, Execution(threads=3), None))  # pyright: ignore[reportArgumentType]
    require_no_idle(whole)
    stored = {**whole.model_dump(mode="json", exclude_none=True), "transfer": [{"kind": "fgsm"}], "pairing": "same"}
    before = JOB.validate_python(stored)  # as it used to be stored
    assert plan(before, Execution(threads=3), None).stages  # pyright: ignore[reportArgumentType]


def test_a_bare_body_leaves_nothing_open():
    job = JOB.validate_python(BARE)
    whole = understood(job, plan(job, Execution(threads=3), None))  # pyright: ignore[reportArgumentType]
    said = whole.model_dump(mode="json", exclude_none=True)
    assert said["training"] == {
        "iterations": 30_000, "batch_size": 256, "optimiser": "adam", "lr": 0.001, "momentum": 0.9, "weight_decay": 0.0,
        "precision": "float32",
    }  # fmt: skip
    assert (said["network"], said["device"], said["limit"]) == ({"kind": "mnist_cnn"}, "cpu", 10_000)
    assert [entry["defense"]["kind"] for entry in said["substitutes"]] == ["natural", "fgsm_adv", "ifgsm_adv"]
    assert (said["substitute_seeds"], said["pairing"]) == ([1_000_000], "independent")
    assert [attack["kind"] for attack in said["attacks"]] == ["none", "fgsm", "fgsm", "ifgsm", "ifgsm", "pgd"]
    assert [attack["steps"] for attack in said["transfer"]] == [30]
