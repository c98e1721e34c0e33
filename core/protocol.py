"""How what was asked for differs from the paper's protocol, a sentence each; no suite says so by hand.

The protocol is that of the dataset, or of the one it stands for: its network, its schedule, the steps that its
defenses take, its whole test set; for figures their own defaults.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.attacks.base import Attack
from core.datasets import DATASETS
from core.datasets.base import Dataset
from core.defenses.e2sad import E2SAD
from core.figures.base import Figure
from core.jobs import TrainingRequest
from core.plan import Plan
from core.resolve import filled, resolve_training
from core.stages.draw import Draw
from core.stages.train import Train


@dataclass(frozen=True)
class Asked:
    """What a job, or the cells of a table, asked for."""

    dataset: str
    models: Sequence[tuple[str, Train]]
    """Each recipe's label and a model of it, of any seed; two recipes may have one label."""
    images: int | None = None
    """Test images of each evaluation, None where nothing is evaluated."""
    attacks: Sequence[Attack] = field(default_factory=list[Attack])
    """What the models were attacked with."""
    figures: Sequence[Figure] = field(default_factory=list[Figure])


def of_plan(planned: Plan) -> Asked:
    """Return what a plan asks for."""
    models: dict[str, tuple[str, Train]] = {}
    for model in [*planned.targets, *planned.substitutes]:
        models.setdefault(model.train.recipe, (model.label, model.train))
    images = max((stage.images for stage in planned.ordered if stage.evaluation), default=None)
    figures = [stage.spec.figure for stage in planned.ordered if isinstance(stage.spec, Draw)]
    attacks = {id(stage.evaluation.attack): stage.evaluation.attack for stage in planned.ordered if stage.evaluation}
    return Asked(planned.dataset, list(models.values()), images, list(attacks.values()), figures)


def protocol_of(dataset: str) -> Dataset:
    """Return the dataset whose protocol `dataset` is measured by: the one it stands for, else itself."""
    return DATASETS[DATASETS[dataset].stands_for or dataset]()


def cautions(asked: Asked) -> list[str]:
    """Return what to know before believing the results: of the images, of the models, and of the protocol."""
    ours = DATASETS[asked.dataset]()
    note = [f"{ours.kind}: {ours.note}"] if ours.note else []
    return [*note, *beside(asked)]


def beside(asked: Asked) -> list[str]:
    """Return the cautions of a table, whose scope has the note on its images already."""
    theirs = protocol_of(asked.dataset)
    whose = "the paper's" if theirs.in_paper else f"{theirs.title}'s own"
    return [
        *of_models(asked.models),
        *dict.fromkeys(f"{attack.label()}: {said}" for attack in asked.attacks if (said := attack.caution())),
        *_of_paths(asked.figures),
        *(f"not {whose} protocol: {line}" for line in reductions(asked)),
    ]


def of_models(models: Iterable[tuple[str, Train]]) -> list[str]:
    """Return what is known against believing models trained so."""
    cautions = ((name, train.defense.caution(train.training.precision)) for name, train in models)
    return [f"{name}: {said}" for name, said in cautions if said]


def _of_paths(figures: Iterable[Figure]) -> Iterable[str]:
    """Return what is known against believing figures of e2SAD's steps that name steps of their own."""
    for figure in figures:
        path: E2SAD | None = getattr(figure, "path", None)
        if path and path.ill_conditioned:
            yield f"{figure.kind}: {path.ill_conditioned}"


def reductions(asked: Asked) -> list[str]:
    """Return every difference from the protocol, beginning with the images."""
    ours, theirs = DATASETS[asked.dataset](), protocol_of(asked.dataset)
    lines: list[str] = []
    if ours != theirs:
        lines.append(f"dataset: {ours.title}, {ours.train_size:,} training images, instead of {theirs.title}")
    lines += _changed(asked.models, theirs)
    if asked.images is not None and asked.images < theirs.test_size:
        which = f", {ours.first_images}" if ours.first_images and asked.images < ours.test_size else ""
        lines.append(f"test images: {_first(asked.images, ours)} instead of {theirs.test_size:,}{which}")
    return [*lines, *dict.fromkeys(line for figure in asked.figures for line in _of_figure(figure, ours, theirs))]


def _first(images: int, ours: Dataset) -> str:
    """Return how many images: "the first 300", or "2,000" where they are all that the dataset has."""
    return f"{images:,}" if images == ours.test_size else f"the first {images:,}"


def _changed(models: Sequence[tuple[str, Train]], theirs: Dataset) -> Iterable[str]:
    """Return each change of schedule, network or steps with the models that have it."""
    schedule = resolve_training(TrainingRequest(), theirs).model_dump(mode="json")
    changes: dict[str, list[str]] = {}
    for name, train in models:
        for change in _changes(train, schedule, theirs):
            changes.setdefault(change, []).append(name)
    for change, names in changes.items():
        yield f"{change} ({'all models' if len(names) == len(models) else ', '.join(names)})"


def _changes(train: Train, schedule: Mapping[str, Any], theirs: Dataset) -> Iterable[str]:
    mine = train.training.model_dump(mode="json")
    yield from (f"{name}: {mine[name]} instead of {usual}" for name, usual in schedule.items() if mine[name] != usual)
    steps: int | None = getattr(train.defense, "steps", None)
    usual = getattr(filled(type(train.defense)(), theirs), "steps", None)
    if steps is not None and usual is not None and steps != usual:
        yield f"training steps: {steps} instead of {usual}"
    if train.network.kind != theirs.network or train.network.differences():
        fields = [f"{name}={value}" for name, value in train.network.differences().items()]
        yield " ".join(["network:", train.network.kind, *fields])


def _of_figure(figure: Figure, ours: Dataset, theirs: Dataset) -> Iterable[str]:
    usual = type(figure).model_fields
    points: int | None = getattr(figure, "points", None)
    if points is not None and points < (whole := usual["points"].default):
        yield f"{figure.kind}: {points} x {points} points instead of {whole} x {whole}"
    if "limit" in usual:
        images = getattr(figure, "limit", None) or ours.test_size
        whole = usual["limit"].default or theirs.test_size
        if images < whole:
            yield f"{figure.kind}: {_first(images, ours)} test images instead of {whole:,}"
