"""What SQL holds of the paper's tables: for every published cell, what a suite or a job counted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, aliased

from core.attacks.base import Attack
from core.canonical import canonical_json, digest
from core.execution import Execution
from core.paper import Published, Source, Standing, losses_of, standing
from store.models import Evaluation, JobModel, JobStage, Result, Stage, StageState
from store.results import Cell, SeedCount, Sums, why_missing
from store.stages import IS_TRAIN
from store.transfer import LEFT_OUT

SECONDS = "seconds"
_execution: TypeAdapter[Execution] = TypeAdapter(Execution)


@dataclass(frozen=True)
class Group:
    """One way in which the source was executed; groups never share a table."""

    execution: Execution
    evaluations: int
    """Finished evaluations of the table's models."""
    planned: int
    """Evaluations of the table's models, finished or not."""


@dataclass(frozen=True)
class Wanted:
    """Where a published cell is found among our evaluations; one per loss."""

    row: str
    column: str
    loss: str | None
    attack: str
    target: str
    substitute: str | None


@dataclass(frozen=True)
class Measured:
    """A source's cells beside those of a table."""

    standing: Standing
    execution: Execution
    others: list[Group]
    cells: dict[tuple[str, str, str | None], Cell]
    evaluations: list[int]
    """Ids of the evaluate stages that were counted."""


def measured(
    session: Session, table: Published, source: Source, fallback: Execution, *, device: str | None = None,
    execution: str | None = None,
) -> Measured:  # fmt: skip
    """Return what was counted under one execution: the one with most cells, the newest of equals.

    `device` and `execution`, its key, narrow which; `fallback` is taken where nothing of the source is planned here.
    """
    groups = _groups(session, table, source, device, execution)
    chosen = groups[0].execution if groups else fallback
    found = standing(table.number, source, chosen)
    cells, ids = _cells(session, found, wanted(table, found), chosen)
    return Measured(found, chosen, groups[1:], cells, ids)


def execution_key(execution: Execution) -> str:
    """Return what tells an execution from others in an address."""
    return digest(execution.model_dump(mode="json"))[:12]


def _groups(
    session: Session, table: Published, source: Source, device: str | None, key: str | None
) -> list[Group]:  # fmt: skip
    """Return the executions that any training on the source's dataset was planned with, most finished cells first."""
    dataset = standing(table.number, source, Execution()).dataset
    trains = select(Stage.id, Stage.spec["execution"].label("execution")).where(IS_TRAIN, Stage.dataset == dataset)
    if source.job is not None:
        trains = trains.where(Stage.id.in_(_asked_by(source.job)))
    found = trains.subquery()
    newest = select(found.c.execution).group_by(found.c.execution).order_by(func.max(found.c.id).desc())
    every = dict.fromkeys(map(_execution.validate_python, session.scalars(newest)))
    groups = [
        Group(execution, *_counted(session, table, standing(table.number, source, execution), execution.device))
        for execution in every
        if device in (None, execution.device) and key in (None, execution_key(execution))
    ]
    return sorted((group for group in groups if group.planned), key=lambda group: (-group.evaluations, -group.planned))


def _asked_by(job: int) -> Any:
    return select(JobStage.stage_id).where(JobStage.job_id == job)


def _counted(session: Session, table: Published, found: Standing, device: str) -> tuple[int, int]:
    """Return how many evaluations of the table's models have finished, and how many there are."""
    recipes = {place.target for place in wanted(table, found)}
    query = select(func.count(Evaluation.n), func.count()).where(
        Evaluation.target_recipe.in_(recipes), Evaluation.image_limit == found.images, Evaluation.device == device
    )
    if found.source.job is not None:
        query = query.where(Evaluation.stage_id.in_(_asked_by(found.source.job)))
    finished, planned = session.execute(query).one()
    return finished, planned


def wanted(table: Published, found: Standing) -> list[Wanted]:
    """Return where the cells of the table are found, for every loss the source's attacks climb."""
    return [
        Wanted(row, column, loss, attack.identity(), found.models[column].train.recipe, substitute)
        for row, column in table.accuracies
        if column in found.models
        for loss, attack, substitute in _sources(table, found, row)
    ]


def _sources(table: Published, found: Standing, row: str) -> Iterable[tuple[str | None, Attack, str | None]]:
    if not table.blackbox:
        return [(loss, found.attacks[row, loss], None) for loss in losses_of(row) if (row, loss) in found.attacks]
    if row not in found.substitutes:
        return []
    recipe = found.models[row].train.recipe
    return [(loss, attack, recipe) for loss, attack in found.transfer.items()]


def _cells(
    session: Session, found: Standing, places: Sequence[Wanted], execution: Execution
) -> tuple[dict[tuple[str, str, str | None], Cell], list[int]]:
    """Return the cells that anybody has asked for, and the evaluate stages they are counted from."""
    rows = _rows(session, found, {place.target for place in places}, execution)
    cells: dict[tuple[str, str, str | None], Cell] = {}
    ids: list[int] = []
    for place in places:
        for evaluation, stage in rows.get((place.target, place.attack), []):
            if not _is(evaluation, place):
                continue
            cell = cells.setdefault((place.row, place.column, place.loss), Cell(whitebox=evaluation.whitebox))
            if stage.state == StageState.SUCCEEDED and evaluation.n is not None and evaluation.n_correct is not None:
                seeds = evaluation.target_seed, evaluation.substitute_seed
                cell.sums += Sums.of(evaluation.n, evaluation.n_correct)
                cell.counts.append(SeedCount(*seeds, evaluation.n, evaluation.n_correct, stage.key))
                ids.append(stage.id)
            else:
                cell.sums += Sums(evaluations=1)
                cell.missing.append(why_missing(evaluation.target_seed, stage.state, stage.error))
    return cells, ids


def _rows(
    session: Session, found: Standing, recipes: set[str], execution: Execution
) -> dict[tuple[str, str], list[tuple[Evaluation, Stage]]]:
    """Return (target, attack) -> evaluations, executed so, of models that some job attacked as targets."""
    owner = aliased(Stage)
    targets = select(JobModel.stage_id).where(JobModel.role == "target")
    query = (
        select(Evaluation, owner)
        .join(owner, owner.id == Evaluation.stage_id)
        .where(
            Evaluation.target_recipe.in_(recipes),
            Evaluation.image_limit == found.images,
            Evaluation.target_id.in_(targets),
            or_(Evaluation.whitebox.is_(True), Evaluation.target_seed == Evaluation.substitute_seed),
            Evaluation.device == execution.device,
        )
        .order_by(Evaluation.target_seed, Evaluation.stage_id)
    )
    if found.source.job is not None:
        query = query.where(Evaluation.stage_id.in_(_asked_by(found.source.job)))
    newest: dict[Any, tuple[Evaluation, Stage]] = {}
    for e, stage in session.execute(query):
        if _execution.validate_python(stage.spec["execution"]) != execution:
            continue
        place = e.cell, e.whitebox, e.target_seed, e.substitute_seed
        if e.n is not None or place not in newest or newest[place][0].n is None:
            newest[place] = e, stage  # as in every matrix (store/repeats.py)
    grouped: dict[tuple[str, str], list[tuple[Evaluation, Stage]]] = {}
    for e, stage in newest.values():
        grouped.setdefault((e.target_recipe, e.attack_id), []).append((e, stage))
    return grouped


def _is(evaluation: Evaluation, place: Wanted) -> bool:
    """Return whether the evaluation is of that place: white-box, or as in the paper a substitute of the same seed."""
    return evaluation.whitebox if place.substitute is None else evaluation.substitute_recipe == place.substitute


@dataclass(frozen=True)
class Origin:
    """Where and with what results were computed."""

    environment: dict[str, object]
    evaluations: int


def origins(session: Session, evaluations: Sequence[int]) -> list[Origin]:
    """Return the environments of these evaluate stages, the commonest first."""
    counted: dict[str, list[dict[str, object]]] = {}
    for found in session.scalars(select(Result.environment).where(Result.stage_id.in_(set(evaluations)))):
        environment = {name: value for name, value in found.items() if name not in (SECONDS, LEFT_OUT)}
        counted.setdefault(canonical_json(environment), []).append(environment)
    return sorted((Origin(every[0], len(every)) for every in counted.values()), key=lambda found: -found.evaluations)
