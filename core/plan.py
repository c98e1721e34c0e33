"""From a job to the graph of stages it needs. Pure: the same job gives the same keys in every process."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from core.attacks import ATTACK, ATTACKS
from core.attacks.base import Attack
from core.datasets import DATASETS
from core.datasets.base import Dataset
from core.defenses import DEFENSE
from core.defenses.base import Defense
from core.errors import ModelMissing, SpecError
from core.execution import Execution
from core.fields import MAX_SEED
from core.jobs import (
    OF_TRAININGS,
    BenchmarkJob,
    EvaluateJob,
    FigureJob,
    Job,
    ModelByKey,
    ModelBySpec,
    NamedDefense,
    TrainingJob,
)
from core.networks import NETWORKS
from core.networks.base import Network
from core.plan_figures import add_figures
from core.resolve import Path, filled, require_fit, require_images, resolve_training, resolved_defense
from core.stages.base import Stage
from core.stages.craft import Craft
from core.stages.evaluate import Evaluate
from core.stages.train import Train
from core.training import Training

MAX_STAGES = 20_000
ATTACKER_SEED = 1_000_000
"""Default substitutes are trained with this added to the targets' seeds: the attacker's seeds are its own."""
DEFAULT_SUBSTITUTES = ("natural", "fgsm_adv", "ifgsm_adv")


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
        _require_few(len(self.stages))
        return key

    @property
    def ordered(self) -> list[PlannedStage]:
        """The stages by depth, then by the order they were asked for."""
        return sorted(self.stages.values(), key=lambda stage: stage.depth)


def _require_few(stages: int, path: Path = (), of: str = "") -> None:
    if stages > MAX_STAGES:
        raise SpecError(f"this job needs more than {MAX_STAGES} stages{of}; split it", path)


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
    pairing = job.pairing or _usual_pairing(job, targets, substitutes)
    _require_pairs(job.pairing, targets, substitutes)
    result = Plan(job.dataset, execution.device, pairing, targets=targets, substitutes=substitutes)
    _attack_all(result, job, dataset, execution)
    return result


def _pairs(pairing: str, target: Model, substitute: Model) -> bool:
    """Return whether the target is shown the substitute's examples."""
    return pairing == "all" or (target.train.seed == substitute.train.seed) == (pairing == "same")


def _sorts(targets: Sequence[Model], substitutes: Sequence[Model]) -> set[str]:
    """Return which pairs of different models there are: of the same seed, of independent ones."""
    shown, owned = _by_seed(targets), _by_seed(substitutes)
    here = {seed: {model.key for model in (*shown[seed], *owned[seed])} for seed in shown.keys() & owned.keys()}
    same = {"same"} if any(len(keys) > 1 for keys in here.values()) else set[str]()
    return same | ({"independent"} if shown and owned and len(shown.keys() | owned.keys()) > 1 else set())


def _by_seed(models: Sequence[Model]) -> dict[int, list[Model]]:
    found: dict[int, list[Model]] = {}
    for model in models:
        found.setdefault(model.train.seed, []).append(model)
    return found


def _usual_pairing(job: BenchmarkJob, targets: Sequence[Model], substitutes: Sequence[Model]) -> str:
    if not (job.substitutes or job.substitute_seeds):
        return "independent"
    return "independent" if _sorts(targets, substitutes) == {"independent"} else "same"


def _require_pairs(pairing: str | None, targets: Sequence[Model], substitutes: Sequence[Model]) -> None:
    """Return where the pairing that was asked for lets some target meet another model.

    Raises:
        SpecError: it does not, so that the black-box matrix would be empty; names the pairing that would.
    """
    there = _sorts(targets, substitutes) or {"same"}  # nothing but the targets themselves
    if substitutes and pairing in ("same", "independent") and pairing not in there:
        what = "of its own seed" if pairing == "same" else "of another seed"
        said = f"no target meets a substitute {what}: give other seeds or another pairing"
        raise SpecError(said, ("pairing",), sorted(there))


def _targets(
    job: TrainingJob, entries: list[NamedDefense], labels: list[str], dataset: Dataset, execution: Execution
) -> list[Model]:
    def at(i: int) -> Path:
        return ("defenses", i) if job.defense is None else ("defense",)

    each = _stages_of_target(job, dataset)
    stages = len(entries) * len(job.seeds) * each
    of = f": {len(entries)} defenses under {len(job.seeds)} seeds, with {each} stages each, are {stages}"
    _require_few(stages, ("seeds",), of)
    models = [
        [Model(train, label) for train in _trains(entry, job, dataset, job.seeds, execution, at(i))]
        for i, (entry, label) in enumerate(zip(entries, labels, strict=True))
    ]
    _require_distinct([group[0] for group in models], "defenses", "training")
    return [model for group in models for model in group]


def _stages_of_target(job: TrainingJob, dataset: Dataset) -> int:
    """Return how many stages each target needs by itself: keys of thousands take a while, too many none at all."""
    if not isinstance(job, BenchmarkJob):
        return 1
    attacks = _attacks(job.attacks, [*dataset.panel], dataset, "attacks")
    return 2 + 2 * sum(attack.kind != "none" for attack in attacks)


def _require_distinct(models: Sequence[Model], role: str, what: str) -> None:
    """Return where no two entries are one model: of two columns with the same cells only one would be kept.

    Raises:
        SpecError: names the first entry that an earlier one has said.
    """
    first: dict[str, int] = {}
    for i, model in enumerate(models):
        if (earlier := first.setdefault(model.key, i)) != i:
            raise SpecError(f"{role} {earlier} and {i} are the same {what}: leave one out", (role, i))


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


def _trains(
    entry: NamedDefense,
    job: TrainingJob,
    dataset: Dataset,
    seeds: Sequence[int],
    execution: Execution,
    path: Path,
) -> list[Train]:
    """Return the trainings of the entry at `path`, one per seed."""
    request = entry.training.over(job.training)

    def where(field: str) -> Path:
        return (*(() if getattr(entry.training, field) is None else path), "training", field)

    try:
        training = resolve_training(request, dataset, where)
    except SpecError as error:  # often of the job's own schedule, which may fit the other entries
        of = "substitute" if path[0] == "substitutes" else "defense"
        raise SpecError(f"{of} {entry.name or entry.defense.label()}: {error}", error.path) from None
    network = _network(job.network, dataset, ())
    defense = resolved_defense(entry.defense, request, dataset)
    at = _of_defense(entry, path)
    require_fit(defense, at)
    most = 1 - 1 / len(dataset.classes)
    if defense.label_smoothing >= most:
        said = f"label_smoothing {defense.label_smoothing} leaves no class likelier than the others: give less than"
        own = "label_smoothing" in entry.defense.model_fields_set
        raise SpecError(f"{said} {most:.3g}", (*at, "label_smoothing") if own else where("label_smoothing"))
    first = _train_stage(defense, training, network, dataset, seeds[0], execution)
    return [first.model_copy(update={"seed": seed}) for seed in seeds]


def _of_defense(entry: NamedDefense, path: Path) -> Path:
    """Return where the request has the defense of the entry at `path`: a bare one is the entry."""
    return (*path, "defense") if entry.model_fields_set - {"defense"} else path


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
    def made(entry: NamedDefense) -> str:
        return resolved_defense(entry.defense, entry.training.over(job.training), dataset).label()

    labels = [entry.name or made(entry) for entry in entries]
    for i, label in enumerate(labels):
        if label in labels[:i]:
            raise SpecError(f"two defenses are called {label!r}; give one a name", ("defenses", i, "name"))
    return labels


def _substitutes(
    job: BenchmarkJob, dataset: Dataset, own: dict[str, NamedDefense], execution: Execution
) -> list[Model]:
    if job.substitutes is None:
        hard = [DEFENSE.validate_python({"kind": kind, "label_smoothing": 0}) for kind in DEFAULT_SUBSTITUTES]
        entries = [NamedDefense(defense=defense) for defense in hard]
        seeds = job.substitute_seeds or _attacker_seeds(job.seeds)
    else:
        entries = [_named_substitute(entry, i, own) for i, entry in enumerate(job.substitutes)]
        seeds = job.substitute_seeds or job.seeds
    of_each = 2 + 2 * len(job.transfer or [dataset.transfer])  # trained, shown clean images, attacked, shown the attack
    stages = len(entries) * len(seeds) * of_each
    of = f": {len(entries)} substitutes under {len(seeds)} seeds, with {of_each} stages each, are {stages}"
    _require_few(stages, ("substitute_seeds" if job.substitute_seeds else "seeds",), of)
    models: list[list[Model]] = []
    for i, entry in enumerate(entries):
        label = next((name for name, mine in own.items() if mine is entry), entry.name)
        trains = _trains(entry, job, dataset, seeds, execution, ("substitutes", i))
        models.append([Model(train, label or train.defense.label()) for train in trains])
    _require_distinct([group[0] for group in models], "substitutes", "training")
    return [model for group in models for model in group]


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
        said = f"no defense of this job is called {entry!r}: give substitutes that are, or an empty list"
        raise SpecError(said, ("substitutes", i), list(own))
    return own[entry]


def _add_trainings(result: Plan, models: Iterable[Model]) -> None:
    for model in models:
        title = f"train {model.label}, seed {model.train.seed}"
        result.add(model.train, title, model.train.flop, 0)


def _attack_all(result: Plan, job: BenchmarkJob | EvaluateJob, dataset: Dataset, execution: Execution) -> None:
    """Add every clean, white-box and transfer evaluation of the plan's targets and substitutes."""
    require_images(job.limit, dataset, ("limit",))
    limit = dataset.first(job.limit)
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

    clean = ATTACK.validate_python({"kind": "none"})
    for target in result.targets:
        show(target, None, clean)
        for attack in panel:
            show(target, None if attack.kind == "none" else target, attack)
    by_seed = _by_seed(result.targets)
    for substitute in result.substitutes:
        show(substitute, None, clean)
        met = by_seed.get(substitute.train.seed, []) if result.pairing == "same" else result.targets
        for attack in transfer:
            show(substitute, substitute, attack)
            for target in met:
                if _pairs(result.pairing, target, substitute) or target.key == substitute.key:
                    show(target, substitute, attack)


def _craft(
    result: Plan, substitute: Model, attack: Attack, execution: Execution, limit: int | None, images: int
) -> str:
    spec = Craft(substitute=substitute.key, attack=attack, limit=limit, execution=execution)
    title = f"craft {attack.label()} on {substitute.label}, seed {substitute.train.seed}"
    return result.add(spec, title, attack.passes().units * substitute.train.network.flop * images, images)


def _attacks(given: list[Attack] | None, default: list[dict[str, Any]], dataset: Dataset, path: str) -> list[Attack]:
    attacks = [filled(attack, dataset) for attack in given] if given else [ATTACK.validate_python(a) for a in default]
    for i, attack in enumerate(attacks):
        require_fit(attack, (path, i))
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
    for role, named in (("targets", targets), ("substitutes", substitutes)):
        _require_one_dataset(dataset, role, named, "target")
        _require_distinct(named, role, "model")
    sorts = _sorts(targets, substitutes)
    _require_pairs(job.pairing, targets, substitutes)
    pairing = job.pairing or ("all" if len(sorts) > 1 else next(iter(sorts), "same"))
    result = Plan(dataset, execution.device, pairing, targets=targets, substitutes=substitutes)
    _attack_all(result, job, DATASETS[dataset](), execution)
    return result


def _plan_figures(job: FigureJob, execution: Execution, models: Models) -> Plan:
    if job.trains:
        dataset, entries = DATASETS[job.dataset](), job.entries()
        targets = _targets(job, entries, _labels(entries, job, dataset), dataset, execution)
    else:
        targets = _existing_models(job, execution, models)
        dataset = DATASETS[targets[0].train.dataset if targets else job.dataset]()
    _require_one_dataset(dataset.kind, "models", targets, "model")
    result = Plan(dataset.kind, execution.device, "same", targets=targets)
    _add_trainings(result, targets)
    for i, figure in enumerate(job.figures):
        require_images(getattr(figure, "limit", None), dataset, ("figures", i, "limit"))
    figures = [figure.resolved(dataset, lambda spec: filled(spec, dataset)) for figure in job.figures]
    for i, figure in enumerate(figures):
        require_fit(figure, ("figures", i))
    add_figures(result, figures, dataset, execution)
    return result


def _existing_models(job: FigureJob, execution: Execution, models: Models) -> list[Model]:
    ignored = next((name for name in OF_TRAININGS if job.models and name in job.model_fields_set), None)
    if ignored:
        raise SpecError(f"models that exist have a {ignored} of their own: leave this out", (ignored,))
    found = [_existing(entry, ("models", i), execution, models) for i, entry in enumerate(job.models or [])]
    _require_distinct(found, "models", "model")
    return found


def _require_one_dataset(dataset: str, role: str, models: Sequence[Model], first: str) -> None:
    """Return where the models were all trained on what `dataset` is now: anything else would be shown other images.

    Raises:
        SpecError: names the first model of another dataset, or of another content of it.
    """
    for i, model in enumerate(models):
        if model.train.dataset != dataset:
            raise SpecError(f"trained on {model.train.dataset}, but the first {first} on {dataset}", (role, i))
        if model.train.dataset_sha256 != DATASETS[dataset]().sha256:
            raise SpecError(f"trained on another content of {dataset} than it has now; train it anew", (role, i))


def _existing(entry: ModelByKey | ModelBySpec, path: Path, execution: Execution, models: Models) -> Model:
    if isinstance(entry, ModelByKey):
        train = models.by_key(entry.key)
        if train is None:
            raise ModelMissing("no trained model has this key; GET /models lists them", (*path, "key"))
        if train.dataset not in DATASETS:
            raise SpecError(f"trained on {train.dataset}, which is not installed here", (*path, "key"))
    else:
        dataset = DATASETS[entry.dataset]()
        defense = resolved_defense(entry.defense, entry.training, dataset)
        training = resolve_training(entry.training, dataset, lambda field: (*path, "training", field))
        network = _network(entry.network, dataset, path)
        train = models.like(_train_stage(defense, training, network, dataset, entry.seed, execution))
        if train is None:
            raise ModelMissing('no such model has been trained; post it as a job of kind "train" first', path)
    return Model(train, entry.name or train.defense.label())
