"""Artifacts that nothing refers to: their rows are forgotten, then their bytes deleted.

What a crash leaves between the two, or a store that is away, is for the next collection.
"""

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store.artifacts import ArtifactStore, Stored, place_of
from store.database import Database, chunks, db_now, unhurried
from store.models import ENDED, Artifact, Checkpoint, Stage, StageArtifact


def collect(database: Database, store: ArtifactStore, grace_hours: float, *, dry_run: bool) -> tuple[int, int]:
    """Return number and bytes of the artifacts that nothing refers to, deleted unless `dry_run`.

    What was put within the grace is spared: a stage may be about to record it. So are the checkpoints of stages that
    ended within it, from which a job that revives them goes on.

    Raises:
        StoreAway: the store is another database's, or cannot be used.
    """
    store.require_ours()
    older_than = time.time() - 3600 * grace_hours
    ended = select(Stage.id).where(Stage.state.in_(ENDED), Stage.finished_at < db_now() - 3600 * grace_hours)
    outlived = Checkpoint.stage_id.in_(ended)
    with database.read() as session:
        unhurried(session)
        kept = referenced(session, StageArtifact.sha256.is_not(None), ~outlived)
    unused = list(store.unused(kept, older_than))
    if not dry_run:
        with database.write() as session:
            session.execute(delete(Checkpoint).where(outlived).execution_options(synchronize_session=False))
        unused = [found for chunk in chunks(unused) for found in _deleted(database, store, chunk, older_than)]
    return len(unused), sum(found.size for found in unused)


def _deleted(database: Database, store: ArtifactStore, some: Sequence[Stored], older_than: float) -> list[Stored]:
    with database.write() as session:
        names = _forgotten(session, [found.name for found in some])
    return [found for found in some if found.name in names and store.remove(found.place, older_than)]


def discard(database: Database, store: ArtifactStore, names: Sequence[str]) -> None:
    """Delete those of a few artifacts that nothing refers to any more, unless they are put again meanwhile."""
    if names:
        _deleted(database, store, [Stored(name, place_of(name), 0) for name in names], time.time())


def needed(database: Database, sha256: str) -> bool:
    """Return whether a row refers to the artifact at this moment: workers delete checkpoints that had their day."""
    with database.read() as session:
        return bool(referenced(session, StageArtifact.sha256 == sha256, Checkpoint.sha256 == sha256))


def _forgotten(session: Session, names: Sequence[str]) -> set[str]:
    """Return those of a few names that nothing refers to even now, after deleting their rows.

    Rows are locked before anyone asks who refers to them; what a worker is recording at this moment is left alone.
    """
    rows = select(Artifact.sha256).where(Artifact.sha256.in_(names))
    known = set(session.scalars(rows))
    mine = set(session.scalars(rows.order_by(Artifact.sha256).with_for_update(skip_locked=True)))
    kept = referenced(session, StageArtifact.sha256.in_(names), Checkpoint.sha256.in_(names))
    free = set(names) - (known - mine) - kept
    session.execute(delete(Artifact).where(Artifact.sha256.in_(free & mine)))
    return free


def referenced(session: Session, *where: Any) -> set[str]:
    """Return the sha256 of every artifact that a row refers to.

    `where` are conditions, where not all are meant: one on the artifacts of results, one on checkpoints.
    """
    of_results, of_checkpoints = select(StageArtifact.sha256), select(Checkpoint.sha256)
    if where:
        of_results, of_checkpoints = of_results.where(where[0]), of_checkpoints.where(where[1])
    return {*session.scalars(of_results.distinct()), *session.scalars(of_checkpoints.distinct())}
