"""The per-example bits behind the cells of a matrix."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.stages.evaluate import CORRECT
from store.database import chunks
from store.models import Stage, StageArtifact


def bits_of(session: Session, evaluations: Sequence[str]) -> dict[str, str]:
    """Return key of an evaluate stage -> sha256 of its per-example bits."""
    found: dict[str, str] = {}
    query = (
        select(Stage.key, StageArtifact.sha256)
        .join(StageArtifact, StageArtifact.stage_id == Stage.id)
        .where(StageArtifact.name == CORRECT)
    )
    for chunk in chunks(evaluations):
        rows = session.execute(query.where(Stage.key.in_(chunk)))
        found.update({row.key: row.sha256 for row in rows})
    return found
