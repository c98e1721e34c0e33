"""Named suites are jobs that validate and can be planned, and their fields can be replaced."""

import re
from pathlib import Path
from typing import Any

import pytest

from core.datasets import DATASETS
from core.errors import SpecError
from core.execution import Execution
from core.jobs import JOB, BenchmarkJob, FigureJob
from core.plan import Plan, plan
from core.protocol import cautions, of_plan, reductions
from core.suites import expand_suite, inherited, suites


def planned(request: dict[str, Any]) -> Plan:
    nobody: Any = None
    return plan(JOB.validate_python(expand_suite(request)), Execution(), nobody)


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
    assert (spec["limit"], spec["name"]) == (50, "mine")
    assert spec["training"] == {"iterations": 1, "batch_size": 64}
    assert spec["defenses"] == suites()["quickstart"]["defenses"]
    assert "suite" not in spec
    assert "description" not in spec
    assert isinstance(JOB.validate_python(spec), BenchmarkJob)


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


@pytest.mark.parametrize(("suite", "dataset"), [("e2sad-mnist-tiny", "synth-digits-mini"), ("canary", "cifar10-jpeg")])
def test_a_suite_on_images_of_another_form_is_refused(suite: str, dataset: str):
    with pytest.raises(SpecError, match=r"is of images of 1 x 28 x 28, those of .* are 3 x 32 x 32") as refused:
        expand_suite({"suite": suite, "dataset": dataset})
    assert refused.value.path == ("dataset",)
    assert "fashion-mnist" in (refused.value.allowed or ())
    assert expand_suite({"suite": suite, "dataset": "nothing of the kind"})["dataset"] == "nothing of the kind"


PAPER = ("e2sad-mnist", "e2sad-svhn", "second-step", "random-start")
SHORTENED = [f"{name}-{size}" for name in PAPER for size in ("small", "tiny")]


def cells(name: str) -> list[Any]:
    """Return what a suite's tables show, apart from how they are shortened: IFGSM training's steps, PGD's restarts."""
    spec = expand_suite({"suite": name})
    defenses = [(entry["name"], {**entry["defense"], "steps": None}) for entry in spec["defenses"]]
    attacks = [{**attack, "restarts": "restarts" in attack} for attack in spec["attacks"]]
    return [defenses, attacks, spec["substitutes"], spec.get("transfer"), spec.get("seeds"), spec.get("network")]


@pytest.mark.parametrize("name", SHORTENED)
def test_a_twin_has_the_cells_of_the_papers_suite_and_says_how_it_is_shortened(name: str):
    paper = name.rpartition("-")[0]
    assert cells(name) == cells(paper)
    short, long = expand_suite({"suite": name}), expand_suite({"suite": paper})
    said = "\n".join(reductions(of_plan(planned({"suite": name}))))
    assert f"iterations: {short['training']['iterations']} instead of" in said
    assert f"batch_size: {short['training']['batch_size']} instead of 256" in said
    assert f"the first {short['limit']} instead of" in said
    steps = {entry["defense"].get("steps") for entry in short["defenses"]} - {None}
    assert all(f"training steps: {number} instead of" in said for number in steps)
    assert "restarts" not in said, "the paper has none: the tables name those of an attack"
    assert (short["dataset"] != long["dataset"]) == ("dataset: " in said)
    assert reductions(of_plan(planned({"suite": paper}))) == []


def test_the_tenths_are_of_one_protocol_and_share_a_model():
    start, step = planned({"suite": "random-start-tenth"}), planned({"suite": "second-step-tenth"})
    shared = [start.stages[key].spec.kind for key in start.stages.keys() & step.stages]
    assert sorted(shared) == ["craft"] * 8 + ["evaluate"] * 9 + ["train"], "all of e2SAD's"
    for name in ("random-start", "second-step"):
        tenth, paper = expand_suite({"suite": f"{name}-tenth"}), expand_suite({"suite": name})
        assert tenth["training"]["iterations"] * 10 == paper["training"]["iterations"]
        assert tenth["training"]["batch_size"] == paper["training"]["batch_size"]
        assert {entry["name"] for entry in tenth["defenses"]} <= {entry["name"] for entry in paper["defenses"]}


@pytest.mark.parametrize("suite", ["random-start-tenth", "random-start-bf16"])
def test_e2sads_own_control_is_beside_it(suite):
    trained = {e["name"]: e["defense"] for e in expand_suite({"suite": suite})["defenses"]}
    models = {entry["name"]: entry["defense"] for entry in expand_suite({"suite": "random-start"})["defenses"]}
    assert trained["FGSM .3 S"] == models["FGSM .3 S"], "e2SAD without its second step: the paper's rival in Table 1"


def test_a_dataset_that_the_paper_has_not_is_measured_by_its_own_protocol():
    said = cautions(of_plan(planned({"suite": "e2sad-svhn", "dataset": "cifar10-jpeg"})))
    assert any(line.startswith("not CIFAR-10's own protocol: dataset: CIFAR-10 (JPEG copy), 50,000") for line in said)
    assert not any("the paper" in line for line in said[1:])


def test_the_models_in_bfloat16_are_those_of_the_paper_but_for_that():
    said = reductions(of_plan(planned({"suite": "random-start-bf16"})))
    assert said == [
        "precision: bf16 instead of float32 (all models)",
        "test images: the first 1,000 instead of 10,000, of the first half, which is the harder one",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["quickstart", "figures-small", "figures-tiny"])
def test_every_shortened_suite_says_how(name: str):
    said = "\n".join(reductions(of_plan(planned({"suite": name}))))
    assert "dataset: MNIST (mini), 10,000 training images, instead of MNIST" in said
    assert "instead of 30000 (all models)" in said
    assert ("points instead of 21 x 21" in said) == name.startswith("figures")
    assert re.search("first (20|200|300) (test images )?instead of 10,000", said)


@pytest.mark.parametrize("name", ["e2sad-mnist", "e2sad-svhn", "figures", "second-step", "random-start-svhn"])
def test_the_papers_own_protocol_needs_no_caution(name: str):
    assert reductions(of_plan(planned({"suite": name}))) == []


def test_reductions_follow_the_request_and_not_the_name():
    shorter = planned({"suite": "second-step", "training": {"iterations": 10}, "limit": 100})
    assert reductions(of_plan(shorter)) == [
        "iterations: 10 instead of 30000 (all models)",
        "test images: the first 100 instead of 10,000, of the first half, which is the harder one",
    ]  # fmt: skip
    whole = {"training": {"iterations": 30_000, "batch_size": 256}, "limit": None}
    assert reductions(of_plan(planned({"suite": "second-step-small", **whole}))) == []
    mini = {"dataset": "mnist-mini", "training": {"iterations": 30_000}}
    assert reductions(of_plan(planned({"suite": "second-step", **mini})))[1:] == [
        "test images: 2,000 instead of 10,000"
    ]
    figure = {"suite": "figures", **mini, "figures": [{"kind": "accuracy"}]}
    assert reductions(of_plan(planned(figure)))[1:] == ["accuracy: 2,000 test images instead of 10,000"]
    seen = reductions(of_plan(planned({"suite": "e2sad-svhn", "network": {"kind": "svhn_cnn", "input": "per-image"}})))
    assert seen == ["network: svhn_cnn input=per-image (all models)"]
    one = planned({"suite": "e2sad-mnist", "network": {"kind": "mnist_cnn"}, "training": {"lr": 0.01}})
    assert reductions(of_plan(one)) == ["lr: 0.01 instead of 0.001 (all models)"]
    more = planned({"suite": "e2sad-mnist", "defenses": [{"kind": "ifgsm_adv", "steps": 100}], "substitutes": []})
    assert reductions(of_plan(more)) == ["training steps: 100 instead of 30 (all models)"]


def test_models_of_one_name_have_cautions_of_their_own():
    literal = {"kind": "e2sad", "second_step": "literal"}
    shortened = {"name": "A", "defense": literal, "training": {"iterations": 10}}
    defenses = [{"name": "A", "defense": {"kind": "natural"}}]
    found = cautions(of_plan(planned({"suite": "e2sad-mnist", "defenses": defenses, "substitutes": [shortened]})))
    assert found[0].startswith("A: ill-conditioned")
    assert found[1:] == ["not the paper's protocol: iterations: 10 instead of 30000 (A)"]


@pytest.mark.parametrize("kind", ["path", "samples"])
def test_a_figures_own_steps_have_their_caution(kind: str):
    for steps, said in (({"second_step": "literal", "dissimilarity_weight": 0}, True), ({}, False)):
        figure = {"kind": kind, "models": ["Natural H"], "path": {"kind": "e2sad", **steps}}
        found = cautions(of_plan(planned({"suite": "figures", "figures": [figure]})))
        assert [line.startswith(f"{kind}: ill-conditioned") for line in found] == [True] * said


def test_a_plain_object_is_overridden_field_by_field():
    small = expand_suite({"suite": "second-step-small", "training": {"lr": 5e-4}})
    assert small["training"] == {"iterations": 300, "batch_size": 32, "lr": 5e-4}
    epochs = expand_suite({"suite": "second-step-small", "training": {"epochs": 1}})
    assert epochs["training"] == {"batch_size": 32, "epochs": 1}
    other = expand_suite({"suite": "e2sad-svhn", "network": {"kind": "svhn_cnn"}})
    assert other["network"] == {"kind": "svhn_cnn"}, "a kind is replaced whole"


def test_a_kind_is_the_suites_to_say():
    with pytest.raises(SpecError, match="quickstart is of kind benchmark; give a suite or a kind") as refused:
        expand_suite({"suite": "quickstart", "kind": "train"})
    assert refused.value.path == ("kind",)


def test_models_take_the_place_of_all_that_is_trained():
    spec = expand_suite({"suite": "figures-tiny", "models": [{"key": "0" * 64}]})
    assert not {"defenses", "dataset", "training", "seeds"} & set(spec)
    assert isinstance(JOB.validate_python(spec), FigureJob)


@pytest.mark.parametrize(
    ("path", "expected"),
    [(["defenses", 0, "name"], True), (["training", "batch_size"], True), (["training", "lr"], False),
     (["attacks", 0, "eps"], False), (["nothing"], False), (["defenses", 99], True)],
)  # fmt: skip
def test_what_comes_from_the_suite(path: list[Any], expected: bool):
    request = {"suite": "quickstart", "training": {"lr": 0.1}, "attacks": [{"kind": "fgsm"}]}
    assert inherited(path, request) is expected


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
