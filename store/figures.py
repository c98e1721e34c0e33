"""Figures, as `GET /results/figures` and `/results/surfaces` list them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, aliased

from store.models import Job, JobStage, Result, Stage, StageArtifact, StageParent


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


def figures(session: Session, filters: FigureFilters, limit: int) -> list[DrawnFigure]:
    """Return at most `limit` figures, newest first."""
    query = select(Stage).where(Stage.kind == "draw").order_by(Stage.id.desc()).limit(limit)
    if filters.kinds is not None:
        query = query.where(Stage.spec["figure"]["kind"].as_string().in_(filters.kinds))
    if filters.dataset is not None:
        query = query.where(Stage.dataset == filters.dataset)
    for column, value in ((Job.id, filters.job), (Job.suite, filters.suite)):
        if value is not None:
            asked = select(JobStage.stage_id).join(Job, Job.id == JobStage.job_id).where(column == value)
            query = query.where(Stage.id.in_(asked))
    if filters.model is not None:
        query = query.where(_shows(filters.model))
    return [_drawn(session, stage) for stage in session.scalars(query)]


def _shows(model: str) -> Any:
    """Return the SQL condition that a figure's part is the train stage `model`, or a look at it."""
    train = select(Stage.id).where(Stage.key == model).scalar_subquery()
    looks = select(StageParent.stage_id).where(StageParent.parent_id == train)
    part = select(StageParent.stage_id).where(or_(StageParent.parent_id == train, StageParent.parent_id.in_(looks)))
    return Stage.id.in_(part)


def _drawn(session: Session, stage: Stage) -> DrawnFigure:
    rows = session.execute(select(StageArtifact.name, StageArtifact.sha256).where(StageArtifact.stage_id == stage.id))
    payload = session.scalar(select(Result.payload).where(Result.stage_id == stage.id))
    return DrawnFigure(stage, _models(session, stage.spec["parts"]), payload, {row.name: row.sha256 for row in rows})


def _models(session: Session, parts: Sequence[str]) -> list[str]:
    """Return the key of the train stage behind each part."""
    train = aliased(Stage)
    rows = session.execute(
        select(Stage.key, train.key)
        .join(StageParent, StageParent.stage_id == Stage.id)
        .join(train, train.id == StageParent.parent_id)
        .where(Stage.key.in_(list(parts)))
    )
    behind = {row[0]: row[1] for row in rows}
    return [behind.get(part, part) for part in parts]
