"""From a job to the graph of stages it needs. Pure: the same job gives the same keys in every process."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from core.attacks import ATTACKS, AnyAttack
from core.attacks.base import Attack
from core.datasets import DATASETS
from core.datasets.base import Dataset
from core.defenses import AnyDefense
from core.defenses.base import Defense
from core.errors import ModelMissing, SpecError
from core.execution import Execution
from core.fields import MAX_SEED
from core.jobs import (
    BenchmarkJob,
    EvaluateJob,
    FigureJob,
    Job,
    ModelByKey,
    ModelBySpec,
    NamedDefense,
    TrainingJob,
    TrainingRequest,
)
from core.kinds import Kind
from core.networks import NETWORKS
from core.networks.base import Network
from core.plan_figures import add_figures
from core.stages.base import Stage
from core.stages.craft import Craft
from core.stages.evaluate import Evaluate
from core.stages.train import Train
from core.training import Training

MAX_STAGES = 20_000
ATTACKER_SEED = 1_000_000
"""Default substitutes are trained with this added to the targets' seeds: the attacker's seeds are its own."""
DEFAULT_SUBSTITUTES = ("natural", "fgsm_adv", "ifgsm_adv")

Path = tuple[str | int, ...]
"""Where a field stands in the request."""
_attack: TypeAdapter[Attack] = TypeAdapter(AnyAttack)
_defense: TypeAdapter[Defense] = TypeAdapter(AnyDefense)
K = TypeVar("K", bound=Kind)


class Models(Protocol):
    """The trained models an evaluate job may name."""

    def by_key(self, key: str) -> Train | None:
        """Return the succeeded train stage of that key."""
        ...

    def like(self, train: Train) -> Train | None:
        """Return a succeeded train stage equal to `train`, apart from its execution."""
        ...


@dataclass(frozen=True)
class Model:
    """A model of a plan: its train stage under the label the job gives it."""

    train: Train
    label: str

    @cached_property
    def key(self) -> str:
        """The train stage's key."""
        return self.train.identity()


@dataclass(frozen=True)
class PlannedEvaluation:
    """What a matrix needs to know about an evaluate stage before it has run."""

    target: str
    substitute: str | None
    attack: Attack

    @property
    def whitebox(self) -> bool:
        """Whether the examples, if any, were crafted on the target itself."""
        return self.substitute is None or self.substitute == self.target


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a plan, with what SQL keeps beside its spec."""

    spec: Stage
    key: str
    title: str
    flop: float
    dataset: str
    depth: int
    images: int
    evaluation: PlannedEvaluation | None = None


@dataclass
class Plan:
    """The stages of a job, parents before children, and its models by role."""

    dataset: str
    device: str
    pairing: str
    stages: dict[str, PlannedStage] = field(default_factory=dict[str, PlannedStage])
    targets: list[Model] = field(default_factory=list[Model])
    substitutes: list[Model] = field(default_factory=list[Model])

    def add(self, spec: Stage, title: str, flop: float, images: int, **more: Any) -> str:
        """Return the key of `spec`, planned once however often it is asked for."""
        key = spec.identity()
        depth = 1 + max((self.stages[parent].depth for parent in spec.parents() if parent in self.stages), default=-1)
        self.stages.setdefault(key, PlannedStage(spec, key, title, flop, self.dataset, depth, images, **more))
        if len(self.stages) > MAX_STAGES:
            raise SpecError(f"this job needs more than {MAX_STAGES} stages; split it")
        return key

    @property
    def ordered(self) -> list[PlannedStage]:
        """The stages by depth, then by the order they were asked for."""
        return sorted(self.stages.values(), key=lambda stage: stage.depth)


def plan(job: Job, execution: Execution, models: Models) -> Plan:
    """Return the stages that `job` needs.

    Raises:
        SpecError: names the field that makes the job impossible.
    """
    if isinstance(job, EvaluateJob):
        return _plan_evaluation(job, execution, models)
    if isinstance(job, FigureJob):
        return _plan_figures(job, execution, models)
    if not isinstance(job, TrainingJob):
        raise TypeError(f"no plan for {type(job).__name__}")
    dataset = DATASETS[job.dataset]()
    entries = job.entries()
    labels = _labels(entries, job, dataset)
    targets = _targets(job, entries, labels, dataset, execution)
    if not isinstance(job, BenchmarkJob):
        result = Plan(job.dataset, execution.device, "same", targets=targets)
        _add_trainings(result, targets)
        return result
    substitutes = _substitutes(job, dataset, dict(zip(labels, entries, strict=True)), execution)
    pairing = job.pairing or ("same" if job.substitutes or job.substitute_seeds else "independent")
    result = Plan(job.dataset, execution.device, pairing, targets=targets, substitutes=substitutes)
    _attack_all(result, job, dataset, execution)
    return result


def _targets(
    job: TrainingJob, entries: list[NamedDefense], labels: list[str], dataset: Dataset, execution: Execution
) -> list[Model]:
    return [
        Model(_train(entry, job, dataset, seed, execution, ("defenses", i)), label)
        for i, (entry, label) in enumerate(zip(entries, labels, strict=True))
        for seed in job.seeds
    ]


def resolved(job: Job, dataset_name: str) -> Job:
    """Return `job` with the fields left out of its defenses and attacks set to what `plan` takes for them.

    Its dump, read again, asks for the same stages; a dump of `job` itself would turn the kinds' own defaults, which
    are MNIST's, into something that its author had given.
    """
    dataset, update = DATASETS[dataset_name](), dict[str, Any]()
    if isinstance(job, TrainingJob):
        own = job.defense and _resolved(job.defense, job.training, dataset)
        update |= {"defense": own, "defenses": _resolved_entries(job.defenses, job, dataset)}
    if isinstance(job, BenchmarkJob):
        update["substitutes"] = _resolved_entries(job.substitutes, job, dataset)
    if isinstance(job, EvaluateJob):
        for role in ("targets", "substitutes"):
            update[role] = [_resolved_model(model) for model in getattr(job, role)]
    if isinstance(job, FigureJob):
        update["models"] = job.models and [_resolved_model(model) for model in job.models]
        update["figures"] = [figure.resolved(dataset, lambda spec: filled(spec, dataset)) for figure in job.figures]
    if isinstance(job, BenchmarkJob | EvaluateJob):
        for name in ("attacks", "transfer"):
            given: list[Attack] | None = getattr(job, name)
            update[name] = given and [filled(attack, dataset) for attack in given]
    return job.model_copy(update=update)


def _resolved_entries(
    entries: Sequence[NamedDefense | str] | None, job: TrainingJob, dataset: Dataset
) -> list[NamedDefense | str] | None:
    def whole(entry: NamedDefense) -> NamedDefense:
        defense = _resolved(entry.defense, entry.training.over(job.training), dataset)
        return entry.model_copy(update={"defense": defense})

    return None if entries is None else [entry if isinstance(entry, str) else whole(entry) for entry in entries]


def _resolved_model(model: ModelByKey | ModelBySpec) -> ModelByKey | ModelBySpec:
    if isinstance(model, ModelByKey):
        return model
    return model.model_copy(update={"defense": _resolved(model.defense, model.training, DATASETS[model.dataset]())})


def resolve_training(
    request: TrainingRequest, dataset: Dataset, where: Callable[[str], Path] = lambda field: (field,)
) -> Training:
    """Return the full schedule: what `request` leaves out is the paper's for `dataset`, epochs become iterations.

    Raises:
        SpecError: too many epochs, or momentum without sgd; `where` says where the request keeps a field.
    """
    given = request.model_dump(exclude_none=True, exclude={"label_smoothing", "iterations", "epochs"})
    batch_size = request.batch_size or Training.model_fields["batch_size"].default
    epochs = request.epochs or (None if request.iterations else dataset.default_epochs)
    per_epoch = -(-dataset.train_size // batch_size)
    iterations = request.iterations or (epochs * per_epoch if epochs else dataset.default_iterations)
    if iterations is None:
        raise TypeError(f"{dataset.kind} has neither default iterations nor default epochs")
    try:
        return Training(iterations=iterations, **given)
    except ValidationError as error:  # what TrainingRequest cannot know: the length in iterations, the optimiser
        found = error.errors()[0]
        if found["loc"] == ("iterations",):
            raise SpecError(f"{epochs} epochs are {iterations} iterations: too many", where("epochs")) from None
        raise SpecError(found["msg"].removeprefix("Value error, "), where("momentum")) from None


def filled(spec: K, dataset: Dataset) -> K:
    """Return `spec` with the fields its author left out set to the dataset's own defaults for that kind."""
    return spec.filled(dataset.defaults.get(spec.kind, {}))


def _default_network(dataset: Dataset) -> Network:
    kind: Any = NETWORKS[dataset.network]
    return kind()


def _network(chosen: Network | None, dataset: Dataset, path: Path) -> Network:
    network = chosen or _default_network(dataset)
    if network.input_shape != dataset.shape:
        fits = [kind for kind, cls in NETWORKS.items() if cls.input_shape == dataset.shape]
        raise SpecError(
            f"{network.kind} takes images of shape {network.input_shape}, {dataset.kind} has {dataset.shape}",
            (*path, "network"), fits,
        )  # fmt: skip
    if network.classes != len(dataset.classes):
        raise SpecError(
            f"{network.kind} tells {network.classes} classes apart, {dataset.kind} has {len(dataset.classes)}",
            (*path, "network"),
        )  # fmt: skip
    try:
        network.flop  # noqa: B018 - walks through the shapes of all its layers
    except SpecError as error:
        raise SpecError(f"{network.kind}: {error}", (*path, "network")) from error
    return network


def _train(
    entry: NamedDefense,
    job: TrainingJob,
    dataset: Dataset,
    seed: int,
    execution: Execution,
    path: Path,
) -> Train:
    request = entry.training.over(job.training)

    def where(field: str) -> Path:
        return (*(() if getattr(entry.training, field) is None else path), "training", field)

    training = resolve_training(request, dataset, where)
    network = _network(job.network, dataset, ())
    return _train_stage(_resolved(entry.defense, request, dataset), training, network, dataset, seed, execution)


def _resolved(defense: Defense, request: TrainingRequest, dataset: Dataset) -> Defense:
    """Return `defense` with the fields its author left out set to the schedule's and the dataset's defaults."""
    if request.label_smoothing is not None and "label_smoothing" not in defense.model_fields_set:
        defense = type(defense).model_validate(
            {**defense.model_dump(exclude_unset=True), "label_smoothing": request.label_smoothing}
        )
    return filled(defense, dataset)


def _train_stage(
    defense: Defense, training: Training, network: Network, dataset: Dataset, seed: int, execution: Execution
) -> Train:
    return Train(
        defense=defense,
        network=network,
        training=training,
        dataset=dataset.kind,
        dataset_sha256=dataset.sha256,
        seed=seed,
        execution=execution,
    )


def _labels(entries: Iterable[NamedDefense], job: TrainingJob, dataset: Dataset) -> list[str]:
    labels = [
        entry.name or _resolved(entry.defense, entry.training.over(job.training), dataset).label() for entry in entries
    ]
    for i, label in enumerate(labels):
        if label in labels[:i]:
            raise SpecError(f"two defenses are called {label!r}; give one a name", ("defenses", i, "name"))
    return labels


def _substitutes(
    job: BenchmarkJob, dataset: Dataset, own: dict[str, NamedDefense], execution: Execution
) -> list[Model]:
    if job.substitutes is None:
        hard = [_defense.validate_python({"kind": kind, "label_smoothing": 0}) for kind in DEFAULT_SUBSTITUTES]
        entries = [NamedDefense(defense=defense) for defense in hard]
        seeds = job.substitute_seeds or _attacker_seeds(job.seeds)
    else:
        entries = [_named_substitute(entry, i, own) for i, entry in enumerate(job.substitutes)]
        seeds = job.substitute_seeds or job.seeds
    models: dict[str, Model] = {}
    for i, entry in enumerate(entries):
        label = next((name for name, mine in own.items() if mine is entry), entry.name)
        for seed in seeds:
            train = _train(entry, job, dataset, seed, execution, ("substitutes", i))
            models.setdefault(train.identity(), Model(train, label or train.defense.label()))
    return list(models.values())


def _attacker_seeds(seeds: list[int]) -> list[int]:
    for i, seed in enumerate(seeds):
        if seed + ATTACKER_SEED > MAX_SEED:
            raise SpecError(
                f"the default substitutes' seeds are the targets' + {ATTACKER_SEED}, which leaves no room above "
                f"{MAX_SEED - ATTACKER_SEED}; give substitute_seeds", ("seeds", i),
            )  # fmt: skip
    return [seed + ATTACKER_SEED for seed in seeds]


def _named_substitute(entry: NamedDefense | str, i: int, own: dict[str, NamedDefense]) -> NamedDefense:
    if isinstance(entry, NamedDefense):
        return entry
    if entry not in own:
        raise SpecError(f"no defense of this job is called {entry!r}", ("substitutes", i), list(own))
    return own[entry]


def _add_trainings(result: Plan, models: Iterable[Model]) -> None:
    for model in models:
        title = f"train {model.label}, seed {model.train.seed}"
        result.add(model.train, title, model.train.flop, 0)


def _attack_all(result: Plan, job: BenchmarkJob | EvaluateJob, dataset: Dataset, execution: Execution) -> None:
    """Add every clean, white-box and transfer evaluation of the plan's targets and substitutes."""
    limit = job.limit if job.limit is not None and job.limit < dataset.test_size else None
    images = limit or dataset.test_size
    _add_trainings(result, [*result.targets, *result.substitutes])
    panel = _attacks(job.attacks, [*dataset.panel], dataset, "attacks")
    transfer = _attacks(job.transfer, [dataset.transfer], dataset, "transfer")

    def show(target: Model, substitute: Model | None, attack: Attack) -> None:
        flop = target.train.network.flop * images
        crafted = substitute and _craft(result, substitute, attack, execution, limit, images)
        spec = Evaluate(target=target.key, examples=crafted, limit=limit, execution=execution)
        origin = "" if substitute is None or substitute.key == target.key else f" from {substitute.label}"
        title = f"evaluate {target.label}, seed {target.train.seed}, {attack.label()}{origin}"
        seen = PlannedEvaluation(target.key, substitute and substitute.key, attack)
        result.add(spec, title, flop, images, evaluation=seen)

    clean = _attack.validate_python({"kind": "none"})
    for target in result.targets:
        show(target, None, clean)
        for attack in panel:
            show(target, None if attack.kind == "none" else target, attack)
    for substitute in result.substitutes:
        show(substitute, None, clean)
        for attack in transfer:
            show(substitute, substitute, attack)
            for target in result.targets:
                same = target.train.seed == substitute.train.seed
                if same == (result.pairing == "same") or target.key == substitute.key:
                    show(target, substitute, attack)


def _craft(
    result: Plan, substitute: Model, attack: Attack, execution: Execution, limit: int | None, images: int
) -> str:
    spec = Craft(substitute=substitute.key, attack=attack, limit=limit, execution=execution)
    title = f"craft {attack.label()} on {substitute.label}, seed {substitute.train.seed}"
    return result.add(spec, title, attack.passes().units * substitute.train.network.flop * images, images)


def _attacks(given: list[Attack] | None, default: list[dict[str, Any]], dataset: Dataset, path: str) -> list[Attack]:
    attacks = [filled(attack, dataset) for attack in given] if given else [_attack.validate_python(a) for a in default]
    for i, attack in enumerate(attacks):
        if attack in attacks[:i]:
            raise SpecError(f"the attack {attack.label()} is given twice", (path, i))
        if path == "transfer" and attack.kind == "none":
            allowed = [kind for kind in ATTACKS if kind != "none"]
            raise SpecError("clean images cannot be transferred; name an attack", (path, i, "kind"), allowed)
    return attacks


def _plan_evaluation(job: EvaluateJob, execution: Execution, models: Models) -> Plan:
    targets = [_existing(entry, ("targets", i), execution, models) for i, entry in enumerate(job.targets)]
    substitutes = [_existing(entry, ("substitutes", i), execution, models) for i, entry in enumerate(job.substitutes)]
    dataset = targets[0].train.dataset
    for role, group in (("targets", targets), ("substitutes", substitutes)):
        for i, model in enumerate(group):
            if model.train.dataset != dataset:
                raise SpecError(f"trained on {model.train.dataset}, but the first target on {dataset}", (role, i))
    result = Plan(dataset, execution.device, "same", targets=targets, substitutes=substitutes)
    if substitutes and not any(t.train.seed == s.train.seed for t in targets for s in substitutes):
        result.pairing = "independent"
    _attack_all(result, job, DATASETS[dataset](), execution)
    return result


def _plan_figures(job: FigureJob, execution: Execution, models: Models) -> Plan:
    if job.trains:
        dataset, entries = DATASETS[job.dataset](), job.entries()
        targets = _targets(job, entries, _labels(entries, job, dataset), dataset, execution)
    else:
        given = job.models or []
        targets = [_existing(entry, ("models", i), execution, models, ModelMissing) for i, entry in enumerate(given)]
        dataset = DATASETS[targets[0].train.dataset if targets else job.dataset]()
    for i, model in enumerate(targets):
        if model.train.dataset != dataset.kind:
            raise SpecError(f"trained on {model.train.dataset}, but the first model on {dataset.kind}", ("models", i))
    result = Plan(dataset.kind, execution.device, "same", targets=targets)
    _add_trainings(result, targets)
    figures = [figure.resolved(dataset, lambda spec: filled(spec, dataset)) for figure in job.figures]
    add_figures(result, figures, dataset, execution)
    return result


def _existing(
    entry: ModelByKey | ModelBySpec, path: Path, execution: Execution, models: Models,
    missing: type[SpecError] = SpecError,
) -> Model:  # fmt: skip
    if isinstance(entry, ModelByKey):
        train = models.by_key(entry.key)
        if train is None:
            raise missing("no trained model has this key; GET /models lists them", (*path, "key"))
    else:
        dataset = DATASETS[entry.dataset]()
        defense = _resolved(entry.defense, entry.training, dataset)
        training = resolve_training(entry.training, dataset, lambda field: (*path, "training", field))
        network = _network(entry.network, dataset, path)
        train = models.like(_train_stage(defense, training, network, dataset, entry.seed, execution))
        if train is None:
            raise missing('no such model has been trained; post it as a job of kind "train" first', path)
    return Model(train, entry.name or train.defense.label())
