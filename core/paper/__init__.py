"""Tables 1 to 3 of the e2SAD paper: the published cells, and which of a suite's models and attacks stand for them.

`tables.json` holds the published values as they were read from the paper. `MODELS` and `ATTACKS` are the whole mapping
from the paper's words to our specs. A model of a suite or a job stands for one of the paper's where its defense
differs from the mapped one at most in `REDUCIBLE` fields; every difference of the protocol is said
(`Standing.reductions`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from importlib import resources
from typing import Any, TypeVar

from pydantic import ValidationError

from core import protocol
from core.attacks import ATTACK
from core.attacks.base import Attack
from core.datasets import DATASETS
from core.defenses import DEFENSE
from core.defenses.base import Defense
from core.errors import SpecError
from core.execution import Execution
from core.jobs import JOB, BenchmarkJob
from core.kinds import Kind
from core.paper.choices import choices
from core.plan import Model, Plan, plan
from core.resolve import filled
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

K = TypeVar("K", bound=Kind)


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
class Reading:
    """One way to read the paper's radii: as printed, in pixel units, or times `scale`, which `said` explains."""

    said: str = ""
    scale: Fraction = Fraction(1)


READINGS: dict[str, tuple[Reading, ...]] = {
    "mnist": (Reading(),),
    "svhn": (
        Reading(),
        Reading("radii: counted in the [-1, 1] that the network sees, half as long in pixel units", Fraction(1, 2)),
    ),
}
"""Dataset -> readings of its radii; the paper's description of SVHN's normalisation contradicts itself."""
RADII = ("eps", "eps1", "eps2")


@dataclass(frozen=True)
class Source:
    """Whose cells stand beside a table: those of a suite, on its own dataset or on another, or of a job."""

    suite: str | None
    spec: str
    """The request, as JSON."""
    job: int | None = None

    @property
    def said(self) -> str:
        """How an error or a reason calls it."""
        return f"the suite {self.suite}" if self.job is None else f"job {self.job}"

    @property
    def command(self) -> str:
        """What runs it, or waits for it."""
        if self.job is not None:
            return f"gauntlet watch {self.job}"
        request: dict[str, Any] = json.loads(self.spec)
        given = " ".join(f"--{name} {value}" for name, value in request.items())
        return f"gauntlet submit {given} --wait"


def of_suite(suite: str, dataset: str | None = None) -> Source:
    """Return the source that a suite is, on `dataset` where one is given that is not its own."""
    own = suites()[suite].get("dataset", "mnist")
    return Source(suite, json.dumps({"suite": suite, **({"dataset": dataset} if dataset not in (None, own) else {})}))


def of_job(job: int, suite: str | None, spec: dict[str, Any]) -> Source:
    """Return the source that a stored job is."""
    return Source(suite, json.dumps(spec, sort_keys=True), job)


@dataclass(frozen=True)
class Standing:
    """What of a source stands for a table: recipes of its models, keys of its attacks, and how its protocol differs."""

    source: Source
    dataset: str
    images: int
    models: dict[str, Model]
    """Column -> the source's model, of its first seed."""
    substitutes: frozenset[str]
    """Columns whose models the source also crafts on for transfer."""
    attacks: dict[tuple[str, str | None], Attack]
    """(row, loss) -> the source's attack; the loss is None where nothing is climbed."""
    transfer: dict[str, Attack]
    """Loss -> the attack of the source's transfer."""
    reductions: tuple[str, ...]
    """How the source's protocol differs from the paper's, a sentence each; empty at the paper's own."""
    choices: tuple[str, ...]
    """How the source has what the paper leaves open, a sentence each."""


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
    """Return whether any model of the suite stands for one of the table's."""
    try:
        standing(number, of_suite(suite), Execution())
    except SpecError:
        return False
    return True


def standing(number: int, source: Source, execution: Execution) -> Standing:
    """Return what of `source`, executed so, stands for Table `number`.

    Raises:
        SpecError: nothing of it does: it is on images of another form, evaluates nothing, or has none of the models.
    """
    return _standing(number, source, execution.model_dump_json())


@lru_cache(maxsize=1000)
def _standing(number: int, source: Source, executed: str) -> Standing:
    table, execution = published(number), Execution.model_validate_json(executed)
    job = _benchmark(table, source)
    planned = _planned(job, execution)
    reading = max(READINGS[table.dataset], key=lambda one: len(_models(planned, table.dataset, one)))
    models = _models(planned, table.dataset, reading)
    if not models:
        raise SpecError(f"{source.said} has no model of table {number}")
    recipes = {model.train.recipe for model in planned.substitutes}
    images = next(stage.images for stage in planned.ordered if stage.images)
    trains = {name: model.train for name, model in models.items()}
    differences = protocol.reductions(protocol.Asked(planned.dataset, list(trains.items()), images))
    return Standing(
        source,
        planned.dataset,
        images,
        models,
        frozenset(name for name, model in models.items() if model.train.recipe in recipes),
        _panel(planned, table.dataset, reading),
        _transfers(planned, table.dataset),
        (*([reading.said] if reading.said else []), *differences),
        tuple(choices(table.dataset, trains)),
    )


def _benchmark(table: Published, source: Source) -> BenchmarkJob:
    request: dict[str, Any] = json.loads(source.spec)
    try:
        job = JOB.validate_python(expand_suite(request) if "suite" in request else request)
    except ValidationError:
        raise SpecError(f"{source.said} was made by another version of the code, which this one cannot read") from None
    if not isinstance(job, BenchmarkJob):
        raise SpecError(f"{source.said} is no benchmark: it evaluates none of table {table.number}'s models")
    if DATASETS[job.dataset].shape != DATASETS[table.dataset].shape:
        raise SpecError(f"{source.said} is on other images than table {table.number}")
    return job


def _planned(job: BenchmarkJob, execution: Execution) -> Plan:
    nobody: Any = None  # a benchmark names no trained models
    return plan(job, execution, nobody)


def _resolved(spec: dict[str, Any], dataset: str) -> Defense:
    return filled(DEFENSE.validate_python(spec), DATASETS[dataset]())


def _models(planned: Plan, dataset: str, reading: Reading) -> dict[str, Model]:
    """Return column -> the plan's target that stands for it, in the paper's order."""
    found = {
        name: _model(planned, _scaled(_resolved(ours, dataset), reading)) for name, (_, ours) in MODELS[dataset].items()
    }
    return {name: model for name, model in found.items() if model}


def _scaled(spec: K, reading: Reading) -> K:
    """Return the spec with its radii as `reading` has them."""
    radii = {name: getattr(spec, name) * reading.scale for name in RADII if name in type(spec).model_fields}
    return spec.model_copy(update=radii)


def _model(planned: Plan, paper: Defense) -> Model | None:
    """Return the target whose defense is the paper's, apart from what a shortened suite may reduce."""
    alike = [model for model in planned.targets if not _differing(model.train.defense, paper) - REDUCIBLE]
    return min(alike, key=lambda model: len(_differing(model.train.defense, paper)), default=None)


def _differing(ours: Defense, paper: Defense) -> set[str]:
    if ours.kind != paper.kind:
        return {"kind"}
    mine, theirs = ours.model_dump(mode="json"), paper.model_dump(mode="json")
    return {name for name in theirs if mine[name] != theirs[name]}


def _panel(planned: Plan, dataset: str, reading: Reading) -> dict[tuple[str, str | None], Attack]:
    """Return the suite's white-box attacks by the paper's names and the loss they climb."""
    seen = [stage.evaluation for stage in planned.ordered if stage.evaluation and stage.evaluation.whitebox]
    attacks = {evaluation.attack.identity(): evaluation.attack for evaluation in seen}
    found: dict[tuple[str, str | None], Attack] = {}
    for name, (_, ours) in ATTACKS[dataset].items():
        for loss in losses_of(name):
            attack = _scaled(ATTACK.validate_python(ours if loss is None else {**ours, "loss": loss}), reading)
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
    attacks = {loss: ATTACK.validate_python({**ours, "loss": loss}) for loss in LOSSES}
    return {loss: attack for loss, attack in attacks.items() if attack.identity() in crafted}
