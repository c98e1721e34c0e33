"""The per-example bits behind the cells of a matrix."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.stages.evaluate import CORRECT
from store.models import Stage, StageArtifact
from store.results import CHUNK


def bits_of(session: Session, evaluations: Sequence[str]) -> dict[str, str]:
    """Return key of an evaluate stage -> sha256 of its per-example bits."""
    found: dict[str, str] = {}
    query = (
        select(Stage.key, StageArtifact.sha256)
        .join(StageArtifact, StageArtifact.stage_id == Stage.id)
        .where(StageArtifact.name == CORRECT)
    )
    for start in range(0, len(evaluations), CHUNK):
        rows = session.execute(query.where(Stage.key.in_(evaluations[start : start + CHUNK])))
        found.update({row.key: row.sha256 for row in rows})
    return found
