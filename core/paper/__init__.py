"""Tables 1 to 3 of the e2SAD paper: the published cells, and which of a suite's models and attacks stand for them.

`tables.json` holds the published values as they were read from the paper. `MODELS` and `ATTACKS` are the whole mapping
from the paper's words to our specs. A suite's model stands for one of the paper's where its defense differs from the
mapped one at most in `REDUCIBLE` fields; every difference of the protocol is said (`Standing.reductions`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from pydantic import TypeAdapter

from core.attacks import AnyAttack
from core.attacks.base import Attack
from core.datasets import DATASETS
from core.datasets.base import Dataset
from core.defenses import AnyDefense
from core.defenses.base import Defense
from core.execution import Execution
from core.jobs import AnyJob, BenchmarkJob, Job, TrainingRequest
from core.plan import Model, Plan, filled, plan, resolve_training
from core.suites import expand_suite, suites

SOFT = 0.25
MODELS: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "mnist": {
        "Natural H": ({"defense": "natural", "labels": "H"}, {"kind": "natural"}),
        "FGSM .3 H": ({"defense": "fgsm_adv", "labels": "H", "eps": 0.3}, {"kind": "fgsm_adv", "eps": 0.3}),
        "FGSM .4 H": ({"defense": "fgsm_adv", "labels": "H", "eps": 0.4}, {"kind": "fgsm_adv", "eps": 0.4}),
        "IFGSM .3 H": (
            {"defense": "ifgsm_adv", "labels": "H", "eps": 0.3, "steps": 30},
            {"kind": "ifgsm_adv", "eps": 0.3, "steps": 30},
        ),
        "Natural S": ({"defense": "natural", "labels": "S"}, {"kind": "natural", "label_smoothing": SOFT}),
        "FGSM .3 S": (
            {"defense": "fgsm_adv", "labels": "S", "eps": 0.3},
            {"kind": "fgsm_adv", "eps": 0.3, "label_smoothing": SOFT},
        ),
        "FGSM .4 S": (
            {"defense": "fgsm_adv", "labels": "S", "eps": 0.4},
            {"kind": "fgsm_adv", "eps": 0.4, "label_smoothing": SOFT},
        ),
        "IFGSM .3 S": (
            {"defense": "ifgsm_adv", "labels": "S", "eps": 0.3, "steps": 30},
            {"kind": "ifgsm_adv", "eps": 0.3, "steps": 30, "label_smoothing": SOFT},
        ),
        "e2SAD S": ({"defense": "e2sad", "labels": "S"}, {"kind": "e2sad", "label_smoothing": SOFT}),
    },
    "svhn": {
        "Natural H": ({"defense": "natural", "labels": "H"}, {"kind": "natural"}),
        "FGSM H": ({"defense": "fgsm_adv", "labels": "H", "eps": "24/255"}, {"kind": "fgsm_adv", "eps": "24/255"}),
        "IFGSM H": (
            {"defense": "ifgsm_adv", "labels": "H", "eps": "24/255", "steps": 10},
            {"kind": "ifgsm_adv", "eps": "24/255", "steps": 10},
        ),
        "e2SAD S": ({"defense": "e2sad", "labels": "S"}, {"kind": "e2sad", "label_smoothing": SOFT}),
    },
}
"""Dataset -> column of the tables, in the paper's order -> (the paper's model, our defense)."""

ATTACKS: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "mnist": {
        "clean": ({"attack": "none"}, {"kind": "none"}),
        "FGSM .3": ({"attack": "fgsm", "eps": 0.3}, {"kind": "fgsm", "eps": 0.3}),
        "FGSM .4": ({"attack": "fgsm", "eps": 0.4}, {"kind": "fgsm", "eps": 0.4}),
        "IFGSM .3, k = 10": ({"attack": "ifgsm", "eps": 0.3, "steps": 10}, {"kind": "ifgsm", "eps": 0.3, "steps": 10}),
        "IFGSM .3, k = 30": ({"attack": "ifgsm", "eps": 0.3, "steps": 30}, {"kind": "ifgsm", "eps": 0.3, "steps": 30}),
    },
    "svhn": {
        "clean": ({"attack": "none"}, {"kind": "none"}),
        "FGSM 24/255": ({"attack": "fgsm", "eps": "24/255"}, {"kind": "fgsm", "eps": "24/255"}),
        **{
            f"IFGSM 24/255, k = {steps}": (
                {"attack": "ifgsm", "eps": "24/255", "steps": steps},
                {"kind": "ifgsm", "eps": "24/255", "steps": steps},
            )
            for steps in (10, 20, 30)
        },
    },
}
"""Dataset -> row of the white-box tables -> (the paper's attack, ours); the paper does not say which loss it climbs."""

TRANSFER = {"mnist": "IFGSM .3, k = 30"}
"""Dataset -> the attack that Table 2's examples were crafted with."""
LOSSES = ("label", "training")
"""Both readings of what a test-time attack climbs."""
REDUCIBLE = frozenset({"steps"})
"""Fields in which the defense of a shortened suite may differ from the paper's."""
SUITES = {1: "e2sad-mnist", 2: "e2sad-mnist", 3: "e2sad-svhn"}
"""Table -> the suite that runs it at the paper's protocol."""

_attack: TypeAdapter[Attack] = TypeAdapter(AnyAttack)
_defense: TypeAdapter[Defense] = TypeAdapter(AnyDefense)
_job: TypeAdapter[Job] = TypeAdapter(AnyJob)


@dataclass(frozen=True)
class Published:
    """A table as printed: accuracies by the names of row and column."""

    number: int
    dataset: str
    blackbox: bool
    rows: tuple[str, ...]
    """Attacks; in Table 2 substitutes."""
    columns: tuple[str, ...]
    """Models under attack."""
    accuracies: dict[tuple[str, str], float]


@dataclass(frozen=True)
class Standing:
    """What of a suite stands for a table: recipes of its models, keys of its attacks, and how its protocol differs."""

    suite: str
    dataset: str
    images: int
    models: dict[str, Model]
    """Column -> the suite's model, of its first seed."""
    substitutes: frozenset[str]
    """Columns whose models the suite also crafts on for transfer."""
    attacks: dict[tuple[str, str | None], Attack]
    """(row, loss) -> the suite's attack; the loss is None where nothing is climbed."""
    transfer: dict[str, Attack]
    """Loss -> the attack of the suite's transfer."""
    reductions: tuple[str, ...]
    """How the suite's protocol differs from the paper's, a sentence each; empty at the paper's own."""


def tables() -> dict[str, Any]:
    """Return the content of tables.json."""
    return json.loads(resources.files("core.paper").joinpath("tables.json").read_text())


@cache
def published(number: int) -> Published:
    """Return Table `number`, 1 to 3."""
    table = tables()[f"table{number}"]
    dataset, blackbox = table["dataset"], table["kind"].startswith("black-box")
    columns = {_frozen(theirs): name for name, (theirs, _) in MODELS[dataset].items()}
    attacks = {_frozen(theirs): name for name, (theirs, _) in ATTACKS[dataset].items()}
    rows = columns if blackbox else attacks
    found: dict[tuple[str, str], float] = {}
    for cell in table["rows"]:
        row = rows[_frozen(cell["substitute"] if blackbox else cell["attack"])]
        found[row, columns[_frozen(cell["target"])]] = cell["accuracy"]
    named_rows = [name for name in rows.values() if any(row == name for row, _ in found)]
    return Published(number, dataset, blackbox, tuple(named_rows), tuple(columns.values()), found)


def _frozen(spec: dict[str, Any]) -> str:
    return json.dumps(spec, sort_keys=True)


def fits(number: int, suite: str) -> bool:
    """Return whether the suite's dataset has images of the table's form, so that its cells may stand beside it."""
    dataset = suites()[suite].get("dataset", "mnist")
    return dataset in DATASETS and DATASETS[dataset].shape == DATASETS[published(number).dataset].shape


def standing(number: int, suite: str, execution: Execution) -> Standing:
    """Return what of `suite`, executed so, stands for Table `number`."""
    return _standing(number, suite, execution.model_dump_json())


@cache
def _standing(number: int, suite: str, executed: str) -> Standing:
    table, execution = published(number), Execution.model_validate_json(executed)
    job = _job.validate_python(expand_suite({"suite": suite}))
    if not isinstance(job, BenchmarkJob):
        return Standing(suite, table.dataset, 0, {}, frozenset(), {}, {}, ())
    planned = _planned(job, execution)
    models = {
        name: found
        for name, (_, ours) in MODELS[table.dataset].items()
        if (found := _model(planned, _resolved(ours, table.dataset)))
    }
    recipes = {model.train.recipe for model in planned.substitutes}
    images = next(stage.images for stage in planned.ordered if stage.images)
    return Standing(
        suite,
        planned.dataset,
        images,
        models,
        frozenset(name for name, model in models.items() if model.train.recipe in recipes),
        _panel(planned, table.dataset),
        _transfers(planned, table.dataset),
        tuple(_reductions(table.dataset, planned.dataset, images, models)),
    )


def _planned(job: BenchmarkJob, execution: Execution) -> Plan:
    nobody: Any = None  # a benchmark names no trained models
    return plan(job, execution, nobody)


def _resolved(spec: dict[str, Any], dataset: str) -> Defense:
    return filled(_defense.validate_python(spec), DATASETS[dataset]())


def _model(planned: Plan, paper: Defense) -> Model | None:
    """Return the suite's target whose defense is the paper's, apart from what a shortened suite may reduce."""
    alike = [model for model in planned.targets if not _differing(model.train.defense, paper) - REDUCIBLE]
    return min(alike, key=lambda model: len(_differing(model.train.defense, paper)), default=None)


def _differing(ours: Defense, paper: Defense) -> set[str]:
    if ours.kind != paper.kind:
        return {"kind"}
    mine, theirs = ours.model_dump(mode="json"), paper.model_dump(mode="json")
    return {name for name in theirs if mine[name] != theirs[name]}


def _panel(planned: Plan, dataset: str) -> dict[tuple[str, str | None], Attack]:
    """Return the suite's white-box attacks by the paper's names and the loss they climb."""
    seen = [stage.evaluation for stage in planned.ordered if stage.evaluation and stage.evaluation.whitebox]
    attacks = {evaluation.attack.identity(): evaluation.attack for evaluation in seen}
    found: dict[tuple[str, str | None], Attack] = {}
    for name, (_, ours) in ATTACKS[dataset].items():
        for loss in losses_of(name):
            attack = _attack.validate_python(ours if loss is None else {**ours, "loss": loss})
            if attack.identity() in attacks:
                found[name, loss] = attack
    return found


def losses_of(row: str) -> Sequence[str | None]:
    """Return the losses an attack can climb; clean images climb none."""
    return (None,) if row == "clean" else LOSSES


def _transfers(planned: Plan, dataset: str) -> dict[str, Attack]:
    if dataset not in TRANSFER:
        return {}
    ours = ATTACKS[dataset][TRANSFER[dataset]][1]
    crafted = {
        stage.evaluation.attack.identity()
        for stage in planned.ordered
        if stage.evaluation and stage.evaluation.substitute and not stage.evaluation.whitebox
    }
    attacks = {loss: _attack.validate_python({**ours, "loss": loss}) for loss in LOSSES}
    return {loss: attack for loss, attack in attacks.items() if attack.identity() in crafted}


def _reductions(paper: str, dataset: str, images: int, models: dict[str, Model]) -> list[str]:
    """Return every difference between the suite's protocol and the paper's."""
    theirs: Dataset = DATASETS[paper]()
    said: list[str] = []
    if dataset != paper:
        ours = DATASETS[dataset]()
        note = f" ({ours.note})" if ours.note else ""
        said.append(f"dataset: {ours.title}, {ours.train_size:,} training images, instead of {theirs.title}{note}")
    schedule = resolve_training(TrainingRequest(), theirs).model_dump(mode="json")
    changes: dict[str, list[str]] = {}
    for name, model in models.items():
        for change in _changes(name, model, schedule, paper):
            changes.setdefault(change, []).append(name)
    for change, names in changes.items():
        said.append(f"{change} ({'all models' if len(names) == len(models) else ', '.join(names)})")
    if images < theirs.test_size:
        said.append(f"test images: the first {images:,} instead of {theirs.test_size:,}")
    return said


def _changes(name: str, model: Model, schedule: dict[str, Any], paper: str) -> list[str]:
    train = model.train
    mine = train.training.model_dump(mode="json")
    said = [f"{field}: {mine[field]} instead of {value}" for field, value in schedule.items() if mine[field] != value]
    theirs = _resolved(MODELS[paper][name][1], paper)
    for field in sorted(_differing(train.defense, theirs)):
        said.append(f"training {field}: {getattr(train.defense, field)} instead of {getattr(theirs, field)}")
    if train.network.kind != DATASETS[paper].network or train.network.differences():
        said.append(f"network: {train.network.kind} {train.network.differences() or ''}".strip())
    return said
