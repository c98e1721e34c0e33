"""How what was asked for differs from the paper's protocol, a sentence each; no suite says so by hand.

The protocol is that of the dataset, or of the one it stands for: its network, its schedule, the steps that its
defenses take, its whole test set; for figures their own defaults.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.datasets import DATASETS
from core.datasets.base import Dataset
from core.figures.base import Figure
from core.jobs import TrainingRequest
from core.plan import Plan
from core.resolve import filled, resolve_training
from core.stages.draw import Draw
from core.stages.train import Train

RESTARTS = 10
"""Runs of an attack that takes the worst of several."""


@dataclass(frozen=True)
class Asked:
    """What a job, or the cells of a table, asked for."""

    dataset: str
    models: Mapping[str, Train]
    """Label -> a model of it, of any seed."""
    images: int | None = None
    """Test images of each evaluation, None where nothing is evaluated."""
    attacks: Sequence[Mapping[str, Any]] = ()
    figures: Sequence[Figure] = field(default_factory=list[Figure])


def of_plan(planned: Plan) -> Asked:
    """Return what a plan asks for."""
    models = {model.label: model.train for model in reversed([*planned.targets, *planned.substitutes])}
    seen = [(stage.images, stage.evaluation.attack) for stage in planned.ordered if stage.evaluation]
    attacks = {attack.identity(): attack.model_dump(mode="json") for _, attack in seen}
    figures = [stage.spec.figure for stage in planned.ordered if isinstance(stage.spec, Draw)]
    images = max((images for images, _ in seen), default=None)
    return Asked(planned.dataset, dict(reversed(models.items())), images, list(attacks.values()), figures)


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
    return [*of_models(asked.models), *(f"not the paper's protocol: {line}" for line in reductions(asked))]


def of_models(models: Mapping[str, Train]) -> list[str]:
    """Return what is known against believing models trained so."""
    return [f"{name}: {train.defense.caution}" for name, train in models.items() if train.defense.caution]


def reductions(asked: Asked) -> list[str]:
    """Return every difference from the protocol, beginning with the images."""
    ours, theirs = DATASETS[asked.dataset](), protocol_of(asked.dataset)
    lines: list[str] = []
    if ours != theirs:
        lines.append(f"dataset: {ours.title}, {ours.train_size:,} training images, instead of {theirs.title}")
    lines += _changed(asked.models, theirs)
    restarts = sorted({attack.get("restarts", 1) for attack in asked.attacks} & set(range(2, RESTARTS)))
    lines += [f"restarts of an attack: {number} instead of {RESTARTS}" for number in restarts]
    if asked.images is not None and asked.images < theirs.test_size:
        lines.append(f"test images: the first {asked.images:,} instead of {theirs.test_size:,}")
    return [*lines, *dict.fromkeys(line for figure in asked.figures for line in _of_figure(figure, ours, theirs))]


def _changed(models: Mapping[str, Train], theirs: Dataset) -> Iterable[str]:
    """Return each change of schedule, network or steps with the models that have it."""
    schedule = resolve_training(TrainingRequest(), theirs).model_dump(mode="json")
    changes: dict[str, list[str]] = {}
    for name, train in models.items():
        for change in _changes(train, schedule, theirs):
            changes.setdefault(change, []).append(name)
    for change, names in changes.items():
        yield f"{change} ({'all models' if len(names) == len(models) else ', '.join(names)})"


def _changes(train: Train, schedule: Mapping[str, Any], theirs: Dataset) -> Iterable[str]:
    mine = train.training.model_dump(mode="json")
    yield from (f"{name}: {mine[name]} instead of {usual}" for name, usual in schedule.items() if mine[name] != usual)
    steps: int | None = getattr(train.defense, "steps", None)
    usual = getattr(filled(type(train.defense)(), theirs), "steps", None)
    if steps is not None and usual is not None and steps < usual:
        yield f"training steps: {steps} instead of {usual}"
    if train.network.kind != theirs.network or train.network.differences():
        yield f"network: {train.network.kind} {train.network.differences() or ''}".strip()


def _of_figure(figure: Figure, ours: Dataset, theirs: Dataset) -> Iterable[str]:
    usual = type(figure).model_fields
    points: int | None = getattr(figure, "points", None)
    if points is not None and points < (whole := usual["points"].default):
        yield f"{figure.kind}: {points} x {points} points instead of {whole} x {whole}"
    if "limit" in usual:
        images = getattr(figure, "limit", None) or ours.test_size
        whole = usual["limit"].default or theirs.test_size
        if images < whole:
            yield f"{figure.kind}: the first {images:,} test images instead of {whole:,}"
