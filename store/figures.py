"""Figures, as `GET /results/figures` and `/results/surfaces` list them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, aliased

from store.models import Job, JobStage, Result, Stage, StageArtifact, StageParent
from store.stages import IS_DRAW


@dataclass(frozen=True)
class DrawnFigure:
    """A draw stage with the keys of its models, what it found, and its artifacts (name -> sha256)."""

    stage: Stage
    models: list[str]
    payload: dict[str, Any] | None
    artifacts: dict[str, str]


@dataclass(frozen=True)
class FigureFilters:
    """What a list of figures is narrowed to; None means no restriction."""

    job: int | None = None
    suite: str | None = None
    dataset: str | None = None
    model: str | None = None
    kinds: Sequence[str] | None = None
    before: str | None = None
    """Key of a figure: only older ones."""


def figures(session: Session, filters: FigureFilters, limit: int) -> list[DrawnFigure]:
    """Return at most `limit` figures, newest first."""
    query = select(Stage).where(IS_DRAW).order_by(Stage.id.desc()).limit(limit)
    if filters.kinds is not None:
        query = query.where(Stage.spec["figure"]["kind"].as_string().in_(filters.kinds))
    if filters.dataset is not None:
        query = query.where(Stage.dataset == filters.dataset)
    for column, value in ((Job.id, filters.job), (Job.suite, filters.suite)):
        if value is not None:
            asked = select(JobStage.stage_id).join(Job, Job.id == JobStage.job_id).where(column == value)
            query = query.where(Stage.id.in_(asked))
    if filters.before is not None:
        query = query.where(Stage.id < select(Stage.id).where(Stage.key == filters.before).scalar_subquery())
    if filters.model is not None:
        query = query.where(_shows(filters.model))
    return _drawn(session, session.scalars(query).all())


def _shows(model: str) -> Any:
    """Return the SQL condition that a figure's part is the train stage `model`, or a look at it."""
    train = select(Stage.id).where(Stage.key == model).scalar_subquery()
    looks = select(StageParent.stage_id).where(StageParent.parent_id == train)
    part = select(StageParent.stage_id).where(or_(StageParent.parent_id == train, StageParent.parent_id.in_(looks)))
    return Stage.id.in_(part)


def _drawn(session: Session, drawn: Sequence[Stage]) -> list[DrawnFigure]:
    """Return what the stages have drawn, by three queries however many they are."""
    ids = [stage.id for stage in drawn]
    artifacts: dict[int, dict[str, str]] = {stage_id: {} for stage_id in ids}
    here = select(StageArtifact.stage_id, StageArtifact.name, StageArtifact.sha256)
    for stage_id, name, sha256 in session.execute(here.where(StageArtifact.stage_id.in_(ids))):
        artifacts[stage_id][name] = sha256
    found = select(Result.stage_id, Result.payload).where(Result.stage_id.in_(ids))
    payloads = dict(session.execute(found).all())
    models = _models(session, {part for stage in drawn for part in stage.spec["parts"]})
    return [
        DrawnFigure(stage, [models[part] for part in stage.spec["parts"]], payloads.get(stage.id), artifacts[stage.id])
        for stage in drawn
    ]


def _models(session: Session, parts: set[str]) -> dict[str, str]:
    """Return part -> key of the train stage it is, or is a look at."""
    train = aliased(Stage)
    rows = session.execute(
        select(Stage.key, train.key)
        .join(StageParent, StageParent.stage_id == Stage.id)
        .join(train, train.id == StageParent.parent_id)
        .where(Stage.key.in_(sorted(parts)))
    )
    return {part: part for part in parts} | {row[0]: row[1] for row in rows}
