"""Named suites are jobs that validate and can be planned, and their fields can be replaced."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from core.errors import SpecError
from core.execution import Execution
from core.jobs import AnyJob, BenchmarkJob
from core.plan import Plan, plan
from core.suites import expand_suite, suites

_job: TypeAdapter[Any] = TypeAdapter(AnyJob)


def planned(request: dict[str, Any]) -> Plan:
    nobody: Any = None
    return plan(_job.validate_python(expand_suite(request)), Execution(), nobody)


@pytest.mark.parametrize("name", suites())
def test_every_suite_can_be_planned_and_says_what_it_is(name: str):
    assert planned({"suite": name}).stages
    assert suites()[name]["description"]
    assert expand_suite({"suite": name})["name"]


def test_quickstart_fits_a_small_machine_and_covers_the_idea():
    found = planned({"suite": "quickstart"})
    assert found.dataset == "mnist-mini"
    assert {model.train.defense.kind for model in found.targets} == {"natural", "fgsm_adv", "ifgsm_adv", "e2sad"}
    assert found.pairing == "same"
    assert {stage.images for stage in found.ordered if stage.spec.kind != "train"} == {300}
    assert sum(stage.flop for stage in found.ordered) < 5e13  # minutes on two cores
    training = [stage.spec for stage in found.ordered if stage.spec.kind == "train"]
    assert len(training) == 4, "the substitutes are the targets' own weights"


def test_other_fields_replace_the_suites():
    spec = expand_suite({"suite": "quickstart", "limit": 50, "training": {"iterations": 1}, "name": "mine"})
    assert (spec["limit"], spec["training"], spec["name"]) == (50, {"iterations": 1}, "mine")
    assert spec["defenses"] == suites()["quickstart"]["defenses"]
    assert "suite" not in spec
    assert "description" not in spec
    assert isinstance(_job.validate_python(spec), BenchmarkJob)


def test_one_defense_replaces_the_suites_defenses():
    found = planned({"suite": "quickstart", "defense": {"kind": "natural"}, "substitutes": []})
    assert [model.train.defense.kind for model in found.targets] == ["natural"]


def test_replacing_leaves_the_suite_itself_alone():
    before = repr(suites())
    expand_suite({"suite": "quickstart", "limit": 1})["tags"] = ["x"]
    assert repr(suites()) == before


@pytest.mark.parametrize("name", ["nope", "", None, 3, ["quickstart"], {"a": 1}, "quickstart.yaml", "../jobs"])
def test_a_suite_that_does_not_exist_lists_those_that_do(name: Any):
    with pytest.raises(SpecError, match="there is no suite") as refused:
        expand_suite({"suite": name})
    assert refused.value.path == ("suite",)
    assert refused.value.allowed == sorted(suites())
