"""Named suites are jobs that validate and can be planned, and their fields can be replaced."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from core.datasets import DATASETS
from core.errors import SpecError
from core.execution import Execution
from core.jobs import AnyJob, BenchmarkJob
from core.plan import Plan, plan
from core.suites import expand_suite, reductions, suites

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


PAPER = ("e2sad-mnist", "e2sad-svhn", "second-step", "random-start")
SHORTENED = [f"{name}-{size}" for name in PAPER for size in ("small", "tiny")]


def cells(name: str) -> list[Any]:
    """Return what a suite's tables show, apart from what its reductions say: IFGSM training's steps, PGD's restarts."""
    spec = expand_suite({"suite": name})
    defenses = [(entry["name"], {**entry["defense"], "steps": None}) for entry in spec["defenses"]]
    attacks = [{**attack, "restarts": "restarts" in attack} for attack in spec["attacks"]]
    return [defenses, attacks, spec["substitutes"], spec.get("transfer"), spec.get("seeds"), spec.get("network")]


@pytest.mark.parametrize("name", SHORTENED)
def test_a_twin_has_the_cells_of_the_papers_suite_and_says_how_it_is_shortened(name: str):
    paper = name.rpartition("-")[0]
    assert cells(name) == cells(paper)
    short, long = expand_suite({"suite": name}), expand_suite({"suite": paper})
    said = " ".join(suites()[name]["reductions"])
    assert str(short["training"]["iterations"]) + " training iterations" in said
    assert f"first {short['limit']} test images" in said
    steps = {entry["defense"].get("steps") for entry in short["defenses"]} - {None}
    assert all(f"IFGSM training takes {number} steps" in said for number in steps)
    assert ("restarts" in said) == (short["attacks"] != long["attacks"])
    assert (short["dataset"] != long["dataset"]) == (f"{short['dataset']} instead of" in said)
    assert reductions(name) == [f"{name} is shortened: {line}" for line in suites()[name]["reductions"]]
    assert reductions(paper) == reductions(None) == reductions("mine") == []


@pytest.mark.parametrize("name", [name for name in SHORTENED if name.endswith("small")])
def test_a_small_twin_fits_two_cores_and_twenty_minutes(name: str):
    """By its operations, at the rate of the quickstart's 166 s on two quiet cores (README): eleven minutes at most.

    That leaves nine for what is not arithmetic and for slower cores.
    """
    rate = sum(stage.flop for stage in planned({"suite": "quickstart"}).ordered) / 166
    flop = sum(stage.flop for stage in planned({"suite": name}).ordered)
    assert flop < 1e14
    assert flop / rate < 11 * 60


@pytest.mark.parametrize("name", [name for name in SHORTENED if name.endswith("tiny")])
def test_a_tiny_twin_takes_seconds_and_no_download(name: str):
    found = planned({"suite": name})
    assert sum(stage.flop for stage in found.ordered) < 2e12
    assert DATASETS[found.dataset]().missing(Path("/nowhere")) == []


@pytest.mark.parametrize("name", ["e2sad-mnist", "e2sad-svhn"])
def test_the_table_suites_craft_every_attack_with_both_losses(name: str):
    attacks = [attack.attack for attack in {s.evaluation for s in planned({"suite": name}).ordered if s.evaluation}]
    climbed = {loss: {a.eps * 1000 + getattr(a, "steps", 0) for a in attacks if getattr(a, "loss", "") == loss}
               for loss in ("label", "training")}  # fmt: skip
    assert climbed["label"] == climbed["training"] and climbed["label"]


def test_the_readings_of_svhns_normalisation():
    """READING.md's presets: pixel, per-image, and eps counted in [-1, 1], which is half of it in pixels."""
    seen = {}
    for name in ("e2sad-svhn", "e2sad-svhn-per-image", "e2sad-svhn-normalised"):
        found = planned({"suite": name})
        e2sad = next(model.train for model in found.targets if model.train.defense.kind == "e2sad")
        assert (e2sad.training.iterations, e2sad.training.batch_size) == (20 * 287, 256)
        spec = e2sad.defense.model_dump(mode="json")
        attacks = [s.evaluation.attack.model_dump(mode="json") for s in found.ordered if s.evaluation]
        assert {attack["eps"] for attack in attacks if "eps" in attack} == {spec["eps1"]}
        seen[name] = (e2sad.network.input, spec["eps1"], spec["eps2"], spec["dissimilarity_weight"])
    assert seen == {
        "e2sad-svhn": ("pixel", "24/255", "8/255", 0.3),
        "e2sad-svhn-per-image": ("per-image", "24/255", "8/255", 0.3),
        "e2sad-svhn-normalised": ("pixel", "12/255", "4/255", 0.3),
    }


def test_svhns_suite_runs_on_rendered_digits_with_the_same_recipe():
    svhn, synth = (planned({"suite": "e2sad-svhn-small", "dataset": name}) for name in ("svhn", "synth-digits"))
    assert synth.dataset == "synth-digits"
    for ours, theirs in zip(synth.targets, svhn.targets, strict=True):
        left_out = {"dataset", "dataset_sha256"}
        assert ours.train.model_dump(exclude=left_out) == theirs.train.model_dump(exclude=left_out)


@pytest.mark.parametrize("name", ["random-start", "random-start-svhn"])
def test_random_start_is_a_two_by_two_and_the_worst_of_ten(name: str):
    asked = {s.evaluation.attack for s in planned({"suite": name}).ordered if s.evaluation} - {None}
    paths: dict[tuple[bool, bool], set[int]] = {}
    for attack in asked:
        if attack.kind == "none":
            continue
        start = attack.kind == "pgd" and attack.random_start
        step = float(attack.step_size) if attack.kind == "pgd" else float(attack.eps) / attack.steps
        if getattr(attack, "restarts", 1) == 1:
            longer = step * attack.steps > float(attack.eps) * (1 + 1e-9)
            paths.setdefault((start, longer), set()).add(attack.steps)
    assert paths == {(False, False): {30}, (True, False): {30}, (False, True): {40, 100}, (True, True): {40, 100}}
    strong = {(a.steps, float(a.step_size)) for a in asked if getattr(a, "restarts", 1) == 10}
    assert strong == {(40, 0.01), (100, 0.01)}


def test_every_model_of_the_tables_is_under_the_random_start():
    for suite, table in (("random-start", "e2sad-mnist"), ("random-start-svhn", "e2sad-svhn")):
        models = [{model.train.identity() for model in planned({"suite": name}).targets} for name in (suite, table)]
        assert models[1] <= models[0]
    readings = {model.train.identity() for model in planned({"suite": "second-step", "seeds": [0]}).targets}
    assert readings <= {model.train.identity() for model in planned({"suite": "random-start"}).targets}
