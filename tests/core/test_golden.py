"""Golden outputs: what each version of each kind computes, to nine digits, in float64.

A stage's key holds its kinds' versions. So whoever changes what a kind computes must count its `version` up, or old
results would be taken for new ones: then the entry below no longer fits and this test fails. The entries of the first
kinds stand in golden.json; those of a later kind in GOLDEN of its own test, tests/core/test_<kind>.py, so that adding a
kind touches its file and its test alone. ``python -m tests.core.test_golden`` prints what is missing.
"""

import importlib
import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from core.attacks import ATTACKS
from core.defenses import DEFENSES
from core.defenses.base import Defense
from core.execution import Execution
from core.kinds import Kind, Spec
from core.networks import NETWORKS
from core.random import normal, uniform
from core.stages.train import Train
from core.training import Training, train
from tests.core.small import TinyNet, small, tiny_images, tiny_model, tiny_pixels

FILE = Path(__file__).with_name("golden.json")
SCHEDULE = Training(iterations=4, batch_size=8)
EXACT = Execution(threads=1, precision="float64", layout="contiguous")


def figures(tensor: torch.Tensor) -> list[float]:
    """Return three numbers that change when any element does: projections on fixed random directions."""
    flat = tensor.detach().double().flatten()
    directions = normal(0, 0, torch.arange(3), flat.shape, torch.float64)
    return (directions @ flat).tolist()


def of_attack(attack) -> dict[str, list[float]]:
    images, labels = tiny_images(6)
    return {"adversarial": figures(attack(tiny_model(), images, labels, smoothing=0.25))}


def of_defense(defense, schedule: Training = SCHEDULE) -> dict[str, list[float]]:
    pixels, labels = tiny_pixels(20)
    trained = train(defense, TinyNet(), schedule, EXACT, mathematics="golden", seed=0, images=pixels, labels=labels)
    last = [value for name, value in sorted(trained.curve[-1].items()) if name not in {"iteration", "accuracy"}]
    return {"losses": last} | {name: figures(weight) for name, weight in trained.weights.items()}


def of_schedule(schedule) -> dict[str, list[float]]:
    return of_defense(DEFENSES["natural"](), schedule)


def of_network(network) -> dict[str, list[float]]:
    images = uniform(0, 0, torch.arange(2), network.input_shape, torch.float64)
    return {"logits": figures(network.build(0).double()(images))}


COMPUTE = {"attacks": of_attack, "defenses": of_defense, "networks": of_network, "schedules": of_schedule}
NUMBERS: tuple[dict[str, Any], ...] = (
    {"alpha": 0.0}, {"alpha": 1.0}, {"restarts": 2}, {"decay": 0.5}, {"power": 1}, {"dissimilarity_weight": 0.0},
    {"second_step": "vat", "power_iterations": 2},
)  # fmt: skip
"""Numbers that lead a kind which has the fields down another branch than its defaults."""
SCHEDULES = ({"weight_decay": 0.1}, {"optimiser": "sgd"}, {"optimiser": "sgd", "momentum": 0.5, "weight_decay": 0.1})


def variants(cls: type[Kind]) -> list[Kind]:
    """Return the kind with its defaults, for every value of every field that names a choice, and with NUMBERS."""
    found = [small(cls)]
    for name, field in cls.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        choices = (True, False) if field.annotation is bool else choices
        found += [small(cls, **{name: choice}) for choice in choices if choice != field.default]
    found += [small(cls, **numbers) for numbers in NUMBERS if numbers.keys() <= cls.model_fields.keys()]
    return [spec for spec in found if not (isinstance(spec, Defense) and spec.caution())]


def cases() -> dict[str, tuple[str, Spec]]:
    """Return entry name -> folder and spec, for instance "attacks/pgd@1 random_start=False"."""
    found: dict[str, tuple[str, Kind]] = {}
    for folder, kinds in (("attacks", ATTACKS), ("defenses", DEFENSES), ("networks", NETWORKS)):
        for kind, cls in kinds.items():
            for spec in variants(cls):
                said = [f"{name}={value}" for name, value in spec.differences(frozenset({"steps", "rivals"})).items()]
                found[" ".join([f"{folder}/{kind}@{cls.version}", *said])] = folder, spec
    for numbers in SCHEDULES:
        name = " ".join([f"schedules/train@{Train.version}", *(f"{field}={value}" for field, value in numbers.items())])
        found[name] = "schedules", SCHEDULE.model_copy(update=numbers)
    return found


CASES = cases()


def golden() -> dict[str, dict[str, list[float]]]:
    """Return every golden output: golden.json's, and GOLDEN of the tests that kinds bring along."""
    found = json.loads(FILE.read_text())
    for kind in sorted({kind for kinds in (ATTACKS, DEFENSES, NETWORKS) for kind in kinds}):
        if FILE.with_name(f"test_{kind}.py").exists():
            found |= getattr(importlib.import_module(f"tests.core.test_{kind}"), "GOLDEN", {})
    return found


@pytest.mark.parametrize("entry", sorted(CASES))
def test_outputs_are_those_of_this_version(entry):
    known = golden()
    if entry not in known:
        pytest.fail(f"{entry} has no golden output yet: run python -m tests.core.test_golden and put it into its test")
    folder, spec = CASES[entry]
    found = COMPUTE[folder](spec)
    assert found.keys() == known[entry].keys()
    for name, values in found.items():
        assert values == pytest.approx(known[entry][name], rel=1e-9, abs=1e-12), (
            f"{entry}: {name} changed. If that is meant, count `version` of the kind up "
            "and run python -m tests.core.test_golden; results of the old version stay under their own keys."
        )


def test_every_golden_output_is_of_a_case():
    assert golden().keys() == CASES.keys()


def missing() -> dict[str, dict[str, list[float]]]:
    known = golden()
    return {entry: COMPUTE[folder](spec) for entry, (folder, spec) in CASES.items() if entry not in known}


if __name__ == "__main__":
    print(json.dumps(missing(), indent=4))
