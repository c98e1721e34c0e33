"""Trained models, as `GET /models` lists them."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.stages.train import WEIGHTS
from store.models import Evaluation, JobModel, Stage, StageArtifact
from store.stages import IS_TRAINED


@dataclass(frozen=True)
class TrainedModel:
    """A succeeded train stage with its newest label and its clean accuracy."""

    stage: Stage
    label: str
    weights: str
    n: int | None
    n_correct: int | None


@dataclass(frozen=True)
class Page:
    """Trained models, newest first, and the cursor of the next page (None at the end)."""

    models: list[TrainedModel]
    cursor: int | None


def newest(session: Session, *, before: int | None, limit: int, dataset: str | None) -> Page:
    """Return one page of trained models."""
    query = (
        select(Stage, StageArtifact.sha256)
        .join(StageArtifact, (StageArtifact.stage_id == Stage.id) & (StageArtifact.name == WEIGHTS))
        .where(IS_TRAINED)
        .order_by(Stage.id.desc())
        .limit(limit + 1)
    )
    if before is not None:
        query = query.where(Stage.id < before)
    if dataset is not None:
        query = query.where(Stage.dataset == dataset)
    found = session.execute(query).all()
    rows = found[:limit]
    ids = [row[0].id for row in rows]
    labels, clean = _labels(session, ids), _clean(session, ids)
    models = [
        TrainedModel(stage, labels.get(stage.id, stage.title), weights, *clean.get(stage.id, (None, None)))
        for stage, weights in rows
    ]
    return Page(models, ids[-1] if len(found) > limit else None)


def _labels(session: Session, ids: Sequence[int]) -> dict[int, str]:
    rows = session.execute(
        select(JobModel.stage_id, JobModel.label).where(JobModel.stage_id.in_(ids)).order_by(JobModel.job_id)
    )
    return {row.stage_id: row.label for row in rows}


def _clean(session: Session, ids: Sequence[int]) -> dict[int, tuple[int | None, int | None]]:
    """Return the clean evaluation over the most images of each model."""
    rows = session.execute(
        select(Evaluation.target_id, Evaluation.n, Evaluation.n_correct)
        .where(Evaluation.target_id.in_(ids), Evaluation.substitute_id.is_(None), Evaluation.n.is_not(None))
        .order_by(func.coalesce(Evaluation.n, 0))
    )
    return {target_id: (n, n_correct) for target_id, n, n_correct in rows}
