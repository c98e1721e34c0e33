"""What a user may ask for: job specs of four kinds, and suites, which are job specs with a name in a YAML file.

benchmark   train the defenses and their substitutes, attack each, show each substitute's examples to every target
train       train the defenses, nothing else
evaluate    attack models that exist, named by key or by spec
figure      draw models that exist, or that it trains
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    TypeAdapter,
    model_serializer,
    model_validator,
)

from core.attacks import AnyAttack
from core.datasets import DATASETS
from core.defenses import AnyDefense
from core.errors import SpecError
from core.fields import Count, Number, Seed, seen
from core.figures import AnyFigure
from core.kinds import Spec, known_name, names_of
from core.networks import AnyNetwork
from core.training import BatchSize, LearningRate, Momentum, Optimiser, Precision, WeightDecay

MAX_MODELS = 200
MAX_SEEDS = 100
MAX_ATTACKS = 200
MAX_FIGURES = 40

Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _not_blank(text: str) -> str:
    if text.isspace():
        raise ValueError("is blank: leave it out, or write something")
    return text


Text = Annotated[str, Field(max_length=200), AfterValidator(seen), AfterValidator(_not_blank)]
Tags = Annotated[list[Annotated[str, Field(min_length=1, max_length=60), AfterValidator(seen)]], Field(max_length=20)]


DatasetName = Annotated[str, AfterValidator(known_name(DATASETS, "dataset")), names_of(DATASETS)]


def _distinct(values: list[Any]) -> list[Any]:
    seen: list[Any] = []
    for value in values:
        if value in seen:
            raise ValueError(f"holds {value} twice")
        seen.append(value)
    return values


Seeds = Annotated[list[Seed], Field(min_length=1, max_length=MAX_SEEDS), AfterValidator(_distinct)]


class TrainingRequest(Spec):
    """The schedule as a user writes it; what is left out comes from the dataset's paper protocol."""

    iterations: Count | None = None
    """Optimiser steps. Give this or `epochs`."""
    epochs: Count | None = None
    """Passes over the training set. Give this or `iterations`."""
    batch_size: BatchSize | None = None
    """Examples per step."""
    optimiser: Optimiser | None = None
    """Update rule."""
    lr: LearningRate | None = None
    """Learning rate."""
    momentum: Momentum | None = None
    """Momentum of sgd."""
    weight_decay: WeightDecay | None = None
    """L2 penalty."""
    precision: Precision | None = None
    """What the training's matrix products compute in."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Training targets of every defense that does not set its own: 1 - this on the true class, this over the rest."""

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingRequest":
        if self.iterations is not None and self.epochs is not None:
            raise ValueError("give iterations or epochs, not both")
        return self

    def over(self, other: "TrainingRequest") -> "TrainingRequest":
        """Return this request with its gaps filled from `other`.

        A length given here hides both of `other`'s, an optimiser without momentum its momentum.
        """
        mine = self.model_dump(exclude_none=True)
        theirs = other.model_dump(exclude_none=True)
        if "iterations" in mine or "epochs" in mine:
            theirs.pop("iterations", None)
            theirs.pop("epochs", None)
        if mine.get("optimiser", "sgd") != "sgd":
            theirs.pop("momentum", None)
        return TrainingRequest(**{**theirs, **mine})


class NamedDefense(Spec):
    """A defense with a label of its own and, where it needs one, its own schedule."""

    defense: AnyDefense
    """The defense."""
    name: Text = ""
    """Label in tables; empty: made from the kind and what differs from its defaults."""
    training: TrainingRequest = TrainingRequest()
    """Overrides of the job's schedule for this defense."""


def _form_of_defense(value: Any) -> str:
    named = isinstance(value, NamedDefense) or (isinstance(value, dict) and "defense" in value)
    return "named" if named else "bare"


def _named(value: Any) -> NamedDefense:
    return value if isinstance(value, NamedDefense) else NamedDefense(defense=value)


def _form_of_substitute(value: Any) -> str:
    return "name" if isinstance(value, str) else _form_of_defense(value)


def _named_or_text(value: Any) -> Any:
    return value if isinstance(value, str) else _named(value)


if TYPE_CHECKING:
    DefenseEntry = NamedDefense
    SubstituteEntry = NamedDefense | str
else:
    DefenseEntry = Annotated[
        Annotated[NamedDefense, Tag("named")] | Annotated[AnyDefense, Tag("bare")],
        Discriminator(_form_of_defense),
        AfterValidator(_named),
    ]
    """A defense spec, or {"defense": spec, "name": label, "training": overrides}."""
    SubstituteEntry = Annotated[
        Annotated[Text, Tag("name")] | Annotated[NamedDefense, Tag("named")] | Annotated[AnyDefense, Tag("bare")],
        Discriminator(_form_of_substitute),
        AfterValidator(_named_or_text),
    ]
    """The name of one of the job's defenses, or a defense entry of its own."""

Attacks = Annotated[list[AnyAttack], Field(min_length=1, max_length=MAX_ATTACKS)]


class Job(Spec):
    """What every job may say."""

    name: Text = ""
    """A name for people."""
    tags: Tags = Field(default_factory=list[str])
    """Words to find the job by."""
    priority: Annotated[int, Field(strict=True, ge=-100, le=100)] = 0
    """Higher runs first; a shared stage takes the highest of its jobs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device class; auto takes cuda where a live worker has it."""


class TrainingJob(Job):
    """What jobs that train have in common."""

    defense: AnyDefense | None = None
    """One defense. Give this or `defenses`."""
    defenses: Annotated[list[DefenseEntry], Field(min_length=1, max_length=MAX_MODELS)] | None = None
    """Several defenses. Give this or `defense`."""
    dataset: DatasetName = "mnist"
    """What to train and test on."""
    network: AnyNetwork | None = None
    """The architecture; left out, the paper's for the dataset."""
    training: TrainingRequest = TrainingRequest()
    """The schedule; left out, the paper's for the dataset."""
    seeds: Seeds = Field(default_factory=lambda: [0])
    """One model per defense and seed."""

    @model_validator(mode="after")
    def _one_form(self) -> "TrainingJob":
        if (self.defense is None) == (self.defenses is None):
            raise ValueError('give exactly one of "defense" and "defenses"')
        return self

    def entries(self) -> list[NamedDefense]:
        """Return the defenses, whichever way they were given."""
        return self.defenses or [NamedDefense(defense=self.defense)]  # pyright: ignore[reportArgumentType]


class TrainJob(TrainingJob):
    """Train defenses, nothing else."""

    kind: Literal["train"] = "train"
    """What is asked for."""


class BenchmarkJob(TrainingJob):
    """Train defenses and substitutes, attack each target, and transfer each substitute's examples to every target."""

    kind: Literal["benchmark"] = "benchmark"
    """What is asked for."""
    attacks: Attacks | None = None
    """White-box attacks on every target; left out, the dataset's default panel."""
    substitutes: Annotated[list[SubstituteEntry], Field(max_length=MAX_MODELS)] | None = None
    """Models the attacker owns; left out: natural, FGSM and IFGSM training. An empty list: no transfer."""
    substitute_seeds: Seeds | None = None
    """Seeds of the substitutes; left out, the job's where `substitutes` is given, else the attacker's own."""
    transfer: Attacks | None = None
    """Attacks crafted on the substitutes; left out, IFGSM with the largest k of the dataset's default panel."""
    pairing: Literal["same", "independent"] | None = None
    """same: a target meets the substitutes of its own seed, as in the paper. independent: those of all other seeds.
    Left out: same where substitutes or their seeds are given and some seeds meet, else independent."""
    limit: Count | None = None
    """Only the first `limit` test images; left out, all."""


class ModelByKey(Spec):
    """A trained model, by the key of its train stage."""

    key: Key
    """Key of a train stage that has succeeded (GET /models)."""
    name: Text = ""
    """Label in tables."""


class ModelBySpec(Spec):
    """A trained model, by what it was trained as."""

    defense: AnyDefense
    """The defense."""
    dataset: DatasetName = "mnist"
    """What it was trained on."""
    network: AnyNetwork | None = None
    """The architecture; left out, the paper's for the dataset."""
    training: TrainingRequest = TrainingRequest()
    """The schedule; left out, the paper's for the dataset."""
    seed: Seed = 0
    """The seed it was trained with."""
    name: Text = ""
    """Label in tables."""


def _form_of_model(value: Any) -> str:
    keyed = isinstance(value, ModelByKey) or (isinstance(value, dict) and "key" in value)
    return "by_key" if keyed else "by_spec"


ModelEntry = Annotated[
    Annotated[ModelByKey, Tag("by_key")] | Annotated[ModelBySpec, Tag("by_spec")], Discriminator(_form_of_model)
]


class EvaluateJob(Job):
    """Attack models that exist."""

    kind: Literal["evaluate"] = "evaluate"
    """What is asked for."""
    targets: Annotated[list[ModelEntry], Field(min_length=1, max_length=MAX_MODELS)]
    """The models under attack; all of one dataset."""
    substitutes: Annotated[list[ModelEntry], Field(max_length=MAX_MODELS)] = Field(default_factory=list[ModelEntry])
    """The models the attacker owns; empty: white-box only."""
    attacks: Attacks | None = None
    """White-box attacks on every target; left out, the dataset's default panel."""
    transfer: Attacks | None = None
    """Attacks crafted on the substitutes; left out, IFGSM with the largest k of the dataset's default panel."""
    pairing: Literal["all", "same", "independent"] | None = None
    """all: every target meets every substitute. same, independent: those of its own seed, or of all others. Left out,
    same or independent where every pair is of that sort, else all."""
    limit: Count | None = None
    """Only the first `limit` test images; left out, all."""


OF_SUBSTITUTES = ("transfer", "pairing", "substitute_seeds")
"""What is said of substitutes, and means nothing where there are none."""


def require_no_idle(job: Job) -> None:
    """Return where every field that a new job gives means something; stored ones may give more.

    Raises:
        SpecError: names the first that does not.
    """
    if isinstance(job, BenchmarkJob | EvaluateJob) and job.substitutes is not None and not job.substitutes:
        idle = next((name for name in OF_SUBSTITUTES if getattr(job, name, None) is not None), None)
        if idle:
            raise SpecError(f"{idle} means nothing without substitutes: leave it out, or give substitutes", (idle,))


OF_TRAININGS = ("dataset", "network", "training", "seeds")
"""What is said of trainings, and what models that exist have of their own."""


class FigureJob(TrainingJob):
    """Draw figures of models: of those named in `models`, which exist, or of the defenses, trained where need be."""

    kind: Literal["figure"] = "figure"
    """What is asked for."""
    models: Annotated[list[ModelEntry], Field(min_length=1, max_length=MAX_MODELS)] | None = None
    """Models that exist, all of one dataset. Give this or defenses; an illustration needs neither."""
    figures: Annotated[list[AnyFigure], Field(min_length=1, max_length=MAX_FIGURES)]
    """What is drawn."""

    @model_validator(mode="after")
    def _one_form(self) -> "FigureJob":
        given = [name for name in ("models", "defenses", "defense") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f'give one of "models", "defenses" and "defense", not {len(given)} of them')
        if not given and any(figure.of_models for figure in self.figures):
            raise ValueError('these figures show models: give "models", "defenses" or "defense"')
        return self

    @model_serializer(mode="wrap")
    def _of_what_it_has(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out of the dump what a job that names models has no use for."""
        found: dict[str, Any] = dump(self)
        return {name: value for name, value in found.items() if self.models is None or name not in OF_TRAININGS}

    @property
    def trains(self) -> bool:
        """Whether it trains what it shows."""
        return self.defense is not None or self.defenses is not None


def _default_kind(value: Any) -> Any:
    return {"kind": "benchmark", **value} if isinstance(value, dict) and "kind" not in value else value


AnyJob = Annotated[
    Annotated[BenchmarkJob | TrainJob | EvaluateJob | FigureJob, Field(discriminator="kind")],
    BeforeValidator(_default_kind),
]
JOB: TypeAdapter[Job] = TypeAdapter(AnyJob)
